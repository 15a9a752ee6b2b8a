r"""Answers: reading the final answer out of a completion, and deciding when two are the same.

Both steps are plain functions that whoever needs them takes as arguments (`extract`, `equal`), so
that another task brings its own. The defaults here read mathematics written as a model is usually
asked to (`\boxed{...}`, `#### 42`, "the answer is (C)") and compare numbers by value and everything
else by its normalised text: no symbolic algebra, so `\frac{\sqrt 2}{2}` and `\frac{1}{\sqrt 2}`
differ (`optscale_jax.equivalence` knows that they do not). Uses the standard library only.
"""

import functools
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

__all__ = [
    "AnswerIds",
    "Equal",
    "Extract",
    "answers_equal",
    "cluster_answers",
    "extract_answer",
    "extract_gold",
    "normalize_answer",
]

Extract = Callable[[str], str | None]
"""From a completion's text to its final answer; None if it has none."""

Equal = Callable[[str, str], bool]
"""Whether two answers are the same; where one of them is the gold answer, it comes first."""

_BOX = "\\boxed"
# A backslash takes the next character with it: the braces of \{1, 2\} are text, not structure.
_BRACES = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
# The whole line must be a number: a completion in Markdown has headings such as "#### Step 2".
_HASHES = re.compile(r"^####[ \t]*([-+]?[$€£]?[-+]?[0-9][0-9,]*(?:\.[0-9]+)?%?)\.?[ \t]*$", re.M)

# "The answer is (C)." or "Answer: C", and nothing after the letter but punctuation: "the answer is
# a prime number" names no choice.
_CHOSEN = re.compile(
    r"\b(?i:answer)(?:\s+is\s*:?|\s*:)\s*[*$]*(?:\(([A-Ja-j])\)|([A-J]))[*$]*\.?[*$]*[ \t]*$", re.M
)


def extract_answer(text: str) -> str | None:
    r"""Reads the final answer of a completion.

    It is the content of the last `\boxed{...}` (braces may nest; an empty box, or one that never
    closes, does not count), or else the number on the last line of the form `#### 42`, or else the
    letter of the last line that ends in "answer is (C)" or "Answer: C". What follows the last
    `</think>` is searched first, and the whole text if that holds no answer.

    Args:
        text: The completion.

    Returns:
        The answer, stripped; None if there is none.
    """
    _, thought, conclusion = text.rpartition("</think>")
    for part in (conclusion, text) if thought else (text,):
        answer = _last_box(part) or _last_hashes(part) or _last_choice(part)
        if answer is not None:
            return answer
    return None


def extract_gold(text: str) -> str | None:
    """Reads the answer of a gold field, which is either the bare answer or a worked solution.

    Args:
        text: The field: `42`, or a solution that ends as `extract_answer` expects.

    Returns:
        The answer that `extract_answer` finds, or else the whole field, stripped; None if blank.
    """
    return extract_answer(text) or text.strip() or None


def _last_box(text: str) -> str | None:
    # Most completions box one answer near their end, so reading on from there is enough.
    start = text.rfind(_BOX)
    if start < 0:
        return None
    # From the start only where that fails. One pass either way: a model that repeats "\boxed{"
    # until it is cut off would otherwise cost the square of its length.
    return _last_box_from(text, start) or _last_box_from(text, 0)


def _last_box_from(text: str, start: int) -> str | None:
    opened: list[int | None] = []
    best: tuple[int, str] | None = None
    for match in _BRACES.finditer(text, start):
        if match["box"]:
            opened.append(match.end())
        elif match[0] == "{":
            opened.append(None)
        elif match[0] == "}" and opened:
            begin = opened.pop()
            if begin is None or (best is not None and begin < best[0]):
                continue
            content = text[begin : match.start()].strip()
            if content:
                best = begin, content
    return None if best is None else best[1]


def _last_hashes(text: str) -> str | None:
    found = _HASHES.findall(text)
    return found[-1] if found else None


def _last_choice(text: str) -> str | None:
    found = _CHOSEN.findall(text)
    return next(filter(None, found[-1])).upper() if found else None


_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:left|right|displaystyle|[,;:! ])(?![a-zA-Z])|[\s~$]")
_SHORT_FRACTION = re.compile(r"\\frac([0-9])([0-9])")
_FRACTION = re.compile(r"([-+]?)\\frac\{([0-9]+)\}\{([0-9]+)\}")
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:/[0-9]+)?")
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
    choice "(A)" go; `\dfrac` becomes `\frac`; integers, decimals and fractions, with thousands
    separators or without, become an exact fraction in lowest terms: `1{,}200.0` and `1200` are both
    `1200`. Letters keep their case.

    Args:
        text: The answer.

    Returns:
        Its normal form.
    """
    # Wrappers first: the space inside \text{ cm} goes with the other spacing afterwards.
    text = _WRAPPER.sub(r"\1", text)
    for old, new in _REPLACED.items():
        text = text.replace(old, new)
    text = _SPACING.sub("", text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text).rstrip(".")
    text = _CHOICE.sub(r"\1", text)
    if len(text) > _LONGEST_NUMBER:
        return text
    number = _FRACTION.sub(r"\1\2/\3", text) if _FRACTION.fullmatch(text) else text
    if _THOUSANDS.fullmatch(number):
        number = number.replace(",", "")
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

    Every answer is compared with the gold answer first, then with the first member of each cluster
    in turn, so `id == gold id` holds exactly where `equal(gold, answer)` does even if `equal` is
    not transitive.

    Args:
        answers: The answers of the problem's completions in launch order; None = no answer.
        gold: The right answer; None = not known.
        equal: Whether two answers are the same. Called once for a pair of texts, at most.

    Returns:
        The ids of the answers, numbered from 0 in order of first appearance, -1 = none; and the id
        of the gold answer, the next free one if no completion has it, -1 if it is not known.
    """
    ids: dict[str, int] = {}
    clusters: list[tuple[str, int]] = []
    gold_id = -1
    num_ids = 0
    numbered = []
    for answer in answers:
        if answer is None:
            numbered.append(-1)
            continue
        if answer not in ids:
            if gold is not None and equal(gold, answer):
                if gold_id == -1:
                    gold_id, num_ids = num_ids, num_ids + 1
                ids[answer] = gold_id
            else:
                same = (number for text, number in clusters if equal(text, answer))
                ids[answer] = next(same, num_ids)
                if ids[answer] == num_ids:
                    clusters.append((answer, num_ids))
                    num_ids += 1
        numbered.append(ids[answer])
    if gold is not None and gold_id == -1:
        gold_id = num_ids
    return numbered, gold_id


class AnswerIds:
    """Numbers the answers of one problem as they come in, equal answers alike.

    Where the gold answer is known its id is 0, whether or not a completion ever gives it, so that
    ids given early stay right; the others count from there in order of arrival. Each answer is
    compared with the gold answer first, then with the first member of each cluster in turn, as
    `cluster_answers` does, so `id == gold_id` holds exactly where `equal(gold, answer)` does.

    Args:
        gold: The right answer; None = not known.
        equal: Whether two answers are the same. Called once for a pair of texts, at most.
    """

    def __init__(self, gold: str | None = None, *, equal: Equal = answers_equal):
        self._equal = equal
        self._ids: dict[str, int] = {}
        self._clusters: list[str] = [] if gold is None else [gold]
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
            self._clusters.append(answer)

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
        same = (number for number, text in enumerate(self._clusters) if self._equal(text, answer))
        self._ids[answer] = next(same, len(self._clusters))
        if self._ids[answer] == len(self._clusters):
            self._clusters.append(answer)
        return self._ids[answer]
