r"""The canonical form of an answer: two answers are the same exactly where their forms say so.

A form is a tuple of keys. The first says all that the answer says; those after it say it without
what a question may have settled already: the unit, the percent sign, the name before "=". Two
answers are the same if one's first key is among the other's, so `5` is `5 kg` and `x=5`, and
`5 kg` is `5000 g` but neither `5 g` nor `x=5`.

Every character has to be understood: the grammar below is all that is read, and an answer that is
not of it has no form. Numbers are exact rationals as far as they go; beyond, they are computed to
400 digits and have to agree with those of 200 digits. Expressions in variables are compared by
their values at three points, which no two different expressions share but by a miracle. Powers,
factorials and magnitudes are bounded before they are computed, so that little can hang; what does
is for `checker.py` to end, which runs this file as a script: one JSON string in, one form out.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import re
import sys
import threading
import time
import unicodedata
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath
from mpmath import mp

__all__ = ["read_form"]

_LONGEST = 1000
_DEEPEST = 40
_BITS = 200_000  # of an exact number
_IRRATIONAL_BITS = 500  # of one that enters a root or the like, of which 200 digits are known
_MAGNITUDE = 100_000
_DIGITS = (200, 400)
_POINTS = 3


def _listed(words: str) -> list[str]:
    return words.split()


def _pairs(words: str) -> dict[str, str]:
    return dict(zip(words.split()[::2], words.split()[1::2], strict=True))


class _Unread(Exception):
    """The answer is not of the grammar, or its value is out of reach."""


def read_form(text: str) -> tuple[str, ...] | None:
    """Reads the canonical form of an answer.

    Args:
        text: The answer.

    Returns:
        Its keys, the fullest first; None if it is not wholly understood.
    """
    if len(text) > _LONGEST:
        return None
    try:
        text = _unwrapped(_ascii(text))
        words = _text_answer(text)
        keys = (words,) if words else _form(_Parser(_tokens(text)).answer())
    except (_Unread, ArithmeticError, ValueError, RecursionError, mp.NoConvergence):
        return None
    return tuple(dict.fromkeys(_short(key) for key in keys))


def _short(key: str) -> str:
    return key if len(key) <= 80 else "#" + hashlib.sha256(key.encode()).hexdigest()


# Characters ---------------------------------------------------------------------------------------

_SIGNS = _pairs(r"""
    − -  – -  — -  ‐ -  ‑ -  ‒ -  ﹣ -  － -  × \times  · \cdot  ⋅ \cdot  ∙ \cdot  • \cdot  ÷ /
    ∕ /  ⁄ /  ∶ :  ≤ \le  ≥ \ge  ⩽ \le  ⩾ \ge  ≦ \le  ≧ \ge  ≠ \ne  ≈ \approx  ≅ \approx
    ≡ \equiv  ∪ \cup  ∈ \in  ∖ \setminus  ± \pm  ∓ \mp  ∅ \emptyset  ∞ \infty  π \pi  √ \sqrt
    ° \deg  ⟨ \langle  ⟩ \rangle  〈 \langle  〉 \rangle  ⌊ \lfloor  ⌋ \rfloor  ⌈ \lceil
    ⌉ \rceil  ℝ \mathbb{R}  ℤ \mathbb{Z}  ∛ \sqrt[3]  ∜ \sqrt[4]  … \ldots  ⋯ \ldots  º \deg
    。 .  【 [  】 ]  ⇒ ?  ′ '  ‘ '  ’ '  ％ \%
""")
_SIGNS |= (
    dict.fromkeys("\u2061\u200b\ufeff", "") | dict.fromkeys("“”", '"') | {"，": ", ", "、": ", "}
)
_SIGNS["；"] = "; "
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓ"
_LEVEL = "0123456789+-=()nix"
_GREEK = _pairs(r"""
    α \alpha  β \beta  γ \gamma  δ \delta  ε \epsilon  ζ \zeta  η \eta  θ \theta  ι \iota  κ \kappa
    λ \lambda  μ \mu  ν \nu  ξ \xi  ρ \rho  σ \sigma  τ \tau  υ \upsilon  φ \phi  χ \chi
    ψ \psi  ω \omega
""")


def _ascii(text: str) -> str:
    """Unicode's signs, digits, fractions and levels as LaTeX writes them."""
    if text.isascii():
        return text
    text = re.sub(r"((?:[0-9]\u0305)+)", lambda m: rf"\overline{{{m[1][::2]}}}", text)
    for level, sign in ((_RAISED, "^"), (_LOWERED, "_")):
        text = re.sub(
            f"[{level}]+",
            lambda m, level=level, sign=sign: (
                sign + "{" + "".join(_LEVEL[level.index(c)] for c in m[0]) + "}"
            ),
            text,
        )
    written = []
    for character in text:
        if sign := _SIGNS.get(character, _GREEK.get(character)):
            written.append(f"{sign} " if sign.startswith("\\") else sign)
        elif character not in _SIGNS:
            written.append(_plain(character))
    return "".join(written)


def _plain(character: str) -> str:
    """A digit, a fraction, or a letter of any alphabet."""
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKC", character)
    over, slash, under = plain.partition("⁄")
    if slash and over.isdecimal() and under.isdecimal():
        return rf"\frac{{{over}}}{{{under}}}"
    if plain.isascii() or unicodedata.category(character) in ("Sc", "Lo", "Ll", "Lu"):
        return plain
    raise _Unread(character)


_DELIMITERS = [(each, each) for each in ("$$", "$", "**", "*", "__", "_", "`")]
_DELIMITERS += [(r"\[", r"\]"), (r"\(", r"\)"), (r"\boxed{", "}"), (r"\fbox{", "}")]
_DROPPED = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|!)(?![A-Za-z])|(?<=[0-9])\{,\}(?=[0-9])"
)
_SPACES = re.compile(r"\\(?:quad|qquad)(?![A-Za-z])|\\[ ,;:>\n]|~|\s")


def _unwrapped(text: str) -> str:
    """The answer without what surrounds it and what only sets it."""
    text = text.strip()
    changed = True
    while changed:
        changed = False
        for left, right in _DELIMITERS:
            inside = text[len(left) : -len(right)]
            if text.startswith(left) and text.endswith(right) and left not in inside and inside:
                text, changed = inside.strip(), True
        for end in (".", "\\\\"):
            if text.endswith(end) and not text.endswith(".."):
                text, changed = text.removesuffix(end).rstrip(), True
    text = re.sub(r"\.\s*\}$", "}", text).replace("\\\\", r"\row ")
    text = text.replace(r"\$", "\x03").replace("{\x03}", "\x03")
    # What is left of `$` are pairs around a part of the answer, or one before an amount.
    text = text.replace("$", "" if text.count("$") % 2 == 0 else "\x03")
    text = text.replace("**", "") if text.count("**") % 2 == 0 else text
    return _SPACES.sub(" ", _DROPPED.sub("", text)).strip()


_WRITTEN = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s*\{([^{}\\]*)\}")


def _text_answer(text: str) -> str | None:
    """The key of an answer in words; None for one that is mathematics."""
    bare = " ".join(_WRITTEN.sub(r"\1", text).split()).strip(" \"'")
    if not re.fullmatch(r"[^\W\d_]+(?:(?:[ \-'&]|, |\. )[^\W\d_]+)*", bare):
        return None
    words = re.findall(r"[^\W\d_]+", bare)
    if len(words) == 1 and (len(bare) == 1 or (len(bare) == 2 and bare.islower())):
        return None
    if any(word in _FUNCTIONS or word in _CONSTANTS for word in words) or "\\" in bare:
        return None
    return "words " + bare.casefold()


# Tokens -------------------------------------------------------------------------------------------


class _Token(NamedTuple):
    kind: str  # number, word, letter, command, sign, end
    text: str
    spaced: bool = False  # whether a space stands before it
    roman: bool = False  # whether it stands in \text or the like


_LEXER = re.compile(
    r"""(?P<space>\s+)
    |(?P<based>(?:[0-9][0-9A-F]*[A-F]|[A-F][0-9A-F]+|[0-9]+[A-F][0-9A-F]*)_\{?(?P<base>1[1-9]|2[0-9]|3[0-6])(?![0-9])\}?)
    |(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?
        |[0-9]{1,3}(?:[ ][0-9]{3})+(?![0-9])(?:\.[0-9]+)?
        |[0-9]+(?:\.(?!\.)[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+(?![\w.]))?)
    |\\(?P<roman>text|textrm|textnormal|mathrm|mbox|operatorname|mathop|rm)\s*\{(?P<inside>[^{}]*)\}
    |\\(?:textbf|textit|mathbf|mathit|vec|hat|bm|boldsymbol|mathcal)\s*
        (?:\{\s*(?P<bold>[A-Za-z])\s*\}|\{(?P<set>[^{}]*)\})
    |(?P<command>\\[A-Za-z]+|\\[{}%|\#&])
    |(?P<word>[^\W\d_]+)
    |(?P<ellipsis>\.\.\.)
    |(?P<sign><=|>=|!=|==|[-+*/^_=<>!()\[\]{}|,;:%&.'~\x03€£¥"])""",
    re.VERBOSE,
)
_SAME = _pairs(r"""
    \dfrac \frac  \tfrac \frac  \cfrac \frac  \leq \le  \leqslant \le  <= \le  \geq \ge
    \geqslant \ge  >= \ge  \neq \ne  != \ne  \lt <  \gt >  == =  \circ \deg  \degree \deg
    \times *  \cdot *  \ast *  \div /  \% %  \colon :  \sim \approx  \simeq \approx
    \dots \ldots  \cdots \ldots  \dotsc \ldots  \dotsb \ldots  ... \ldots
    \varnothing \emptyset  \lbrace \{  \rbrace \}  \lbrack [  \rbrack ]  \lvert |  \rvert |
    \vert |  \mid |  \dbinom \binom  \tbinom \binom  \isin \in  \backslash \setminus  \lor or
    \vee or  \land and  \wedge and  \varphi \phi  \varepsilon \epsilon  \bar \overline
    \infin \infty  \lim ?
""") | {"\x03": "$"}
_OPENING, _CLOSING = ("(", "[", r"\{", r"\langle"), (")", "]", r"\}", r"\rangle")


def _tokens(text: str, roman: bool = False) -> list[_Token]:
    found: list[_Token] = []
    place = depth = nested = 0
    spaced = False
    while place < len(text):
        match = _LEXER.match(text, place)
        if match is None:
            raise _Unread(text[place])
        place, kind = match.end(), "based" if match["based"] else match.lastgroup
        if kind == "space":
            spaced = True
            continue
        whole = match[0]
        if kind == "number" and depth and re.search("[0-9],[0-9]", whole):
            # Inside brackets a comma parts: (1,234) is a pair.
            place = match.start() + whole.index(",")
            whole = whole[: whole.index(",")]
        if kind == "inside":
            more = _tokens(match["inside"], roman=True)
            before = spaced or match["inside"][:1].isspace()
            found += [t._replace(spaced=t.spaced or before) if t is more[0] else t for t in more]
            spaced = match["inside"][-1:].isspace()
            continue
        if kind == "based":
            digits = whole.partition("_")[0]
            found.append(_Token("number", str(int(digits, int(match["base"]))), spaced))
        elif kind == "set":
            found += _tokens(match["set"], roman=True)
        elif kind == "bold":
            found.append(_Token("letter", "bold " + match["bold"], spaced))
        elif kind == "word":
            found += _words(whole, spaced, roman)
        else:
            name = _SAME.get(whole, whole)
            depth += (name in _OPENING) - (name in _CLOSING)
            nested += (name in ("{", *_OPENING)) - (name in ("}", *_CLOSING))
            if nested > _DEEPEST:
                raise _Unread("deep")
            kind = "number" if kind == "number" else "word" if name.isalpha() else "sign"
            found.append(_Token(kind, name, spaced, roman))
        spaced = False
    return found


def _words(word: str, spaced: bool, roman: bool) -> list[_Token]:
    """A run of letters: a word that means something, or the letters of a product."""
    if word[0] in _SCALES and len(word) > 1:  # 万元
        return [_Token("word", word[0], spaced), *_words(word[1:], False, roman)]
    known = word in _FUNCTIONS or word in _CONSTANTS or word.lower() in _WORDS
    if len(word) == 1 and word.isascii() and not (roman and word in _UNITS):
        return [_Token("letter", word, spaced, roman)]
    if known or roman or len(word) > 3 or not word.isascii() or word in _UNITS:
        return [_Token("word", word, spaced, roman)]
    # A short word may still be a noun after a number: the grammar says which.
    return [_Token("letters", word, spaced, roman)]


# Words --------------------------------------------------------------------------------------------

_FUNCTIONS = {
    name: getattr(mp, name)
    for name in _listed("sin cos tan sec csc cot sinh cosh tanh exp sqrt ln")
} | {
    "arcsin": mp.asin,
    "arccos": mp.acos,
    "arctan": mp.atan,
    "asin": mp.asin,
    "acos": mp.acos,
    "atan": mp.atan,
    "log": mp.log10,
    "lg": mp.log10,
    "cbrt": mp.cbrt,
    "abs": abs,
}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_CONSTANTS = {"pi": "pi", "e": "e", "i": "i", "infinity": "inf", "inf": "inf", "infty": "inf"}
_JOINING = {"and": "and", "or": "or", "und": "and", "oder": "or", "和": "and", "或": "or"}
_SCALES = {
    **{"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9},
    **{"trillion": 10**12, "dozen": 12, "万": 10**4, "亿": 10**8, "千": 10**3, "百": 10**2},
    **{"hundreds": 10**2, "thousands": 10**3, "millions": 10**6, "billions": 10**9},
    **{"trillions": 10**12, "dozens": 12, "millones": 10**6, "mil": 10**3, "million's": 10**6},
    **{"Millionen": 10**6, "Milliarden": 10**9, "tausend": 10**3},
}
_UNITS: dict[str, tuple[str, Fraction]] = {}
for _dimension, _names in {
    "m": "m:1 meter:1 metre:1 mm:1/1000 millimeter:1/1000 cm:1/100 centimeter:1/100 "
    "centimetre:1/100 dm:1/10 km:1000 kilometer:1000 kilometre:1000 inch:127/5000 inche:127/5000 "
    "in:127/5000 foot:381/1250 feet:381/1250 ft:381/1250 yard:1143/1250 yd:1143/1250 "
    "mile:201168/125 mi:201168/125 米:1 厘米:1/100 千米:1000 公里:1000",
    "g": "g:1 gram:1 mg:1/1000 milligram:1/1000 kg:1000 kilogram:1000 kilo:1000 tonne:1000000 "
    "lb:45359237/100000 oz:45359237/1600000 ounce:45359237/1600000 克:1 千克:1000 公斤:1000",
    "s": "s:1 sec:1 second:1 min:60 minute:60 h:3600 hr:3600 hour:3600 day:86400 week:604800 "
    "ms:1/1000 秒:1 分钟:60 小时:3600 天:86400",
    "L": "L:1 l:1 liter:1 litre:1 ml:1/1000 mL:1/1000 milliliter:1/1000 升:1 毫升:1/1000",
    "$": "$:1 dollar:1 usd:1 USD:1 cent:1/100 ¢:1/100 美元:1",
    "€": "€:1 euro:1 eur:1 EUR:1",
    "£": "£:1 gbp:1 GBP:1",
    "¥": "¥:1 yuan:1 元:1 yen:1",
    "deg": "deg:1 degree:1 grad:1 grado:1 度:1",
}.items():
    for _name, _factor in (entry.split(":") for entry in _names.split()):
        _UNITS[_name] = _dimension, Fraction(_factor)
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "平方": 2, "立方": 3}
# Words that change what a number says; a number with one of them is not read without it.
_MEANING = set(
    _listed("""zero one two three four five six seven eight nine ten eleven twelve twenty half halve
    third quarter fourth fifth sixth seventh eighth ninth tenth hundredth thousandth pair
    score gross squared cubed factorial choose over times plus minus divided multiplied mod
    modulo base power to percent per not no less more than least most greater fewer below
    above under about approximately around exactly only nearly almost between from through
    until except but without with if when where which that the raised root log negative
    positive times double triple million quadrillion quintillion googol repeating recurring
    remainder max min undefined left each every am pm bce radian rad inclusive exclusive any
    all none binary octal hex hexadecimal decimal ago later before after east west north
    south up down""")
) | {"mod"}
_WORDS = {*_JOINING, *_SCALES, *_UNITS, *_POWERS, *_MEANING, "percent", "for", "is", "dozen"}


def _unit_of(word: str) -> tuple[str, Fraction]:
    for name in (
        word,
        word.lower(),
        word.lower().removesuffix("s"),
        word.lower().removesuffix("es"),
    ):
        if name in _UNITS:
            return _UNITS[name]
    noun = word.lower()
    stem = noun.removesuffix("s")
    if {noun, stem} & (_MEANING | {"percent"}) or noun in _SCALES or noun in _JOINING:
        raise _Unread(word)
    if noun in _FUNCTIONS or len(noun) < 2 or (noun.isascii() and len(noun) < 3):
        raise _Unread(word)
    for ending, with_ in (
        ("ies", "y"),
        ("xes", "x"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("sses", "ss"),
    ):
        if noun.endswith(ending):
            stem = noun.removesuffix(ending) + with_
    return stem, Fraction(1)


# Grammar ------------------------------------------------------------------------------------------

_RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx", r"\in", r"\equiv"}
_MODULO = (r"\pmod", r"\bmod", r"\mod", "mod")
_END = _Token("end", "")


class _Parser:
    """Recursive descent over the tokens into nested tuples; every token is taken, or it raises."""

    def __init__(self, tokens: list[_Token]):
        self.tokens = tokens
        self.place = 0
        self.bars = 0

    @property
    def next(self) -> _Token:
        return self.tokens[self.place] if self.place < len(self.tokens) else _END

    def after(self, count: int = 1) -> _Token:
        place = self.place + count
        return self.tokens[place] if place < len(self.tokens) else _END

    def take(self, *texts: str) -> _Token:
        token = self.next
        if token is _END or (texts and token.text not in texts):
            raise _Unread(token.text)
        self.place += 1
        return token

    def taken(self, *texts: str) -> bool:
        if self.next.text not in texts or self.next is _END:
            return False
        self.place += 1
        return True

    def answer(self) -> Any:
        node = self.listed(top=True)
        if self.next is not _END:
            raise _Unread(self.next.text)
        return node

    def listed(self, top: bool = False) -> Any:
        """Relations parted by commas, semicolons, "and", "or"."""
        items, joints = [self.related()], set()
        while True:
            joint = self.joint()
            if joint is None:
                break
            joints.add(joint)
            if top and self.next is _END:
                raise _Unread("nothing after a comma")
            items.append(self.related())
        return items[0] if len(items) == 1 else ("list", items, joints)

    def joint(self) -> str | None:
        if self.taken(",", ";"):
            joined = _JOINING.get(self.next.text)
            if joined:
                self.place += 1
            return joined or ","
        joined = _JOINING.get(self.next.text) if self.next.kind == "word" else None
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
                raise _Unread("mod")
            return ("congruent", sides, modulus)
        if r"\equiv" in signs:
            raise _Unread("congruent to what?")
        if self.taken(":"):  # a ratio
            parts = [*sides, self.quantity()]
            while self.taken(":"):
                parts.append(self.quantity())
            if signs:
                raise _Unread(":")
            return ("ratio", parts)
        return ("relation", sides, signs) if signs else sides[0]

    def modulus(self) -> Any:
        place = self.place
        parens = self.taken("(")
        if self.taken(*_MODULO):
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
                    raise _Unread("units that do not add up")
                node = (
                    "united",
                    ("+", node[1], ("*", more[1], ("number", more[3] / node[3]))),
                    *node[2:],
                )
        elif money:
            if node[0] in ("united", "percent") and (node[0] != "united" or node[2] != money):
                raise _Unread("money and another unit")
            node = ("united", node[1] if node[0] == "united" else node, money, Fraction(1))
        if negative:
            node = (node[0], ("-", node[1]), *node[2:])
        return node

    def united(self) -> Any:
        node = self.setwise()
        while self.next.kind == "word" and self.next.text.lower() in _SCALES:
            node = ("*", node, ("number", Fraction(_SCALES[self.take().text.lower()])))
        if self.next.text == "percent":
            self.take()
            return ("percent", node)
        if (self.next.kind == "word" and self.next.text not in _JOINING) or self.unit_follows():
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
            return token.spaced and (token.kind == "letters" or token.text in _UNITS)
        return False

    def unit(self) -> tuple[str, Fraction]:
        power, dimension, factor, nouns = 1, [], Fraction(1), 0
        divided = False
        while True:
            token = self.next
            if token.kind in ("word", "letters", "letter") and token.text not in _JOINING:
                word = self.take().text
                if word.lower() in ("per", "pro", "por"):
                    divided = True
                    continue
                if word.lower() in _POWERS:
                    power = _POWERS[word.lower()]
                    continue
                name, size = _unit_of(word)
                known = word in _UNITS or name in {d for d, _ in _UNITS.values()}
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
                    raise _Unread("a unit's power")
                power = int(raised[1])
            if divided:
                power = -power
            dimension.append((name, power))
            factor *= size**power
            power, divided = 1, False
        if not dimension or power != 1 or divided:
            raise _Unread("no unit")
        return " ".join(f"{name}^{power}" for name, power in sorted(dimension)), factor

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
                raise _Unread("neither a mixed number nor a product")
            return ("number", whole + part[1])
        if right[0] in ("number", "fraction") and left[0] in ("number", "fraction"):
            raise _Unread("two numbers side by side")
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
                and token.text in _UNITS
                and self.tokens[self.place - 1].kind == "number"
                and self.after() is _END
            )
        if token.kind == "word":
            return token.text in _FUNCTIONS or token.text in _CONSTANTS
        if token.text == "|":
            return not self.bars
        if token.text == "(" and self.after().text in _MODULO:
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
                raise _Unread("which digits?")
            return ("number", _number(number))
        if self.next.kind == "letters":
            raise _Unread("which letters?")
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
            if text in _CONSTANTS:
                return ("constant", _CONSTANTS[text])
            if text in _FUNCTIONS:
                return self.function(text)
            raise _Unread(text)
        if text in _OPENING or text in ("{", r"\lfloor", r"\lceil", "|"):
            return self.bracketed(text)
        if text[:1] != "\\":
            raise _Unread(text)
        if text in _HEADS:
            return getattr(self, _HEADS[text])()
        name = text[1:]
        return self.function(name) if name in _FUNCTIONS else self.named(name)

    def named(self, name: str) -> Any:
        if name in _CONSTANTS:
            return ("constant", _CONSTANTS[name])
        if name not in _NAMES:
            raise _Unread(name)
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
                        raise _Unread("subscript")
                    parts.append(token.text)
                name += "_" + " ".join(parts)
            else:
                name += "_" + self.take().text
        if self.next.text == "'":
            raise _Unread("'")
        return ("variable", name)

    def numeral(self, text: str) -> Any:
        digits = text.replace(",", "").replace(" ", "")
        if self.next.text == r"\overline" and "." in digits and not self.next.spaced:
            self.take()
            return ("number", _repeating(digits, self.braced()))
        if self.next.text == r"\dot" and "." in digits:  # 0.\dot{1}4285\dot{7}
            period = ""
            while self.taken(r"\dot"):
                period += self.braced()
                more = self.next.kind == "number" and self.after().text == r"\dot"
                period += self.take().text if more else ""
            return ("number", _repeating(digits, period))
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
            return ("number", _repeating(digits, period))
        if self.next.text == r"\ldots" and "." in digits:
            raise _Unread("how does it go on?")
        if self.next.text == "_":
            self.take()
            return ("number", self.based(digits))
        value = _number(digits)
        if (
            value.denominator == 1
            and self.next.kind == "number"
            and self.next.spaced
            and self.after().text == "/"
            and self.after(2).kind == "number"
        ):  # 3 1/2
            over = _number(self.take().text)
            self.take("/")
            under = _number(self.take().text)
            if not 0 < over < under or over.denominator * under.denominator != 1:
                raise _Unread("no mixed number")
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
        base = _BASES.get(word, word)
        if not base.isdecimal() or not 2 <= int(base) <= 36 or "." in digits:
            raise _Unread("base")
        return Fraction(int(digits, int(base)))

    def function(self, name: str) -> Any:
        base = exponent = None
        if name == "sqrt":
            return ("root", self.argument_of_function(), ("number", Fraction(2)))
        while self.next.text in ("_", "^"):
            if self.take().text == "_":
                if name != "log":
                    raise _Unread("_")
                base = self.argument(whole=True)
            else:
                exponent = self.argument(whole=True)
        if exponent == ("-", ("number", Fraction(1))):
            if name not in _INVERSE:
                raise _Unread("inverse")
            name, exponent = _INVERSE[name], None
        node = ("function", name, self.argument_of_function(), base)
        return node if exponent is None else ("^", node, exponent)

    def argument_of_function(self) -> Any:
        if self.next.text in ("(", "[", "{", "|"):
            return self.power()
        node = self.negatable()
        while self.starts_factor() and not (
            self.next.text.lstrip("\\") in _FUNCTIONS or self.next.text == "("
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
        closing = self.take(*_CLOSING).text
        self.bars = bars
        paired = closing == dict(zip(_OPENING, _CLOSING, strict=True))[opening]
        if opening == r"\{" and paired:
            return ("set", items)
        if opening == r"\langle" and paired:
            return ("tuple", "<", items, ">")
        if len(items) == 1 and paired:
            if node[0] == "relation":
                raise _Unread("a relation in brackets")
            if opening == "(" and self.next.text == "_" and node[0] == "number":
                self.take()
                return ("number", self.based(str(node[1])))
            return ("group", node)
        if opening not in "([" or closing not in ")]" or (not paired and len(items) != 2):
            raise _Unread("brackets")
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
                raise _Unread("which digits?")
            return ("root", ("number", _number(self.take().text)), index)
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
            raise _Unread(name)
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
            raise _Unread(name)
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
            raise _Unread("matrix")
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
    *(name.removeprefix("\\") for name in _GREEK.values()),
    *(_listed("Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell phi epsilon")),
    *_CONSTANTS,
    *_FUNCTIONS,
} - {"e", "i"}
_BASES = {
    name: str(value)
    for value, name in enumerate(
        _listed("two three four five six seven eight nine ten eleven twelve"),
        start=2,
    )
} | {"sixteen": "16"}


def _number(text: str) -> Fraction:
    text = text.replace(",", "").replace(" ", "")
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > _BITS // 4:
        raise _Unread("exponent")
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)


def _repeating(digits: str, period: str) -> Fraction:
    if not period.isdecimal():
        raise _Unread("period")
    whole, _, decimals = digits.partition(".")
    start = Fraction(f"{whole or 0}.{decimals or 0}")
    return start + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(decimals))


# Values -------------------------------------------------------------------------------------------


def _exact(value: Any) -> bool:
    return isinstance(value, Fraction)


def _bounded(value: Any) -> Any:
    """The value, if it is of a size that the next step can take."""
    if _exact(value):
        if value.numerator.bit_length() + value.denominator.bit_length() > _BITS:
            raise _Unread("too large")
    elif not mp.isfinite(value) or (value and not -_MAGNITUDE < mp.mag(value) < _MAGNITUDE):
        raise _Unread("too large")
    return value


def _inexact(value: Any) -> Any:
    if not _exact(value):
        return value
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _IRRATIONAL_BITS:
        raise _Unread("more digits than are compared")
    return mp.mpf(value.numerator) / value.denominator


def _snapped(value: Any) -> Any:
    """A number that is a rational one to all digits, as that."""
    if _exact(value):
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
            raise _Unread("infinity")
        return {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1)}[parts[0]]
    evaluate = _OPERATIONS.get(kind)
    if evaluate is None:
        raise _Unread(kind)
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
        if _exact(left) and _exact(right):
            return operation(left, right)
        return operation(_inexact(left), _inexact(right))

    return apply


def _divide(left: Any, right: Any) -> Any:
    if right == 0:
        raise ZeroDivisionError
    return _both(lambda a, b: a / b)(left, right)


def _power(base: Any, exponent: Any) -> Any:
    base, exponent = _snapped(base), _snapped(exponent)
    if _exact(exponent) and exponent.denominator == 1:
        count = int(exponent)
        if base == 0 and count <= 0:
            raise ZeroDivisionError
        if _exact(base):
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if base not in (0, 1, -1) and abs(count) * size > _BITS:
                raise _Unread("too large")
            return base**count if abs(base) != 1 else base ** (count % 2)
    base, exponent = _inexact(base), _inexact(exponent)
    if base == 0:
        if mp.re(exponent) > 0:
            return Fraction(0)
        raise ZeroDivisionError
    if abs(exponent * mp.log(base)) > _MAGNITUDE / 2:
        raise _Unread("too large")
    return mp.power(base, exponent)


def _root(value: Any, index: Any) -> Any:
    index = _snapped(index)
    if not _exact(index) or index.denominator != 1 or not 2 <= index <= 1000:
        return _power(value, _divide(Fraction(1), index))
    value = _inexact(value)
    if not isinstance(value, mpmath.mpc) and value < 0 and index % 2:
        return -mp.root(-value, int(index))
    return mp.root(value, int(index))


def _factorial(value: Any) -> Any:
    value = _snapped(value)
    if _exact(value) and value.denominator == 1:
        if not 0 <= value <= 5000:
            raise _Unread("factorial")
        return Fraction(math.factorial(int(value)))
    return mp.gamma(_inexact(value) + 1)


def _binomial(over: Any, under: Any) -> Any:
    over, under = _snapped(over), _snapped(under)
    if _exact(under) and under.denominator == 1 and 0 <= under <= 2000 and _exact(over):
        product = Fraction(1)
        for each in range(int(under)):
            product = _bounded(product * (over - each) / (each + 1))
        return product
    return mp.binomial(_inexact(over), _inexact(under))


def _rounded(direction: int) -> Any:
    def apply(value: Any) -> Any:
        value = _snapped(value)
        if isinstance(value, mpmath.mpc):
            raise _Unread("complex")
        if _exact(value):
            return Fraction(value.__floor__() if direction < 0 else value.__ceil__())
        if mp.mag(value) > 1000:
            raise _Unread("too large")
        return Fraction(int(mp.floor(value) if direction < 0 else mp.ceil(value)))

    return apply


def _apply(name: str, argument: Any, base: Any, at: _Context) -> Any:
    value = _value(argument, at)
    if name == "abs":
        return abs(value)
    value = _inexact(value)
    if name == "exp" and abs(value) > _MAGNITUDE / 2:
        raise _Unread("too large")
    if name in ("log", "ln", "lg"):
        if value == 0:
            raise ZeroDivisionError
        if base is not None:
            return mp.log(value) / mp.log(_inexact(_value(base, at)))
    if name in ("sinh", "cosh", "tanh") and abs(value) > _MAGNITUDE / 2:
        raise _Unread("too large")
    return _FUNCTIONS[name](value)


def _determinant(rows: list[list[Any]]) -> Any:
    if len(rows) == 1:
        return rows[0][0]
    if len(rows) != len(rows[0]) or len(rows) > 5:
        raise _Unread("determinant")
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


def _holds(node: Any, kinds: tuple[str, ...]) -> bool:
    if isinstance(node, list):
        return any(_holds(each, kinds) for each in node)
    return isinstance(node, tuple) and (
        node[0] in kinds or any(_holds(each, kinds) for each in node[1:])
    )


def _settled(node: Any, at: _Context) -> Any:
    """The value at one point, agreed by both precisions; None where there is none."""
    try:
        with mp.workdps(_DIGITS[0]):
            first = _value(node, at)
            if _exact(first):
                return first
        with mp.workdps(_DIGITS[1]):
            second = _value(node, at)
            if _exact(second):
                return second
            digits = _DIGITS[0] - 20
            if abs(second) < mp.mpf(10) ** (50 - _DIGITS[1]) and abs(first) < mp.mpf(10) ** (
                50 - _DIGITS[0]
            ):
                return Fraction(0)
            if abs(first - second) > abs(second) * mp.mpf(10) ** -digits:
                raise _Unread("digits cancel")
            return _snapped(second)
    except ZeroDivisionError:
        return None


def _written(value: Any) -> str:
    if value is None:
        return "?"
    if _exact(value):
        return f"{value.numerator:x}/{value.denominator:x}"
    with mp.workdps(_DIGITS[1]):
        if isinstance(value, mpmath.mpc):
            return f"{_written(_snapped(value.real))}+i{_written(_snapped(value.imag))}"
        return str(mp.nstr(value, _DIGITS[0] - 50))


def _values(node: Any, plus: int = 1) -> list[Any]:
    points = range(_POINTS if _holds(node, ("variable",)) else 1)
    found = [_settled(node, _Context(point, plus)) for point in points]
    if all(value is None for value in found):
        raise _Unread("no value")
    return found


def _scalar(node: Any) -> str:
    """The key of a number or an expression."""
    if _is_infinite(node):
        return "-oo" if node[0] == "-" else "oo"
    values = _values(node)
    if len(values) > 1 and None not in values and len(set(map(_written, values))) == 1:
        values = values[:1]  # the variables cancel
    return " ".join(map(_written, values))


def _is_infinite(node: Any) -> bool:
    return node == ("constant", "inf") or node == ("-", ("constant", "inf"))


# Forms --------------------------------------------------------------------------------------------


def _form(node: Any) -> tuple[str, ...]:
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
        return _form(parts[0])
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
        return _set([_form(part)[0] for part in parts[0]])
    if kind == "tuple":
        opening, items, closing = parts
        return f"{opening}{', '.join(_form(item)[0] for item in items)}{closing}"
    if kind == "matrix":
        return "matrix " + "; ".join(", ".join(map(_scalar, row)) for row in parts[0])
    if kind == "ratio":
        return _ratio(parts[0])
    if kind == r"\cup":
        return _union(_flattened(node))
    if kind == r"\setminus":
        return _without(*parts)
    if kind == "ellipsis":
        return "..."
    if kind in ("relation", "list", "congruent", "united"):
        return _form(node)[0]
    if _holds(node, (r"\pm", r"\mp")):
        return _set([" ".join(map(_written, _values(node, plus))) for plus in (1, -1)])
    return _scalar(node)


def _set(keys: list[str]) -> str:
    keys = sorted(set(keys))
    return keys[0] if len(keys) == 1 and keys[0] != "{}" else "{" + ", ".join(keys) + "}"


def _list(items: list[Any], joints: set[str]) -> tuple[str, ...]:
    if ("ellipsis",) in items:
        return ("sequence " + ", ".join(_form(item)[0] for item in items),)
    if all(item[0] == "united" for item in items):
        units = {item[2] for item in items}
        if joints == {"and"} and len(units) == 1 and len({item[3] for item in items}) > 1:
            # 2 hours and 30 minutes
            total = functools.reduce(
                lambda a, b: ("+", a, b), [("*", i[1], ("number", i[3])) for i in items]
            )
            return (f"{units.pop().removesuffix('^1')}: {_key(total)}",)
    if joints == {"or"} and all(item[0] in ("relation",) for item in items):
        spans = [found for item in items if (found := _span(*item[1:]))]
        if len(spans) == len(items) and len({name for name, _ in spans}) == 1:
            union = _union([span for _, span in spans])
            return f"{spans[0][0]} in {union}", union
    forms = [_form(item) for item in items]
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
            return _form(sides[0])
    if set(signs) == {"="}:
        return _equation(sides)
    if signs == [r"\in"] and sides[0][0] == "variable":
        name, key = sides[0][1], _key(sides[1])
        return f"{name} in {key}", key
    span = _span(sides, signs)
    if span is not None:
        return f"{span[0]} in {_union([span[1]])}", _union([span[1]])
    if len(signs) == 1 and signs[0] in ("<", ">", r"\le", r"\ge", r"\ne"):
        if signs[0] == r"\ne" and sides[0][0] == "variable":
            everything = ("(", "-oo", "oo", ")")
            line = _without_points([everything], [sides[1]])
            return f"{sides[0][1]} in {line}", line
        difference = ("+", sides[0], ("-", sides[1]))
        if signs[0] in (">", r"\ge"):
            difference = ("-", difference)
        values = _values(difference)
        if len(values) == 1 or None in values or values[0] == 0:
            raise _Unread("a relation of numbers")
        scale = abs(values[0]) if signs[0] != r"\ne" else values[0]
        sign = {">": "<", r"\ge": r"\le"}.get(signs[0], signs[0])
        return (f"{sign} " + " ".join(_quotients(values, scale)),)
    raise _Unread("relation")


def _quotients(values: list[Any], scale: Any) -> list[str]:
    with mp.workdps(_DIGITS[1]):
        return [_written(_snapped(_divide(value, scale))) for value in values]


def _equation(sides: list[Any]) -> tuple[str, ...]:
    name = None
    if len(sides) > 1 and sides[0][0] in ("variable", "applied"):
        name = sides[0]
        if name[0] == "variable" and any(
            _holds(side, ("variable",)) and _occurs(name, side) for side in sides[1:]
        ):
            name = None
    rest = sides[1:] if name is not None else sides
    forms = [_form(side) for side in rest]
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
            with contextlib.suppress(_Unread, ArithmeticError, TypeError):
                full = _line(sides[0], rest[0])
        return full, *keys
    if len(sides) == 2:
        return (_line(*sides),)
    raise _Unread("the sides differ")


def _occurs(name: Any, node: Any) -> bool:
    if node == name:
        return True
    return isinstance(node, list | tuple) and any(_occurs(name, each) for each in node)


def _line(left: Any, right: Any) -> str:
    """The key of an equation: its difference up to a factor."""
    values = _values(("+", left, ("-", right)))
    first = next((value for value in values if value not in (None, 0)), None)
    if first is None or len(values) == 1:
        raise _Unread("no equation")
    if None in values:
        raise _Unread("undefined")
    return "0 = " + " ".join(_quotients(values, first))


def _check_near(exact: Any, rounded: Any) -> None:
    while exact[0] in ("united", "percent", "group"):
        exact = exact[1]
    while rounded[0] in ("united", "percent", "group"):
        rounded = rounded[1]
    (first,), (second,) = _values(exact), _values(rounded)
    if first is None or second is None:
        raise _Unread("approximation")
    with mp.workdps(30):
        first, second = (
            mp.mpmathify(v.numerator) / v.denominator if _exact(v) else v for v in (first, second)
        )
        if abs(first - second) > abs(first) * mp.mpf("0.05"):
            raise _Unread("not near")


_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def _span(sides: list[Any], signs: list[str]) -> tuple[str, tuple[str, str, str, str]] | None:
    """The interval that inequalities of one variable and numbers are; None for others."""
    if not set(signs) <= set(_FLIPPED) or len(signs) not in (1, 2):
        return None
    if any(side[0] in ("united", "percent") for side in sides):
        return None
    if len(signs) == 1:
        if sides[1][0] == "variable":
            sides, signs = sides[::-1], [_FLIPPED[signs[0]]]
        name, bound = sides
        if name[0] != "variable" or _holds(bound, ("variable", "applied")):
            return None
        end = _scalar(bound)
        closed = signs[0] in (r"\le", r"\ge")
        if signs[0] in ("<", r"\le"):
            return name[1], ("(", "-oo", end, "]" if closed else ")")
        return name[1], ("[" if closed else "(", end, "oo", ")")
    if signs[0] in (">", r"\ge"):
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
    low, name, high = sides
    if not set(signs) <= {"<", r"\le"} or name[0] != "variable":
        return None
    if _holds([low, high], ("variable", "applied")):
        return None
    ends = "[" if signs[0] == r"\le" else "(", "]" if signs[1] == r"\le" else ")"
    return name[1], (ends[0], _scalar(low), _scalar(high), ends[1])


def _flattened(node: Any) -> list[tuple[str, str, str, str]]:
    """The intervals of a union."""
    if node[0] == r"\cup":
        return _flattened(node[1]) + _flattened(node[2])
    if node[0] == r"\setminus" and node[2][0] == "set":
        return _cut(_flattened(node[1]), node[2][1])
    if node[0] == "group":
        return _flattened(node[1])
    if node[0] == "set" and node[1]:
        return [("[", key, key, "]") for key in (_scalar(item) for item in node[1])]
    if node[0] == "tuple" and len(node[2]) == 2 and node[1] in "([" and node[3] in ")]":
        low, high = node[2]
        return [(node[1], _scalar(low), _scalar(high), node[3])]
    raise _Unread("union")


def _without(whole: Any, removed: Any) -> str:
    if removed[0] != "set":
        raise _Unread("without what?")
    return _without_points(_flattened(whole), removed[1])


def _without_points(spans: list[Any], points: list[Any]) -> str:
    return _union(_cut(spans, points))


def _cut(spans: list[Any], points: list[Any]) -> list[Any]:
    for point in points:
        if _holds(point, ("variable",)):
            raise _Unread("a variable point")
        key = _scalar(point)
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
        raise _Unread("no real number")
    if "/" in key:
        over, under = (int(part, 16) for part in key.split("/"))
        return mp.mpf(over) / under
    return mp.mpf(key)


def _union(spans: list[Any]) -> str:
    def order(span: Any) -> tuple[Any, ...]:
        return _position(span[1]), span[0] == "(", _position(span[2])

    with mp.workdps(_DIGITS[0]), contextlib.suppress(_Unread):
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


def _ratio(parts: list[Any]) -> str:
    (values,) = zip(*(_values(part) for part in parts), strict=True)
    if None in values or values[0] == 0:
        raise _Unread("ratio")
    return "ratio " + " : ".join(_quotients(list(values), values[0]))


def _congruence(sides: list[Any], modulus: Any) -> tuple[str, ...]:
    (size,) = _values(modulus)
    if not _exact(size) or size.denominator != 1 or size < 1:
        raise _Unread("modulus")

    def residues(side: Any) -> str:
        items = side[1] if side[0] == "list" else [side]
        found = [_values(item) for item in items]
        if any(len(values) > 1 or not _exact(values[0]) for values in found):
            raise _Unread("residue")
        return _set([_written(values[0] % size) for values in found])

    key = f"{residues(sides[-1])} mod {size}"
    if len(sides) == 1:
        return (key,)
    if len(sides) != 2:
        raise _Unread("congruences")
    if sides[0][0] == "variable":
        return f"{sides[0][1]} = {key}", key
    return (f"{_scalar(sides[0])} = {key}",)


# The worker ---------------------------------------------------------------------------------------


def _end_with(parent: int) -> None:
    """Ends this process with its parent, which may be killed while an answer is read."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Answers requests until the input ends."""
    import resource

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    logging.disable(logging.ERROR)
    replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no reply
    limit = 2 << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        try:
            form = read_form(json.loads(line))
        # An answer is arbitrary text, and what it raises in a library is as arbitrary.
        except (Exception, RecursionError, MemoryError):
            form = None
        print(json.dumps(form), file=replies, flush=True)


if __name__ == "__main__":
    main()
