"""The values of scalars: exact rationals as far as they go, and numbers of 400 digits beyond.

Expressions in variables are taken at three points. Powers, factorials and magnitudes are bounded
before they are computed.
"""

import hashlib
import math
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath
from mpmath import mp

from .numerals import BITS
from .reading import UnreadError
from .words import FUNCTIONS

__all__ = ["DIGITS", "holds", "is_exact", "quotients", "scalar_key", "values_of", "written_value"]

_IRRATIONAL_BITS = 500  # of one that enters a root or the like, of which 200 digits are known
_MAGNITUDE = 100_000
DIGITS = (200, 400)
_POINTS = 3


def is_exact(value: Any) -> bool:
    """Whether a value is a rational number."""
    return isinstance(value, Fraction)


def _bounded(value: Any) -> Any:
    """The value, if it is of a size that the next step can take."""
    if is_exact(value):
        if value.numerator.bit_length() + value.denominator.bit_length() > BITS:
            raise UnreadError("too large")
    elif not mp.isfinite(value) or (value and not -_MAGNITUDE < mp.mag(value) < _MAGNITUDE):
        raise UnreadError("too large")
    return value


def _inexact(value: Any) -> Any:
    if not is_exact(value):
        return value
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _IRRATIONAL_BITS:
        raise UnreadError("more digits than are compared")
    return mp.mpf(value.numerator) / value.denominator


def _snapped(value: Any) -> Any:
    """A number that is a rational one to all digits, as that."""
    if is_exact(value):
        return value
    tiny = mp.mpf(10) ** (30 - mp.dps)
    if isinstance(value, mpmath.mpc):
        if abs(value.imag) <= tiny * abs(value.real) or (abs(value.imag) < tiny > abs(value)):
            return _snapped(value.real)
        return value
    if value == 0:
        return Fraction(0)
    sign, man, exp, _ = value._mpf_
    whole = Fraction(man) * Fraction(2) ** exp * (-1 if sign else 1)
    near = whole.limit_denominator(10**40)
    return near if abs(whole - near) <= abs(whole) * Fraction(10) ** (30 - mp.dps) else value


def _point(name: str, index: int) -> Fraction:
    """Where a variable is looked at: once large, once between 0 and 1, once below 0."""
    digest = hashlib.sha256(name.encode()).digest()
    part = Fraction(int.from_bytes(digest[2 * index : 2 * index + 2], "big") * 2 + 1, 1 << 17)
    return (part + 2, part, -part - 1)[index]


class _Context(NamedTuple):
    point: int
    plus: int  # what \pm stands for


def _value(node: Any, at: _Context) -> Any:
    """A scalar's value: a Fraction where that is exact, else a number of mpmath."""
    kind, *parts = node
    if kind == "number":
        return _bounded(parts[0])
    if kind == "variable":
        return _point(parts[0], at.point)
    if kind == "constant":
        if parts[0] == "inf":
            raise UnreadError("infinity")
        return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[parts[0]]
    evaluate = _OPERATIONS.get(kind)
    if evaluate is None:
        raise UnreadError(kind)
    if kind in (r"\pm", r"\mp"):
        value = _value(parts[0], at)
        return value * (at.plus if kind == r"\pm" else -at.plus)
    if kind == "function":
        return _bounded(_apply(parts[0], parts[1], parts[2], at))
    if kind == "determinant":
        return _bounded(_determinant([[_value(entry, at) for entry in row] for row in parts[0]]))
    return _bounded(evaluate(*(_value(part, at) for part in parts)))


def _both(operation: Any) -> Any:
    def apply(left: Any, right: Any) -> Any:
        if is_exact(left) and is_exact(right):
            return operation(left, right)
        return operation(_inexact(left), _inexact(right))

    return apply


def _divide(left: Any, right: Any) -> Any:
    if right == 0:
        raise ZeroDivisionError
    return _both(lambda a, b: a / b)(left, right)


def _power(base: Any, exponent: Any) -> Any:
    base, exponent = _snapped(base), _snapped(exponent)
    if is_exact(exponent) and exponent.denominator == 1:
        count = int(exponent)
        if base == 0 and count <= 0:
            raise ZeroDivisionError
        if is_exact(base):
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if base not in (0, 1, -1) and abs(count) * size > BITS:
                raise UnreadError("too large")
            return base**count if abs(base) != 1 else base ** (count % 2)
    base, exponent = _inexact(base), _inexact(exponent)
    if base == 0:
        if mp.re(exponent) > 0:
            return Fraction(0)
        raise ZeroDivisionError
    if abs(exponent * mp.log(base)) > _MAGNITUDE / 2:
        raise UnreadError("too large")
    return mp.power(base, exponent)


def _root(value: Any, index: Any) -> Any:
    index = _snapped(index)
    if not is_exact(index) or index.denominator != 1 or not 2 <= index <= 1000:
        return _power(value, _divide(Fraction(1), index))
    value = _inexact(value)
    if not isinstance(value, mpmath.mpc) and value < 0 and index % 2:
        return -mp.root(-value, int(index))
    return mp.root(value, int(index))


def _factorial(value: Any) -> Any:
    value = _snapped(value)
    if is_exact(value) and value.denominator == 1:
        if not 0 <= value <= 5000:
            raise UnreadError("factorial")
        return Fraction(math.factorial(int(value)))
    return mp.gamma(_inexact(value) + 1)


def _binomial(over: Any, under: Any) -> Any:
    over, under = _snapped(over), _snapped(under)
    if is_exact(under) and under.denominator == 1 and 0 <= under <= 2000 and is_exact(over):
        product = Fraction(1)
        for each in range(int(under)):
            product = _bounded(product * (over - each) / (each + 1))
        return product
    return mp.binomial(_inexact(over), _inexact(under))


def _rounded(direction: int) -> Any:
    def apply(value: Any) -> Any:
        value = _snapped(value)
        if isinstance(value, mpmath.mpc):
            raise UnreadError("complex")
        if is_exact(value):
            return Fraction(value.__floor__() if direction < 0 else value.__ceil__())
        if mp.mag(value) > 1000:
            raise UnreadError("too large")
        return Fraction(int(mp.floor(value) if direction < 0 else mp.ceil(value)))

    return apply


def _apply(name: str, argument: Any, base: Any, at: _Context) -> Any:
    value = _value(argument, at)
    if name == "abs":
        return abs(value)
    value = _inexact(value)
    if name == "exp" and abs(value) > _MAGNITUDE / 2:
        raise UnreadError("too large")
    if name in ("log", "ln", "lg"):
        if value == 0:
            raise ZeroDivisionError
        if base is not None:
            return mp.log(value) / mp.log(_inexact(_value(base, at)))
    if name in ("sinh", "cosh", "tanh") and abs(value) > _MAGNITUDE / 2:
        raise UnreadError("too large")
    return FUNCTIONS[name](value)


def _determinant(rows: list[list[Any]]) -> Any:
    if len(rows) == 1:
        return rows[0][0]
    if len(rows) != len(rows[0]) or len(rows) > 5:
        raise UnreadError("determinant")
    total: Any = Fraction(0)
    for column, entry in enumerate(rows[0]):
        minor = [[e for c, e in enumerate(row) if c != column] for row in rows[1:]]
        term = _both(lambda a, b: a * b)(entry, _determinant(minor))
        total = _both(lambda a, b: a + b)(total, term if column % 2 == 0 else -term)
    return total


_OPERATIONS: dict[str, Any] = {
    "+": _both(lambda a, b: a + b),
    "*": _both(lambda a, b: a * b),
    "-": lambda a: -a,
    "/": _divide,
    "^": _power,
    "root": _root,
    "factorial": _factorial,
    "binomial": _binomial,
    "abs": abs,
    "floor": _rounded(-1),
    "ceiling": _rounded(1),
    "group": lambda a: a,
    "fraction": lambda a: a,
    "percent": lambda a: a / 100,
    "degrees": lambda a: _inexact(a) * mp.pi / 180,
    **dict.fromkeys([r"\pm", r"\mp", "function", "determinant"], abs),
}


def holds(node: Any, kinds: tuple[str, ...]) -> bool:
    """Whether a node of one of these kinds is in a node."""
    if isinstance(node, list):
        return any(holds(each, kinds) for each in node)
    return isinstance(node, tuple) and (
        node[0] in kinds or any(holds(each, kinds) for each in node[1:])
    )


def _settled(node: Any, at: _Context) -> Any:
    """The value at one point, agreed by both precisions; None where there is none."""
    try:
        with mp.workdps(DIGITS[0]):
            first = _value(node, at)
            if is_exact(first):
                return first
        with mp.workdps(DIGITS[1]):
            second = _value(node, at)
            if is_exact(second):
                return second
            digits = DIGITS[0] - 20
            if abs(second) < mp.mpf(10) ** (50 - DIGITS[1]) and abs(first) < mp.mpf(10) ** (
                50 - DIGITS[0]
            ):
                return Fraction(0)
            if abs(first - second) > abs(second) * mp.mpf(10) ** -digits:
                raise UnreadError("digits cancel")
            return _snapped(second)
    except ZeroDivisionError:
        return None


def written_value(value: Any) -> str:
    """How a value stands in a key."""
    if value is None:
        return "?"
    if is_exact(value):
        return f"{value.numerator:x}/{value.denominator:x}"
    with mp.workdps(DIGITS[1]):
        if isinstance(value, mpmath.mpc):
            return f"{written_value(_snapped(value.real))}+i{written_value(_snapped(value.imag))}"
        return str(mp.nstr(value, DIGITS[0] - 50))


def values_of(node: Any, plus: int = 1) -> list[Any]:
    """A node at each point; at one, where it has no variable."""
    points = range(_POINTS if holds(node, ("variable",)) else 1)
    found = [_settled(node, _Context(point, plus)) for point in points]
    if all(value is None for value in found):
        raise UnreadError("no value")
    return found


def scalar_key(node: Any) -> str:
    """The key of a number or an expression."""
    if _is_infinite(node):
        return "-oo" if node[0] == "-" else "oo"
    values = values_of(node)
    if len(values) > 1 and None not in values and len(set(map(written_value, values))) == 1:
        values = values[:1]  # the variables cancel
    return " ".join(map(written_value, values))


def _is_infinite(node: Any) -> bool:
    return node == ("constant", "inf") or node == ("-", ("constant", "inf"))


def quotients(values: list[Any], scale: Any) -> list[str]:
    """Values as they stand in a key, up to a common factor."""
    with mp.workdps(DIGITS[1]):
        return [written_value(_snapped(_divide(value, scale))) for value in values]
