"""An answer's tokens."""

import re
from typing import NamedTuple

from .reading import DEEPEST, UnreadError, pairs_in
from .words import CONSTANTS, FUNCTIONS, SCALES, UNITS, WORDS

__all__ = ["CLOSING", "OPENING", "Token", "tokens_of"]


class Token(NamedTuple):
    """One token."""

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
_SAME = pairs_in(r"""
    \dfrac \frac  \tfrac \frac  \cfrac \frac  \leq \le  \leqslant \le  <= \le  \geq \ge
    \geqslant \ge  >= \ge  \neq \ne  != \ne  \lt <  \gt >  == =  \circ \deg  \degree \deg
    \times *  \cdot *  \ast *  \div /  \% %  \colon :  \sim \approx  \simeq \approx
    \dots \ldots  \cdots \ldots  \dotsc \ldots  \dotsb \ldots  ... \ldots
    \varnothing \emptyset  \lbrace \{  \rbrace \}  \lbrack [  \rbrack ]  \lvert |  \rvert |
    \vert |  \mid |  \dbinom \binom  \tbinom \binom  \isin \in  \backslash \setminus  \lor or
    \vee or  \land and  \wedge and  \varphi \phi  \varepsilon \epsilon  \bar \overline
    \infin \infty  \lim ?
""") | {"\x03": "$"}
OPENING, CLOSING = ("(", "[", r"\{", r"\langle"), (")", "]", r"\}", r"\rangle")


def tokens_of(text: str, roman: bool = False) -> list[Token]:
    r"""The tokens of an answer; those of \\text and the like are roman."""
    found: list[Token] = []
    place = depth = nested = 0
    spaced = False
    while place < len(text):
        match = _LEXER.match(text, place)
        if match is None:
            raise UnreadError(text[place])
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
            more = tokens_of(match["inside"], roman=True)
            before = spaced or match["inside"][:1].isspace()
            found += [t._replace(spaced=t.spaced or before) if t is more[0] else t for t in more]
            spaced = match["inside"][-1:].isspace()
            continue
        if kind == "based":
            digits = whole.partition("_")[0]
            found.append(Token("number", str(int(digits, int(match["base"]))), spaced))
        elif kind == "set":
            found += tokens_of(match["set"], roman=True)
        elif kind == "bold":
            found.append(Token("letter", "bold " + match["bold"], spaced))
        elif kind == "word":
            found += _words(whole, spaced, roman)
        else:
            name = _SAME.get(whole, whole)
            depth += (name in OPENING) - (name in CLOSING)
            nested += (name in ("{", *OPENING)) - (name in ("}", *CLOSING))
            if nested > DEEPEST:
                raise UnreadError("deep")
            kind = "number" if kind == "number" else "word" if name.isalpha() else "sign"
            found.append(Token(kind, name, spaced, roman))
        spaced = False
    return found


def _words(word: str, spaced: bool, roman: bool) -> list[Token]:
    """A run of letters: a word that means something, or the letters of a product."""
    if word[0] in SCALES and len(word) > 1:  # 万元
        return [Token("word", word[0], spaced), *_words(word[1:], False, roman)]
    known = word in FUNCTIONS or word in CONSTANTS or word.lower() in WORDS
    if len(word) == 1 and word.isascii() and not (roman and word in UNITS):
        return [Token("letter", word, spaced, roman)]
    if known or roman or len(word) > 3 or not word.isascii() or word in UNITS:
        return [Token("word", word, spaced, roman)]
    # A short word may still be a noun after a number: the grammar says which.
    return [Token("letters", word, spaced, roman)]
