"""Run directories: what a live run's policy decided on, as a pool.

A run keeps every completion that ended, also those that ended before longer ones launched ahead of
them were aborted. They are short ones, so a pool must not hold them: of a problem that is decided
it gets the completions that the decision rests on, and of one that is not, those up to the first
that is still missing.
"""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from optscale_jax.calibration import NOT_KNOWN, Origin
from optscale_jax.derived_signals import STEP_SIGNALS
from optscale_jax.errors import PoolError
from optscale_jax.pool import Pool, Rescale
from optscale_jax.readers.jsonl import blocks_of_records, pool_of_records
from optscale_jax.readers.records import Record, read_records

__all__ = ["DECISIONS", "SAMPLES", "live_blocks", "read_live_run"]

_COUNT = "give the number of completions decided on"
_SCORE_FIELDS = {"score": "score", "logprob": "mean_logprob"}
SAMPLES, DECISIONS, CONFIG = "samples.jsonl", "decisions.jsonl", "config.yaml"


def read_live_run(
    path: str | os.PathLike[str],
    *,
    scores: str = "score",
    clip: bool = False,
    rescale: Rescale | None = None,
) -> Pool:
    """Reads the directory of a live run, also one that was cut off or is still going on.

    Args:
        path: The directory.
        scores: "score", the verifier's; "logprob", exp of the mean log-probability, which a run
            with `sampler.logprobs: true` has of every completion and needs no verifier; or
            "mean_step", "min_step" or "last_step" of a verifier's step scores.
        clip: Move scores outside [0, 1] to the nearer end instead of refusing them.
        rescale: How to bring scores of any range into [0, 1], one of `Rescale`.

    Returns:
        The pool: problems in order of first appearance, completions in launch order. A last line
        that is cut short is passed over.

    Raises:
        ValueError: If `scores` is something else.
        InputError: If a file cannot be read or holds what is not a record of a run, or if no
            problem has a completion yet.
    """
    path = Path(path)
    fields, signal, source = _score_fields(scores), _signal(scores), str(path / SAMPLES)
    records = _counted(path, _counts(path))
    how: dict[str, Any] = {"clip": clip, "rescale": rescale}
    found = pool_of_records(
        records, source=source, score_fields=fields, **({} if signal else how)
    ).with_origin(_origin(path, scores))
    return found if signal is None else found.scored_by(signal, source=source, **how)


def live_blocks(
    path: str | os.PathLike[str], *, scores: str = "score", clip: bool = False
) -> Iterator[Pool]:
    """What `read_live_run` reads, in pools of `BLOCK` problems each, in the memory of one.

    Problems are in the order in which the last of their completions ended. The records of those
    that were being drawn at the same time are in memory, too.
    """
    path = Path(path)
    fields, signal, source = _score_fields(scores), _signal(scores), str(path / SAMPLES)
    counts = _counts(path)
    records = _together(_counted(path, counts), counts)
    for block in blocks_of_records(
        records, source=source, clip=clip and signal is None, score_fields=fields
    ):
        own = block.with_origin(_origin(path, scores))
        yield own if signal is None else own.scored_by(signal, clip=clip, source=source)


def _score_fields(scores: str) -> tuple[str]:
    """What a run did not score has no scores, whatever else is known of it."""
    known = (*_SCORE_FIELDS, *STEP_SIGNALS)
    if scores not in known:
        raise ValueError(
            f"scores={scores!r}: a live run has {', '.join(known[:-1])} or {known[-1]}"
        )
    return (_SCORE_FIELDS.get(scores, "score"),)


def _signal(scores: str) -> str | None:
    """The signal of the pool that is taken for its scores; None: they are in a field."""
    return scores if scores in STEP_SIGNALS else None


def _counts(path: Path) -> dict[str, int]:
    """How many completions of each problem count: those decided on, or up to a missing one."""
    counts = {
        record.label("problem_id"): record.whole("num_samples", least=0, says=_COUNT)
        for record in _records(path, DECISIONS)
    }
    drawn: dict[str, set[int]] = {}
    for record in _records(path, SAMPLES):
        if (name := record.label("problem_id")) not in counts:
            drawn.setdefault(name, set()).add(_index(record))
    counts |= {
        name: next(i for i in itertools.count() if i not in indices)
        for name, indices in drawn.items()
    }
    if not any(counts.values()):
        raise PoolError(f"{path}: no problem has a completion yet")
    return counts


def _counted(path: Path, counts: Mapping[str, int]) -> Iterator[Record]:
    """The records that count."""
    for record in _records(path, SAMPLES):
        if _index(record) < counts[record.label("problem_id")]:
            yield record


def _together(records: Iterable[Record], counts: Mapping[str, int]) -> Iterator[Record]:
    """The same records, each problem's one after the other, as soon as all of them are there."""
    held: dict[str, list[Record]] = {}
    for record in records:
        name = record.label("problem_id")
        held.setdefault(name, []).append(record)
        if len(held[name]) == counts[name]:
            yield from held.pop(name)
    yield from itertools.chain(*held.values())


def _origin(path: Path, scores: str) -> Origin:
    """Who made completions and scores, as the run's configuration says."""
    # A run that was opened in Python may have any configuration.
    with contextlib.suppress(OSError, UnicodeError, yaml.YAMLError, AttributeError, LookupError):
        asked = yaml.safe_load((path / CONFIG).read_text("utf-8"))
        verifier = asked["verifier"] if asked.get("verify") else {}
        recorded = asked.get("recorded") or {}
        if scores == "logprob" and not recorded.get("pool"):
            return Origin("mean log-probability", None, asked["sampler"].get("model"))
        if not recorded.get("pool"):
            steps = verifier.get("aggregate") if verifier.get("kind") == "prm" else None
            return Origin(verifier.get("model"), steps, asked["sampler"].get("model"))
    return NOT_KNOWN


def _index(record: Record) -> int:
    return record.whole("index", least=0, says="count a problem's completions from 0")


def _records(path: Path, name: str) -> Iterator[Record]:
    """Those of the run itself, then those that shards at work on it still have."""
    shards = sorted(path.glob(f"shards/*/{name}"))
    seen = set()
    for file in (path / name, *shards):
        for record in _whole_lines(file):
            # In two logs where a run was cut off as its shards' became its own.
            one = repr((record.value.get("problem_id"), record.value.get("index")))
            if one not in seen:
                yield record
            if shards:
                seen.add(one)


def _whole_lines(path: Path) -> Iterator[Record]:
    if not path.is_file():
        raise PoolError(f"{path}: no such file; give the directory of a live run")
    with open(path, "rb") as file:
        count = sum(line.endswith(b"\n") and not line.isspace() for line in file)
    return itertools.islice(read_records(path), count) if count else iter(())
