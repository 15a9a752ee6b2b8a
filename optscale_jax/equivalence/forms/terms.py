"""The grammar of sums, products, powers and atoms."""

from fractions import Fraction
from typing import Any

from .characters import GREEK
from .lexing import CLOSING, OPENING, Token
from .numerals import BASES, number_of, repeating
from .reading import UnreadError, words_in
from .words import CONSTANTS, FUNCTIONS, INVERSE, UNITS

__all__ = ["END", "MODULO", "Terms"]

MODULO = (r"\pmod", r"\bmod", r"\mod", "mod")
END = Token("end", "")


class Terms:
    """Recursive descent over sums, products, powers and what they are made of."""

    def __init__(self, tokens: list[Token]):
        self.tokens = tokens
        self.place = 0
        self.bars = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.place] if self.place < len(self.tokens) else END

    def after(self, count: int = 1) -> Token:
        place = self.place + count
        return self.tokens[place] if place < len(self.tokens) else END

    def take(self, *texts: str) -> Token:
        token = self.next
        if token is END or (texts and token.text not in texts):
            raise UnreadError(token.text)
        self.place += 1
        return token

    def taken(self, *texts: str) -> bool:
        if self.next.text not in texts or self.next is END:
            return False
        self.place += 1
        return True

    def listed(self, top: bool = False) -> Any:
        """What stands between brackets, which is for the whole grammar to say."""
        raise NotImplementedError

    def setwise(self) -> Any:
        r"""Sums with \cup and \setminus between them."""
        node = self.sum()
        while self.next.text in (r"\cup", r"\setminus"):
            node = (self.take().text, node, self.sum())
        return node

    def sum(self) -> Any:
        sign = self.take().text if self.next.text in ("+", "-", r"\pm", r"\mp") else "+"
        node = self.signed(sign, self.product())
        while self.next.text in ("+", "-", r"\pm", r"\mp"):
            node = ("+", node, self.signed(self.take().text, self.product()))
        return node

    @staticmethod
    def signed(sign: str, node: Any) -> Any:
        return node if sign == "+" else ("-", node) if sign == "-" else (sign, node)

    def product(self) -> Any:
        node = self.power()
        while True:
            if self.taken("*"):
                node = ("*", node, self.negatable())
            elif self.taken("/"):
                node = ("/", node, self.negatable())
            elif self.starts_factor():
                node = self.juxtaposed(node, self.power())
            else:
                return node

    def negatable(self) -> Any:
        return ("-", self.power()) if self.taken("-") else self.power()

    def juxtaposed(self, left: Any, right: Any) -> Any:
        if left[0] == "number" and right[0] == "fraction":
            whole, part = left[1], right[1]
            if whole.denominator != 1 or part[1].numerator < 0 or part[1] >= 1:
                raise UnreadError("neither a mixed number nor a product")
            return ("number", whole + part[1])
        if right[0] in ("number", "fraction") and left[0] in ("number", "fraction"):
            raise UnreadError("two numbers side by side")
        return ("*", left, right)

    def starts_factor(self) -> bool:
        token = self.next
        if token.kind == "number":
            return True
        if token.kind == "letters":
            return not (
                token.spaced and self.place and self.tokens[self.place - 1].kind == "number"
            )
        if token.kind == "letter":
            # "5 m" is a length; 5m is a product.
            return not (
                token.spaced
                and token.text in UNITS
                and self.tokens[self.place - 1].kind == "number"
                and self.after() is END
            )
        if token.kind == "word":
            return token.text in FUNCTIONS or token.text in CONSTANTS
        if token.text == "|":
            return not self.bars
        if token.text == "(" and self.after().text in MODULO:
            return False
        return token.text in ("(", "[", "{", r"\{", r"\lfloor", r"\lceil", r"\langle") or (
            token.text[:1] == "\\" and (token.text in _HEADS or token.text[1:] in _NAMES)
        )

    def power(self) -> Any:
        node = self.postfixed(self.atom())
        if self.next.text == "^":
            self.take()
            if self.taken(r"\deg"):
                return ("degrees", node)
            if self.next.text == "{" and self.after().text == r"\deg":
                self.take()
                self.take()
                self.take("}")
                return ("degrees", node)
            exponent = self.argument(whole=True)
            if self.next.text == "^":
                self.take()
                exponent = ("^", exponent, self.argument(whole=True))
            node = self.postfixed(("^", node, exponent))
        return node

    def postfixed(self, node: Any) -> Any:
        while self.next.text in ("!", "%", r"\deg"):
            sign = self.take().text
            kind = {"!": "factorial", "%": "percent", r"\deg": "degrees"}[sign]
            node = (kind, node)
        return node

    def argument(self, whole: bool = False) -> Any:
        """What a command or a power takes: braces, or one sign, or with `whole` a number."""
        if self.taken("{"):
            node = self.setwise()
            self.take("}")
            return ("group", node) if node[0] == "fraction" else node
        if whole and self.next.text == "-":
            self.take()
            return ("-", self.argument(whole=True))
        if self.next.kind == "number":
            number = self.take().text
            if not whole and len(number) > 1:
                raise UnreadError("which digits?")
            return ("number", number_of(number))
        if self.next.kind == "letters":
            raise UnreadError("which letters?")
        return self.atom()

    def atom(self) -> Any:
        token = self.take()
        text = token.text
        if token.kind == "number":
            return self.numeral(text)
        if token.kind == "letter":
            return self.letter(text)
        if token.kind == "letters":
            node = self.letter(text[0])
            for each in text[1:]:
                node = ("*", node, self.letter(each, last=each is text[-1]))
            return node
        if token.kind == "word":
            if text in CONSTANTS:
                return ("constant", CONSTANTS[text])
            if text in FUNCTIONS:
                return self.function(text)
            raise UnreadError(text)
        if text in OPENING or text in ("{", r"\lfloor", r"\lceil", "|"):
            return self.bracketed(text)
        if text[:1] != "\\":
            raise UnreadError(text)
        if text in _HEADS:
            return getattr(self, _HEADS[text])()
        name = text[1:]
        return self.function(name) if name in FUNCTIONS else self.named(name)

    def named(self, name: str) -> Any:
        if name in CONSTANTS:
            return ("constant", CONSTANTS[name])
        if name not in _NAMES:
            raise UnreadError(name)
        return self.subscripted("\\" + name)

    def letter(self, text: str, last: bool = True) -> Any:
        if text in ("e", "i") and self.next.text != "_":
            return ("constant", text)
        if text in "fgh" and self.next.text == "(":
            return self.applied(text)
        return self.subscripted(text) if last else ("variable", text)

    def applied(self, name: str) -> Any:
        self.take("(")
        node = self.listed()
        self.take(")")
        return ("applied", name, node)

    def subscripted(self, name: str) -> Any:
        if self.taken("_"):
            if self.taken("{"):
                parts = []
                while not self.taken("}"):
                    token = self.take()
                    if token.text in ("{", "^", "_"):
                        raise UnreadError("subscript")
                    parts.append(token.text)
                name += "_" + " ".join(parts)
            else:
                name += "_" + self.take().text
        if self.next.text == "'":
            raise UnreadError("'")
        return ("variable", name)

    def numeral(self, text: str) -> Any:
        digits = text.replace(",", "").replace(" ", "")
        if self.next.text == r"\overline" and "." in digits and not self.next.spaced:
            self.take()
            return ("number", repeating(digits, self.braced()))
        if self.next.text == r"\dot" and "." in digits:  # 0.\dot{1}4285\dot{7}
            period = ""
            while self.taken(r"\dot"):
                period += self.braced()
                more = self.next.kind == "number" and self.after().text == r"\dot"
                period += self.take().text if more else ""
            return ("number", repeating(digits, period))
        if (
            self.next.text == "("
            and not self.next.spaced
            and "." in digits
            and self.after().kind == "number"
            and self.after().text.isdecimal()
            and self.after(2).text == ")"
        ):  # 0.(3)
            self.take()
            period = self.take().text
            self.take()
            return ("number", repeating(digits, period))
        if self.next.text == r"\ldots" and "." in digits:
            raise UnreadError("how does it go on?")
        if self.next.text == "_":
            self.take()
            return ("number", self.based(digits))
        value = number_of(digits)
        if (
            value.denominator == 1
            and self.next.kind == "number"
            and self.next.spaced
            and self.after().text == "/"
            and self.after(2).kind == "number"
        ):  # 3 1/2
            over = number_of(self.take().text)
            self.take("/")
            under = number_of(self.take().text)
            if not 0 < over < under or over.denominator * under.denominator != 1:
                raise UnreadError("no mixed number")
            return ("number", value + over / under)
        return ("number", value)

    def braced(self) -> str:
        inside = self.take().text
        if inside == "{":
            inside = self.take().text
            self.take("}")
        return inside

    def based(self, digits: str) -> Fraction:
        """The number that digits in a base stand for; the base is what comes next."""
        word = self.braced().lower()
        base = BASES.get(word, word)
        if not base.isdecimal() or not 2 <= int(base) <= 36 or "." in digits:
            raise UnreadError("base")
        return Fraction(int(digits, int(base)))

    def function(self, name: str) -> Any:
        base = exponent = None
        if name == "sqrt":
            return ("root", self.argument_of_function(), ("number", Fraction(2)))
        while self.next.text in ("_", "^"):
            if self.take().text == "_":
                if name != "log":
                    raise UnreadError("_")
                base = self.argument(whole=True)
            else:
                exponent = self.argument(whole=True)
        if exponent == ("-", ("number", Fraction(1))):
            if name not in INVERSE:
                raise UnreadError("inverse")
            name, exponent = INVERSE[name], None
        node = ("function", name, self.argument_of_function(), base)
        return node if exponent is None else ("^", node, exponent)

    def argument_of_function(self) -> Any:
        if self.next.text in ("(", "[", "{", "|"):
            return self.power()
        node = self.negatable()
        while self.starts_factor() and not (
            self.next.text.lstrip("\\") in FUNCTIONS or self.next.text == "("
        ):
            node = self.juxtaposed(node, self.power())
        return node

    def bracketed(self, opening: str) -> Any:
        if opening == "{":
            node = self.listed()
            self.take("}")
            return ("set", node[1]) if node[0] == "list" else node
        if opening in ("|", r"\lfloor", r"\lceil"):
            self.bars += opening == "|"
            node = self.sum()
            self.take({"|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}[opening])
            self.bars -= opening == "|"
            return ({"|": "abs", r"\lfloor": "floor", r"\lceil": "ceiling"}[opening], node)
        bars, self.bars = self.bars, 0
        if self.taken(r"\}") and opening == r"\{":
            return ("set", [])
        node = self.listed()
        items = node[1] if node[0] == "list" else [node]
        closing = self.take(*CLOSING).text
        self.bars = bars
        paired = closing == dict(zip(OPENING, CLOSING, strict=True))[opening]
        if opening == r"\{" and paired:
            return ("set", items)
        if opening == r"\langle" and paired:
            return ("tuple", "<", items, ">")
        if len(items) == 1 and paired:
            if node[0] == "relation":
                raise UnreadError("a relation in brackets")
            if opening == "(" and self.next.text == "_" and node[0] == "number":
                self.take()
                return ("number", self.based(str(node[1])))
            return ("group", node)
        if opening not in "([" or closing not in ")]" or (not paired and len(items) != 2):
            raise UnreadError("brackets")
        return ("tuple", opening, items, closing)

    # Commands -------------------------------------------------------------------------------------

    def frac(self) -> Any:
        if self.next.kind == "number" and len(self.next.text) == 2 and self.next.text.isdecimal():
            over, under = (("number", Fraction(digit)) for digit in self.take().text)
        else:
            over, under = self.argument(), self.argument()
        if over[0] == under[0] == "number" and under[1]:
            return ("fraction", ("number", over[1] / under[1]))
        return ("/", over, under)

    def sqrt(self) -> Any:
        index: Any = ("number", Fraction(2))
        if self.taken("["):
            index = self.sum()
            self.take("]")
        if self.next.kind == "number":
            text = self.next.text
            if (
                len(text) > 1
                and not self.tokens[self.place - 1].text == "]"
                and not text.isdecimal()
            ):
                raise UnreadError("which digits?")
            return ("root", ("number", number_of(self.take().text)), index)
        if self.next.text in ("(", "{"):
            return ("root", self.argument() if self.next.text == "{" else self.atom(), index)
        return ("root", self.argument(), index)

    def binom(self) -> Any:
        return ("binomial", self.argument(), self.argument())

    def emptyset(self) -> Any:
        return ("set", [])

    def numbers(self) -> Any:
        self.take("{")
        name = self.take().text
        self.take("}")
        if name not in "RZNQC":
            raise UnreadError(name)
        infinite = ("constant", "inf")
        return (
            ("tuple", "(", [("-", infinite), infinite], ")") if name == "R" else ("variable", name)
        )

    def begin(self) -> Any:
        def environment() -> str:
            self.take("{")
            name = self.take().text
            self.take("}")
            return name

        name = environment()
        if name not in ("pmatrix", "bmatrix", "vmatrix", "matrix", "array"):
            raise UnreadError(name)
        rows: list[list[Any]] = [[]]
        while True:
            rows[-1].append(self.sum())
            if self.taken("&"):
                continue
            if self.taken(r"\row"):
                if self.next.text == r"\end":
                    break
                rows.append([])
                continue
            break
        self.take(r"\end")
        if environment() != name or len({len(row) for row in rows}) != 1:
            raise UnreadError("matrix")
        return ("determinant" if name == "vmatrix" else "matrix", rows)


_HEADS = {
    r"\frac": "frac",
    r"\sqrt": "sqrt",
    r"\binom": "binom",
    r"\emptyset": "emptyset",
    r"\mathbb": "numbers",
    r"\begin": "begin",
}
_NAMES = {
    *(name.removeprefix("\\") for name in GREEK.values()),
    *(words_in("Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell phi epsilon")),
    *CONSTANTS,
    *FUNCTIONS,
} - {"e", "i"}
