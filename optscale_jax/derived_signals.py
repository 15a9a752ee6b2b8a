"""Signals that follow from what is known of a completion beside its score, by name.

| name | what |
| --- | --- |
| `mean_step`, `min_step`, `last_step` | of its step scores |
| `mean_logprob` | mean log-probability of its tokens, at most 0 |
| `finished` | 1 if it ended by itself, 0 if it was cut off or something went wrong |
| `verifier_tokens` | what the verifier read and wrote for it: a cost, and no sign of quality |

Live runs and readers of files take them from here, so that a rule sees the same numbers in both.
"""

import array
import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = [
    "LARGEST",
    "STEP_SIGNALS",
    "VERIFIER_TOKENS",
    "SignalColumns",
    "derived_signals",
    "mean_logprob",
    "signal_arrays",
]

LARGEST = float(np.finfo(np.float32).max)
"""The largest signal that a pool holds."""

STEP_SIGNALS = {"last_step": "last", "mean_step": "mean", "min_step": "min"}
"""The signals that are made of step scores, and what makes a score so (`Origin.aggregate`)."""

VERIFIER_TOKENS = "verifier_tokens"
"""The signal that is a cost; whoever looks for signs of quality leaves it out."""


def derived_signals(
    *,
    steps: Sequence[float | int] = (),
    mean_logprob: float | None = None,
    finished: bool | None = None,
    verifier_tokens: int | None = None,
) -> dict[str, float]:
    """The signals of one completion; what is not known, or larger than any, is left out."""
    signals = {}
    if steps and all(abs(step) <= LARGEST for step in steps):
        signals = {"mean_step": math.fsum(steps) / len(steps), "min_step": float(min(steps))}
        signals["last_step"] = float(steps[-1])
    if mean_logprob is not None and abs(mean_logprob) <= LARGEST:
        signals["mean_logprob"] = mean_logprob
    if finished is not None:
        signals["finished"] = float(finished)
    if verifier_tokens is not None and verifier_tokens >= 0:
        signals[VERIFIER_TOKENS] = float(verifier_tokens)
    return signals


def mean_logprob(total: float | None, count: int) -> float | None:
    """Mean of `count` tokens' log-probabilities, at most 0; None where there is no finite one."""
    mean = total / count if total is not None and count else math.nan
    return min(mean, 0.0) if math.isfinite(mean) else None


class SignalColumns:
    """The signals of completions that come one at a time, a few bytes each."""

    def __init__(self) -> None:
        self._count = 0
        self._columns: dict[str, array.array[float]] = {}

    def add(self, signals: Mapping[str, float]) -> None:
        """Adds a completion."""
        for name, value in signals.items():
            if value == value:
                column = self._columns.setdefault(name, array.array("d"))
                column.extend([math.nan] * (self._count - len(column)))
                column.append(value)
        self._count += 1

    def columns(self) -> dict[str, np.ndarray]:
        """[N] each of those that are known of one completion at least, NaN where not known."""
        return {
            name: np.append(column, np.full(self._count - len(column), np.nan))
            for name, column in self._columns.items()
        }


def signal_arrays(
    rows: Sequence[Mapping[str, np.ndarray]], shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Puts the columns of P problems together: [P, N] each, NaN where not known.

    A verifier that has read nothing at all is one that does not count.
    """
    arrays: dict[str, np.ndarray] = {}
    for row, columns in enumerate(rows):
        for name, column in columns.items():
            arrays.setdefault(name, np.full(shape, np.nan))[row, : len(column)] = column
    if not np.nansum(arrays.get(VERIFIER_TOKENS, 0)):
        arrays.pop(VERIFIER_TOKENS, None)
    return arrays
