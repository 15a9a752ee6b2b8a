"""The grammar of whole answers: lists, relations, ratios, congruences, quantities with units."""

from fractions import Fraction
from typing import Any

from .reading import UnreadError
from .terms import END, MODULO, Terms
from .words import JOINING, POWERS, SCALES, UNITS, unit_of

__all__ = ["Parser"]

_RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx", r"\in", r"\equiv"}


class Parser(Terms):
    """Recursive descent over the tokens into nested tuples; every token is taken, or it raises."""

    def answer(self) -> Any:
        node = self.listed(top=True)
        if self.next is not END:
            raise UnreadError(self.next.text)
        return node

    def listed(self, top: bool = False) -> Any:
        """Relations parted by commas, semicolons, "and", "or"."""
        items, joints = [self.related()], set()
        while True:
            joint = self.joint()
            if joint is None:
                break
            joints.add(joint)
            if top and self.next is END:
                raise UnreadError("nothing after a comma")
            items.append(self.related())
        return items[0] if len(items) == 1 else ("list", items, joints)

    def joint(self) -> str | None:
        if self.taken(",", ";"):
            joined = JOINING.get(self.next.text)
            if joined:
                self.place += 1
            return joined or ","
        joined = JOINING.get(self.next.text) if self.next.kind == "word" else None
        if joined:
            self.place += 1
        return joined

    def related(self) -> Any:
        if self.taken(r"\ldots"):
            return ("ellipsis",)
        sides, signs = [self.quantity()], []
        while self.next.text in _RELATIONS:
            signs.append(self.take().text)
            sides.append(self.quantity())
        modulus = self.modulus()
        if modulus is not None:
            if signs not in ([r"\equiv"], []):
                raise UnreadError("mod")
            return ("congruent", sides, modulus)
        if r"\equiv" in signs:
            raise UnreadError("congruent to what?")
        if self.taken(":"):  # a ratio
            parts = [*sides, self.quantity()]
            while self.taken(":"):
                parts.append(self.quantity())
            if signs:
                raise UnreadError(":")
            return ("ratio", parts)
        return ("relation", sides, signs) if signs else sides[0]

    def modulus(self) -> Any:
        place = self.place
        parens = self.taken("(")
        if self.taken(*MODULO):
            modulus = self.sum()
            if parens:
                self.take(")")
            return modulus
        self.place = place
        return None

    def quantity(self) -> Any:
        """A sum with what stands beside it: money, a scale, a percent sign, units."""
        negative = self.next.text == "-" and self.after().text in "$€£¥" and bool(self.taken("-"))
        money = self.take().text if self.next.text in ("$", "€", "£", "¥") else None
        node = self.united()
        if node[0] == "united" and not money:
            while self.next.kind == "number":  # 2 hours 30 minutes
                more = self.united()
                if more[0] != "united" or more[2] != node[2]:
                    raise UnreadError("units that do not add up")
                node = (
                    "united",
                    ("+", node[1], ("*", more[1], ("number", more[3] / node[3]))),
                    *node[2:],
                )
        elif money:
            if node[0] in ("united", "percent") and (node[0] != "united" or node[2] != money):
                raise UnreadError("money and another unit")
            node = ("united", node[1] if node[0] == "united" else node, money, Fraction(1))
        if negative:
            node = (node[0], ("-", node[1]), *node[2:])
        return node

    def united(self) -> Any:
        node = self.setwise()
        while self.next.kind == "word" and self.next.text.lower() in SCALES:
            node = ("*", node, ("number", Fraction(SCALES[self.take().text.lower()])))
        if self.next.text == "percent":
            self.take()
            return ("percent", node)
        if (self.next.kind == "word" and self.next.text not in JOINING) or self.unit_follows():
            return ("united", node, *self.unit())
        if node[0] == "degrees":
            return ("united", node[1], "deg", Fraction(1))
        return node

    def unit_follows(self) -> bool:
        token = self.next
        if token.text in ("$", "€", "£", "¥"):
            return True
        if token.kind in ("letters", "letter"):
            if token.text.startswith("bold"):
                return False
            return token.spaced and (token.kind == "letters" or token.text in UNITS)
        return False

    def unit(self) -> tuple[str, Fraction]:
        power, dimension, factor, nouns = 1, [], Fraction(1), 0
        divided = False
        while True:
            token = self.next
            if token.kind in ("word", "letters", "letter") and token.text not in JOINING:
                word = self.take().text
                if word.lower() in ("per", "pro", "por"):
                    divided = True
                    continue
                if word.lower() in POWERS:
                    power = POWERS[word.lower()]
                    continue
                name, size = unit_of(word)
                known = word in UNITS or name in {d for d, _ in UNITS.values()}
                if not known:
                    if nouns and not divided:
                        dimension.pop()  # red marbles are marbles
                    nouns += 1
            elif token.text in ("$", "€", "£", "¥") and not dimension:
                name, size = self.take().text, Fraction(1)
            elif token.text == "/" and dimension:
                self.take()
                divided = True
                continue
            else:
                break
            if self.taken("^"):
                raised = self.argument()
                if raised[0] != "number" or raised[1].denominator != 1 or abs(raised[1]) > 9:
                    raise UnreadError("a unit's power")
                power = int(raised[1])
            if divided:
                power = -power
            dimension.append((name, power))
            factor *= size**power
            power, divided = 1, False
        if not dimension or power != 1 or divided:
            raise UnreadError("no unit")
        return " ".join(f"{name}^{power}" for name, power in sorted(dimension)), factor
