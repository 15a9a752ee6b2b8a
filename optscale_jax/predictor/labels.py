"""Labels of a predictor: the statistics of each problem's scores, with the problem's text.

One JSON object a line, as `python -m train.labels` writes it:

    {"problem_id": "math/7", "n": 64, "mean": 0.93, "m2": 0.31, "problem": "How many ..."}

Builds on `ScoreStats`, which says what m2 is, and on the readers of pools.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optscale_jax.errors import PredictorError
from optscale_jax.estimation import ScoreStats
from optscale_jax.pool import Pool
from optscale_jax.problems import ID_FIELDS, TEXT_FIELDS
from optscale_jax.readers.records import Record, read_records, shown

__all__ = ["Labels", "labels_of_pool", "lines", "read_labels"]


@dataclasses.dataclass(frozen=True)
class Labels:
    """Statistics and texts of P problems.

    Attributes:
        problem_ids: Their names; a problem that was scored twice may be there twice.
        texts: The problems' texts; None where a problem's is not known.
        stats: Count, mean and centred sum of squares of each problem's scores, float64 [P].
        source: Where they come from, for messages.
    """

    problem_ids: tuple[str, ...]
    texts: tuple[str | None, ...]
    stats: ScoreStats
    source: str

    def __len__(self) -> int:
        """P."""
        return len(self.problem_ids)

    @property
    def sd(self) -> np.ndarray:
        """[P] standard deviation of each problem's scores, with n in the denominator."""
        return np.sqrt(self.stats.m2 / self.stats.n)

    def rounded(self) -> ScoreStats:
        """The statistics in float32, in which they are computed with."""
        return ScoreStats(*(np.float32(v) for v in vars(self.stats).values()))

    def take(self, rows: Any) -> "Labels":
        """The labels of some of the problems, by indices or by a mask."""
        rows = np.arange(len(self))[rows]
        stats = ScoreStats(*(v[rows] for v in vars(self.stats).values()))
        ids, texts = (tuple(v[row] for row in rows) for v in (self.problem_ids, self.texts))
        return Labels(ids, texts, stats, self.source)

    def with_texts(self, texts: Mapping[str, str], source: str) -> "Labels":
        """The labels with the texts of problems that lack one filled in, by id.

        Raises:
            PredictorError: If a problem has no text here or there.
        """
        names = self.problem_ids
        pairs = zip(names, self.texts, strict=True)
        found = tuple(texts.get(name) if text is None else text for name, text in pairs)
        missing = [name for name, text in zip(names, found, strict=True) if not text]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise PredictorError(
                f"{source}: no text for problem {missing[0]!r} of {self.source}{more}"
            )
        return dataclasses.replace(self, texts=found)

    def with_spread(self, *, leave_out: bool, min_sd: float = 0.0) -> "Labels":
        """The problems whose scores spread: n >= 2, and not all equal.

        A single score, or equal ones, say nothing of the law's scale: the likelihood of equal
        scores has no bound, and one score's spread is not known. Equal scores do say that the
        spread is small, though, and where they are the easy problems', to leave them out teaches
        that problems are harder than they are: `min_sd` keeps them.

        Args:
            leave_out: Whether to leave the others out, instead of refusing them.
            min_sd: Standard deviation, in [0, 1/2], that several scores are taken to have at least.

        Raises:
            PredictorError: If there are others and they are not to be left out, or none is left.
        """
        several = self.stats.n >= 2
        m2 = np.where(several, np.maximum(self.stats.m2, min_sd**2 * self.stats.n), self.stats.m2)
        spread = several & (m2 > 0)
        others = len(self) - int(spread.sum())
        if others and not leave_out:
            row = int(np.argmin(spread))
            n = int(self.stats.n[row])
            what = "n = 1" if n == 1 else f"sd = 0, {n} equal scores"
            more = f" (and {others - 1} more such problems)" if others > 1 else ""
            keep = "" if n == 1 else "keep equal scores with --min_sd 0.02, or "
            raise PredictorError(
                f"{self.source}: problem {self.problem_ids[row]!r}: {what}: no spread to learn the "
                f"scale from{more}; {keep}leave them out with --leave_out_constant true"
            )
        if not spread.any():
            raise PredictorError(f"{self.source}: no problem whose scores spread is left")
        wider = dataclasses.replace(self, stats=dataclasses.replace(self.stats, m2=m2))
        return wider.take(spread) if others else wider


def read_labels(path: str | os.PathLike[str], *, num_samples: int | None = None) -> Labels:
    """Reads labels from JSON lines, or a JSON list, of objects.

    The id is in `unique_id`, `problem_id` or `id`; the text, if it is there, in `problem` or
    `question`. The statistics are n, mean and m2, or n, score_mean and score_std (the standard
    deviation with n in the denominator). A problem may be there twice, scored twice.

    Args:
        path: The file.
        num_samples: n of records without one; None: every record needs it.

    Returns:
        The labels, in the file's order.

    Raises:
        InputError: If the file cannot be read, or a record lacks a field or has numbers that no
            scores in [0, 1] have; the message names file, line and field.
    """
    rows: Any = [
        (record.label(_id_field(record)), _text(record), *_statistics(record, num_samples))
        for record in read_records(Path(path))
    ]
    if not rows:
        raise PredictorError(f"{path}: no records; give one problem at least")
    ids, texts, *columns = zip(*rows, strict=True)
    return Labels(ids, texts, ScoreStats(*(np.array(v, np.float64) for v in columns)), str(path))


def _id_field(record: Record) -> str:
    field = next((field for field in ID_FIELDS if field in record.value), None)
    if field is None:
        raise record.error(says=f"no id; give it in {' or '.join(ID_FIELDS)}")
    return field


def _text(record: Record) -> str | None:
    field = next((name for name in TEXT_FIELDS if record.value.get(name) is not None), None)
    text = None if field is None else record.value[field]
    if field is not None and (not isinstance(text, str) or not text.strip()):
        raise record.error(field, says="is no text; leave the field out, or give the problem's")
    return text


def _statistics(record: Record, num_samples: int | None) -> tuple[float, float, float]:
    own = "mean" in record.value
    mean_field, spread_field = ("mean", "m2") if own else ("score_mean", "score_std")
    if mean_field not in record.value:
        raise record.error(
            says="no scores: give n, mean and m2, or n, score_mean and score_std (python -m "
            "train.labels makes them)"
        )
    if "n" not in record.value and num_samples is None:
        raise record.error(
            says="no field 'n', the number of scores; give it for all: --num_samples"
        )
    mean, spread = _number(record, mean_field), _number(record, spread_field)
    n = _number(record, "n") if "n" in record.value else float(num_samples or 0)
    if n < 1 or n != math.floor(n):
        raise record.error("n", says=f"is {n:g}; it must be a whole number, at least 1")
    if not 0 <= mean <= 1:
        raise record.error(mean_field, says=f"is {mean:g}; scores are in [0, 1]")
    if spread < 0:
        raise record.error(spread_field, says=f"is {spread:g}; it must be at least 0")
    m2 = spread if own else n * spread**2
    # Scores in [0, 1] with this mean spread most when all are 0 or 1; 1e-6 for rounded files.
    if m2 > n * (mean * (1 - mean) + 1e-6):
        raise record.error(
            spread_field, says=f"is {spread:g}; scores in [0, 1] with mean {mean:g} spread less"
        )
    return n, mean, m2


def _number(record: Record, field: str) -> float:
    value = record.get(field)
    with contextlib.suppress(OverflowError):  # a whole number that no float holds
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    raise record.error(field, says=f"is {shown(value)}; it must be a finite number")


def labels_of_pool(pool: Pool, source: str) -> Labels:
    """Statistics of a pool's scores, all completions of a problem together.

    Raises:
        PredictorError: If the pool has no scores; it names the `source`.
    """
    if pool.scores is None:
        raise PredictorError(f"{source}: the pool has no scores; have a verifier score it first")
    # float64, whatever JAX is set to: these are written to a file.
    scores, mask = np.float64(pool.scores), pool.mask
    n = mask.sum(axis=1)
    mean = np.where(mask, scores, 0).sum(axis=1) / n
    deviation = np.where(mask, scores - mean[:, None], 0)
    stats = ScoreStats(np.float64(n), mean, (deviation**2).sum(axis=1))
    names = tuple(str(name) for name in pool.problem_ids)
    return Labels(names, (None,) * len(names), stats, source)


def lines(labels: Labels) -> Iterator[str]:
    """The labels as JSON lines, which `read_labels` reads back unchanged."""
    columns = (v.tolist() for v in vars(labels.stats).values())
    for name, text, n, mean, m2 in zip(labels.problem_ids, labels.texts, *columns, strict=True):
        record: dict[str, Any] = {"problem_id": name, "n": int(n), "mean": mean, "m2": m2}
        if text is not None:
            record["problem"] = text
        yield json.dumps(record, ensure_ascii=False) + "\n"
