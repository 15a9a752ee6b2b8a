"""Problems: the benchmarks' fields, and what is said of a file that cannot be used."""

import json
import os
import re
import sys
import types

import pytest

from optscale_jax.errors import ProblemsError, RecordError
from optscale_jax.problems import BENCHMARKS, load_problems, read_problems
from optscale_jax.records import Problem


def written(tmp_path, *records):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_fields_of_every_benchmark(tmp_path):
    def only(record):
        return read_problems(written(tmp_path, record))[0]

    math500 = {"problem": "2+2?", "solution": r"\boxed{4}", "answer": "4", "unique_id": "test/a/1"}
    assert only(math500) == Problem("test/a/1", "2+2?", "4")
    gsm8k = {"question": "Eggs?", "answer": "16 - 3 = 13\n#### 1,300"}
    assert only(gsm8k) == Problem("0", "Eggs?", "1,300")
    assert only({"id": 60, "problem": "Aya?", "answer": "204"}) == Problem("60", "Aya?", "204")
    assert only({"id": 0, "problem": "A?", "question": "A?", "answer": 27}).answer == "27"
    assert only({"problem": "Prove it."}) == Problem("0", "Prove it.", None)


def test_limit_takes_the_first(tmp_path):
    path = written(tmp_path, *({"problem": str(n)} for n in range(5)))
    assert [problem.id for problem in load_problems(path, limit=2)] == ["0", "1"]
    with pytest.raises(ProblemsError, match="limit is 0"):
        load_problems(path, limit=0)


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([{"answer": "4"}], "line 1: no field 'problem' or 'question' (it has answer)"),
        ([{"problem": "a", "answer": "4"}, {"problem": "b"}], "line 2: no field 'answer'"),
        ([{"problem": "a"}, {"problem": "b", "answer": "4"}], "line 1: no field 'answer'"),
        ([{"problem": "a", "id": 1}, {"problem": "b"}], "line 2: no field 'id'"),
        ([{"problem": "a", "id": 1}, {"problem": "b", "id": 1}], "id '1' is also line 1's"),
        ([{"problem": ["a"]}], "line 1: problem must be a string"),
        ([{"problem": "  "}], "line 1: problem must be a string that is not blank"),
        ([{"problem": "a", "answer": ["4", "5"]}], "line 1: answer"),
        ([], "the file is empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, records, says):
    path = written(tmp_path, *records)
    with pytest.raises(RecordError) as raised:
        load_problems(path)
    message = str(raised.value)
    assert says in message
    assert message.startswith(str(path))
    assert "\n" not in message


def test_a_pipe_is_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Whoever opens one end waits for the other; both at once do not.
    writer = os.open(pipe, os.O_RDWR)
    try:
        with pytest.raises(RecordError, match="a pipe"):
            load_problems(pipe)
    finally:
        os.close(writer)


def test_the_small_world_is_made_from_its_seed():
    problems = load_problems("arithmetic-7", limit=3)
    assert [problem.id for problem in problems] == [f"arithmetic-7/{n}" for n in range(3)]
    assert load_problems("arithmetic-7")[:3] == problems
    assert len(load_problems("arithmetic-7")) == 400
    assert load_problems("arithmetic-8", limit=1)[0].text != problems[0].text
    for text, answer in ((problem.text, problem.answer) for problem in problems):
        expression = text.removeprefix("Compute ").partition(" from left to right")[0]
        value, *operations = re.split(r"(?=[-+*])", expression)
        for operation in operations:
            value = str(eval(f"({value}){operation}") % 100)
        assert answer == value


def test_what_is_neither_a_file_nor_a_benchmark(tmp_path):
    with pytest.raises(ProblemsError, match="no such file, and no benchmark of that name"):
        load_problems(tmp_path / "nothing.jsonl")
    with pytest.raises(RecordError, match="a folder without a file"):
        load_problems(tmp_path)


def hub(monkeypatch, load_dataset):
    datasets = types.ModuleType("datasets")
    datasets.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", datasets)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_are_asked_for_on_the_hub(monkeypatch, name):
    benchmark, asked = BENCHMARKS[name], []

    def load_dataset(path, subset=None, *, split):
        asked.append((path, subset, split))
        return [{"question": f"{subset} {n}?", "answer": str(n)} for n in range(size)]

    size = benchmark.count // len(benchmark.subsets)
    hub(monkeypatch, load_dataset)
    problems = load_problems(name)
    assert asked == [(benchmark.dataset, s, benchmark.split) for s in benchmark.subsets]
    assert len(problems) == benchmark.count
    assert problems[-1].answer == str(size - 1)
    size -= 1
    with pytest.raises(ProblemsError, match=f"not {benchmark.count}"):
        load_problems(name)


def test_offline_says_how_to_pass_a_file(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach the hub\nand more")

    hub(monkeypatch, load_dataset)
    with pytest.raises(ProblemsError) as raised:
        load_problems("math500")
    assert "--problems math500.jsonl" in str(raised.value)
    assert "\n" not in str(raised.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ProblemsError, match="pip install"):
        load_problems("math500")
