"""Problems: what a sampler is asked, with the gold answer where it is known.

`load_problems` reads the benchmarks of the paper by name, from the Hugging Face hub, and the same
or any other problems from a JSON lines file; it makes those of the small world. The `datasets`
library is imported only for the hub, the small world only for its problems.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optscale_jax.answers import extract_gold
from optscale_jax.errors import ProblemsError
from optscale_jax.readers.records import Record, read_records
from optscale_jax.records import Problem

__all__ = ["BENCHMARKS", "Benchmark", "load_problems", "read_problems"]

TEXT_FIELDS = ("problem", "question", "Problem", "Question")
ID_FIELDS = ("unique_id", "problem_id", "id", "ID")
ANSWER_FIELDS = ("answer", "gold", "expected_answer", "final_answer", "Answer")
_ARITHMETIC = re.compile(r"arithmetic-(?P<seed>[0-9]{1,9})")
_ARITHMETIC_COUNT = 400


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Where a benchmark is on the hub."""

    dataset: str  # the dataset's name
    subsets: tuple[str | None, ...]  # its configurations, all read, in order; None = the only one
    split: str
    count: int  # how many problems it has


BENCHMARKS: dict[str, Benchmark] = {
    "math500": Benchmark("HuggingFaceH4/MATH-500", (None,), "test", 500),
    "gsm8k": Benchmark("openai/gsm8k", ("main",), "test", 1319),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", (None,), "train", 30),
    "aime25": Benchmark("opencompass/AIME2025", ("AIME2025-I", "AIME2025-II"), "test", 30),
    "amc23": Benchmark("math-ai/amc23", (None,), "test", 40),
}
"""The paper's five benchmarks, by the names that configurations use."""


def load_problems(source: str | os.PathLike[str], *, limit: int | None = None) -> list[Problem]:
    """Loads problems, in order, by a benchmark's name or from a file.

    Args:
        source: One of `BENCHMARKS`; arithmetic-SEED for problems of the small world
            (`optscale_jax.tiny`), which another seed makes others; or the path of a JSON lines file
            as for `read_problems`. A name that is also a file in the working directory is the name.
        limit: How many to take from the beginning, at least 1; None = all, and 400 of the small
            world, which has no end.

    Raises:
        InputError: If the file or the dataset cannot be had, or as `read_problems`.
    """
    if limit is not None and limit < 1:
        raise ProblemsError(f"limit is {limit}; it must be at least 1")
    name = os.fspath(source)
    made = _ARITHMETIC.fullmatch(name)
    if made:
        from optscale_jax.tiny.arithmetic import draw_problems

        problems = draw_problems(int(made["seed"]), limit or _ARITHMETIC_COUNT)
    elif name in BENCHMARKS:
        problems = _from_hub(name)
    elif name.startswith("hf:/") or Path(name).exists():
        problems = read_problems(name)
    else:
        raise ProblemsError(
            f"{name}: no such file, and no benchmark of that name (there are "
            f"{', '.join(BENCHMARKS)})"
        )
    return problems[:limit]


def read_problems(path: str | os.PathLike[str]) -> list[Problem]:
    """Reads problems from JSON lines, or a JSON list, of objects.

    The question is in `problem` or `question`. The gold answer, if there is one, is in `answer`,
    `gold`, `expected_answer` or `final_answer`: bare, or a worked solution that ends in it, as
    GSM8K's do. The id is in `unique_id`, `problem_id` or `id`, or else the record's number from 0;
    ids of the file must differ. Answers and ids are in every record or in none. `Problem`,
    `Question`, `Answer` and `ID` are read too. The path is a file's, a folder's with the files of
    one data set, or `hf://OWNER/NAME`.

    Raises:
        ProblemsError: If it holds no record.
        RecordError: If the file cannot be read, is not JSON, or holds a record whose question is
            missing, that lacks an answer or id that others have, whose fields have the wrong type,
            or whose id repeats; the message names file, line and field.
    """
    return _problems(read_records(path), str(path))


def _problems(records: Iterable[Record], source: str) -> list[Problem]:
    problems: dict[str, Problem] = {}
    places: dict[str, str] = {}
    first: Record | None = None
    for number, record in enumerate(records):
        first = first or record
        for fields in (ANSWER_FIELDS, ID_FIELDS):
            field, expected = _first(fields, record.value), _first(fields, first.value)
            if field != expected:
                there, missing = (first.place, record) if expected else (record.place, first)
                raise missing.error(
                    says=f"no field {expected or field!r}, which {there} has; give it in every "
                    "record, or in none"
                )
        problem = _problem(record, number)
        if problem.id in problems:
            raise record.error(says=f"id {problem.id!r} is also {places[problem.id]}'s")
        problems[problem.id] = problem
        places[problem.id] = record.place
    if not problems:
        raise ProblemsError(f"{source}: no records; give one problem at least")
    return list(problems.values())


def _problem(record: Record, number: int) -> Problem:
    text_field = _first(TEXT_FIELDS, record.value)
    if text_field is None:
        raise record.error(
            says="no field 'problem' or 'question' (it has "
            f"{', '.join(record.value) or 'none'}); it must hold the question"
        )
    text = record.value[text_field]
    if not isinstance(text, str) or not text.strip():
        raise record.error(text_field, says="must be a string that is not blank")
    id_field = _first(ID_FIELDS, record.value)
    answer_field = _first(ANSWER_FIELDS, record.value)
    answer = None
    if answer_field is not None and record.value[answer_field] is not None:
        # OlympiadBench has a list of one.
        held = record.value[answer_field]
        place = (answer_field, 0) if isinstance(held, list) and len(held) == 1 else (answer_field,)
        answer = extract_gold(record.label(*place))
    return Problem(
        id=str(number) if id_field is None else record.label(id_field), text=text, answer=answer
    )


def _first(fields: Iterable[str], value: Mapping[str, Any]) -> str | None:
    return next((field for field in fields if field in value), None)


def _from_hub(name: str) -> list[Problem]:
    benchmark = BENCHMARKS[name]
    remedy = f"or give a JSON lines file with the same fields: --problems {name}.jsonl"
    try:
        import datasets
    except ImportError as error:
        raise ProblemsError(
            f"{name} is read with the datasets library, which is not installed: pip install "
            f"'optscale-jax[live]', {remedy}"
        ) from error
    rows: list[dict[str, Any]] = []
    for subset in benchmark.subsets:
        try:
            part = datasets.load_dataset(benchmark.dataset, subset, split=benchmark.split)
            rows += [dict(row) for row in part]  # type: ignore[arg-type] (a split has rows)
        # What it raises offline differs from one version and one way of being offline to another.
        except Exception as error:
            first_line = str(error).strip().split("\n")[0]
            raise ProblemsError(
                f"{name}: {benchmark.dataset} cannot be had from the hub "
                f"({type(error).__name__}: {first_line}); connect, {remedy}"
            ) from error
    if len(rows) != benchmark.count:
        raise ProblemsError(
            f"{name}: {benchmark.dataset} has {len(rows)} problems, not {benchmark.count}; "
            f"give the file that you mean: --problems {name}.jsonl"
        )
    source = benchmark.dataset
    return _problems((Record(source, f"row {i}", row) for i, row in enumerate(rows)), source)
