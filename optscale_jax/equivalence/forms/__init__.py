"""The canonical form of an answer: two answers are the same exactly where their forms say so.

A form is a tuple of keys. The first says all that the answer says; those after it say it without
what a question may have settled already: the unit, the percent sign, the name before "=". Two
answers are the same if one's first key is among the other's, so `5` is `5 kg` and `x=5`, and
`5 kg` is `5000 g` but neither `5 g` nor `x=5`.

Every character has to be understood: the grammar below is all that is read, and an answer that is
not of it has no form. Numbers are exact rationals as far as they go; beyond, they are computed to
400 digits and have to agree with those of 200 digits. Expressions in variables are compared by
their values at three points, which no two different expressions share but by a miracle. Powers,
factorials and magnitudes are bounded before they are computed, so that little can hang; what does
is for `checker.py` to end.

Its files name each other relatively: a worker loads them without the package around them.
"""

import hashlib

from mpmath import mp

from .characters import as_ascii, unwrapped, words_key
from .grammar import Parser
from .keys import form_of
from .lexing import tokens_of
from .reading import LONGEST, UnreadError

__all__ = ["read_form"]


def read_form(text: str) -> tuple[str, ...] | None:
    """Reads the canonical form of an answer.

    Args:
        text: The answer.

    Returns:
        Its keys, the fullest first; None if it is not wholly understood.
    """
    if len(text) > LONGEST:
        return None
    try:
        text = unwrapped(as_ascii(text))
        words = words_key(text)
        keys = (words,) if words else form_of(Parser(tokens_of(text)).answer())
    except (UnreadError, ArithmeticError, ValueError, RecursionError, mp.NoConvergence):
        return None
    return tuple(dict.fromkeys(_short(key) for key in keys))


def _short(key: str) -> str:
    return key if len(key) <= 80 else "#" + hashlib.sha256(key.encode()).hexdigest()
