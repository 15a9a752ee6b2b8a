"""One way in for every format: looks at the beginning of a file and calls its reader."""

import contextlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optscale_jax.errors import PoolError, bad_input
from optscale_jax.plugins import PluginError, load_object
from optscale_jax.pool import Pool
from optscale_jax.readers.jsonl import read_jsonl
from optscale_jax.readers.live import DECISIONS, SAMPLES, read_live_run
from optscale_jax.readers.lm_eval import read_lm_eval
from optscale_jax.readers.optscale import read_optscale
from optscale_jax.readers.records import open_file, read_records
from optscale_jax.readers.search_and_learn import read_search_and_learn

__all__ = ["FORMATS", "detect_format", "read_pool"]

FORMATS: dict[str, Callable[..., Pool]] = {
    "npz": Pool.load,
    "jsonl": read_jsonl,
    "optscale": read_optscale,
    "search_and_learn": read_search_and_learn,
    "lm_eval": read_lm_eval,
    "live": read_live_run,
}
"""The readers, by the name that `read_pool` takes."""

# An .npz file is a ZIP archive.
_ZIP = b"PK"


def read_pool(path: str | os.PathLike[str], *, format: str = "auto", **options: Any) -> Pool:
    """Reads a pool from a file of any of the formats.

    Args:
        path: The file; or a folder with a `samples.jsonl` in it, such as that of a live run.
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
    path = Path(path)
    if (path / SAMPLES).is_file() and format != "live" and not (path / DECISIONS).is_file():
        path = path / SAMPLES
    if format == "auto":
        format = detect_format(path)
    with bad_input(str(path), (PluginError,)):
        reader = load_object(format, what="format", shipped=FORMATS)
    _, *known = inspect.signature(reader).parameters
    for option in options:
        if option not in known:
            raise PoolError(
                f"{path}: a file of format {format!r} has no option {option!r} (it has "
                f"{', '.join(known)})"
            )
    pool = reader(path, **options)
    if not isinstance(pool, Pool):
        raise PoolError(f"{path}: the reader {format} gives {pool!r}; a reader returns a Pool")
    return pool


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
    path = Path(path)
    if (path / DECISIONS).is_file():
        return "live"
    with open_file(path) as file:
        if file.read(len(_ZIP)) == _ZIP:
            return "npz"
    # Closed here rather than when the garbage collector finds it half read.
    with contextlib.closing(read_records(path)) as records:
        first = next(records, None)
    if first is None:
        raise PoolError(f"{path}: no records; a pool has one problem at least")
    fields = first.value
    if isinstance(fields.get("score"), dict):
        return "optscale"
    if "resps" in fields:
        return "lm_eval"
    if "completions" in fields:
        return "search_and_learn"
    if "problem_id" in fields:
        return "jsonl"
    raise first.error(
        says=f"fields of no known format ({', '.join(fields) or 'none'}); the formats are "
        f"{', '.join(FORMATS)}; see docs/formats.md"
    )
