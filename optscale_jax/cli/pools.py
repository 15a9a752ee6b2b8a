"""Pools as a command's arguments name them: any format that `read_pool` knows, with its options."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Literal

from optscale_jax.errors import bad_input
from optscale_jax.pool import Pool
from optscale_jax.readers import read_pool
from optscale_jax.shipped import located

__all__ = ["ReadConfig", "checksum", "load_pool"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How to read a file of completions; docs/formats.md has the formats.

    Attributes:
        format: The file's format: npz, jsonl, optscale, search_and_learn or lm_eval. auto: found
            out from its beginning.
        scores: Which scores to take: of an npz file the array of that name; of an optscale file
            scores (means of the step scores) or last_scores.
        clip: Whether to move scores outside [0, 1] to the nearer end instead of refusing them.
        prompts: Of an optscale file, the file with its problems and gold answers.
        kind: Of an optscale file, whether its completions are parallel or sequential. null:
            parallel. The other formats say it themselves.
        aggregation: Of a search_and_learn file, what makes a score of step scores: last, mean, min
            or prod. null: last.
        filter: Of an lm_eval file, the filter whose answers to take. null: read them off the
            completions.
        metric: Of an lm_eval file, the metric to take correctness from. null: compare answers.
    """

    format: str = "auto"
    scores: str = "scores"
    clip: bool = False
    prompts: str | None = None
    kind: Literal["parallel", "sequential"] | None = None
    aggregation: str | None = None
    filter: str | None = None
    metric: str | None = None


def load_pool(path: str, config: ReadConfig) -> Pool:
    """Reads a pool.

    Args:
        path: The file, or a folder with a `samples.jsonl` in it; `package:NAME/PATH` for one in a
            package.
        config: How to read it.

    Returns:
        The pool.

    Raises:
        InputError: If it cannot be read, or an option is not one of its format.
    """
    defaults = ReadConfig()
    options: dict[str, Any] = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(ReadConfig)
        # Only what was asked for: a format refuses options that it does not have.
        if field.name != "format" and getattr(config, field.name) != getattr(defaults, field.name)
    }
    with bad_input():
        return read_pool(located(path), format=config.format, **options)


def checksum(path: str) -> str:
    """SHA-256 of a pool's file, read in pieces, because it may be larger than the memory."""
    file = Path(located(path))
    if file.is_dir():
        file = file / "samples.jsonl"
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
