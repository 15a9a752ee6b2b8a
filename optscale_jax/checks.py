"""What a configuration's numbers must be: a few words for `__post_init__`, one message for each.

    def __post_init__(self) -> None:
        at_least(self, 1, "samples", "max_tokens")
        within(self, "(0, 1]", "top_p")

A field that is None has no number to check. Each word raises an `InputError` that names the first
field that is wrong, its value and its domain; `of` is what stands before the field's name, where
the configuration is a part of another: "optimizer.".
"""

import math
from collections.abc import Collection
from typing import Any, Literal

from optscale_jax.errors import InputError

__all__ = ["at_least", "finite", "one_of", "positive", "within"]

Interval = Literal["(0, 1)", "(0, 1]", "[0, 1)", "[0, 1]"]


def at_least(config: Any, least: float | int, *names: str, of: str = "") -> None:
    """Refuses numbers below a bound, infinite ones and NaN."""
    for name, value in _given(config, names):
        _require(least <= value < math.inf, of + name, value, f"at least {least:g}")


def finite(config: Any, *names: str, of: str = "") -> None:
    """Refuses infinite numbers and NaN."""
    for name, value in _given(config, names):
        _require(math.isfinite(value), of + name, value, "finite")


def positive(config: Any, *names: str, of: str = "") -> None:
    """Refuses numbers that are not above 0, infinite ones and NaN."""
    for name, value in _given(config, names):
        _require(0 < value < math.inf, of + name, value, "above 0")


def within(config: Any, interval: Interval, *names: str, of: str = "") -> None:
    """Refuses numbers outside an interval, and NaN."""
    for name, value in _given(config, names):
        above = value > 0 if interval[0] == "(" else value >= 0
        below = value < 1 if interval[-1] == ")" else value <= 1
        _require(above and below, of + name, value, f"in {interval}")


def one_of(config: Any, choices: Collection[Any], *names: str, of: str = "") -> None:
    """Refuses values that are none of the choices."""
    for name, value in _given(config, names):
        _require(value in choices, of + name, repr(value), f"one of {', '.join(map(str, choices))}")


def _given(config: Any, names: Collection[str]) -> list[tuple[str, Any]]:
    fields = [(name, getattr(config, name)) for name in names]
    return [(name, value) for name, value in fields if value is not None]


def _require(holds: bool, name: str, value: Any, domain: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value}; it must be {domain}")
