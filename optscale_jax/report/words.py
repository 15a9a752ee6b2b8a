"""Numbers in words: accuracies in percent and points, scores in thousandths, unknown ones as –."""

from typing import Any, NamedTuple

import numpy as np

from optscale_jax.study.metrics import Interval
from optscale_jax.study.outcomes import ValueKind

__all__ = ["UNITS", "Unit", "answered", "or_dash"]


class Unit(NamedTuple):
    """How what was won is written.

    Attributes:
        heading: Of a column of it.
        difference: What differences are in.
        scale: What a number is multiplied with.
        digits: Digits after the point.
        sentence: A value's form in a sentence.
        difference_sentence: A difference's form in a sentence.
    """

    heading: str
    difference: str
    scale: int
    digits: int
    sentence: str
    difference_sentence: str

    def number(self, value: Any) -> float:
        """A value as it is shown."""
        # Adding 0 makes a rounded -0.0 positive.
        return round(self.scale * float(value), self.digits) + 0.0

    def interval(self, interval: Interval, sign: str = "") -> str:
        """A mean with half the width of its interval."""
        half = self.scale * (float(interval.high) - float(interval.low)) / 2
        return f"{self.number(interval.mean):{sign}.{self.digits}f} ±{half:.{self.digits}f}"

    def ends(self, interval: Interval) -> str:
        """A difference with the ends of its interval."""
        mean, low, high = (f"{self.scale * float(part):+.{self.digits}f}" for part in interval)
        return f"{mean} [{low}, {high}]"

    def value(self, value: Any) -> str:
        """A value in a sentence."""
        return self.sentence.format(float(value))

    def difference_of(self, value: Any) -> str:
        """A difference in a sentence."""
        return self.difference_sentence.format(self.scale * float(value))


UNITS: dict[ValueKind, Unit] = {
    "accuracy": Unit("accuracy, %", "points", 100, 1, "{:.1%}", "{:+.1f} points"),
    "score": Unit("score", "score", 1, 3, "score {:.3f}", "{:+.3f}"),
}
"""How each of the kinds of value is written."""


def answered(unanswered: tuple[int, int] | None) -> list[str]:
    """Says how many completions have no answer, and warns where most have none.

    Args:
        unanswered: How many have none, and of how many; None: not known.

    Returns:
        A note for below a table; none where it is not known.
    """
    if not unanswered or not unanswered[1]:
        return []
    none, count = unanswered
    note = f"{none:,} of {count:,} completions have no answer"
    if 2 * none > count:
        note = (
            f"WARNING: {note}, so the figures say more about how answers are read than about the "
            "completions; see --extract (auto, boxed, last_number, module:function) and look at one"
        )
    return [note]


def or_dash(value: float, form: str) -> str:
    """A number, or – where it is not known."""
    return "–" if np.isnan(value) else format(value, form)
