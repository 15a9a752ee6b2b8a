"""Readers: what goes in comes out, whatever the format, and bad input is one clear line."""

import gzip
import json
import tracemalloc
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optscale_jax.errors import InputError, PoolWarning, RecordError
from optscale_jax.pool import Pool
from optscale_jax.readers import (
    FORMATS,
    detect_format,
    read_jsonl,
    read_lm_eval,
    read_optscale,
    read_pool,
    read_search_and_learn,
    write_jsonl,
)
from optscale_jax.study.pools import PoolSource, ReadConfig

FIELDS = ("scores", "correct", "tokens", "answers", "gold", "problem_ids", "mask")
NUM_PROBLEMS, NUM_SAMPLES = 30, 64
DELETE = object()


def assert_equal(left: Pool, right: Pool) -> None:
    assert left.kind == right.kind
    for name in FIELDS:
        a, b = getattr(left, name), getattr(right, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype.kind == b.dtype.kind, name
            np.testing.assert_array_equal(a, b, err_msg=name)


class Truth:
    """30 problems with 64 completions each: what a file says, and the pool that it says it of."""

    def __init__(self, num_problems=NUM_PROBLEMS, num_samples=NUM_SAMPLES, seed=0):
        generator = np.random.default_rng(seed)
        shape = num_problems, num_samples
        self.scores = generator.random(shape)
        self.last_scores = generator.random(shape)
        self.tokens = generator.integers(1, 9000, shape)
        # 0 is right; one in ten has no answer.
        values = generator.choice([-1, 0, 1, 2, 3], shape, p=[0.1, 0.5, 0.2, 0.1, 0.1])
        self.values = values
        self.golds = [str(100 + row) for row in range(num_problems)]
        self.problems = [f"What is {row} + 100?" for row in range(num_problems)]
        self.completions = [
            [self.text(row, value) for value in line] for row, line in enumerate(values)
        ]
        self.answers = np.full(shape, -1)
        self.gold = np.zeros(num_problems, int)
        for row, line in enumerate(values):
            ids: dict[int, int] = {}
            for column, value in enumerate(line):
                if value != -1:
                    self.answers[row, column] = ids.setdefault(value, len(ids))
            self.gold[row] = ids.setdefault(0, len(ids))

    @staticmethod
    def text(row, value):
        if value == -1:
            return "I do not know {" if row % 2 else ""
        # Written in several ways that mean the same.
        number = 100 + row + value
        form = [f"{number}", f"{number}.0", f"\\frac{{{2 * number}}}{{2}}"][(row + value) % 3]
        return f"<think>\\boxed{{0}} é\n\n</think>So\n\n\\boxed{{{form}}}"

    def pool(self, **changes) -> Pool:
        fields = {
            "scores": self.scores,
            "tokens": self.tokens,
            "answers": self.answers,
            "gold": self.gold,
            "correct": self.values == 0,
        }
        return Pool.from_arrays(**{**fields, **changes})

    def optscale(self) -> list[dict]:
        return [
            {
                "id": row + 1,
                "output": self.completions[row][0],
                "n": len(self.completions[row]),
                "score": {
                    "problem": [self.problems[row]],
                    "completions": [self.completions[row]],
                    "scores": [self.scores[row].tolist()],
                    "last_scores": [self.last_scores[row].tolist()],
                    "pred": [self.completions[row][0]],
                    "completion_tokens": [self.tokens[row].tolist()],
                },
            }
            for row in range(len(self.problems))
        ]

    def prompts(self, question="problem") -> list[dict]:
        return [
            {question: self.problems[row], "answer": self.golds[row], "solution": "..."}
            for row in range(len(self.problems))
        ]

    def search_and_learn(self) -> list[dict]:
        return [
            {
                "problem": self.problems[row],
                "answer": self.golds[row],
                "unique_id": f"test/{row}",
                "completions": self.completions[row],
                "scores": [[0.5, score] for score in self.scores[row].tolist()],
                "pred": self.completions[row][0],
                "completion_tokens": self.tokens[row].tolist(),
                "agg_scores": self.scores[row].tolist(),
            }
            for row in range(len(self.problems))
        ]

    def lm_eval(self) -> list[dict]:
        return [
            {
                "doc_id": row,
                "doc": {"question": self.problems[row], "note": float("nan")},
                "target": f"Some steps.\n#### {self.golds[row]}",
                "arguments": {"gen_args_0": {"arg_0": "...", "arg_1": {}}},
                "resps": [self.completions[row]],
                "filtered_resps": [
                    [str(value) if value != -1 else "[invalid]" for value in self.values[row]]
                    if name == "all"
                    else self.completions[row][0]
                ],
                "filter": name,
                "metrics": ["exact_match"],
                "exact_match": (self.values[row] == 0).astype(float).tolist(),
                "doc_hash": "0" * 64,
            }
            for name in ("first", "all")
            for row in range(len(self.problems))
        ]


def write_list(path, records, indent=4):
    path.write_text(json.dumps(records, indent=indent))
    return path


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def truth():
    return Truth()


@pytest.fixture(scope="module")
def small():
    return Truth(3, 4)


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("question", ["problem", "question"])
def test_official_pool_is_what_went_in(truth, tmp_path, indent, question):
    path = write_list(tmp_path / "pool.json", truth.optscale(), indent)
    prompts = write_list(tmp_path / "prompts.json", truth.prompts(question))
    assert_equal(read_optscale(path, prompts), truth.pool())
    last = read_optscale(path, prompts, scores="last_scores", kind="sequential")
    assert_equal(last, truth.pool(scores=truth.last_scores, kind="sequential"))
    assert_equal(read_pool(path, prompts=prompts), truth.pool())
    assert_equal(read_pool(path), truth.pool(gold=[-1] * NUM_PROBLEMS, correct=None))


def test_official_prompts_name_the_problems_and_may_hold_solutions_or_numbers(small, tmp_path):
    path = write_list(tmp_path / "pool.json", small.optscale())
    prompts = small.prompts()
    for row, prompt in enumerate(prompts):
        prompt.update(id=60 + row, answer=f"Add.\n#### {small.golds[row]}")
    prompts[0]["answer"] = int(small.golds[0])
    lines = write_lines(tmp_path / "prompts.jsonl", prompts)
    assert_equal(read_optscale(path, lines), small.pool(problem_ids=["60", "61", "62"]))
    for row, prompt in enumerate(prompts):
        prompt["unique_id"] = f"test/{row}"
    lines = write_lines(tmp_path / "prompts.jsonl", prompts)
    names = [f"test/{row}" for row in range(3)]
    assert_equal(read_optscale(path, lines), small.pool(problem_ids=names))


def test_sequential_official_pool_needs_no_scores(small, tmp_path):
    records = small.optscale()
    for record in records:
        del record["score"]["scores"], record["score"]["last_scores"]
    path = write_list(tmp_path / "pool.json", records)
    prompts = write_list(tmp_path / "prompts.json", small.prompts())
    pool = read_optscale(path, prompts, kind="sequential")
    assert_equal(pool, small.pool(scores=None, kind="sequential"))
    with pytest.raises(RecordError, match=r"record 0: no field 'score.scores' \(it has prob"):
        read_optscale(path, prompts)


def test_problems_may_differ_in_their_number_of_completions(small, tmp_path):
    records = small.optscale()
    held = records[1]["score"]
    for field in ("completions", "scores", "last_scores", "completion_tokens"):
        held[field] = [held[field][0][:2]]
    prompts = write_list(tmp_path / "prompts.json", small.prompts())
    pool = read_optscale(write_list(tmp_path / "pool.json", records), prompts)
    mask = np.ones((3, 4), bool)
    mask[1, 2:] = False
    np.testing.assert_array_equal(pool.mask, mask)
    np.testing.assert_array_equal(pool.scores, np.where(mask, np.float32(small.scores), 0))


@pytest.mark.parametrize("write", [write_lines, write_list])
def test_search_and_learn_pool_is_what_went_in(truth, tmp_path, write):
    path = write(tmp_path / "completions.json", truth.search_and_learn())
    names = [f"test/{row}" for row in range(NUM_PROBLEMS)]
    assert_equal(read_pool(path), truth.pool(problem_ids=names))


def test_step_scores_are_aggregated_as_asked(small, tmp_path):
    path = write_lines(tmp_path / "completions.jsonl", small.search_and_learn())
    names = ["test/0", "test/1", "test/2"]
    for aggregation, scores in {
        "last": small.scores,
        "mean": (0.5 + small.scores) / 2,
        "min": np.minimum(0.5, small.scores),
        "prod": 0.5 * small.scores,
    }.items():
        pool = read_search_and_learn(path, aggregation=aggregation)
        assert_equal(pool, small.pool(scores=scores, problem_ids=names))


def test_search_and_learn_without_lengths_names_or_steps(small, tmp_path):
    records = small.search_and_learn()
    for record in records:
        # As its tree search writes it.
        record["completion_tokens"] = -1
        record["unique_id"] = None
    records[2]["scores"][3] = []
    pool = read_search_and_learn(write_lines(tmp_path / "completions.jsonl", records))
    scores = small.scores.copy()
    scores[2, 3] = 0
    assert_equal(pool, small.pool(scores=scores, tokens=None))


def test_lm_eval_pool_is_what_went_in(truth, tmp_path):
    path = write_lines(tmp_path / "samples_gsm8k.jsonl", truth.lm_eval())
    expected = truth.pool(scores=None, tokens=None)
    assert_equal(read_lm_eval(path), expected)
    assert_equal(read_pool(path), expected)
    # A filter's own answers are 0 for right, which the target is not; the metric tells.
    pool = read_lm_eval(path, filter="all", metric="exact_match")
    np.testing.assert_array_equal(pool.answers, truth.answers)
    np.testing.assert_array_equal(pool.correct, truth.values == 0)


def test_lm_eval_without_repeats_or_a_filter_name(small, tmp_path):
    records = small.lm_eval()[:3]
    for row, record in enumerate(records):
        del record["filter"]
        record["resps"] = [record["resps"][0][:1]]
        record["exact_match"] = float(row == 1)
    path = write_lines(tmp_path / "samples.jsonl", records)
    assert read_lm_eval(path).num_samples == 1
    np.testing.assert_array_equal(read_lm_eval(path, metric="exact_match").correct.T, [[0, 1, 0]])


@st.composite
def pools(draw) -> Pool:
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    lengths = draw(hnp.arrays(np.int64, shape[0], elements=st.integers(1, shape[1])))
    lengths[0] = shape[1]
    ids = st.integers(-1, 4)
    names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)
    scores = draw(st.none() | hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    answers = hnp.arrays(np.int32, shape, elements=ids)
    answers = draw(answers if scores is None else st.none() | answers)
    return Pool.from_arrays(
        scores=scores,
        correct=draw(st.none() | hnp.arrays(bool, shape)),
        tokens=draw(hnp.arrays(np.int32, shape, elements=st.integers(-1, 2**31 - 1))),
        answers=answers,
        gold=draw(st.none() | hnp.arrays(np.int32, shape[0], elements=ids)),
        problem_ids=draw(
            st.lists(names.filter(str.strip), min_size=shape[0], max_size=shape[0], unique=True)
        ),
        mask=np.arange(shape[1]) < lengths[:, None],
        kind=draw(st.sampled_from(["parallel", "sequential"])),
    )


@settings(max_examples=60)
@given(pool=pools(), random=st.randoms())
def test_own_lines_give_the_pool_back_in_any_order(pool, random, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "pool.jsonl"
    write_jsonl(pool, path)
    assert_equal(read_jsonl(path), pool)
    assert_equal(read_pool(path), pool)
    lines = path.read_text().splitlines()
    random.shuffle(lines)
    path.write_text("\n".join(lines))
    again = read_jsonl(path)
    place = {name: row for row, name in enumerate(again.problem_ids)}
    assert_equal(again.subset([place[name] for name in pool.problem_ids]), pool)


def test_written_lines_are_short_and_the_file_appears_whole(small, tmp_path, monkeypatch):
    pool = small.pool(scores=np.full((3, 4), 0.3), tokens=None)
    path = tmp_path / "new" / "pool.jsonl"
    write_jsonl(pool, path)
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {
        "problem_id": "0",
        "index": 0,
        "score": 0.3,
        "answer_id": int(pool.answers[0, 0]),
        "gold_id": int(pool.gold[0]),
        "correct": bool(pool.correct[0, 0]),
    }
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_jsonl(small.pool(), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["pool.jsonl"]


def test_own_lines_with_texts_and_without_indices(small, tmp_path):
    answers = write_lines(
        tmp_path / "answers.jsonl",
        [
            {"problem_id": "b", "answer": "1/2", "gold": "0.5", "score": 0.25},
            {"problem_id": 7, "answer": None, "gold": 3, "score": 1, "tokens": None},
            {"problem_id": "b", "answer": 2, "score": 0.5, "tokens": 9, "note": "x"},
        ],
    )
    expected = Pool.from_arrays(
        scores=[[0.25, 0.5], [1, 0]],
        answers=[[0, 1], [-1, -1]],
        tokens=[[-1, 9], [-1, -1]],
        gold=[0, 0],
        problem_ids=["b", "7"],
        mask=[[1, 1], [1, 0]],
    )
    assert_equal(read_jsonl(answers), expected)
    lines = [
        {"problem_id": str(row), "completion": text, "gold": small.golds[row]}
        for row in range(3)
        for text in small.completions[row]
    ]
    pool = read_jsonl(write_lines(tmp_path / "texts.jsonl", lines))
    assert_equal(pool, small.pool(scores=None, tokens=None))


def test_scores_beyond_the_interval_are_clipped_on_request(small, tmp_path):
    records = small.search_and_learn()
    records[0]["scores"][0] = [-2, 7]
    path = write_lines(tmp_path / "completions.jsonl", records)
    assert read_search_and_learn(path, clip=True).scores[0, 0] == 1
    with pytest.raises(
        RecordError, match=r"line 1: scores\[0\]\[0\] is -2; scores are in \[0, 1\]"
    ):
        read_search_and_learn(path)


def test_extract_and_equal_can_be_replaced(small, tmp_path):
    path = write_lines(tmp_path / "completions.jsonl", small.search_and_learn())
    pool = read_pool(path, extract=lambda text: "x", equal=lambda first, second: True)
    assert pool.correct.all()
    np.testing.assert_array_equal(pool.answers, 0)


def test_format_is_found_and_npz_and_folders_are_read_too(small, tmp_path):
    written = {
        "optscale": write_list(tmp_path / "a", small.optscale()),
        "search_and_learn": write_lines(tmp_path / "b", small.search_and_learn()),
        "lm_eval": write_lines(tmp_path / "c", small.lm_eval()),
        "npz": tmp_path / "d.npz",
        "jsonl": tmp_path / "run" / "samples.jsonl",
        "live": tmp_path / "live",
    }
    pool = small.pool(kind="sequential")
    pool.save(written["npz"])
    write_jsonl(pool, written["jsonl"])
    write_jsonl(pool, written["live"] / "samples.jsonl")
    counts = zip(pool.problem_ids.tolist(), pool.samples_per_problem.tolist(), strict=True)
    decided = [{"problem_id": name, "num_samples": count} for name, count in counts]
    write_lines(tmp_path / "decided", decided).rename(written["live"] / "decisions.jsonl")
    assert written.keys() <= FORMATS.keys()
    for name, path in written.items():
        assert detect_format(path) == name
        assert_equal(read_pool(path), read_pool(path, format=name))
    assert_equal(read_pool(written["npz"]), pool)
    assert_equal(read_pool(tmp_path / "run"), pool)
    assert_equal(read_pool(written["live"]), pool)
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + written["optscale"].read_bytes())
    assert detect_format(path) == "optscale"


def test_reading_keeps_one_record_in_memory(tmp_path):
    text = "Let us think about \\\\frac{a}{b} again. " * 300 + "\\\\boxed{5}"
    record = (
        '{"id": %d, "score": {"completions": [[' + ", ".join([f'"{text}"'] * 16) + ']], "scores": '
        f"[{[0.5] * 16}], " + f'"completion_tokens": [{[9] * 16}]' + "}}"
    )
    line = '{"problem_id": %d, "completion": "' + text + '", "score": 0.5}\n'

    def peak(read, source, problems):
        tracemalloc.start()
        try:
            pool = read(source)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert pool.mask.shape == (problems, 16)
        return most

    found = {}
    for problems in (10, 30):
        path, lines = tmp_path / f"{problems}.json", tmp_path / f"{problems}.jsonl"
        path.write_text("[" + ",\n".join(record % row for row in range(problems)) + "]")
        lines.write_text("".join(line % (row // 16) for row in range(problems * 16)))
        for read, source in ((read_optscale, path), (read_jsonl, lines)):
            found[read, problems] = source.stat().st_size, peak(read, source, problems)
    for read in (read_optscale, read_jsonl):
        (small, least), (large, most) = found[read, 10], found[read, 30]
        assert large - small > 3e6
        assert most - least < (large - small) / 10, read


def changed(records, row, *path):
    """The records with one value replaced, or deleted; the last of the path is the new value."""
    *path, last, value = path
    target = records[row]
    for key in path:
        target = target[key]
    if value is DELETE:
        del target[last]
    else:
        target[last] = value
    return records


COMPLETIONS, SCORES, TOKENS = (
    ("score", name, 0) for name in ("completions", "scores", "completion_tokens")
)
BAD_OPTSCALE = {
    "no score": ((1, "score", DELETE), r"record 1: no field 'score' \(it has id, output, n\)"),
    "no scores": (
        (2, "score", "scores", DELETE),
        r"record 2: no field 'score.scores' \(it has problem, completions, last_scores,",
    ),
    "no completions": ((1, "score", "completions", DELETE), "no field 'score.completions'"),
    "no tokens": ((1, "score", "completion_tokens", DELETE), "no field 'score.completion_tokens'"),
    "not nested": ((1, "score", "scores", []), r"score.scores has 0 entries; it needs 1"),
    "no lists": ((1, *SCORES, None), r"record 1: score.scores\[0\] is null; it must be a list"),
    "score not an object": ((1, "score", 0.5), r"record 1: score is 0.5; it must be an object"),
    "short scores": (
        (2, *SCORES, [0.5] * 3),
        r"record 2: score.scores\[0\] has 3 entries but score.completions\[0\] has 4; there must "
        "be one a completion",
    ),
    "long tokens": ((2, *TOKENS, [1] * 5), r"score.completion_tokens\[0\] has 5 entries but"),
    "no completion": ((0, *COMPLETIONS, []), r"score.completions\[0\] is empty; leave out"),
    "null text": ((0, *COMPLETIONS, 3, None), r"completions\[0\]\[3\] is null; it must be a str"),
    "text score": (
        (1, *SCORES, 2, "0.5"),
        r"record 1: score.scores\[0\]\[2\] is the string '0.5'; a score must be a number",
    ),
    "true score": ((1, *SCORES, 2, True), r"\[2\] is true; a score must be a number"),
    "null score": ((1, *SCORES, 2, None), r"\[2\] is null; a score must be a number"),
    "large score": ((1, *SCORES, 2, 1.01), r"\[2\] is 1.01; scores are in \[0, 1\]; rescale"),
    "negative score": ((1, *SCORES, 2, -1e-5), r"\[2\] is -1e-05; scores are in \[0, 1\]"),
    "nan score": (
        (1, *SCORES, 2, float("nan")),
        r"record 1: score.scores\[0\]\[2\] is nan; score every completion",
    ),
    "infinite score": ((1, *SCORES, 0, float("-inf")), r"scores\[0\]\[0\] is -inf; score every"),
    "part token": ((1, *TOKENS, 2, 1.5), r"tokens\[0\]\[2\] is 1.5; give a number of tokens"),
    "negative token": (
        (1, *TOKENS, 2, -2),
        r"tokens\[0\]\[2\] is -2; it must be at least -1; give",
    ),
    "text token": ((1, *TOKENS, 2, "7"), r"tokens\[0\]\[2\] is the string '7'; give a number"),
    "other order": (
        (0, "score", "problem", ["What is 2 + 100?"]),
        r"record 0: score.problem\[0\] is the question of record 2 of .*prompts.json; both",
    ),
}
BAD_PROMPTS = {
    "null gold": ((1, "answer", None), r"prompts.json: record 1: answer is null; it must be a str"),
    "blank gold": ((1, "answer", " "), r"record 1: answer is the string ' '; it must be a string"),
    "list gold": ((1, "answer", ["1"]), r"record 1: answer is a list; it must be a string"),
    "no gold": ((2, "answer", DELETE), r"record 2: no field 'answer' \(it has problem, solution\)"),
    "no question": ((2, "problem", DELETE), r"record 2: no field 'problem' or 'question' \(it has"),
}
BAD_SEARCH = {
    "no scores": ((1, "scores", DELETE), r"line 2: no field 'scores' \(it has problem, answer,"),
    "no answer": ((1, "answer", DELETE), "line 2: no field 'answer'"),
    "null answer": ((1, "answer", None), "line 2: answer is null; it must be a string"),
    "flat scores": ((1, "scores", [0.5] * 4), r"line 2: scores\[0\] is 0.5; it must be a list"),
    "short": ((1, "scores", [[0.5]]), r"line 2: scores has 1 entries but completions has 4; there"),
    "nan step": ((1, "scores", 2, [0.5, float("nan")]), r"scores\[2\]\[1\] is nan; score every"),
    "text step": ((1, "scores", 2, ["a"]), r"scores\[2\]\[0\] is the string 'a'; a score must"),
    "lengths": ((1, "completion_tokens", -2), "line 2: completion_tokens is -2; it must be a list"),
    "same name": (
        (2, "unique_id", "test/0"),
        "line 3: problem 'test/0' was already given by line 1",
    ),
}
BAD_LM_EVAL = {
    "no target": ((1, "target", DELETE), r"line 2: no field 'target' \(it has doc_id, doc, argu"),
    "null target": ((1, "target", None), "line 2: target is null; it must be a string"),
    "no resps": ((1, "resps", DELETE), "line 2: no field 'resps'"),
    "choices": ((1, "resps", [["-1", "True"]] * 2), "line 2: resps has 2 requests; only tasks"),
    "likelihood": ((1, "resps", [[["-1", "True"]]]), r"resps\[0\]\[0\] is a list; it must be a st"),
    "no document": ((1, "doc_id", DELETE), "line 2: no field 'doc_id'"),
    "document twice": ((1, "doc_id", 0), "line 2: problem '0' was already given by line 1"),
}


def check(error, path, message):
    text = str(error.value)
    assert text.startswith(f"{path}: "), text
    assert "\n" not in text
    # Fails with the whole message where `match` shows its beginning.
    error.match(message)


@pytest.mark.parametrize("name", BAD_OPTSCALE)
def test_bad_official_record(name, tmp_path):
    change, message = BAD_OPTSCALE[name]
    truth = Truth(3, 4)
    path = write_list(tmp_path / "pool.json", changed(truth.optscale(), *change))
    prompts = write_list(tmp_path / "prompts.json", truth.prompts())
    with pytest.raises(RecordError) as error:
        read_optscale(path, prompts)
    check(error, path, message)


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_bad_prompt(name, small, tmp_path):
    change, message = BAD_PROMPTS[name]
    path = write_list(tmp_path / "pool.json", small.optscale())
    prompts = write_list(tmp_path / "prompts.json", changed(small.prompts(), *change))
    with pytest.raises(RecordError) as error:
        read_optscale(path, prompts)
    check(error, prompts, message)


@pytest.mark.parametrize(("kept", "message"), [(2, "3 records, but"), (4, "2 records, but")])
def test_prompts_of_other_problems(kept, message, tmp_path):
    truth = Truth(3, 4)
    records = truth.optscale() if kept == 2 else truth.optscale()[:2]
    path = write_list(tmp_path / "pool.json", records)
    prompts = write_list(tmp_path / "prompts.json", truth.prompts()[:kept])
    message = "record 2: has no problem in .*prompts.json, which has 2" if kept == 2 else message
    with pytest.raises(InputError) as error:
        read_optscale(path, prompts)
    check(error, path, message)


@pytest.mark.parametrize("name", BAD_SEARCH)
def test_bad_search_and_learn_record(name, tmp_path):
    change, message = BAD_SEARCH[name]
    records = changed(Truth(3, 4).search_and_learn(), *change)
    path = write_lines(tmp_path / "completions.jsonl", records)
    with pytest.raises(RecordError) as error:
        read_search_and_learn(path)
    check(error, path, message)


@pytest.mark.parametrize("name", BAD_LM_EVAL)
def test_bad_lm_eval_record(name, tmp_path):
    change, message = BAD_LM_EVAL[name]
    path = write_lines(tmp_path / "samples.jsonl", changed(Truth(3, 4).lm_eval(), *change))
    with pytest.raises(RecordError) as error:
        read_lm_eval(path)
    check(error, path, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter": "strict"}, r"no filter 'strict' \(it has first, all\)"),
        (
            {"filter": "first"},
            r"line 1: filtered_resps\[0\] does not hold one answer for each of 4",
        ),
        ({"metric": "acc"}, "line 1: no field 'acc'"),
        ({"metric": "doc_id"}, "line 1: doc_id has 1 values for 4 completions"),
    ],
)
def test_bad_lm_eval_options(small, tmp_path, options, message):
    path = write_lines(tmp_path / "samples.jsonl", small.lm_eval())
    with pytest.raises(InputError) as error:
        read_lm_eval(path, **options)
    check(error, path, message)


GOOD = {"problem_id": "p", "index": 0, "score": 0.5, "tokens": 5, "answer": "1", "gold": "1"}
BAD_LINES = {
    "no problem": ([{"score": 0.5}], r"line 1: no field 'problem_id' \(it has score\)"),
    "null problem": ([{**GOOD, "problem_id": None}], "line 1: problem_id is null; it must be a"),
    "nothing": ([{"problem_id": "p"}], "line 1: no field 'score', 'answer', 'answer_id' or 'comp"),
    "score left out": (
        [GOOD, {**GOOD, "index": 1, "score": DELETE}],
        "line 2: no field 'score', which line 1 has; give it on every line, or on none",
    ),
    "score added": (
        [{**GOOD, "score": DELETE}, {**GOOD, "index": 1}],
        "line 1: no field 'score', which line 2 has",
    ),
    "null score": ([{**GOOD, "score": None}], "line 1: score is null; a score must be a number"),
    "text score": ([{**GOOD, "score": "1"}], "line 1: score is the string '1'; a score must be"),
    "nan score": ([{**GOOD, "score": float("nan")}], "line 1: score is nan; score every comple"),
    "large score": ([{**GOOD, "score": 2}], r"line 1: score is 2; scores are in \[0, 1\]"),
    "null gold": ([GOOD, {**GOOD, "index": 1, "gold": None}], "line 2: gold is null; it must be"),
    "other gold": (
        [GOOD, {**GOOD, "index": 1, "gold": "2"}],
        "line 2: gold is '2', but an earlier line of the problem has '1'",
    ),
    "gold id": ([{**GOOD, "gold_id": 1}], "line 1: gold_id needs 'answer_id' beside it"),
    "gold text": ([{**GOOD, "answer_id": 1}], "line 1: gold needs 'answer' beside it"),
    "list answer": ([{**GOOD, "answer": [1]}], "line 1: answer is a list; it must be a string"),
    "blank answer": ([{**GOOD, "answer": ""}], "line 1: answer is the string ''; it must be"),
    "low id": (
        [{"problem_id": "p", "answer_id": -2}],
        r"line 1: answer_id is -2; it must be at least -1; give a whole number",
    ),
    "part id": ([{"problem_id": "p", "answer_id": 0.5}], "answer_id is 0.5; give a whole"),
    "text tokens": ([{**GOOD, "tokens": "5"}], "line 1: tokens is the string '5'; give a number"),
    "grade": ([{**GOOD, "correct": "yes"}], "correct is the string 'yes'; it must be true or fal"),
    "kind": ([{**GOOD, "kind": "both"}], "kind is 'both'; it must be 'parallel' or 'sequential'"),
    "kinds": (
        [GOOD, {**GOOD, "index": 1, "kind": "sequential"}],
        "line 2: kind is not that of line 1, 'parallel'",
    ),
    "index twice": ([GOOD, GOOD], "problem 'p' has index 0 twice; its 2 lines must count from 0"),
    "gap": ([GOOD, {**GOOD, "index": 2}], "problem 'p' has no index 1; its 2 lines must count"),
    "negative index": ([{**GOOD, "index": -1}], "line 1: index is -1; it must be at least 0"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_line(name, tmp_path):
    lines, message = BAD_LINES[name]
    lines = [{key: value for key, value in line.items() if value is not DELETE} for line in lines]
    path = write_lines(tmp_path / "pool.jsonl", lines)
    with pytest.raises(RecordError) as error:
        read_jsonl(path)
    check(error, path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; copy or make it again"),
        (b" \n\n", "the file is empty"),
        (b"[]", "no records; a pool has one problem at least"),
        (b"PK\x03\x04", "not a complete .npz file"),
        (b"scores,correct\n1,2\n", r"line 1: not JSON near 'scores.*; write one object a line"),
        (b'{"problem_id": "p", "sc', "line 1: .*the file ends here; it is cut short"),
        (b"{\n", "record 0: the file ends here"),
        (b'{"a": "\xff"}\n', "line 1: a: not JSON near .*it is not UTF-8"),
        (b"1\n", "line 1: 1; it must be a JSON object"),
        (b'"a"\n', "line 1: the string 'a'; it must be a JSON object"),
        (b"[" * 100_000, "record 0: nested deeper than 256"),
        (b'{"a":' * 100_000, "nested"),
        (b"[1, 2]", "record 0: 1; it must be a JSON object"),
        (b'{"mu": 1, "sigma": 2}', r"line 1: fields of no known format \(mu, sigma\); the formats"),
        (b'[{"a": 1', "record 0: a: the file ends here; it is cut short: copy or make it again"),
        (b'[{"a": 1 "b"}]', "record 0: a: not JSON near"),
        (b'[{"a": "\xff"}]', "record 0: a: not JSON near"),
    ],
)
def test_unreadable_file(content, message, tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_pool(path)
    check(error, path, message)


@pytest.mark.parametrize("indent", [None, 4])
def test_list_cut_short_anywhere_names_the_record(tmp_path, indent):
    path = write_list(tmp_path / "pool.json", Truth(3, 4).optscale(), indent)
    content = path.read_bytes()
    starts = [content.index(b'"id": %d' % number) for number in (1, 2, 3)]
    for cut in range(1, len(content), 97):
        path.write_bytes(content[:cut])
        record = max(sum(start < cut for start in starts) - 1, 0)
        with pytest.raises(RecordError) as error:
            read_optscale(path)
        # Between two records either may be named.
        check(error, path, rf"record ({record}|{record + 1})[^0-9].*the file ends here")


def test_large_list_that_breaks_late_names_the_field(tmp_path):
    records = Truth(40, 64).optscale()
    records[33]["score"]["scores"][0][17] = float("nan")
    path = write_list(tmp_path / "pool.json", records)
    with pytest.raises(RecordError) as error:
        read_optscale(path)
    check(error, path, r"record 33: score.scores\[0\]\[17\] is nan")
    path = write_list(tmp_path / "pool.json", Truth(40, 64).optscale())
    path.write_text(path.read_text() + "]")
    with pytest.raises(RecordError) as error:
        read_optscale(path)
    check(error, path, "after the list: not JSON")


def test_missing_file_and_folder(tmp_path):
    for path, message in ((tmp_path / "none.json", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(RecordError) as error:
            read_pool(path)
        check(error, path, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, r"format 'csv': no such format.*live, npz, inspect_ai"),
        ({"prompts": "x"}, "a file of format 'search_and_learn' has no option 'prompts' .it has a"),
        ({"aggregation": "max"}, r"no aggregation 'max' \(there are last, mean, min, prod\)"),
        ({"format": "optscale"}, "line 1: no field 'score'"),
        ({"format": "optscale", "kind": "both"}, "kind is 'both'; it must be 'parallel' or 'seq"),
    ],
)
def test_bad_options(small, tmp_path, options, message):
    path = write_lines(tmp_path / "completions.jsonl", small.search_and_learn())
    with pytest.raises(InputError) as error:
        read_pool(path, **options)
    check(error, path, message)


FORMS = {
    "open_r1": [
        {
            "problem": "q",
            "answer": "6",
            "generations": ["\\boxed{6}", "\\boxed{7}", "\\boxed{6}, no"],
            "is_reasoning_complete": [True, True, False],
            "correctness_math_verify": [True, False, False],
            "correctness_llama": None,
        }
    ],
    "nemo_skills": [
        {"problem": "q", "expected_answer": 6, "generation": "x", "predicted_answer": answer}
        | {"is_correct": answer == "6"}
        for answer in ("6", "7", None)
    ],
    "verl": [
        {"input": "q", "output": text, "gts": "6", "score": float("6" in text), "step": 1}
        for text in ("\\boxed{6}", "\\boxed{7}", "no")
    ],
    "open_instruct": [
        {
            "prompt": "q",
            "ground_truth": "6",
            "responses": ["\\boxed{6}", "\\boxed{7}", "no"],
            "rewards": [1, 0, 0],
        }
    ],
    "batch": [
        {
            "custom_id": "q",
            "error": None,
            "response": {
                "status_code": 200,
                "body": {
                    "choices": [
                        {"message": {"content": text}, "finish_reason": reason}
                        for text, reason in (
                            ("\\boxed{6}", "stop"),
                            ([{"type": "text", "text": "\\boxed{7}"}], "stop"),
                            ("\\boxed{6}", "content_filter"),
                        )
                    ],
                    "usage": {"completion_tokens": 30},
                },
            },
        }
    ],
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_other_projects_records_give_the_same_votes(name, packed, tmp_path):
    path = write_lines(tmp_path / "file.jsonl", FORMS[name])
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert detect_format(path) == name
    prompts = write_lines(tmp_path / "problems.jsonl", [{"id": "q", "answer": "6"}])
    pool = read_pool(path, **({"prompts": prompts} if name == "batch" else {}))
    assert pool.answers.tolist() == [[0, 1, -1]]
    assert pool.correct.tolist() == [[True, False, False]]
    if name in ("verl", "open_instruct"):
        assert pool.scores.tolist() == [[1.0, 0.0, 0.0]]


def test_a_request_of_a_batch_that_came_to_nothing_is_its_own_fault(tmp_path):
    def result(name, *choices):
        return {"custom_id": name, "response": {"body": {"choices": list(choices)}}}

    whole = {"message": {"content": "\\boxed{6}"}, "finish_reason": "stop"}
    silent = {"message": {"content": "\\boxed{6}"}}  # does not say that it is finished
    odd = {**silent, "finish_reason": ["stop"]}
    results = [result("q-1", whole), result("q-2"), result("q-3", silent), result("q-4", odd)]
    path = write_lines(tmp_path / "file.jsonl", results)
    prompts = write_lines(tmp_path / "problems.jsonl", [{"id": "q", "answer": "6"}])
    with pytest.warns(PoolWarning, match="1 records are left out.*request 'q-2' failed"):
        pool = read_pool(path, prompts=prompts)
    assert pool.answers.tolist() == [[0, -1, -1]]


def inspect_sample(epoch, text="\\boxed{6}", grade="C", **more):
    choice = {"message": {"role": "assistant", "content": text}, "stop_reason": "stop"}
    output = {"choices": [choice], "usage": {"output_tokens": 9 + epoch}}
    scores = {"match": {"value": grade}, "judge": {"value": 0.25 * epoch}}
    return {"id": 1, "epoch": epoch, "target": "6", "output": output, "scores": scores, **more}


@pytest.mark.parametrize("archive", [False, True])
def test_epochs_of_an_inspect_log_are_completions_in_order(archive, tmp_path):
    reasoned = [{"type": "reasoning", "reasoning": "6?"}, {"type": "text", "text": "\\boxed{7}"}]
    samples = [
        inspect_sample(3, grade="P"),
        inspect_sample(1),
        inspect_sample(4, error={"message": "crash"}, scores=None),
        inspect_sample(2, text=reasoned, grade="I"),
    ]
    path = tmp_path / "log"
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("header.json", "{}")
            for each in samples:
                file.writestr(f"samples/1_epoch_{each['epoch']}.json", json.dumps(each))
    else:
        path.write_text(json.dumps({"version": 2, "eval": {}, "samples": samples}, indent=2))
    assert detect_format(path) == "inspect_ai"
    with pytest.warns(PoolWarning, match="1 records are left out.*epoch 4, ended in an error"):
        pool = read_pool(path, metric="match", scores="judge")
    assert pool.correct.tolist() == [[True, False, False]]
    assert pool.answers.tolist() == [[0, 1, 0]]
    assert pool.tokens.tolist() == [[10, 11, 12]]
    assert pool.scores.tolist() == [[0.25, 0.5, 0.75]]


def test_harness_folder_gives_the_newest_log_of_each_task(tmp_path):
    for task, date, answer in (("a", 1, 7), ("a", 2, 6), ("b", 1, 6)):
        line = {"doc_id": 0, "target": ["6", "six"], "resps": [[f"#### {answer}"]]}
        write_lines(tmp_path / f"samples_{task}_2026-01-0{date}T00-00-00.1.jsonl", [line])
    pool = read_pool(tmp_path)
    assert pool.problem_ids.tolist() == ["a/0", "b/0"]
    assert pool.correct.all()
    assert read_pool(tmp_path, task="b").problem_ids.tolist() == ["0"]
    with pytest.raises(InputError, match=r"no task 'c' \(it has a, b\)"):
        read_pool(tmp_path, task="c")
    # One that compares given texts stands beside those that generate some.
    compared = [[["-0.8", "False"]], [["-0.7", "True"]]]
    line = {"doc_id": 0, "target": "0", "resps": compared, "filtered_resps": [], "acc": 0.0}
    write_lines(tmp_path / "samples_c_2026-01-01T00-00-00.1.jsonl", [line])
    with pytest.warns(PoolWarning, match="left out as their tasks generate no text: c$"):
        assert read_pool(tmp_path).problem_ids.tolist() == ["a/0", "b/0"]
    with pytest.raises(InputError, match="resps has 2 requests; only tasks that generate text"):
        read_pool(tmp_path, task="c")


def test_scores_of_any_range_are_rescaled_as_asked(tmp_path):
    scores = [-1.0, 3.0, 3.0, 1.0]
    lines = [{"problem_id": 0, "score": score} for score in scores]
    path = write_lines(tmp_path / "pool.jsonl", lines)
    with pytest.raises(InputError, match="--rescale rank"):
        read_pool(path)
    expected = {
        "sigmoid": 1 / (1 + np.exp(-np.array(scores))),
        "minmax": [0, 1, 1, 0.5],
        "rank": [0.125, 0.75, 0.75, 0.375],
    }
    for how, values in expected.items():
        np.testing.assert_allclose(read_pool(path, rescale=how).scores[0], values, atol=1e-7)
    with pytest.raises(InputError, match=r"exp takes log-probabilities, at most 0; one is 3$"):
        read_pool(path, rescale="exp")
    below = write_lines(tmp_path / "logs.jsonl", [{"problem_id": 0, "score": -0.5}])
    np.testing.assert_allclose(read_pool(below, rescale="exp").scores, [[np.exp(-0.5)]], rtol=1e-6)
    with pytest.warns(PoolWarning, match=r"scores are rescaled \(rank\)"):
        PoolSource(str(path), ReadConfig(rescale="rank")).load()
    write_lines(path, [{"problem_id": 0, "score": [0.5, 0.9]}, {"problem_id": 0, "score": [0.1]}])
    with pytest.raises(InputError, match="step scores need an aggregation"):
        read_pool(path)
    assert read_pool(path, aggregation="min").scores.tolist() == [[0.5, np.float32(0.1)]]
    write_lines(path, [{"problem_id": 0, "mean_logprob": -0.5}])
    np.testing.assert_allclose(read_pool(path).scores, [[np.exp(-0.5)]], rtol=1e-6)


def test_a_score_that_is_named_has_others_beside_it(tmp_path):
    lines = [{"problem_id": 0, "mean_logprob": -0.5}, {"problem_id": 0, "mean_logprob": -1.0}]
    path = write_lines(tmp_path / "pool.jsonl", [{**line, "score": 0.9} for line in lines])
    expected = [[np.exp(-0.5), np.exp(-1.0)]]
    read = read_pool(path, scores="mean_logprob")
    np.testing.assert_allclose(read.scores, expected, rtol=1e-6)
    write_lines(path, [lines[0], {**lines[1], "score": 0.9}])
    read = read_pool(path, scores="mean_logprob")
    np.testing.assert_allclose(read.scores, expected, rtol=1e-6)
    with pytest.raises(InputError, match="line 1: no field 'score', which line 2 has"):
        read_pool(path)


def test_folders_of_parts_and_tables_are_one_data_set(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for part in range(2):
        row = {"problem_id": f"p{part}", "score": 0.5, "answer": "1", "gold": "1"}
        table = pyarrow.Table.from_pylist([row])
        pyarrow.parquet.write_table(table, folder / f"train-0000{part}-of-00002.parquet")
    assert read_pool(folder).problem_ids.tolist() == ["p0", "p1"]
    write_lines(folder / "test-00000-of-00001.jsonl", [row])
    with pytest.raises(RecordError, match=r"several data sets \(test, train\)"):
        read_pool(folder)
    assert read_pool(folder / "train-*").num_problems == 2


def test_sizes_out_of_proportion_are_refused_early(tmp_path):
    for field in ("score", "tokens", "answer_id", "index"):
        path = write_lines(tmp_path / "pool.jsonl", [{**GOOD, field: int("9" * 310)}])
        with pytest.raises(RecordError, match=f"line 1: {field} is an integer of 1030 bits"):
            read_pool(path, format="jsonl")
    path.write_text('[{"problem_id": "p", "x": ' + "[" * 200_000 + "]" * 200_000 + "}]")
    with pytest.raises(RecordError, match="nested deeper than 256"):
        read_pool(path)
    path.write_text('{"problem_id": "\\ud800", "score": 0.5}\n')
    assert read_pool(path).problem_ids.tolist() == ["\ufffd"]
    with gzip.open(path, "wb") as file:
        file.write(b'{"a": "')
        for _ in range(300):
            file.write(b" " * (1 << 20))
    with pytest.raises(InputError, match="which no data does"):
        read_pool(path)


def test_logs_of_several_versions_of_lm_eval_say_the_same(tmp_path):
    text = "He runs 540 meters. The answer is 540."
    first = {"doc_id": 3, "target": " 540", "arguments": [["Q: ...", {"until": ["Q:"]}]]}
    now = {"doc_id": 3, "target": "540", "arguments": {"gen_args_0": {"arg_0": "Q: ..."}}}
    logs = {
        "2023, a list": first | {"resps": [[text]], "filtered_resps": ["540"]},
        "2026": now | {"resps": [[text]], "filtered_resps": [["540"]], "filter": "flexible"},
        "lmms-eval": first | {"resps": [text], "filtered_resps": "540", "filter": "none"},
    }
    for version, record in logs.items():
        path = write_list(tmp_path / "log", [record | {"exact_match": 1.0}], indent=2)
        if version == "2026":
            write_lines(path, [record | {"metrics": ["exact_match"], "exact_match": 1.0}])
        pools = [read_pool(path), read_pool(path, metric="exact_match")]
        pools += [read_pool(path, filter=record["filter"])] if "filter" in record else []
        for pool in pools:
            assert pool.problem_ids.tolist() == ["3"], version
            assert pool.correct.tolist() == [[True]], version


@pytest.mark.parametrize(
    "more",
    [
        {"transcript": {"events": [], "content": {}}, "target": " Yes"},  # of 0.3.41, October 2024
        {"events": [], "attachments": {}, "metadata": {}, "target": "Yes"},  # of 0.3.43
        {"uuid": "8r", "model_usage": {}, "total_time": 2.1, "target": [" Yes"]},  # of 0.3.95
    ],
)
@pytest.mark.parametrize("said", ["Yes\n", [{"type": "text", "text": "Yes\n"}]])
def test_logs_of_several_versions_of_inspect_ai_say_the_same(more, said, tmp_path):
    choice = {"message": {"content": said, "role": "assistant"}, "stop_reason": "stop"}
    sample = {
        **{"id": 1, "epoch": 1, "input": "?", "store": {}, "messages": []},
        "output": {"choices": [choice], "usage": {"input_tokens": 66, "output_tokens": 3}},
        "scores": {"match": {"value": "C", "answer": "Yes", "explanation": "Yes\n"}},
    }
    log = {"version": 2, "status": "success", "eval": {"task": "t"}, "samples": [sample | more]}
    (tmp_path / "log.json").write_text(json.dumps(log, indent=2))
    pool = read_pool(tmp_path / "log.json")
    assert pool.correct.tolist() == [[True]]
    assert pool.answers[0, 0] == pool.gold[0]
    assert pool.tokens.tolist() == [[3]]


def test_data_sets_of_the_hub_are_read_by_name(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    # The hub's own library, on a folder in the form in which it keeps what it has fetched.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kept = tmp_path / "datasets--owner--name"
    data = kept / "snapshots" / ("a" * 40) / "data"
    data.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    write_lines(data / "train-00000-of-00001.jsonl", [GOOD])
    expected = [str(GOOD["problem_id"])]
    assert read_pool("hf://owner/name").problem_ids.tolist() == expected
    assert read_pool("hf://owner/name@main/data").problem_ids.tolist() == expected
    with pytest.raises(InputError, match="hf://owner/other: cannot be had from the hub"):
        read_pool("hf://owner/other")
