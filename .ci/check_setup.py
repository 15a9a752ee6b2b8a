"""Whether every way of installing that this project names can be resolved by pip.

    make check-setup [CHECK_ARGS=--quick]

The ways are read where they are named, so that they cannot drift apart: what `make setup` installs
(the Makefile passes it as --also), each `pip install` of README.md and docs/, and each extra of
pyproject.toml. Each is resolved with `pip install --dry-run` by every Python of this machine, each
in a fresh virtual environment with the newest pip, which sees the package index and nothing that
lies on this machine. It needs the network and nothing beyond the standard library, and installs
nothing, though pip downloads wheels whose requirements the index does not tell; 5 to 10 minutes on
two cores. --quick takes this Python, what `make setup` installs and the bare package: a minute; and
it is content where nothing can be checked: the index cannot be reached, the disk has no room.

Exits 1 if a way fails, with pip's reason.
"""

import argparse
import concurrent.futures
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEAST = (3, 11)
TOLD = ("torch", "jax", "vllm", "libtpu")
"""Packages whose versions are shown, since machines get others."""
ROOM = 4 * 1024**3
"""Bytes of disk that one way takes at most while pip resolves it: torch for a GPU is 3.3e9."""


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--also", action="append", default=[], help="arguments of pip install")
    parser.add_argument("--quick", action="store_true", help="this Python, --also, bare package")
    options = parser.parse_args()
    ways = [*map(in_words, options.also), "."]
    if not options.quick:
        ways += [*documented(), *(in_words(f".[{extra}]") for extra in extras())]
    ways = list(dict.fromkeys(ways))
    with tempfile.TemporaryDirectory() as folder:
        found = [sys.executable] if options.quick else pythons()
        # A pip that runs out of room says so in words of many kinds, those of a bad network too.
        at_once = min(shutil.disk_usage(folder).free // ROOM, os.cpu_count() or 1)
        if at_once == 0:
            print(f"nothing checked: pip needs {ROOM / 1e9:.1f} GB of room in {folder}")
            return 0 if options.quick else 1
        environments = [fresh(python, Path(folder) / str(i)) for i, python in enumerate(found)]
        if (reason := unreachable(environments[0])) is not None:
            print(f"nothing checked: the package index cannot be reached\n{reason}")
            return 0 if options.quick else 1
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            jobs = [
                pool.submit(resolve, python, way, folder) for python in environments for way in ways
            ]
            failed = 0
            for job in concurrent.futures.as_completed(jobs):
                reason, line = job.result()
                failed += reason is not None
                print(line if reason is None else f"{line}\n{reason}", flush=True)
    print(f"{len(jobs) - failed} of {len(jobs)} ways of installing resolve")
    return int(failed > 0)


def in_words(arguments: str) -> str:
    """One spelling of pip's arguments; the package, which no index has, is this folder."""
    return shlex.join(
        re.sub(r"^optscale-jax(?=\[|$)", ".", word) for word in shlex.split(arguments)
    )


def documented() -> Iterator[str]:
    """The arguments of each `pip install` in README.md and docs/."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for arguments in re.findall(r"pip install\s+([^`\n]+)", path.read_text(encoding="utf-8")):
            words = in_words(arguments.partition(" #")[0])
            if words != "--upgrade pip":  # every environment here has begun with that
                yield words


def extras() -> list[str]:
    """The package's extras."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        return list(tomllib.load(file)["project"]["optional-dependencies"])


def pythons() -> list[str]:
    """An interpreter for each Python on the PATH or from pyenv that the package runs on."""
    paths = [sys.executable]
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        paths += glob.glob(os.path.join(glob.escape(folder), "python3.[0-9]*[0-9]"))
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    paths += glob.glob(os.path.join(glob.escape(pyenv), "versions", "*", "bin", "python3"))
    found: dict[tuple[int, ...], str] = {}
    for path in paths:
        ask = "import ensurepip, sys, venv; print(*sys.version_info[:2])"
        answer = subprocess.run([path, "-c", ask], capture_output=True, text=True)
        if answer.returncode == 0:
            found.setdefault(tuple(map(int, answer.stdout.split())), path)
    return [path for version, path in sorted(found.items()) if version >= LEAST]


def fresh(python: str, folder: Path) -> str:
    """Makes a virtual environment with the newest pip; returns its interpreter."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = str(folder / "bin" / "python")
    pip(inside, "--quiet", "--upgrade", "pip")
    return inside


def pip(python: str, *arguments: str, cwd: str | Path | None = None) -> subprocess.CompletedProcess:
    """Runs `pip install` with the package index alone."""
    helps = {"PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_PRE", "PIP_REQUIREMENT"}
    environment = {name: value for name, value in os.environ.items() if name not in helps}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    return subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def unreachable(python: str) -> str | None:
    """Why the package index cannot be asked for pip itself; None if it can."""
    done = pip(python, "--dry-run", "--ignore-installed", "--no-deps", "pip")
    return None if done.returncode == 0 else why(done.stdout)


def resolve(python: str, way: str, folder: str) -> tuple[str | None, str]:
    """Resolves one way; returns pip's reason if it fails, and the line that tells of it."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        # pip builds the package's metadata in its folder, and several do so at once.
        ignored = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")
        tree = shutil.copytree(ROOT, Path(own) / "tree", ignore=ignored)
        report = Path(own) / "report.json"
        dry = ["--dry-run", "--ignore-installed", "--report", str(report)]
        done = pip(python, *dry, *shlex.split(way), cwd=tree)
        told = ""
        if done.returncode == 0:
            packages = [one["metadata"] for one in json.loads(report.read_bytes())["install"]]
            versions = {package["name"]: package["version"] for package in packages}
            told = "".join(f", {name} {versions[name]}" for name in TOLD if name in versions)
            told = f"  ({len(packages)} packages{told})"
    version = subprocess.run([python, "-V"], capture_output=True, text=True).stdout.strip()
    outcome = "ok" if done.returncode == 0 else "failed"
    seconds = time.monotonic() - started
    line = f"{outcome:6}  {version:14}  {seconds:3.0f} s  pip install {way}{told}"
    return None if done.returncode == 0 else why(done.stdout), line


def why(output: str) -> str:
    """What pip says of a failure: the conflict if it names one, or else its errors."""
    _, _, conflict = output.partition("The conflict is caused by:\n")
    lines = conflict.partition("\n\n")[0].splitlines()
    lines = lines or [line for line in output.splitlines() if line.startswith("ERROR")]
    lines = lines or output.splitlines()[-5:]
    return "\n".join(f"        {line.strip()}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
