r"""Answers: reading the final answer out of a completion, and deciding when two are the same.

Both steps are plain functions that whoever needs them takes as arguments (`extract`, `equal`), so
that another task brings its own. The defaults here read the forms that models and harnesses write
(`\boxed{...}`, `#### 42`, "the answer is 42", `<answer>`) and compare numbers by value and
everything else by its normalised text: no algebra, so `\frac{\sqrt 2}{2}` and `\frac{1}{\sqrt 2}`
differ (`optscale_jax.equivalence` knows that they do not). Uses the standard library only.
"""

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

__all__ = [
    "EXTRACTORS",
    "AnswerIds",
    "Equal",
    "Extract",
    "answers_equal",
    "cluster_answers",
    "extract_answer",
    "extract_boxed",
    "extract_gold",
    "extract_last_number",
    "normalize_answer",
]

Extract = Callable[[str], str | None]
"""From a completion's text to its final answer; None if it has none."""

Equal = Callable[[str, str], bool]
"""Whether two answers are the same; where one of them is the gold answer, it comes first."""

# Where in the text, from and to, and what it says.
_Found = tuple[int, int, str]


def extract_answer(text: str) -> str | None:
    r"""Reads the answer that a completion commits to last.

    That is the last of: a `\boxed{...}` or `\fbox{...}` (braces may nest; one that is empty or
    never closes does not count; several that only commas or "and" part are one answer, joined by
    commas), a line `#### 42`, an `<answer>...</answer>`, "the answer is ..." or "Answer: ..." with
    a number, a formula or a choice, in English or another of the languages below, and "option C"
    where a sentence ends. Where none is, an answer in words counts as well ("Answer: Paris"). What
    follows the last `</think>` is searched first, and the whole text if that holds no answer.

    Args:
        text: The completion.

    Returns:
        The answer, stripped; None if there is none.
    """
    return _after_thought(text, _committed)


def extract_boxed(text: str) -> str | None:
    r"""Reads the last `\boxed{...}` of a completion, as `extract_answer` does, and nothing else.

    Args:
        text: The completion.

    Returns:
        The answer, stripped; None if there is none.
    """
    return _after_thought(text, lambda part: next((found[2] for found in _last_boxes(part)), None))


def extract_last_number(text: str) -> str | None:
    """Reads the last number of a completion, as GSM8K's harnesses do.

    Args:
        text: The completion.

    Returns:
        The number, with its sign and its thousands separators; None if there is none.
    """

    def last(part: str) -> str | None:
        found = re.findall(r"(?<![\w.])-?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?", part)
        return found[-1].rstrip(",") if found else None

    return _after_thought(text, last)


def extract_gold(text: str) -> str | None:
    """Reads the answer of a gold field, which is either the bare answer or a worked solution.

    Args:
        text: The field: `42`, or a solution that ends as `extract_answer` expects.

    Returns:
        The answer that `extract_answer` finds, or else the whole field, stripped; None if blank.
    """
    return extract_answer(text) or text.strip() or None


EXTRACTORS: Mapping[str, Extract] = {
    "auto": extract_answer,
    "boxed": extract_boxed,
    "last_number": extract_last_number,
}
"""What a configuration's `extract` may name."""


def _after_thought(text: str, read: Extract) -> str | None:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    _, thought, conclusion = text.rpartition("</think>")
    found = (read(part) for part in ((conclusion, text) if thought else (text,)))
    return next((answer for answer in found if answer), None)


def _committed(text: str) -> str | None:
    stated = [
        *_last_boxes(text)[:1],
        *_last_hashes(text),
        *_last_tag(text),
        *_last_stated(text),
        *_last_option(text),
    ]
    if stated:
        return max(stated)[2]
    return next((words for _, _, words in _last_stated(text, in_words=True)), None)


# Boxes --------------------------------------------------------------------------------------------

# A backslash takes the next character with it: the braces of \{1, 2\} are text, not structure.
_BRACES = re.compile(
    r"\\(?:boxed|fbox|framebox)\s*(?:(?P<box>\{)|(?P<bare>-?[0-9][0-9,./]*(?<![,./])|[A-Za-z](?![A-Za-z])))"
    r"|\\.|[{}]",
    re.DOTALL,
)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
# What may stand between boxes that are one answer: "\boxed{3}$, $\boxed{5}$ and $x=\boxed{7}".
_BETWEEN = re.compile(
    r"[\s$,;&*]*(?:\\(?:text|quad|qquad|,)?\s*)?(?:\{?\s*(?:and|or|und|oder|y|o|et|ou|和|或|、)\s*\}?)?"
    r"[\s$,;*]*(?:\\?[A-Za-z](?:_\{?\w+\}?)?\s*=\s*)?[\s$]*"
)


def _last_boxes(text: str) -> list[_Found]:
    # Most completions box one answer near their end, so reading on from there is enough; from the
    # start only where that fails, or more boxes may belong to it. One pass either way: a model that
    # repeats "\boxed{" until it is cut off would otherwise cost the square of its length.
    starts = [match.start() for match in _BOX.finditer(text)]
    if not starts:
        return []
    found = _boxes_from(text, starts[-1]) if len(starts) == 1 else _boxes_from(text, starts[0])
    answers: list[str] = []
    first = last = None
    for start, end, content in reversed(found):
        if first is not None:
            between = text[end:first]
            if (
                len(between) > 60
                or "\n\n" in between
                or not _BETWEEN.fullmatch(between)
                or not between.strip(" $")
            ):
                break
        if content not in answers:
            answers.insert(0, content)
        first, last = start, last or end
    return [] if first is None or last is None else [(first, last, ", ".join(answers))]


def _boxes_from(text: str, start: int) -> list[_Found]:
    """The boxes that hold something, the innermost of those that nest, in their order."""
    opened: list[tuple[int, int] | None] = []
    found: list[_Found] = []
    for match in _BRACES.finditer(text, start):
        if match["box"]:
            opened.append((match.start(), match.end()))
        elif match["bare"]:
            found.append((match.start(), match.end(), match["bare"]))
        elif match[0] == "{":
            opened.append(None)
        elif match[0] == "}" and opened:
            box = opened.pop()
            if box is None or (found and found[-1][0] > box[0]):
                continue
            content = text[box[1] : match.start()].strip()
            if content:
                found.append((box[0], match.end(), content))
    return found


# Statements ---------------------------------------------------------------------------------------

_ANSWER_WORDS = (
    r"(?:answers?|result)|respuestas?|solución|antwort|lösung|ergebnis|endergebnis|réponse|risposta"
    r"|resposta|ответ|答案|答え|답|정답"
)
_IS = (
    r"is|are|was|would\s+be|should\s+be|must\s+be|will\s+be|equals?|becomes|es|son|sería|ist|lautet"
    r"|beträgt|sind|est|sont|è|é|是|为|為|等于|は|은|는"
)
_STATED = re.compile(
    rf"(?<![A-Za-z])(?:{_ANSWER_WORDS})(?![A-Za-zÀ-ÿ])(?:"
    # "Answer:", "**Final Answer**:", "Answer** = "
    r"(?P<label>[*_`]{0,3}\s{0,3}(?:\([^()\n]{0,20}\)\s{0,3})?[*_`]{0,3}\s{0,3}[:：=])"
    # "the answer to the second part is therefore:"
    rf"|(?P<verb>[*_]{{0,3}}(?:[ \t][^.\n:：=!?]{{0,60}}?)??\s{{0,3}}"
    rf"(?<![A-Za-z])(?:{_IS})(?![A-Za-z'’])"
    r"(?:\s{1,3}(?:therefore|thus|hence|then|simply|just|also|indeed|given\s+by|equal\s+to)){0,3})"
    # "**Final Answer**" or "## Answer" on a line of its own
    r"|(?P<heading>[*_`]{0,3}[ \t]{0,3}\n))",
    re.IGNORECASE,
)
_CUT = re.compile(
    r"(?:(?<![0-9A-Z])\.|(?<=[0-9A-Z)])\.(?![0-9])|[。！!?？])(?=[\s*$\"'”)]|$)|。|\n|</"
    r"|,?\s+(?:because|since|as|so|which|where|when|that|but|after|from|if|giving|making|and\s+(?:then|so|the|thus)|"
    r"porque|ya que|weil|da|denn|car|for\s+(?:the|this|that|a|all)|i\s+hope)\b|，(?=\D)",
    re.IGNORECASE,
)
# "We check our answer: ..." states none.
_CHECKED = re.compile(r"\b(?:check|verif|confirm|test|justif)\w*\s+(?:\w+\s+){0,2}$", re.IGNORECASE)
# A model that repeats itself until it is cut off says no more the hundredth time.
_MOST = 50
# A comma that is followed by words, not by a further answer: after a number, any word but few.
_ASIDE = re.compile(
    r"(?<=[0-9%$}])[,，]\s+(?!(?:and|or|pi|sin|cos|tan|log|ln|exp|zero|one|two|three|four|five)\b)"
    r"(?:[a-z]{2,}|i\.e|e\.g)(?![\w(]).*"
    r"|[,，]\s+(?!and\b|or\b|[-+(]?[\w\\$]{1,12}(?:[\s,.)]|$)).*",
    re.DOTALL,
)
_LETTER = re.compile(
    r"[\s*$_`]*(?:(?:option|choice|opción|选项|letter)\s*)?(?:\\text(?:bf)?\{)?\s*"
    r"(?:\(\s*(?P<a>[A-Ja-j])\s*\)|(?P<b>[A-J])(?![A-Za-z'’0-9_^(]))"
    r"(?P<rest>.{0,40})",
    re.DOTALL,
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# A number or a formula has a digit or a sign of mathematics, and no sentence around it.
_MATHEMATICAL = re.compile(r"[0-9\\=^_√π∞½⅓¼²³+<>≤≥∅]")
_NOT_AN_ANSWER = re.compile(
    r"(?:a|an|the|not|in|that|as|to|given|found|obtained|correct|incorrect|right|wrong|yes,|no,|"
    r"based|consistent|below|above|shown|known|unknown|unclear|clear|likely|probably|either|"
    r"always|we|i|it|this|these|there|what|how|therefore)\b",
    re.IGNORECASE,
)


def _last_stated(text: str, in_words: bool = False) -> list[_Found]:
    """The last "the answer is ..." or "Answer: ..." that says something."""
    for match in list(_STATED.finditer(text))[-1 : -_MOST - 1 : -1]:
        if _CHECKED.search(text, max(match.start() - 40, 0), match.start()):
            continue
        rest = text[match.end() : match.end() + 400]
        answer = _said(rest, labelled=match["verb"] is None, in_words=in_words)
        if answer:
            return [(match.end(), match.end(), answer)]
    return []


def _said(rest: str, *, labelled: bool, in_words: bool) -> str | None:
    """What an answer's statement says, from where its text begins."""
    rest = rest.lstrip(" \t\n*_`:：>")
    if _BOX.match(rest.lstrip("$ \\([")):
        return None  # the box says it
    letter = _LETTER.match(rest)
    if letter:
        after = letter["rest"]
        ends = re.match(r"[*$_`}\s]*(?:[.,;:)。，]|$|\n|\*|[-–—])", after)
        reason = re.match(r"[*$_`}]*\s+(?:because|since|as|for|and)\b", after)
        if (letter["a"] and (letter["a"].isupper() or ends)) or ends or reason:
            return (letter["a"] or letter["b"]).upper()
    formulas = list(_FORMULA.finditer(rest))
    if formulas and formulas[0].start() == 0:
        return _formulas(rest, formulas)
    cut = _CUT.search(rest)
    said = rest[: cut.start()] if cut else rest
    said = _ASIDE.sub("", said)
    said = said.strip().strip("*_`\"'“”").removesuffix(".").strip().removesuffix("です").strip()
    said = re.sub(r"\*\*|__|\s+\((?!mod|base)[A-Za-z -]+\)$", "", said)
    inner = re.search(r"\b(?:is|are|was|equals?)\s+(?=[-+(0-9$\\√])(.*)", said, re.DOTALL)
    if labelled and inner:  # Answer: the area is 5
        return _said(inner[1], labelled=False, in_words=False)
    if not said or len(said) > 200 or _NOT_AN_ANSWER.match(said):
        return None
    words = len(re.findall(r"(?<![\\A-Za-z])[^\W\d_]{2,}", re.sub(r"\\text\{[^{}]*\}", "", said)))
    if _MATHEMATICAL.search(said):
        if words <= (4 if said[0] in "-+(.$€£\\√½" or said[0].isdigit() else 1):
            return said.replace("$", "") if said.count("$") > 1 else said
        return said if in_words and words <= 6 else None
    if re.fullmatch(r"[b-zB-Z]", said):
        return said
    return said if in_words and words <= (6 if labelled else 3) and said != "a" else None


def _formulas(rest: str, formulas: list[re.Match[str]]) -> str:
    r"""The formulas that a statement begins with, and a scale or a percent sign behind them."""
    said, end = [], 0
    for match in formulas:
        if said and not _BETWEEN.fullmatch(rest[end : match.start()]):
            break
        said.append(next(filter(None, match.groups())).strip())
        end = match.end()
    unit = re.match(r"\s*(%|\\%|[a-z]+)(?=[\s.,;*)]|$)", rest[end:])
    scaled = unit and unit[1] in ("%", "\\%", *_SCALES)
    return ", ".join(said) + (f" {unit[1]}" if unit and scaled else "")


_SCALES = ("percent", "hundred", "thousand", "million", "billion", "trillion", "dozen")


# The rest of the line must be a number: Markdown has headings such as "#### Step 2".
_HASHES = re.compile(r"(?<!\S)####(?!#)(.*)$", re.MULTILINE)
_TAG = re.compile(r"<(?P<end>/?)(?:final_)?answer>", re.IGNORECASE)
_OPTION = re.compile(
    r"(?:\b(?:correct|right|best|choose|select|pick|so|is|it's)\b[^.\n]{0,20}?)?"
    r"\b(?i:option|choice)\s+(?:is\s+)?[*$]*\(?([A-J])\)?[*$]*(?=[ \t]*\.?[*]*[ \t]*$)"
    r"|(?:故选|应选|选择|故答案选|答案选|所以选)\s*[:：]?\s*[*(（]*([A-J])(?![A-Za-z])",
    re.MULTILINE,
)


def _last_hashes(text: str) -> list[_Found]:
    for match in reversed(list(_HASHES.finditer(text))):
        said = match[1].strip("* \t").removesuffix(".")
        said = said.strip("*$ " if said.count("$") > 1 else "* ")
        plain = re.sub(r"\\[A-Za-z]+", "", said)
        if re.search("[0-9]", said) and not re.search("[A-Za-z]{2}", plain):
            return [(match.start(), match.end(), said)]
    return []


def _last_tag(text: str) -> list[_Found]:
    end = len(text)
    for match in reversed(list(_TAG.finditer(text))):
        said = text[match.end() : end].strip().strip("$*").strip()
        if said and not match["end"]:
            letter = re.fullmatch(r"\(([A-Ja-j])\)\.?", said)
            found = letter[1].upper() if letter else _committed(said) or said
            return [(match.start(), match.end(), found)]
        end = match.start()
    return []


def _last_option(text: str) -> list[_Found]:
    found = list(_OPTION.finditer(text))
    return [(found[-1].start(), found[-1].end(), found[-1][1] or found[-1][2])] if found else []


# Comparison ---------------------------------------------------------------------------------------

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}")
_DROPPED = re.compile(r"\\(?:left|right|displaystyle|!)(?![a-zA-Z])|\$")
_SPACES = re.compile(r"(?:\\[,;: ]|[\s~])+")
# A space between digits parts two numbers, unless it parts thousands.
_IDLE_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")
_THOUSANDS_SPACED = re.compile(r"[-+]?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_MIXED = re.compile(r"(?P<sign>[-+]?)(?P<whole>[0-9]+) (?P<over>[0-9]+)/(?P<under>[0-9]+)")
_SHORT_FRACTION = re.compile(r"\\frac([0-9])([0-9])")
_FRACTION = re.compile(r"([-+]?)\\frac\{([0-9]+)\}\{([0-9]+)\}")
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?(?:/[0-9]+)?")
_CHOICE = re.compile(r"^\(([A-Za-z])\)$")
_REPLACED = {
    "−": "-",
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "{,}": ",",
    "\\$": "",
    "\\%": "%",
    "^{\\circ}": "°",
    "^\\circ": "°",
}
# Python refuses to turn very long digit strings into integers, and no real answer is one.
_LONGEST_NUMBER = 200


@functools.lru_cache(maxsize=1 << 14)
def normalize_answer(text: str) -> str:
    r"""Writes an answer in a form that is the same for equal answers.

    Spacing, `$`, `\left` and `\right`, text wrappers, a full stop at the end and the brackets of a
    choice "(A)" go; `\dfrac` becomes `\frac`; integers, decimals, fractions and mixed numbers, with
    thousands separators, with an exponent or without, become an exact fraction in lowest terms:
    `1{,}200.0` and `1.2e3` are both `1200`. Letters keep their case, digits their distance: `7 8`
    is not `78`.

    Args:
        text: The answer.

    Returns:
        Its normal form.
    """
    # Wrappers first: the space inside \text{ cm} goes with the other spacing afterwards.
    text = _WRAPPER.sub(r"\1", text)
    for old, new in _REPLACED.items():
        text = text.replace(old, new)
    text = _IDLE_SPACE.sub("", _SPACES.sub(" ", _DROPPED.sub("", text)).strip())
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text).rstrip(".")
    text = _CHOICE.sub(r"\1", text)
    if len(text) > _LONGEST_NUMBER:
        return text
    number = _FRACTION.sub(r"\1\2/\3", text) if _FRACTION.fullmatch(text) else text
    if _THOUSANDS.fullmatch(number) or _THOUSANDS_SPACED.fullmatch(number):
        number = number.replace(",", "").replace(" ", "")
    mixed = _MIXED.fullmatch(number)
    if mixed and int(mixed["over"]) < int(mixed["under"]):
        number = f"{mixed['sign']}{int(mixed['whole']) * int(mixed['under']) + int(mixed['over'])}"
        number += f"/{mixed['under']}"
    if not _NUMBER.fullmatch(number):
        return text
    try:
        numerator, _, denominator = number.partition("/")
        return str(Fraction(numerator) / Fraction(denominator or 1))
    except ZeroDivisionError:
        return text


def answers_equal(first: str, second: str) -> bool:
    """Tells whether two answers have the same normal form.

    Args:
        first: An answer.
        second: Another.

    Returns:
        Whether `normalize_answer` gives the same for both.
    """
    return normalize_answer(first) == normalize_answer(second)


def cluster_answers(
    answers: Sequence[str | None], gold: str | None = None, *, equal: Equal = answers_equal
) -> tuple[list[int], int]:
    """Numbers the answers of one problem, equal answers alike.

    Answers that equal the gold answer are one cluster, so `id == gold id` holds exactly where
    `equal(gold, answer)` does. Of the others, those that a chain of equal answers joins are one, so
    that the clusters do not depend on the order of the answers even if `equal` is not transitive.

    Args:
        answers: The answers of the problem's completions in launch order; None = no answer.
        gold: The right answer; None = not known.
        equal: Whether two answers are the same, whichever comes first. Called once for a pair of
            texts, at most.

    Returns:
        The ids of the answers, numbered from 0 in order of first appearance, -1 = none; and the id
        of the gold answer, the next free one if no completion has it, -1 if it is not known.
    """
    distinct = [answer for answer in dict.fromkeys(answers) if answer is not None]
    _prepare(equal, distinct, gold)
    right: list[str] = []
    clusters: list[list[str]] = []
    for answer in distinct:
        if gold is not None and equal(gold, answer):
            right.append(answer)
            continue
        joined, apart = [], []
        for cluster in clusters:
            same = any(equal(member, answer) for member in cluster)
            (joined if same else apart).append(cluster)
        clusters = [*apart, [*itertools.chain(*joined), answer]]
    place = {answer: number for number, answer in enumerate(distinct)}
    firsts = {
        answer: min(map(place.__getitem__, cluster))
        for cluster in (right, *clusters)
        for answer in cluster
    }
    numbers = {first: number for number, first in enumerate(sorted(set(firsts.values())))}
    ids = {answer: numbers[first] for answer, first in firsts.items()}
    gold_id = -1 if gold is None else ids[right[0]] if right else len(numbers)
    return [-1 if answer is None else ids[answer] for answer in answers], gold_id


def _prepare(equal: Equal, answers: Sequence[str], gold: str | None) -> None:
    """Lets a comparison that reads answers one by one read these all at once."""
    prepare = getattr(equal, "prepare", None)
    if prepare is not None and answers:
        prepare([*answers, *([] if gold is None else [gold])])


class AnswerIds:
    """Numbers the answers of one problem as they come in, equal answers alike.

    Where the gold answer is known its id is 0, whether or not a completion ever gives it, so that
    ids given early stay right; the others count from there in order of arrival. An answer that
    equals the gold answer has its id and no other does; one that equals members of several other
    clusters, which have their ids already, joins the one that was seen first.

    Args:
        gold: The right answer; None = not known.
        equal: Whether two answers are the same. Called once for a pair of texts, at most.
    """

    def __init__(self, gold: str | None = None, *, equal: Equal = answers_equal):
        self._equal = equal
        self._ids: dict[str, int] = {}
        self._clusters: list[list[str]] = [] if gold is None else [[gold]]
        self.gold_id = -1 if gold is None else 0
        """The gold answer's id; -1 = not known."""

    def known(self, answer: str | None) -> int | None:
        """The id of an answer that came in before, in these words; None if it did not."""
        return -1 if answer is None else self._ids.get(answer)

    def restore(self, answer: str | None, answer_id: int) -> None:
        """Takes an id from a record of an earlier run; ids of one problem must not have gaps.

        Args:
            answer: The answer; None = no answer.
            answer_id: The id that it had then.
        """
        if answer is None:
            return
        self._ids[answer] = answer_id
        while len(self._clusters) <= answer_id:
            self._clusters.append([])
        if answer_id != self.gold_id:
            self._clusters[answer_id].append(answer)

    def add(self, answer: str | None) -> int:
        """The id of an answer: that of the answers it equals, or the next free one.

        Args:
            answer: The answer; None = no answer.

        Returns:
            Its id; -1 = no answer.
        """
        if (found := self.known(answer)) is not None:
            return found
        assert answer is not None  # its id is -1, which is known
        same = (
            number
            for number, members in enumerate(self._clusters)
            if any(self._equal(member, answer) for member in members)
        )
        self.restore(answer, next(same, len(self._clusters)))
        return self._ids[answer]
