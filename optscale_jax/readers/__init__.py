"""Readers: files of scored completions, in this project's formats and others', as pools.

`read_pool` finds out which format a file has; each format also has a function of its own, which
documents it. `docs/formats.md` shows them all. A reader keeps one record in memory at a time, so a
file may be larger than the memory, and it refuses what it cannot rely on with an `InputError` that
names the file, the record, the field and the remedy.
"""

from optscale_jax.readers.detect import (
    FORMATS,
    Format,
    Source,
    detect_format,
    open_pool,
    pool_blocks,
    read_pool,
)
from optscale_jax.readers.inspect_ai import read_inspect
from optscale_jax.readers.jsonl import read_jsonl, write_jsonl
from optscale_jax.readers.layouts import LAYOUTS, Layout, read_batch, read_layout
from optscale_jax.readers.live import read_live_run
from optscale_jax.readers.lm_eval import read_lm_eval
from optscale_jax.readers.optscale import read_optscale
from optscale_jax.readers.search_and_learn import read_search_and_learn

__all__ = [
    "FORMATS",
    "LAYOUTS",
    "Format",
    "Layout",
    "Source",
    "detect_format",
    "open_pool",
    "pool_blocks",
    "read_batch",
    "read_inspect",
    "read_jsonl",
    "read_layout",
    "read_live_run",
    "read_lm_eval",
    "read_optscale",
    "read_pool",
    "read_search_and_learn",
    "write_jsonl",
]
