"""Files that say of each completion what a pool needs, under names of their own.

A `Layout` lists those names, so that another project's records become one line of `LAYOUTS`. What a
record says of a problem's completions is a `Row`, and rows of one problem are put together wherever
they stand. `optscale_jax.readers.inspect_ai` makes rows of deeper records.
"""

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from optscale_jax.answers import Equal, Extract, answers_equal, extract_answer, extract_gold
from optscale_jax.derived_signals import LARGEST, derived_signals, mean_logprob
from optscale_jax.errors import PoolError, PoolWarning
from optscale_jax.pool import Pool, Rescale
from optscale_jax.readers.builder import PoolBuilder
from optscale_jax.readers.records import Record, are_numbers, read_records, shown
from optscale_jax.records import finish_reason

__all__ = [
    "ANSWERS",
    "LAYOUTS",
    "Layout",
    "Row",
    "aggregator",
    "golds_of",
    "parts_text",
    "pool_of_rows",
    "read_layout",
    "truth",
]

ANSWERS = "answers"
"""The `metric` that stands for comparing answers, whatever a log says."""

NAMES = ("unique_id", "problem_id", "uuid", "id")
GOLDS = ("answer", "expected_answer", "gold", "final_answer", "ground_truth")
# How the step scores of a completion become its score.
_AGGREGATE: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda steps: steps[-1],
    "mean": lambda steps: math.fsum(steps) / len(steps),
    "min": min,
    "prod": math.prod,
}


def aggregator(name: str | None, source: str) -> Callable[[Sequence[float]], float]:
    """The function from step scores to a score: last, mean, min or prod.

    Raises:
        PoolError: If there is none of that name.
    """
    if name not in _AGGREGATE:
        wrong = "step scores need an aggregation" if name is None else f"no aggregation {name!r}"
        raise PoolError(f"{source}: {wrong} (there are {', '.join(_AGGREGATE)})")
    return _AGGREGATE[name]


class Layout(NamedTuple):
    """Where records keep what a pool needs; of several names, the first that a record has counts.

    Each field of a completion holds one value, or a list with one a completion.

    Attributes:
        text: The completion.
        marks: Fields that tell the format apart, all of which a record has.
        name: The problem's name.
        question: Its text, by which its completions are put together where it has no name.
        gold: The right answer, or a list of answers that are each right.
        answer: The completion's answer; without it, the text's.
        score: The verifier's score, or the list of its step scores.
        correct: Whether it is correct.
        tokens: Its length.
        finished: Whether it came to its end; what did not has no answer.
    """

    text: tuple[str, ...]
    marks: tuple[str, ...]
    name: tuple[str, ...] = NAMES
    question: tuple[str, ...] = ("problem", "question", "prompt", "input")
    gold: tuple[str, ...] = GOLDS
    answer: tuple[str, ...] = ()
    score: tuple[str, ...] = ()
    correct: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()

    def recognises(self, fields: dict[str, Any]) -> bool:
        """Whether a record with these fields is of the layout."""
        return all(mark in fields for mark in self.marks) and any(t in fields for t in self.text)


LAYOUTS: dict[str, Layout] = {
    "open_r1": Layout(
        text=("generations",),
        marks=(),
        correct=("correctness_math_verify", "correctness_llama"),
        finished=("is_reasoning_complete",),
    ),
    "nemo_skills": Layout(
        text=("generation", "generated_solution"),
        marks=("expected_answer",),
        gold=("expected_answer",),
        answer=("predicted_answer",),
        score=("reward_model_score",),
        correct=("symbolic_correct", "is_correct"),
        tokens=("num_generated_tokens",),
    ),
    "verl": Layout(
        text=("output",),
        marks=("input", "score"),
        gold=("gts", "gt", "ground_truth"),
        answer=("pred",),
        score=("score",),
        correct=("acc",),
    ),
    "open_instruct": Layout(
        text=("response", "responses", "model_response", "completion"),
        marks=("ground_truth",),
        name=(*NAMES, "prompt_idx"),
        gold=("ground_truth",),
        score=("reward", "rewards", "score", "scores"),
        tokens=("response_length", "response_lengths"),
    ),
}
"""The layouts, by the names of their formats."""


class Row(NamedTuple):
    """What one record says of one problem's completions.

    Attributes:
        record: The record.
        name: The problem's name; None: it is known by its question.
        question: Its text.
        golds: Its right answers, each right by itself; none: not known.
        texts: [N] the completions.
        answers: [N] their answers, if the record has them; None: `extract` reads them.
        finished: [N] whether they came to their end; None: they did.
        columns: [N] each, as `PoolBuilder.add` takes them.
    """

    record: Record
    name: str | None
    question: Any
    golds: list[str]
    texts: list[str]
    answers: list[str | None] | None = None
    finished: list[bool] | None = None
    columns: Mapping[str, Any] = MappingProxyType({})


def pool_of_rows(
    rows: Iterable[Row | str],
    *,
    source: str,
    prompts: str | os.PathLike[str] | None = None,
    rescale: Rescale | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
) -> Pool:
    """Puts rows together.

    Args:
        rows: The rows; a text in the place of one says why there is none, which is warned of.
        source: What error messages call the pool.
        prompts: A file of problems, which name the rows' and have their right answers.
        rescale: As for `Pool.from_arrays`.
        extract: From a completion's text to its answer.
        equal: Whether two answers are the same.

    Returns:
        The pool; problems in order of first appearance, completions in the rows' order.

    Raises:
        InputError: If there is no row, or as `PoolBuilder`.
    """
    builder = PoolBuilder(source, equal=equal, rescale=rescale)
    known = None if prompts is None else golds_of(prompts)
    names: dict[Any, str] = {}
    left_out: list[str] = []
    for row in rows:
        if isinstance(row, str):
            left_out.append(row)
            continue
        name = (
            names.setdefault(str(row.question), str(len(names))) if row.name is None else row.name
        )
        golds = row.golds
        if known is not None:
            # A request's name is often the problem's with the completion's number after it.
            name = name if name in known else re.sub(r"[-_/#:.]\D*\d+$", "", name)
            if name not in known:
                raise row.record.error(
                    says=f"is of problem {name!r}, which {prompts} does not have"
                )
            golds = known[name]
        answers = row.answers or [extract(text) for text in row.texts]
        if row.finished is not None:
            both = zip(answers, row.finished, strict=True)
            answers = [answer if finished else None for answer, finished in both]
        builder.add(
            row.record, name, answers=answers, gold=golds or None, again=True, **row.columns
        )
    if left_out:
        if not len(builder):
            raise PoolError(f"{source}: no completion is usable: {left_out[0]}")
        warnings.warn(
            f"{source}: {len(left_out)} records are left out, which have no completion; the first: "
            f"{left_out[0]}",
            PoolWarning,
            stacklevel=3,
        )
    return builder.pool()


def read_layout(
    path: str | os.PathLike[str],
    layout: Layout,
    *,
    prompts: str | os.PathLike[str] | None = None,
    scores: str | None = None,
    metric: str | None = None,
    aggregation: str | None = None,
    clip: bool = False,
    rescale: Rescale | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
) -> Pool:
    """Reads a pool from records of a layout, one a completion or one a problem.

    Args:
        path: The file, folder or data set.
        layout: Where the records keep what.
        prompts: A file of problems with right answers, by name, where the records have none.
        scores: The field to take the scores from instead of the layout's.
        metric: The field to take correctness from instead; "answers": compare answers.
        aggregation: What makes a score of a completion's step scores: last, mean, min or prod.
        clip: Move scores outside [0, 1] to the nearer end instead of refusing them.
        rescale: How to bring scores of any range into [0, 1], one of `Rescale`.
        extract: From a completion's text to its answer.
        equal: Whether two answers are the same.

    Returns:
        The pool. Which completions are correct is what the records say, where they do, or else
        whether the answer equals the right one.

    Raises:
        InputError: If a file cannot be read; or if a field is missing, has the wrong type, or a
            value outside its domain.
    """
    if scores is not None:
        layout = layout._replace(score=(scores,))
    if metric is not None:
        layout = layout._replace(correct=() if metric == ANSWERS else (metric,))
    kept = None if rescale else clip
    rows = (
        _row(record, layout, aggregation, kept, scores, metric) for record in read_records(path)
    )
    return pool_of_rows(
        rows, source=str(path), prompts=prompts, rescale=rescale, extract=extract, equal=equal
    )


def _row(
    record: Record,
    layout: Layout,
    aggregation: str | None,
    clip: bool | None,
    scores: str | None,
    metric: str | None,
) -> Row:
    value = record.value

    def field(names: tuple[str, ...]) -> str | None:
        return next((name for name in names if value.get(name) is not None), None)

    for asked in (scores, metric):
        if asked not in (None, ANSWERS):
            record.get(asked)
    text = field(layout.text) or layout.text[0]
    one = isinstance(record.get(text), str)
    texts = [value[text]] if one else record.texts(text)
    if not one:
        record.same_length((text,))

    def column(names: tuple[str, ...], of: Callable[..., Any]) -> list[Any] | None:
        name = field(names)
        if name is None:
            return None
        if one and not (of is truth and isinstance(value[name], list)):
            return [of(record, name)]
        record.same_length((text,), (name,))
        return [of(record, name, index) for index in range(len(texts))]

    def score(record: Record, *place: str | int) -> float:
        if not isinstance(record.get(*place), list):
            return record.score(*place, clip=clip)
        steps = record.scores(*place, clip=clip).tolist()
        if not steps:
            raise record.error(*place, says="is empty; a score needs one step at least")
        return aggregator(aggregation, f"{record.source}: {record.place}: {place[0]}")(steps)

    name, question = field(layout.name), field(layout.question)
    if name is None and question is None:
        has = ", ".join(value) or "none"
        raise record.error(
            says=f"no field {layout.name[0]!r} or {layout.question[0]!r} (it has {has})"
        )
    columns = {
        "scores": column(layout.score, score),
        "correct": column(layout.correct, truth),
        "tokens": column(layout.tokens, Record.length),
    }
    finished = column(layout.finished, truth)
    columns["signals"] = [
        derived_signals(steps=each, finished=ended)
        for each, ended in zip(
            column(layout.score, _steps) or [()] * len(texts),
            finished or [None] * len(texts),
            strict=True,
        )
    ]
    gold = field(layout.gold)
    return Row(
        record,
        None if name is None else record.label(name),
        None if question is None else value[question],
        [] if gold is None else golds(record, gold),
        texts,
        column(layout.answer, _answer),
        finished,
        columns,
    )


def _steps(record: Record, *path: str | int) -> list[float | int]:
    held = record.get(*path)
    return held if are_numbers(held) else []


def golds(record: Record, *path: str | int) -> list[str]:
    """A field's right answers: one, or a list of answers each of which is right.

    Raises:
        RecordError: If it holds anything but strings and numbers, or an empty list.
    """
    value = record.get(*path)
    if not isinstance(value, list):
        places = [path]
    else:
        places = [(*path, index) for index in range(len(value))]
        record.same_length(path)
    found = [extract_gold(record.label(*place)) for place in places]
    return [gold for gold in found if gold is not None]


def truth(record: Record, *path: str | int) -> bool:
    """A field that is true or false, or 1 or 0.

    Raises:
        RecordError: If it is neither.
    """
    value = record.get(*path)
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise record.error(*path, says=f"is {shown(value)}; it must be true or false, or 1 or 0")
    return bool(value)


def _answer(record: Record, *path: str | int) -> str | None:
    value = record.get(*path)
    blank = value is None or (isinstance(value, str) and not value.strip())
    return None if blank else record.label(*path)


def golds_of(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """The right answers of a file of problems, by their names; by their positions without names."""
    found: dict[str, list[str]] = {}
    for number, record in enumerate(read_records(path)):
        name = next((name for name in (*NAMES, "custom_id") if name in record.value), None)
        gold = next((gold for gold in GOLDS if gold in record.value), GOLDS[0])
        found[str(number) if name is None else record.label(name)] = golds(record, gold)
    return found


def parts_text(record: Record, *path: str | int) -> str:
    """The text of a message's content: a string, null, or a list of parts, of which texts count.

    Raises:
        RecordError: If it is anything else.
    """
    value = record.get(*path)
    if not isinstance(value, list):
        if value is not None and not isinstance(value, str):
            raise record.error(*path, says=f"is {shown(value)}; it must be a string or a list")
        return value or ""
    texts = []
    for index, part in enumerate(value):
        if isinstance(part, dict) and part.get("type") in ("text", "output_text"):
            (text,) = (record.get(*path, index, "text"),)
            if not isinstance(text, str):
                raise record.error(*path, index, "text", says=f"is {shown(text)}; give a string")
            texts.append(text)
    return "".join(texts)


def choice_logprob(choice: Any) -> float | None:
    """Mean log-probability of a choice's tokens, at most 0; None where it has none."""
    held = choice.get("logprobs") if isinstance(choice, dict) else None
    content = held.get("content") if isinstance(held, dict) else None
    if not isinstance(content, list):
        return None
    each = [token.get("logprob") if isinstance(token, dict) else None for token in content]
    if not are_numbers(each) or not all(abs(logprob) <= LARGEST for logprob in each):
        return None
    return mean_logprob(math.fsum(each), len(each))


def batch_rows(records: Iterable[Record], scores: str | None) -> Iterator[Row | str]:
    """Rows of the results of OpenAI's batches, chat or responses, and of Anthropic's."""
    for record in records:
        name = record.label("custom_id")
        body, choices = _body(record)
        if body is None:
            yield f"request {name!r} failed"
            continue
        texts = [parts_text(record, *place) for place, _ in choices]
        # Of the responses interface, which may not say.
        ends = [record.get(*end[:-1]).get(end[-1]) if end else "completed" for _, end in choices]
        usage = record.get(*body).get("usage")
        spent = ("completion_tokens", "output_tokens")
        counted = next((k for k in spent if isinstance(usage, dict) and k in usage), None)
        # It counts all choices together.
        tokens = None
        if len(texts) == 1 and counted is not None and usage[counted] is not None:
            tokens = [record.length(*body, "usage", counted)]
        columns: dict[str, Any] = {"tokens": tokens}
        means = [choice_logprob(record.get(*end[:-1])) for _, end in choices]
        columns["signals"] = [
            derived_signals(mean_logprob=mean, finished=finish_reason(end) == "stop")
            for mean, end in zip(means, ends, strict=True)
        ]
        if scores == "logprob":
            if None in means:
                raise record.error(*body, says="has no log-probabilities; leave out scores=logprob")
            columns["scores"] = [math.exp(mean) for mean in means if mean is not None]
        finished = [finish_reason(end) != "error" for end in ends]
        yield Row(record, name, None, [], texts, None, finished, columns)


Place = tuple[str | int, ...]


def _body(record: Record) -> tuple[Place | None, list[tuple[Place, Place]]]:
    """Where a result's answer stands, and its completions' contents and reasons to end."""
    value = record.value
    if isinstance(value.get("result"), dict):  # Anthropic
        body: Place = ("result", "message")
        if value["result"].get("type") != "succeeded":
            return None, []
        return body, [((*body, "content"), (*body, "stop_reason"))]
    response = value.get("response")
    if value.get("error") or not isinstance(response, dict):
        return None, []
    if response.get("status_code", 200) != 200:
        return None, []
    body = ("response", "body")
    if not isinstance(record.get(*body), dict):
        raise record.error(*body, says="is no object; it must be the server's answer")
    if "output" in record.get(*body):
        items = record.items(*body, "output")
        said = [i for i, item in enumerate(items) if isinstance(item, dict) and "content" in item]
        said = [i for i in said if items[i].get("type") == "message"]
        status = (*body, "status") if "status" in record.get(*body) else ()
        return (body, [((*body, "output", said[-1], "content"), status)]) if said else (None, [])
    choices = record.items(*body, "choices")
    if not choices:
        return None, []
    places = [(*body, "choices", index) for index in range(len(choices))]
    return body, [((*p, "message", "content"), (*p, "finish_reason")) for p in places]


def read_batch(
    path: str | os.PathLike[str],
    *,
    prompts: str | os.PathLike[str] | None = None,
    scores: str | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
) -> Pool:
    """Reads the results of a batch of requests, as OpenAI and Anthropic give them.

    Args:
        path: The file, one result a line; `custom_id` names the problem.
        prompts: A file of problems with right answers. `custom_id` is then a problem's name, or one
            with a completion's number after it: `aime/60-3`.
        scores: "logprob": exp of the mean log-probability of a completion's tokens.
        extract: From a completion's text to its answer.
        equal: Whether two answers are the same.

    Returns:
        The pool. Requests that failed are left out, with a warning; what a filter ended has no
        answer.

    Raises:
        InputError: If the file cannot be read, or a result is of another form.
    """
    if scores not in (None, "logprob"):
        raise PoolError(f"{path}: no scores {scores!r} in a batch's results; there is 'logprob'")
    rows = batch_rows(read_records(path), scores)
    return pool_of_rows(rows, source=str(path), prompts=prompts, extract=extract, equal=equal)
