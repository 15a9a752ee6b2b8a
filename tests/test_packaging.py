"""The wheel: what is in it, and that the console script runs from it, far from the repository."""

import configparser
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("optscale_jax", "eval", "train", "configs")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
MOVED = {
    "eval": "optscale_jax/cli/commands/eval",
    "train": "optscale_jax/cli/commands/train",
    "configs": "optscale_jax/configs",
}


def built_with() -> list[str]:
    """How pip builds: with the setuptools at hand if it is new enough, else with one of its own."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return []
    return ["--no-build-isolation"] if int(version.partition(".")[0]) >= 77 else []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in BUILT_FROM:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for file in FILES:
        shutil.copy(ROOT / file, source / file)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", *built_with()]
    subprocess.run([*build, "--wheel-dir", str(out), str(source)], check=True)
    (found,) = out.glob("*.whl")
    return found


def test_a_wheel_has_everything_and_no_package_of_a_common_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entries = configparser.ConfigParser()
        (file,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        entries.read_string(archive.read(file).decode())
    assert dict(entries["console_scripts"]) == {"optscale": "optscale_cli:main"}
    expected = {"optscale_cli/__init__.py"}
    for folder in BUILT_FROM:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                inside = path.relative_to(ROOT / folder).as_posix()
                expected.add(f"{MOVED.get(folder, folder)}/{inside}")
    assert names == expected


def test_the_commands_run_from_a_wheel_beside_a_file_of_a_commands_name(wheel, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in ("eval", "train", "replay"):
        (work / f"{name}.py").write_text("raise SystemExit('mine')\n")
    # As the script that pip makes: its own folder is on the path, and not the one it is run in.
    script = tmp_path / "optscale"
    script.write_text("import sys\nfrom optscale_cli import main\nsys.exit(main())\n")
    environment = {**os.environ, "PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}

    def optscale(*arguments: str) -> subprocess.CompletedProcess[str]:
        given = [sys.executable, str(script), *arguments]
        return subprocess.run(given, cwd=work, env=environment, capture_output=True, text=True)

    listed = optscale()
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "compare-priors" in listed.stdout
    small = ["--synthetic.num_problems=4", "--permutations=1", "--resamples=10", "--compare=[]"]
    small += ["--baseline=null", "--policy.s_min=0.9", "--out=out"]
    ran = optscale("replay", "--config", "demo", *small)
    assert ran.returncode == 0, ran.stderr
    assert (work / "out" / "results.csv").is_file()
    # Data of the package, named by a shipped configuration.
    pool = ["--pool=package:optscale_jax/tiny/pool.npz", "--policy.name=best_of_n", "--policy.n=2"]
    ran = optscale("replay", *pool, "--permutations=1", "--resamples=10", "--out=out")
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in work.iterdir()} == {"eval.py", "out", "replay.py", "train.py"}
