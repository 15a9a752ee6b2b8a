"""Pools in the format of the code published with OptScale (Wang et al., arXiv 2506.22376)."""

import os
from pathlib import Path

from optscale_jax.answers import Equal, Extract, answers_equal, extract_answer, extract_gold
from optscale_jax.derived_signals import LARGEST
from optscale_jax.errors import PoolError
from optscale_jax.pool import Pool, Rescale
from optscale_jax.readers.builder import PoolBuilder
from optscale_jax.readers.records import Record, are_numbers, read_records

__all__ = ["read_optscale"]

_QUESTIONS = ("problem", "question")
_NAMES = ("unique_id", "id")
_COMPLETIONS = ("score", "completions", 0)
_TOKENS = ("score", "completion_tokens", 0)
_STEPS = {"scores": "mean_step", "last_scores": "last_step"}


def read_optscale(
    path: str | os.PathLike[str],
    prompts: str | os.PathLike[str] | None = None,
    *,
    scores: str = "scores",
    kind: str = "parallel",
    clip: bool = False,
    rescale: Rescale | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
) -> Pool:
    """Reads a pool of the published OptScale code, of either kind.

    The file is a JSON list with one object a problem. Of each the reader takes
    `score.completions[0]` (N texts), `score.completion_tokens[0]` (N lengths) and
    `score.scores[0]` (N means of the step scores) or `score.last_scores[0]` (N last step scores).
    A sequential file looks the same, so it has to be named so; its scores may be missing, since
    nothing in the published sequential baseline reads them.

    Args:
        path: The completions.
        prompts: The problems, in the same order: a JSON list (or JSON lines) of objects with
            `problem` or `question`, and `answer`, which is a bare answer or a worked solution.
            Their `unique_id`, or else `id`, names the problems; without either, their position
            does. If None, it is not known which answers are right.
        scores: Which of the two lists to take, "scores" or "last_scores".
        kind: "parallel" (independent draws) or "sequential" (each re-answers the one before).
        clip: Move scores outside [0, 1] to the nearer end instead of refusing them.
        rescale: How to bring scores of any range into [0, 1], one of `Rescale`.
        extract: From a completion's text to its answer.
        equal: Whether two answers are the same.

    Returns:
        The pool; `tokens`, `answers` and, with prompts, `gold` and `correct` are known, and both
        lists as the signals `mean_step` and `last_step`.

    Raises:
        InputError: If a file cannot be read, is not JSON or is cut short; if a field is missing,
            has the wrong type or a value outside its domain; if the lists of a problem differ in
            length; or if the two files do not hold the same problems in the same order.

    References:
        `generation_and_scoring/prm_scoring.py`, which writes the files, and
        `BoN_OptScale/bon.py` and `Seq/mr_thinking.py`, which read them, in the published code.
    """
    path = Path(path)
    problems = None if prompts is None else _Problems(Path(prompts))
    builder = PoolBuilder(str(path), kind=kind, equal=equal, rescale=rescale)
    lists = ("score", scores, 0)
    scored = None
    for index, record in enumerate(read_records(path)):
        if scored is None:
            # The first record decides for a sequential file: scores in all, or in none.
            held = record.get("score")
            scored = kind == "parallel" or (isinstance(held, dict) and scores in held)
        completions = record.texts(*_COMPLETIONS)
        record.same_length(_COMPLETIONS, _TOKENS, *((lists,) if scored else ()))
        name, gold = (str(index), None) if problems is None else problems.take(index, record)
        builder.add(
            record,
            name,
            answers=[extract(completion) for completion in completions],
            gold=gold,
            scores=record.scores(*lists, clip=None if rescale else clip) if scored else None,
            tokens=record.lengths(*_TOKENS),
            signals=_signals(record),
        )
    if problems is not None and len(builder) not in (0, len(problems.golds)):
        raise PoolError(
            f"{path}: {len(builder)} records, but {prompts} has {len(problems.golds)}; give the "
            "prompts that the completions answer, all of them"
        )
    return builder.pool()


def _signals(record: Record) -> list[dict[str, float]]:
    """What the two lists of scores say of the steps, whichever is taken for the score."""
    count = len(record.items(*_COMPLETIONS))
    found: list[dict[str, float]] = [{} for _ in range(count)]
    for name, signal in _STEPS.items():
        held = record.get("score").get(name)
        numbers = held[0] if isinstance(held, list) and held else None
        # The list that is not taken for the score may be anything.
        if are_numbers(numbers) and len(numbers) == count:
            for one, number in zip(found, numbers, strict=True):
                one |= {signal: float(number)} if abs(number) <= LARGEST else {}
    return found


class _Problems:
    """The prompts file: names, gold answers and questions, by position."""

    def __init__(self, path: Path):
        self.path = path
        self.golds: list[str | None] = []
        self.questions: list[str] = []
        names: dict[str, list[str]] = {key: [] for key in _NAMES}
        for record in read_records(path):
            self.golds.append(extract_gold(record.label("answer")))
            question = next((key for key in _QUESTIONS if key in record.value), None)
            if question is None:
                has = ", ".join(record.value) or "none"
                raise record.error(says=f"no field 'problem' or 'question' (it has {has})")
            self.questions.append(str(record.get(question)))
            for key in _NAMES:
                if isinstance(record.value.get(key), str | int):
                    names[key].append(str(record.value[key]))
        complete = (names[key] for key in _NAMES if len(set(names[key])) == len(self.golds))
        self.names = next(complete, [str(index) for index in range(len(self.golds))])

    def take(self, index: int, record: Record) -> tuple[str, str | None]:
        """Gives the name and the gold answer of the problem that a record is about."""
        if index >= len(self.golds):
            raise record.error(
                says=f"has no problem in {self.path}, which has {len(self.golds)}; give the "
                "prompts that the completions answer"
            )
        held = record.value["score"].get("problem")
        asked = held[0] if isinstance(held, list) and held else None
        # A prompt template may have changed the question; one that is another problem's word for
        # word shows that the files are in different orders, and would pair every gold answer wrong.
        if asked != self.questions[index] and asked in self.questions:
            raise record.error(
                "score",
                "problem",
                0,
                says=f"is the question of record {self.questions.index(asked)} of {self.path}; "
                "both files must hold the same problems in the same order",
            )
        return self.names[index], self.golds[index]
