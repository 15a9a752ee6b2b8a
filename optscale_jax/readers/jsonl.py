"""This project's own text format: JSON lines, one a completion, for people and for live runs.

`docs/formats.md` describes it. Lines are independent of each other, so that a run appends them as
completions arrive, files are joined with `cat`, and any tool that reads lines can look inside.
"""

import array
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optscale_jax.answers import Equal, Extract, answers_equal, cluster_answers, extract_answer
from optscale_jax.derived_signals import (
    VERIFIER_TOKENS,
    SignalColumns,
    derived_signals,
    signal_arrays,
)
from optscale_jax.errors import PoolError, RecordError
from optscale_jax.files import atomic_write
from optscale_jax.pool import BLOCK, Pool, Rescale
from optscale_jax.readers.layouts import aggregator
from optscale_jax.readers.records import Record, are_numbers, read_records, shown
from optscale_jax.records import finish_reason

__all__ = ["blocks_of_records", "jsonl_blocks", "pool_of_records", "read_jsonl", "write_jsonl"]

# How the answers of a file are given; the first that a line has is taken.
_ANSWER_FIELDS = ("answer_id", "answer", "completion")
_STEP_FIELDS = ("steps", "step_scores")
_SCORE_FIELDS = ("score", *_STEP_FIELDS, "mean_logprob")
_NONE = "give a whole number, or -1 for none"


def write_jsonl(pool: Pool, path: str | os.PathLike[str]) -> None:
    """Writes a pool as JSON lines that `read_jsonl` reads back unchanged.

    What a pool cannot tell is left out: scores without a verifier, lengths that are unknown. The
    file appears under its name only when it is complete, replacing an older one. N is not written:
    columns that no problem has a completion in do not come back.

    Args:
        pool: The pool.
        path: The file; its folder is made if it does not exist.

    Raises:
        OSError: If the file cannot be written.
    """
    with atomic_write(path) as file:
        for row in range(pool.num_problems):
            file.writelines(_lines(pool, row))


def _lines(pool: Pool, row: int) -> list[str]:
    count = int(pool.samples_per_problem[row])
    columns: dict[str, list[Any]] = {"index": list(range(count))}
    if pool.scores is not None:
        columns["score"] = _shortest(pool.scores[row, :count])
    columns["tokens"] = pool.tokens[row, :count].tolist()
    if pool.answers is not None:
        columns["answer_id"] = pool.answers[row, :count].tolist()
    if pool.gold is not None:
        columns["gold_id"] = [int(pool.gold[row])] * count
    if pool.correct is not None:
        columns["correct"] = pool.correct[row, :count].tolist()
    if pool.signals:
        each = {name: _shortest(signal[row, :count]) for name, signal in pool.signals.items()}
        columns["signals"] = [
            {name: None if math.isnan(signal[i]) else signal[i] for name, signal in each.items()}
            for i in range(count)
        ]
    shared: dict[str, Any] = {"problem_id": str(pool.problem_ids[row])}
    if pool.kind != "parallel":
        shared["kind"] = pool.kind
    lines = []
    for values in zip(*columns.values(), strict=True):
        line = shared | dict(zip(columns, values, strict=True))
        if line["tokens"] == -1:
            del line["tokens"]
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return lines


def _shortest(scores: np.ndarray) -> list[float]:
    """Gives numbers that print in few digits, 0.3 for 0.30000001192092896, where that is exact."""
    short = scores.astype(str).astype(np.float64)
    return np.where(short.astype(np.float32) == scores, short, scores.astype(np.float64)).tolist()


def read_jsonl(
    path: str | os.PathLike[str],
    *,
    clip: bool = False,
    rescale: Rescale | None = None,
    scores: str | None = None,
    aggregation: str | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
) -> Pool:
    """Reads a pool from JSON lines, one a completion, in any order.

    Args:
        path: The file. `docs/formats.md` lists the fields; `problem_id` and one of `score`,
            `answer`, `answer_id` and `completion` are the least.
        clip: Move scores outside [0, 1] to the nearer end instead of refusing them.
        rescale: How to bring scores of any range into [0, 1], one of `Rescale`.
        scores: The field that holds the score, or a list of the completion's step scores. None:
            `score`, `steps`, `step_scores` or `mean_logprob`, whose exp is taken.
        aggregation: What makes a score of step scores: last, mean, min or prod.
        extract: From a completion's text to its answer, where the file has texts but no answers.
        equal: Whether two answers are the same, where they are given as text.

    Returns:
        The pool: problems in order of first appearance, completions in order of `index`.

    Raises:
        InputError: If the file cannot be read, is not JSON or is cut short; if a field is missing,
            has the wrong type or a value outside its domain; if a field is on some lines only; if
            lines of a problem disagree about its gold answer; or if indices repeat or leave gaps.
    """
    path = Path(path)
    return pool_of_records(
        read_records(path),
        source=str(path),
        clip=clip,
        rescale=rescale,
        scores=scores,
        aggregation=aggregation,
        extract=extract,
        equal=equal,
    )


def jsonl_blocks(path: str | os.PathLike[str], **options: Any) -> Iterator[Pool]:
    """What `read_jsonl` reads, with its options but for `rescale`, as `blocks_of_records`."""
    return blocks_of_records(read_records(path), source=str(path), **options)


def blocks_of_records(
    records: Iterable[Record],
    *,
    source: str,
    clip: bool = False,
    scores: str | None = None,
    aggregation: str | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
    score_fields: Sequence[str] = _SCORE_FIELDS,
) -> Iterator[Pool]:
    """Makes pools of `BLOCK` problems each, in the memory of one; arguments of `pool_of_records`.

    A pool ends where a problem begins for which it has no room, so that the lines of a problem have
    to stand together.
    """

    def empty() -> _Table:
        return _Table(source, clip, scores, aggregation, extract, score_fields)

    table = empty()
    for record in records:
        full = len(table.problems) == BLOCK
        if full and record.label("problem_id") not in table.problems:
            yield table.pool(equal, None)
            table = empty()
        table.add(record)
    yield table.pool(equal, None)


def pool_of_records(
    records: Iterable[Record],
    *,
    source: str,
    clip: bool = False,
    rescale: Rescale | None = None,
    scores: str | None = None,
    aggregation: str | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
    score_fields: Sequence[str] = _SCORE_FIELDS,
) -> Pool:
    """Makes a pool of the format's records, for readers of files that hold more than a pool.

    Args:
        records: One a completion, in any order.
        source: The file.
        clip: As for `read_jsonl`, and so are the others.
        rescale: Likewise.
        scores: Likewise.
        aggregation: Likewise.
        extract: Likewise.
        equal: Likewise.
        score_fields: Where scores may be if `scores` is None; the first that there is counts.

    Returns:
        The pool.

    Raises:
        InputError: As `read_jsonl`.
    """
    table = _Table(source, None if rescale else clip, scores, aggregation, extract, score_fields)
    for record in records:
        table.add(record)
    return table.pool(equal, rescale)


class _Table:
    """The columns of a file: a few bytes a completion, and each distinct answer once a problem."""

    def __init__(
        self,
        source: str,
        clip: bool | None,
        scores: str | None,
        aggregation: str | None,
        extract: Extract,
        score_fields: Sequence[str],
    ):
        self.source = source
        self.clip = clip
        self.scores = scores
        self.aggregation = aggregation
        self.extract = extract
        self.score_fields = score_fields
        self.problems: dict[str, _Problem] = {}
        self.first: Record | None = None
        self.kind = "parallel"
        # Which of the optional columns the file has, decided by its first line.
        self.has: dict[str, bool] = {}
        self.answer_field: str | None = None

    def add(self, record: Record) -> None:
        first = self.first = self.first or self._begin(record)
        value = record.value
        for field, held in self.has.items():
            if (field in value) != held:
                where, other = (record, first) if held else (first, record)
                raise where.error(
                    says=f"no field {field!r}, which {other.place} has; give it on every line, or "
                    "on none"
                )
        if value.get("kind", "parallel") != self.kind:
            raise record.error(
                "kind", says=f"is not that of {first.place}, {self.kind!r}; a pool has one"
            )
        name = record.label("problem_id")
        problem = self.problems.setdefault(name, _Problem())
        score = None if self.scores is None else self._score(record, self.scores)
        problem.add(record, self.answer_field, self.has, score, self.extract)
        problem.signals.add(_signals(record, self.scores))

    def _score(self, record: Record, field: str) -> float:
        value = record.get(field)
        if isinstance(value, list):
            steps = record.scores(field, clip=self.clip).tolist()
            if not steps:
                raise record.error(field, says="is empty; a score needs one step at least")
            where = f"{record.source}: {record.place}: {field}"
            return aggregator(self.aggregation, where)(steps)
        if field != "mean_logprob":
            return record.score(field, clip=self.clip)
        return math.exp(_logprob(record))

    def _begin(self, record: Record) -> Record:
        record.get("problem_id")
        kind = record.value.get("kind", "parallel")
        if kind not in ("parallel", "sequential"):
            raise record.error("kind", says=f"is {kind!r}; it must be 'parallel' or 'sequential'")
        self.kind = kind
        self.answer_field = next((name for name in _ANSWER_FIELDS if name in record.value), None)
        # A field that is passed over in favour of this one may come and go.
        last = _ANSWER_FIELDS.index(self.answer_field or _ANSWER_FIELDS[-1])
        named = self.scores is not None
        if not named:
            self.scores = next((name for name in self.score_fields if name in record.value), None)
        scores = () if self.scores is None else (self.scores,)
        columns = ("index", *scores, "correct", *_ANSWER_FIELDS[: last + 1])
        self.has = {name: name in record.value for name in columns}
        if not named:
            # A line that gains a score is as wrong as one that loses it.
            self.has.setdefault("score", False)
        if self.answer_field is None and self.scores is None:
            raise record.error(
                says="no field 'score', 'answer', 'answer_id' or 'completion' (it has "
                f"{', '.join(record.value)}); see docs/formats.md"
            )
        return record

    def pool(self, equal: Equal, rescale: Rescale | None) -> Pool:
        if self.first is None:
            raise PoolError(f"{self.source}: no records; a pool has one problem at least")
        counts = np.array([len(problem.tokens) for problem in self.problems.values()])
        mask = np.arange(counts.max()) < counts[:, None]
        arrays: dict[str, Any] = {"tokens": np.full(mask.shape, -1, np.int32)}
        if self.scores is not None:
            arrays["scores"] = np.zeros(mask.shape)
        if self.has["correct"]:
            arrays["correct"] = np.zeros(mask.shape, bool)
        if self.answer_field is not None:
            arrays["answers"] = np.full(mask.shape, -1, np.int32)
        golds = np.full(len(counts), -1, np.int32)
        given = False
        signals: list[dict[str, np.ndarray]] = []
        for row, (name, problem) in enumerate(self.problems.items()):
            order = problem.order(name, self.source)
            arrays["tokens"][row, : len(order)] = np.array(problem.tokens)[order]
            if self.scores is not None:
                arrays["scores"][row, : len(order)] = np.array(problem.scores)[order]
            if self.has["correct"]:
                arrays["correct"][row, : len(order)] = np.array(problem.correct)[order]
            answers, golds[row] = problem.answer_ids(order, equal)
            if self.answer_field is not None:
                arrays["answers"][row, : len(order)] = answers
            given |= problem.gold is not None
            signals.append({n: column[order] for n, column in problem.signals.columns().items()})
        return Pool.from_arrays(
            **arrays,
            gold=golds if given else None,
            problem_ids=list(self.problems),
            mask=mask,
            kind=self.kind,
            signals=signal_arrays(signals, mask.shape),
            rescale=rescale,
            source=self.source,
        )


def _signals(record: Record, score_field: str | None) -> dict[str, float]:
    """What a line says of its completion beside the score; see docs/formats.md."""
    value = record.value
    if value.get("signals") is not None:
        return record.signals("signals")
    lists = (value.get(field) for field in (score_field or "", *_STEP_FIELDS))
    end, mean, spent = value.get("finish_reason"), value.get("mean_logprob"), VERIFIER_TOKENS
    return derived_signals(
        # A field of that name may as well hold the steps' texts.
        steps=next((held for held in lists if are_numbers(held)), ()),
        mean_logprob=None if mean is None or mean != mean else _logprob(record),
        finished=finish_reason(end) == "stop" if isinstance(end, str) else None,
        verifier_tokens=None if value.get(spent) is None else record.length(spent),
    )


def _logprob(record: Record) -> float:
    logprob = record.score("mean_logprob", clip=None)
    if logprob > 0:
        raise record.error("mean_logprob", says=f"is {logprob}; a log-probability is at most 0")
    return logprob


class _Problem:
    def __init__(self):
        self.signals = SignalColumns()
        self.indices = array.array("i")
        self.scores = array.array("d")
        self.tokens = array.array("i")
        self.correct = array.array("b")
        # Ids where the file gives ids; else places in `texts`, -1 = no answer.
        self.answers = array.array("i")
        self.texts: dict[str, int] | None = None
        self.gold: str | int | None = None

    def add(
        self,
        record: Record,
        answer_field: str | None,
        has: dict[str, bool],
        score: float | None,
        extract: Extract,
    ) -> None:
        value = record.value
        index = len(self.indices)
        if has["index"]:
            index = record.whole("index", least=0, says="count a problem's completions from 0")
        self.indices.append(index)
        if score is not None:
            self.scores.append(score)
        self.tokens.append(-1 if value.get("tokens") is None else record.length("tokens"))
        if has["correct"]:
            if value["correct"] not in (0, 1) or isinstance(value["correct"], float):
                raise record.error(
                    "correct", says=f"is {shown(value['correct'])}; it must be true or false"
                )
            self.correct.append(value["correct"])
        if answer_field == "answer_id":
            self.answers.append(record.whole("answer_id", least=-1, says=_NONE))
        elif answer_field is not None:
            self._add_text(record, answer_field, extract)
        self._add_gold(record, answer_field)

    def _add_text(self, record: Record, field: str, extract: Extract) -> None:
        if field == "completion":
            held = record.get(field)
            if not isinstance(held, str):
                raise record.error(field, says="must be a string, the text of the completion")
            answer = extract(held)
        else:
            answer = None if record.value[field] is None else record.label(field)
        if self.texts is None:
            self.texts = {}
        self.answers.append(
            -1 if answer is None else self.texts.setdefault(answer, len(self.texts))
        )

    def _add_gold(self, record: Record, answer_field: str | None) -> None:
        gold: str | int | None = None
        if "gold_id" in record.value:
            if answer_field in ("answer", "completion"):
                raise record.error("gold_id", says="needs 'answer_id' beside it; or give 'gold'")
            gold = record.whole("gold_id", least=-1, says=_NONE)
        elif "gold" in record.value and answer_field is not None:
            if answer_field == "answer_id":
                raise record.error("gold", says="needs 'answer' beside it; or give 'gold_id'")
            gold = record.label("gold")
        if gold is None:
            return
        if self.gold is not None and gold != self.gold:
            field = "gold_id" if isinstance(gold, int) else "gold"
            raise record.error(
                field, says=f"is {gold!r}, but an earlier line of the problem has {self.gold!r}"
            )
        self.gold = gold

    def order(self, name: str, source: str) -> np.ndarray:
        """Gives the lines' order by index, having checked that the indices are 0, 1, ..., n - 1."""
        indices = np.array(self.indices)
        order = np.argsort(indices, kind="stable")
        wrong = np.flatnonzero(indices[order] != np.arange(len(indices)))
        if wrong.size:
            first, found = int(wrong[0]), int(indices[order[wrong[0]]])
            says = f"index {found} twice" if found < first else f"no index {first}"
            raise RecordError(
                f"{source}: problem {name!r} has {says}; its {len(indices)} lines must count from "
                "0 without gaps"
            )
        return order

    def answer_ids(self, order: np.ndarray, equal: Equal) -> tuple[np.ndarray | list[int], int]:
        if self.texts is None and not isinstance(self.gold, str):
            ids = np.array(self.answers)[order] if self.answers else np.array([], np.int32)
            return ids, -1 if self.gold is None else self.gold
        texts = [*(self.texts or {}), None]
        gold = self.gold if isinstance(self.gold, str) else None
        return cluster_answers([texts[self.answers[line]] for line in order], gold, equal=equal)
