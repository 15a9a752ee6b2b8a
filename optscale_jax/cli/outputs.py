"""What a command leaves and shows: files that appear when they are complete, tables, progress."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from optscale_jax.errors import InputError, bad_input

__all__ = ["output_file", "output_folder", "progress", "show"]


@contextlib.contextmanager
def output_folder(out: Path, owned: Collection[str]) -> Iterator[Path]:
    """A folder to write a command's files into, which appear in `out` only when all are complete.

    Args:
        out: Where the files go; made if it does not exist. Other files in it are left alone.
        owned: All names that the command may write; patterns such as `*/figure.png` for files in
            folders of any name. Those that this run does not write are removed from `out`, so that
            no file of an earlier run stands beside this one's.

    Yields:
        An empty folder beside `out`. On any error it is removed, and `out` is as it was.

    Raises:
        InputError: If `out` is not a folder, or files cannot be made there.
    """
    out = out.expanduser().resolve()
    # A sibling, because os.replace is atomic only within one file system.
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with bad_input("--out", (OSError,)):
        if out.exists() and not out.is_dir():
            raise InputError(f"--out: {out} is a file; give a folder")
        unfinished.mkdir(parents=True)
    try:
        yield unfinished
        with bad_input("--out", (OSError,)):
            out.mkdir(exist_ok=True)
            written = sorted(file for file in unfinished.rglob("*") if file.is_file())
            names = {file.relative_to(unfinished) for file in written}
            for file in written:
                target = out / file.relative_to(unfinished)
                target.parent.mkdir(exist_ok=True)
                os.replace(file, target)
            for pattern in owned:
                for file in list(out.glob(pattern)):
                    if file.relative_to(out) not in names and not file.is_dir():
                        file.unlink()
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def output_file(out: Path) -> Iterator[TextIO]:
    """A text file to write, which appears as `out` only when it is complete.

    Args:
        out: The file; its folder is made if it does not exist.

    Yields:
        A file beside `out`. On any error it is removed, and `out` is as it was.

    Raises:
        InputError: If a file cannot be made there.
    """
    out = out.expanduser().resolve()
    # A sibling, because os.replace is atomic only within one file system.
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with bad_input("--out", (OSError,)):
        if out.is_dir():
            raise InputError(f"--out: {out} is a folder; give a file")
        out.parent.mkdir(parents=True, exist_ok=True)
        file = open(unfinished, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    try:
        with file:
            yield file
        with bad_input("--out", (OSError,)):
            os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)


def progress() -> Progress:
    """A progress bar on stderr, which vanishes when it is done; nothing where no one is looking."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def show(*parts: Any, style: str | None = None) -> None:
    """Prints tables and text on stdout, in a log so wide that their lines need not break."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(*parts, style=style)
