"""Files that are there whole or not at all, and what a record of a run says of this machine."""

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from optscale_jax.errors import InputError

__all__ = ["atomic_write", "new_folder", "package_versions", "refuse_bomb", "sync_folder"]

# Text packs to a tenth and less; what packs to a two-hundredth says almost nothing.
_RATIO, _SMALL = 200, 1 << 28


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, binary: bool = False) -> Iterator[IO[Any]]:
    r"""A file to write, which takes the place of `path` when it is complete and on disk.

    Its folder is made if it does not exist. On any error, an OSError in writing too, it is removed,
    and `path` is as it was. Text is UTF-8 with lines that end in "\n".
    """
    path = Path(path)
    # In the same folder, because os.replace is atomic only within one file system.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    mode, encoding, newline = ("wb", None, None) if binary else ("w", "utf-8", "\n")
    with new_folder(path.parent):
        try:
            with open(unfinished, mode, encoding=encoding, newline=newline) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
            sync_folder(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Makes a folder and those above it that are missing; on any error they go again."""
    made = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for one in made:
            with contextlib.suppress(OSError):  # something else is in it by now
                one.rmdir()
        raise


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on disk, those of new files among them."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def package_versions(*names: str) -> dict[str, str | None]:
    """The versions of packages, for the record of a run; None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def refuse_bomb(source: str, unpacked: int, packed: int) -> None:
    """Refuses what unpacks out of proportion.

    Args:
        source: What it is, for the complaint.
        unpacked: Its size, as claimed or so far, in bytes.
        packed: Its size on disk.

    Raises:
        InputError: If it is large, and hundreds of times larger than on disk.
    """
    if unpacked > max(_SMALL, _RATIO * packed):
        raise InputError(
            f"{source}: {packed} bytes that unpack to {unpacked} and more, which no data "
            "does; copy or make it again"
        )
