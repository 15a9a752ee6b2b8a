"""Words that mean something: functions, constants, scales, units, and what changes a number."""

from fractions import Fraction

from mpmath import mp

from .reading import UnreadError, words_in

__all__ = [
    "CONSTANTS",
    "FUNCTIONS",
    "INVERSE",
    "JOINING",
    "POWERS",
    "SCALES",
    "UNITS",
    "WORDS",
    "unit_of",
]

FUNCTIONS = {
    name: getattr(mp, name)
    for name in words_in("sin cos tan sec csc cot sinh cosh tanh exp sqrt ln")
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
INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
CONSTANTS = {"pi": "pi", "e": "e", "i": "i", "infinity": "inf", "inf": "inf", "infty": "inf"}
JOINING = {"and": "and", "or": "or", "und": "and", "oder": "or", "和": "and", "或": "or"}
SCALES = {
    **{"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9},
    **{"trillion": 10**12, "dozen": 12, "万": 10**4, "亿": 10**8, "千": 10**3, "百": 10**2},
    **{"hundreds": 10**2, "thousands": 10**3, "millions": 10**6, "billions": 10**9},
    **{"trillions": 10**12, "dozens": 12, "millones": 10**6, "mil": 10**3, "million's": 10**6},
    **{"Millionen": 10**6, "Milliarden": 10**9, "tausend": 10**3},
}
UNITS: dict[str, tuple[str, Fraction]] = {}
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
        UNITS[_name] = _dimension, Fraction(_factor)
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "平方": 2, "立方": 3}
# Words that change what a number says; a number with one of them is not read without it.
_MEANING = set(
    words_in("""zero one two three four five six seven eight nine ten eleven twelve twenty half
    halve third quarter fourth fifth sixth seventh eighth ninth tenth hundredth thousandth pair
    score gross squared cubed factorial choose over times plus minus divided multiplied mod
    modulo base power to percent per not no less more than least most greater fewer below
    above under about approximately around exactly only nearly almost between from through
    until except but without with if when where which that the raised root log negative
    positive times double triple million quadrillion quintillion googol repeating recurring
    remainder max min undefined left each every am pm bce radian rad inclusive exclusive any
    all none binary octal hex hexadecimal decimal ago later before after east west north
    south up down""")
) | {"mod"}
WORDS = {*JOINING, *SCALES, *UNITS, *POWERS, *_MEANING, "percent", "for", "is", "dozen"}


def unit_of(word: str) -> tuple[str, Fraction]:
    """The dimension and size of a unit; any other noun is a unit of its own."""
    for name in (
        word,
        word.lower(),
        word.lower().removesuffix("s"),
        word.lower().removesuffix("es"),
    ):
        if name in UNITS:
            return UNITS[name]
    noun = word.lower()
    stem = noun.removesuffix("s")
    if {noun, stem} & (_MEANING | {"percent"}) or noun in SCALES or noun in JOINING:
        raise UnreadError(word)
    if noun in FUNCTIONS or len(noun) < 2 or (noun.isascii() and len(noun) < 3):
        raise UnreadError(word)
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
