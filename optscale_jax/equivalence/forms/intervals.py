"""Intervals and their unions, written one way."""

import contextlib
from typing import Any

from mpmath import mp

from .reading import UnreadError
from .values import DIGITS, holds, scalar_key

__all__ = ["intervals_of", "span_of", "union_key", "without"]

_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def span_of(sides: list[Any], signs: list[str]) -> tuple[str, tuple[str, str, str, str]] | None:
    """The interval that inequalities of one variable and numbers are; None for others."""
    if not set(signs) <= set(_FLIPPED) or len(signs) not in (1, 2):
        return None
    if any(side[0] in ("united", "percent") for side in sides):
        return None
    if len(signs) == 1:
        if sides[1][0] == "variable":
            sides, signs = sides[::-1], [_FLIPPED[signs[0]]]
        name, bound = sides
        if name[0] != "variable" or holds(bound, ("variable", "applied")):
            return None
        end = scalar_key(bound)
        closed = signs[0] in (r"\le", r"\ge")
        if signs[0] in ("<", r"\le"):
            return name[1], ("(", "-oo", end, "]" if closed else ")")
        return name[1], ("[" if closed else "(", end, "oo", ")")
    if signs[0] in (">", r"\ge"):
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
    low, name, high = sides
    if not set(signs) <= {"<", r"\le"} or name[0] != "variable":
        return None
    if holds([low, high], ("variable", "applied")):
        return None
    ends = "[" if signs[0] == r"\le" else "(", "]" if signs[1] == r"\le" else ")"
    return name[1], (ends[0], scalar_key(low), scalar_key(high), ends[1])


def intervals_of(node: Any) -> list[tuple[str, str, str, str]]:
    """The intervals of a union."""
    if node[0] == r"\cup":
        return intervals_of(node[1]) + intervals_of(node[2])
    if node[0] == r"\setminus" and node[2][0] == "set":
        return without(intervals_of(node[1]), node[2][1])
    if node[0] == "group":
        return intervals_of(node[1])
    if node[0] == "set" and node[1]:
        return [("[", key, key, "]") for key in (scalar_key(item) for item in node[1])]
    if node[0] == "tuple" and len(node[2]) == 2 and node[1] in "([" and node[3] in ")]":
        low, high = node[2]
        return [(node[1], scalar_key(low), scalar_key(high), node[3])]
    raise UnreadError("union")


def without(spans: list[Any], points: list[Any]) -> list[Any]:
    """Intervals without points."""
    for point in points:
        if holds(point, ("variable",)):
            raise UnreadError("a variable point")
        key = scalar_key(point)
        here, value = [], _position(key)
        for left, low, high, right in spans:
            if _position(low) < value < _position(high):
                here += [(left, low, key, ")"), ("(", key, high, right)]
            else:
                here.append((left, low, high, right))
        spans = here
    return spans


def _position(key: str) -> Any:
    """Where a key of a real number is on the line."""
    if key in ("oo", "-oo"):
        return mp.inf if key == "oo" else -mp.inf
    if "+i" in key or " " in key or "?" in key:
        raise UnreadError("no real number")
    if "/" in key:
        over, under = (int(part, 16) for part in key.split("/"))
        return mp.mpf(over) / under
    return mp.mpf(key)


def union_key(spans: list[Any]) -> str:
    """The key of intervals, those that touch joined."""

    def order(span: Any) -> tuple[Any, ...]:
        return _position(span[1]), span[0] == "(", _position(span[2])

    with mp.workdps(DIGITS[0]), contextlib.suppress(UnreadError):
        spans = sorted(set(spans), key=order)
        joined: list[Any] = []
        for left, low, high, right in spans:
            if joined:
                before = joined[-1]
                touches = before[2] == low and (before[3] == "]" or left == "[")
                if touches or _position(low) < _position(before[2]):
                    further = (_position(high), right == "]") > (
                        _position(before[2]),
                        before[3] == "]",
                    )
                    joined[-1] = (before[0], before[1], *((high, right) if further else before[2:]))
                    continue
            joined.append((left, low, high, right))
        spans = joined
    return " u ".join(f"{left}{low}, {high}{right}" for left, low, high, right in spans)
