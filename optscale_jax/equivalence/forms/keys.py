"""The keys of an answer, by its parsed form."""

import contextlib
import functools
from typing import Any

from mpmath import mp

from .intervals import intervals_of, span_of, union_key, without
from .reading import UnreadError
from .values import holds, is_exact, quotients, scalar_key, values_of, written_value

__all__ = ["form_of"]


def form_of(node: Any) -> tuple[str, ...]:
    """The keys of an answer, the fullest first."""
    kind, *parts = node
    if kind == "united":
        inside, unit, factor = parts
        return (
            f"{unit.removesuffix('^1')}: {_key(('*', inside, ('number', factor)))}",
            _key(inside),
        )
    if kind == "percent":
        return _key(node), _key(parts[0])
    if kind == "group":
        return form_of(parts[0])
    if kind == "relation":
        return _relation(*parts)
    if kind == "list":
        return _list(*parts)
    if kind == "congruent":
        return _congruence(*parts)
    return (_key(node),)


def _key(node: Any) -> str:
    """The key of what has one."""
    kind, *parts = node
    if kind == "set":
        return _set([form_of(part)[0] for part in parts[0]])
    if kind == "tuple":
        opening, items, closing = parts
        return f"{opening}{', '.join(form_of(item)[0] for item in items)}{closing}"
    if kind == "matrix":
        return "matrix " + "; ".join(", ".join(map(scalar_key, row)) for row in parts[0])
    if kind == "ratio":
        return _ratio(parts[0])
    if kind in (r"\cup", r"\setminus"):
        return union_key(intervals_of(node))
    if kind == "ellipsis":
        return "..."
    if kind in ("relation", "list", "congruent", "united"):
        return form_of(node)[0]
    if holds(node, (r"\pm", r"\mp")):
        return _set([" ".join(map(written_value, values_of(node, plus))) for plus in (1, -1)])
    return scalar_key(node)


def _set(keys: list[str]) -> str:
    keys = sorted(set(keys))
    return keys[0] if len(keys) == 1 and keys[0] != "{}" else "{" + ", ".join(keys) + "}"


def _list(items: list[Any], joints: set[str]) -> tuple[str, ...]:
    if ("ellipsis",) in items:
        return ("sequence " + ", ".join(form_of(item)[0] for item in items),)
    if all(item[0] == "united" for item in items):
        units = {item[2] for item in items}
        if joints == {"and"} and len(units) == 1 and len({item[3] for item in items}) > 1:
            # 2 hours and 30 minutes
            total = functools.reduce(
                lambda a, b: ("+", a, b), [("*", i[1], ("number", i[3])) for i in items]
            )
            return (f"{units.pop().removesuffix('^1')}: {_key(total)}",)
    if joints == {"or"} and all(item[0] in ("relation",) for item in items):
        spans = [found for item in items if (found := span_of(*item[1:]))]
        if len(spans) == len(items) and len({name for name, _ in spans}) == 1:
            union = union_key([span for _, span in spans])
            return f"{spans[0][0]} in {union}", union
    forms = [form_of(item) for item in items]
    keys = _set([form[0] for form in forms])
    names = {_name_of(item) for item in items}
    if len(items) > 1 and names == {None}:
        # What stands after the last may be meant for all: "3 and 5 apples".
        bare = [form[-1] for form in forms]
        return keys, _set(bare)
    if len(names) == 1 and names != {None}:
        return keys, _set([form[1] for form in forms if len(form) > 1] or [keys])
    return (keys,)


def _name_of(node: Any) -> str | None:
    """What an equation says the value of: `x` of x = 5, `f` of f(t) = 5t."""
    if node[0] != "relation" or node[2][0] not in ("=", r"\in"):
        return None
    first = node[1][0]
    if first[0] in ("variable", "applied"):
        return str(first[1])
    return None


def _relation(sides: list[Any], signs: list[str]) -> tuple[str, ...]:
    while r"\approx" in signs:
        at = signs.index(r"\approx")
        _check_near(sides[at], sides[at + 1])
        # The rounded value says nothing that the exact one does not.
        sides, signs = sides[: at + 1] + sides[at + 2 :], signs[:at] + signs[at + 1 :]
        if not signs:
            return form_of(sides[0])
    if set(signs) == {"="}:
        return _equation(sides)
    if signs == [r"\in"] and sides[0][0] == "variable":
        name, key = sides[0][1], _key(sides[1])
        return f"{name} in {key}", key
    span = span_of(sides, signs)
    if span is not None:
        return f"{span[0]} in {union_key([span[1]])}", union_key([span[1]])
    if len(signs) == 1 and signs[0] in ("<", ">", r"\le", r"\ge", r"\ne"):
        if signs[0] == r"\ne" and sides[0][0] == "variable":
            everything = ("(", "-oo", "oo", ")")
            line = union_key(without([everything], [sides[1]]))
            return f"{sides[0][1]} in {line}", line
        difference = ("+", sides[0], ("-", sides[1]))
        if signs[0] in (">", r"\ge"):
            difference = ("-", difference)
        values = values_of(difference)
        if len(values) == 1 or None in values or values[0] == 0:
            raise UnreadError("a relation of numbers")
        scale = abs(values[0]) if signs[0] != r"\ne" else values[0]
        sign = {">": "<", r"\ge": r"\le"}.get(signs[0], signs[0])
        return (f"{sign} " + " ".join(quotients(values, scale)),)
    raise UnreadError("relation")


def _equation(sides: list[Any]) -> tuple[str, ...]:
    name = None
    if len(sides) > 1 and sides[0][0] in ("variable", "applied"):
        name = sides[0]
        if name[0] == "variable" and any(
            holds(side, ("variable",)) and _occurs(name, side) for side in sides[1:]
        ):
            name = None
    rest = sides[1:] if name is not None else sides
    forms = [form_of(side) for side in rest]
    if all(form[0] == forms[0][0] for form in forms[1:]):
        if name is None:
            return forms[0]  # 2 + 3 = 5
        # The last is as the answer is meant, with its unit.
        keys = forms[-1]
        if name[0] == "applied":
            inner = name[2]
            named = f"{name[1]}({_key(inner)}) = {keys[0]}"
            return named, *keys
        full = f"{name[1]} = {keys[0]}"
        if len(rest) == 1 and rest[0][0] not in ("united", "percent"):
            with contextlib.suppress(UnreadError, ArithmeticError, TypeError):
                full = _line(sides[0], rest[0])
        return full, *keys
    if len(sides) == 2:
        return (_line(*sides),)
    raise UnreadError("the sides differ")


def _occurs(name: Any, node: Any) -> bool:
    if node == name:
        return True
    return isinstance(node, list | tuple) and any(_occurs(name, each) for each in node)


def _line(left: Any, right: Any) -> str:
    """The key of an equation: its difference up to a factor."""
    values = values_of(("+", left, ("-", right)))
    first = next((value for value in values if value not in (None, 0)), None)
    if first is None or len(values) == 1:
        raise UnreadError("no equation")
    if None in values:
        raise UnreadError("undefined")
    return "0 = " + " ".join(quotients(values, first))


def _check_near(exact: Any, rounded: Any) -> None:
    def value(node: Any) -> Any:
        while node[0] in ("united", "percent", "group"):
            node = node[1]
        (only,) = values_of(node)
        return only

    first, second = value(exact), value(rounded)
    if first is None or second is None:
        raise UnreadError("approximation")
    with mp.workdps(30):
        first, second = (
            mp.mpmathify(v.numerator) / v.denominator if is_exact(v) else v for v in (first, second)
        )
        if abs(first - second) > abs(first) * mp.mpf("0.05"):
            raise UnreadError("not near")


def _ratio(parts: list[Any]) -> str:
    (values,) = zip(*(values_of(part) for part in parts), strict=True)
    if None in values or values[0] == 0:
        raise UnreadError("ratio")
    return "ratio " + " : ".join(quotients(list(values), values[0]))


def _congruence(sides: list[Any], modulus: Any) -> tuple[str, ...]:
    (size,) = values_of(modulus)
    if not is_exact(size) or size.denominator != 1 or size < 1:
        raise UnreadError("modulus")

    def residues(side: Any) -> str:
        items = side[1] if side[0] == "list" else [side]
        found = [values_of(item) for item in items]
        if any(len(values) > 1 or not is_exact(values[0]) for values in found):
            raise UnreadError("residue")
        return _set([written_value(values[0] % size) for values in found])

    key = f"{residues(sides[-1])} mod {size}"
    if len(sides) == 1:
        return (key,)
    if len(sides) != 2:
        raise UnreadError("congruences")
    if sides[0][0] == "variable":
        return f"{sides[0][1]} = {key}", key
    return (f"{scalar_key(sides[0])} = {key}",)
