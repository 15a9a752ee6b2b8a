"""What a command leaves and shows: files that appear when they are complete, tables."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from optscale_jax.errors import InputError, bad_input
from optscale_jax.files import atomic_write, new_folder, unfinished

__all__ = ["output_file", "output_folder", "output_place", "show"]

_NARROW = 80  # a terminal of fewer columns gets tables without space around their cells


@contextlib.contextmanager
def output_place(out: Path, *, folder: bool) -> Iterator[Path]:
    """Has what stands in the way of an output said in one line.

    Args:
        out: Where it goes, possibly a link to what does not exist yet.
        folder: Whether it is a folder or a file.

    Yields:
        Its full path, of which the last link is followed.

    Raises:
        InputError: If it is the other of the two, or writing there fails.
    """
    out = out.expanduser().resolve()
    if out.exists() and out.is_dir() != folder:
        is_one, give = ("file", "folder") if folder else ("folder", "file")
        raise InputError(f"--out: {out} is a {is_one}; give a {give}")
    with bad_input("--out", (OSError,)):
        yield out


@contextlib.contextmanager
def output_folder(
    out: Path, owned: Collection[str], *, beside: Collection[str] = ()
) -> Iterator[Path]:
    """A folder to write a command's files into, which appear in `out` only when all are complete.

    Args:
        out: Where the files go; made if it does not exist. Other files in it are left alone.
        owned: All names that the command may write; patterns such as `*/figure.png` for files in
            folders of any name. Those that this run does not write are removed from `out`, so that
            no file of an earlier run stands beside this one's.
        beside: Names of further files in folders. A folder that such a removal leaves with nothing
            else is removed as a whole.

    Yields:
        An empty folder beside `out`. On any error it is removed, and `out` is as it was.

    Raises:
        InputError: If `out` is not a folder, or files cannot be written there.
    """
    with output_place(out, folder=True) as out, new_folder(out.parent):
        made = unfinished(out)
        made.mkdir()
        try:
            yield made
            written = sorted(file for file in made.rglob("*") if file.is_file())
            names = {file.relative_to(made) for file in written}
            for name in sorted(names):
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(made / name, out / name)
            earlier = {file for pattern in owned for file in out.glob(pattern) if file.is_file()}
            earlier -= {out / name for name in names}
            for file in earlier:
                file.unlink()
            for folder in {file.parent for file in earlier} - {(out / n).parent for n in names}:
                if {*os.listdir(folder)} <= {*beside} and folder != out:
                    shutil.rmtree(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def output_file(out: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file to write, of text unless it is binary, which appears only when it is complete.

    Raises:
        InputError: If `out` is a folder, or the file cannot be written there.
    """
    with output_place(out, folder=False) as out, atomic_write(out, binary=binary) as file:
        yield file


def show(*parts: Any, style: str | None = None) -> None:
    """Prints tables and text on stdout, in a log so wide that their lines need not break."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    for table in parts:
        if isinstance(table, Table) and console.width < _NARROW:
            table.padding = (0, 0)
    console.print(*parts, style=style)
