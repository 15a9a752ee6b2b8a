"""Numbers as they are written: with exponents, with periods, in other bases."""

from fractions import Fraction

from .reading import UnreadError, words_in

__all__ = ["BASES", "BITS", "number_of", "repeating"]

BITS = 200_000  # of an exact number
BASES = {
    name: str(value)
    for value, name in enumerate(
        words_in("two three four five six seven eight nine ten eleven twelve"),
        start=2,
    )
} | {"sixteen": "16"}


def number_of(text: str) -> Fraction:
    """A number as it is written, with a comma at thousands or an exponent."""
    text = text.replace(",", "").replace(" ", "")
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > BITS // 4:
        raise UnreadError("exponent")
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)


def repeating(digits: str, period: str) -> Fraction:
    """A decimal number whose period comes after its digits."""
    if not period.isdecimal():
        raise UnreadError("period")
    whole, _, decimals = digits.partition(".")
    start = Fraction(f"{whole or 0}.{decimals or 0}")
    return start + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(decimals))
