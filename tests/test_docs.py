"""The examples of the documentation run as they stand on the page."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from optscale_jax.cli.console import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extend.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = dict(
    re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
)
MOST_LINES = 30
# The warnings of inspect_ai and of what it uses are theirs.
MARKS = {
    "A policy in inspect_ai": [pytest.mark.inspect_ai, pytest.mark.filterwarnings("ignore")],
}


@pytest.mark.parametrize(
    "heading", [pytest.param(heading, marks=MARKS.get(heading, ())) for heading in SECTIONS]
)
def test_examples_of_how_to_extend_run(heading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    names: dict[str, object] = {"__name__": "example"}
    found = FENCE.findall(SECTIONS[heading])
    assert found
    try:
        for language, text in found:
            file = re.match(r"# ([\w.]+\.(?:py|yaml|csv))\n", text)
            code = [line for line in text.splitlines() if line.strip()]
            assert len(code) <= MOST_LINES
            if file:
                (tmp_path / file[1]).write_text(text.removeprefix(file[0]))
                if file[1].endswith(".py"):
                    importlib.import_module(file[1].removesuffix(".py"))
            elif language == "python":
                exec(compile(text, heading, "exec"), names)
            elif language == "console":
                for line in text.splitlines():
                    command, *arguments = shlex.split(line.removeprefix("$ "))
                    assert command == "optscale"
                    assert main(arguments) == 0, line
    finally:
        for file in tmp_path.glob("*.py"):
            sys.modules.pop(file.stem, None)
