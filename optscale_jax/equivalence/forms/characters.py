"""An answer's characters: Unicode as LaTeX writes it, and without what only sets the answer."""

import re
import unicodedata

from .reading import UnreadError, pairs_in
from .words import CONSTANTS, FUNCTIONS

__all__ = ["GREEK", "as_ascii", "unwrapped", "words_key"]

_SIGNS = pairs_in(r"""
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
GREEK = pairs_in(r"""
    α \alpha  β \beta  γ \gamma  δ \delta  ε \epsilon  ζ \zeta  η \eta  θ \theta  ι \iota  κ \kappa
    λ \lambda  μ \mu  ν \nu  ξ \xi  ρ \rho  σ \sigma  τ \tau  υ \upsilon  φ \phi  χ \chi
    ψ \psi  ω \omega
""")


def as_ascii(text: str) -> str:
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
        if sign := _SIGNS.get(character, GREEK.get(character)):
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
    raise UnreadError(character)


_DELIMITERS = [(each, each) for each in ("$$", "$", "**", "*", "__", "_", "`")]
_DELIMITERS += [(r"\[", r"\]"), (r"\(", r"\)"), (r"\boxed{", "}"), (r"\fbox{", "}")]
_DROPPED = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|!)(?![A-Za-z])|(?<=[0-9])\{,\}(?=[0-9])"
)
_SPACES = re.compile(r"\\(?:quad|qquad)(?![A-Za-z])|\\[ ,;:>\n]|~|\s")


def unwrapped(text: str) -> str:
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


def words_key(text: str) -> str | None:
    """The key of an answer in words; None for one that is mathematics."""
    bare = " ".join(_WRITTEN.sub(r"\1", text).split()).strip(" \"'")
    if not re.fullmatch(r"[^\W\d_]+(?:(?:[ \-'&]|, |\. )[^\W\d_]+)*", bare):
        return None
    words = re.findall(r"[^\W\d_]+", bare)
    if len(words) == 1 and (len(bare) == 1 or (len(bare) == 2 and bare.islower())):
        return None
    if any(word in FUNCTIONS or word in CONSTANTS for word in words) or "\\" in bare:
        return None
    return "words " + bare.casefold()
