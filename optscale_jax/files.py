"""Files that are there whole or not at all, and what a record of a run says of this machine."""

import contextlib
import glob
import importlib.metadata
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from optscale_jax.errors import InputError

__all__ = [
    "append_lines",
    "atomic_write",
    "end_of_whole_lines",
    "new_folder",
    "package_versions",
    "refuse_bomb",
    "sync_folder",
    "unfinished",
]

# Text packs to a tenth and less; what packs to a two-hundredth says almost nothing.
_RATIO, _SMALL = 200, 1 << 28


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, binary: bool = False) -> Iterator[IO[Any]]:
    r"""A file to write, which takes the place of `path` when it is complete and on disk.

    Its folder is made if it does not exist. On any error, an OSError in writing too, it is removed,
    and `path` is as it was. Text is UTF-8 with lines that end in "\n".
    """
    path = Path(path)
    beside = unfinished(path)
    mode, encoding, newline = ("wb", None, None) if binary else ("w", "utf-8", "\n")
    with new_folder(path.parent):
        try:
            with open(beside, mode, encoding=encoding, newline=newline) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """Where what is to become `path` is written; what processes that have ended left there goes.

    It is in the same folder, because os.replace is atomic only within one file system.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = left.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        if re.fullmatch("[0-9]{1,9}", number) and not _runs(int(number)):
            shutil.rmtree(left, ignore_errors=True)
            with contextlib.suppress(OSError):  # it was a folder, or another process was first
                left.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _runs(process: int) -> bool:
    """Whether another process of this number may be at work."""
    if process == os.getpid():
        return False  # one of earlier had the same number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def append_lines(path: str | os.PathLike[str], lines: Sequence[bytes]) -> None:
    """Appends whole lines to a file, all or none, whoever else appends to it so at the same time.

    The file and its folder are made if they do not exist; a last line that a crash cut short is
    dropped. When it returns, the lines are on disk.
    """
    import fcntl  # which Windows has not

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        end = end_of_whole_lines(file, size)
        if end < size:
            os.ftruncate(file, end)
        try:
            view = memoryview(b"".join(lines))
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, end)
            raise
    finally:
        os.close(file)
    if is_new:
        sync_folder(path.parent)


def end_of_whole_lines(file: int, size: int) -> int:
    """Where the last line of a file of so many bytes ends that has its line end."""
    end = size
    while end > 0:
        start = max(0, end - (1 << 16))
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


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
