"""One way in for every format: each says whether it knows a source, and reads it."""

import contextlib
import functools
import inspect
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from optscale_jax.errors import PoolError, bad_input
from optscale_jax.plugins import PluginError, load_object
from optscale_jax.pool import Pool
from optscale_jax.pool_directory import MANIFEST, AnyPool, PoolDirectory
from optscale_jax.readers.inspect_ai import read_inspect
from optscale_jax.readers.jsonl import jsonl_blocks, read_jsonl
from optscale_jax.readers.layouts import LAYOUTS, read_batch, read_layout
from optscale_jax.readers.live import DECISIONS, SAMPLES, live_blocks, read_live_run
from optscale_jax.readers.lm_eval import read_lm_eval, sample_logs
from optscale_jax.readers.optscale import read_optscale
from optscale_jax.readers.records import Record, data_path, open_file, read_records
from optscale_jax.readers.search_and_learn import read_search_and_learn

__all__ = ["FORMATS", "Format", "Source", "detect_format", "open_pool", "pool_blocks", "read_pool"]


class Source(NamedTuple):
    """What a format is told from.

    Attributes:
        path: The file or folder.
        members: The names in an archive; () for anything else.
        fields: The first record; {} for an archive, and for a folder that is no data set.
    """

    path: Path
    members: tuple[str, ...]
    fields: dict[str, Any]


class Format(NamedTuple):
    """A format: whether a source is of it, and its reader."""

    knows: Callable[[Source], bool]
    read: Callable[..., AnyPool]
    # As `read`, some problems at a time, for options that concern each completion by itself.
    blocks: Callable[..., Iterator[Pool]] | None = None


def _has(*names: str) -> Callable[[Source], bool]:
    return lambda source: all(name in source.fields for name in names)


FORMATS: dict[str, Format] = {
    "parquet": Format(lambda source: (source.path / MANIFEST).is_file(), PoolDirectory),
    "live": Format(lambda source: (source.path / DECISIONS).is_file(), read_live_run, live_blocks),
    "npz": Format(lambda source: any(m.endswith(".npy") for m in source.members), Pool.load),
    "inspect_ai": Format(
        lambda source: (
            any(m.startswith(("header.", "samples/", "_journal/")) for m in source.members)
            or ("eval" in source.fields and "version" in source.fields)
        ),
        read_inspect,
    ),
    "lm_eval": Format(
        lambda source: (
            "resps" in source.fields or (source.path.is_dir() and bool(sample_logs(source.path)))
        ),
        read_lm_eval,
    ),
    "optscale": Format(lambda source: isinstance(source.fields.get("score"), dict), read_optscale),
    "search_and_learn": Format(_has("completions", "scores"), read_search_and_learn),
    "batch": Format(_has("custom_id"), read_batch),
    **{
        name: Format(
            lambda source, layout=layout: layout.recognises(source.fields),
            functools.partial(read_layout, layout=layout),
        )
        for name, layout in LAYOUTS.items()
    },
    "jsonl": Format(_has("problem_id"), read_jsonl, jsonl_blocks),
}
"""The formats by the names that `read_pool` takes; the first that knows a source reads it."""


def read_pool(path: str | os.PathLike[str], *, format: str = "auto", **options: Any) -> Pool:
    """Reads a pool from a file of any of the formats, as `open_pool`, all of it into memory."""
    pool = open_pool(path, format=format, **options)
    return pool if isinstance(pool, Pool) else pool.load()


def open_pool(path: str | os.PathLike[str], *, format: str = "auto", **options: Any) -> AnyPool:
    """Opens a pool of any of the formats; a pool directory stays on disk, to be read in blocks.

    Args:
        path: The file, packed by gzip or not; a folder with the files of one data set, of a live
            run, or of the harness's logs; a pool directory; or `hf://OWNER/NAME` for a data set on
            the hub.
        format: One of `FORMATS`, or "auto" to find out from the file's beginning; or
            `module:function` for a reader of one's own, a function of the path.
        **options: Options of the format's reader, such as `prompts=` and `kind=` for "optscale",
            `aggregation=` for "search_and_learn", `filter=` for "lm_eval".

    Returns:
        The pool.

    Raises:
        InputError: If the format is unknown or cannot be told, if its reader has no such option,
            or as the reader.
    """
    path, format, reader = _reader(path, format, options)
    pool = reader.read(path, **options)
    if not isinstance(pool, Pool | PoolDirectory):
        raise PoolError(f"{path}: the reader {format} gives {pool!r}; a reader returns a Pool")
    return pool


def pool_blocks(
    path: str | os.PathLike[str], *, format: str = "auto", **options: Any
) -> Iterator[Pool]:
    """Reads a pool some problems at a time, as `open_pool`.

    Of JSON lines, live runs and pool directories as many are in memory. In JSON lines a problem's
    have to stand together then. Pools of other formats, and those that are rescaled, are in memory
    as a whole.
    """
    place, _, reader = _reader(path, format, options)
    if reader.blocks is None or "rescale" in options:
        yield from open_pool(path, format=format, **options).blocks()
    else:
        yield from reader.blocks(place, **options)


def _reader(
    path: str | os.PathLike[str], format: str, options: Mapping[str, Any]
) -> tuple[Path, str, Format]:
    """Where a pool is, the name of its format, and that format, which has the options."""
    path = data_path(path)
    if (path / SAMPLES).is_file() and format != "live" and not (path / DECISIONS).is_file():
        path = path / SAMPLES
    if format == "auto":
        format = detect_format(path)
    with bad_input(str(path), (PluginError,)):
        found = load_object(format, what="format", shipped=FORMATS, must_call=False)
    if not isinstance(found, Format):
        if not callable(found):
            raise PoolError(f"{path}: {format} is no function of a path, and no Format")
        found = Format(lambda source: True, cast(Any, found))
    _, *known = inspect.signature(found.read).parameters
    known = [name for name in known if name != "layout"]
    for option in options:
        if option not in known:
            raise PoolError(
                f"{path}: a file of format {format!r} has no option {option!r} (it has "
                f"{', '.join(known) or 'none'})"
            )
    return path, format, found


def _begins(path: Path, magic: bytes) -> bool:
    with open_file(path) as file:
        return file.read(len(magic)) == magic


def detect_format(path: str | os.PathLike[str]) -> str:
    """Tells a file's format from its beginning.

    Args:
        path: The file, or the folder of a live run.

    Returns:
        One of `FORMATS`.

    Raises:
        InputError: If the file cannot be read, if its first record is not JSON, or if that record's
            fields are those of no format.
    """
    path = data_path(path)
    source = Source(path, (), {})
    first: Record | None = None
    if path.is_file() and _begins(path, b"PK"):
        if not zipfile.is_zipfile(path):
            raise PoolError(f"{path}: not a complete .npz file or .eval log; copy or make it again")
        with bad_input(str(path), (zipfile.BadZipFile, OSError)), zipfile.ZipFile(path) as archive:
            source = source._replace(members=tuple(archive.namelist()))
    elif not path.is_dir() or not any(
        FORMATS[name].knows(source) for name in ("live", "parquet", "lm_eval")
    ):
        # Closed here rather than when the garbage collector finds it half read.
        with contextlib.closing(read_records(path)) as records:
            first = next(records, None)
        if first is None:
            raise PoolError(f"{path}: no records; a pool has one problem at least")
        source = source._replace(fields=first.value)
    for name, format in FORMATS.items():
        if format.knows(source):
            return name
    known = f"the formats are {', '.join(FORMATS)}; see docs/formats.md"
    if first is None:
        raise PoolError(f"{path}: an archive of no known format; {known}")
    raise first.error(
        says=f"fields of no known format ({', '.join(list(source.fields)[:20]) or 'none'}); {known}"
    )
