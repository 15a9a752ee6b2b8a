"""The documentation holds: its code runs, its commands are commands, its links lead somewhere.

Pages in `RUN` run as they stand, block after block, each in a folder of its own; a block whose
first line is a comment with a file's name is that file. Elsewhere, and where a command needs a
model or a server, commands are parsed and their configurations built, and Python is compiled and
its imports done. `make docs` builds the site.
"""

import ast
import contextlib
import importlib
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from optscale_jax.cli.commands import COMMANDS
from optscale_jax.cli.console import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted(DOCS.rglob("*.md"))
FENCE = re.compile(
    r"(?:`([\w.]+\.\w+)`:\n\n)?^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL
)
FILE = re.compile(r"# ([\w.]+\.\w+)\n")
RUN = ["tutorial.md", "own_pool.md", "labels.md", "concepts.md", "policies.md", "../README.md"]
# What needs a model, or minutes.
PARSED = [
    "solve --config tiny_vote",
    "sample --config tiny",
    "report --pools new.npz",
    "show runs/live",
]
MOST_LINES = 30  # of an example of how to extend
# The warnings of inspect_ai and of what it uses are theirs.
MARKS = {
    "A policy in inspect_ai": [pytest.mark.inspect_ai, pytest.mark.filterwarnings("ignore")],
}
OTHERS = {"vllm", "vllm-router", "awk", "curl", "docker", "hf", "serve", "ray", "cd", "."}


def blocks(text):
    """Language and text of each fenced block, without the indent of the list that it stands in.

    The name of a file before the block, as in "`mine.jsonl`:", becomes its first line.
    """
    for file, indent, language, body in FENCE.findall(text):
        named = f"# {file}\n" if file else ""
        yield language, named + re.sub(f"^{indent}", "", body, flags=re.MULTILINE)


def commands(text):
    """The command lines of a block, without prompts and what they print."""
    text = text.replace("\\\n", " ")
    prompted = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    for line in prompted or text.splitlines():
        if words := shlex.split(line, comments=True):
            yield words


SECTIONS = dict(
    re.findall(
        r"^## ([^\n]+)\n(.*?)(?=^## |\Z)",
        (DOCS / "extend.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


def run(text, where, folder, runs):
    names: dict[str, object] = {"__name__": "example"}
    for language, body in blocks(text):
        if file := FILE.match(body):
            (folder / file[1]).write_text(body.removeprefix(file[0]))
            if file[1].endswith(".py"):
                importlib.import_module(file[1].removesuffix(".py"))
        elif language == "python":
            exec(compile(body, where, "exec"), names)
        elif language in ("console", "sh"):
            for words in commands(body):
                if (
                    words[0] == "optscale"
                    and language in runs
                    and not any(one in " ".join(words) for one in PARSED)
                ):
                    assert main(words[1:]) == 0, words
                else:
                    check(words)


@pytest.mark.parametrize(
    "heading", [pytest.param(heading, marks=MARKS.get(heading, ())) for heading in SECTIONS]
)
def test_examples_of_how_to_extend_run(heading, folder):
    found = list(blocks(SECTIONS[heading]))
    assert found
    for _, text in found:
        assert len([line for line in text.splitlines() if line.strip()]) <= MOST_LINES
    run(SECTIONS[heading], heading, folder, ["console"])


@pytest.mark.parametrize("page", RUN)
def test_pages_run_as_they_stand(page, folder):
    run((DOCS / page).read_text(), page, folder, ["console", "sh"])


# Commands -----------------------------------------------------------------------------------------


class Built(Exception):
    """A command came as far as its configuration."""


def check(words):
    """Holds a command line to what there is, without running it."""
    while "=" in words[0]:  # an environment variable
        words = words[1:]
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {one for one in arguments if "=" not in one} <= {*targets}, words
    elif program == "pip":
        extras = re.findall(r"\[([\w,-]+)\]", " ".join(arguments).replace("jax[cuda13]", ""))
        with open(ROOT / "pyproject.toml", "rb") as file:
            known = tomllib.load(file)["project"]["optional-dependencies"]
        assert {one for extra in extras for one in extra.split(",")} <= {*known, "tpu"}, words
    elif program == "python" and arguments[0] != "-m":
        assert Path(arguments[0]).exists(), words  # written by the page
    elif program == "optscale" and arguments == ["--help"]:
        assert main(arguments) == 0
    elif program.endswith("python") and arguments[0] == "-m":
        module = arguments[1]
        if module in COMMANDS.values():
            name = next(name for name, at in COMMANDS.items() if at == module)
            check(["optscale", name, *arguments[2:]])
        else:
            assert module in ("optscale_jax.tiny", "pytest") or module.startswith("vllm."), words
    elif program == "optscale":
        # The package has a function of the module's name.
        module = importlib.import_module("optscale_jax.cli.command")
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Built):
            patch.setattr(module, "parse", parsed(module.parse))
            assert main(arguments) == 0, words
            raise AssertionError(f"{words}: no configuration was built")
    else:
        assert program in OTHERS, words


def parsed(parse):
    def build(*arguments, **options):
        parse(*arguments, **options)
        raise Built

    return build


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_every_page_is_what_it_seems(page, folder):
    (folder / "configs").symlink_to(ROOT / "configs")
    for language, body in blocks(page.read_text()):
        if file := FILE.match(body):
            (folder / file[1]).write_text(body)
        if language in ("console", "sh"):
            for words in commands(body):
                if "..." not in words:
                    check(words)
        elif language == "python":
            for node in ast.walk(ast.parse(body)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("optscale_jax"):
                    assert importlib.util.find_spec(str(node.module)), body
                    with contextlib.suppress(ModuleNotFoundError):  # an extra is not installed
                        module = importlib.import_module(str(node.module))
                        assert all(hasattr(module, name.name) for name in node.names), body
        elif language == "yaml":
            assert isinstance(yaml.safe_load(body), dict)
        else:
            assert language in ("json", "csv", "text", "bibtex"), language


# Links --------------------------------------------------------------------------------------------


def anchors(page):
    """The ids of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        yield re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_there_are(page):
    drawn = {f"figures/{name}.svg" for name in re.findall(r"^@drawn\ndef (\w+)", HOOKS, re.M)}
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target) or target in drawn:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in set(anchors(file)), target


HOOKS = (DOCS / "hooks.py").read_text()


def test_every_page_is_in_the_navigation_of_the_site():
    class Loader(yaml.SafeLoader):
        pass

    def named(node):
        return [node] if isinstance(node, str) else [p for v in node for p in named_in(v)]

    def named_in(value):
        return named(next(iter(value.values()))) if isinstance(value, dict) else [value]

    found = named(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    made = re.findall(r'^    "(\w+\.md)":', HOOKS, re.MULTILINE)
    assert {*found} == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | {*made}
    assert len(found) == len({*found})
