"""The run directory: what is on disk, what comes back, and what is refused."""

import asyncio
import contextlib
import dataclasses
import json
import math
import resource

import pytest

from optscale_jax.errors import RunError
from optscale_jax.live.runs import Earlier, Part, Run, read_run
from optscale_jax.readers import read_pool
from optscale_jax.records import Completion, Decision, Problem, Sample, TokenLedger

PROBLEMS = [Problem("a", "1+1?", "2"), Problem("b", "2+2?", "4")]
CONFIG = "policy:\n  name: first_hit\n  s_min: 0.9\nseed: 0\nout: here\n"


def opened(path, **changes):
    return Run(path, **({"config": CONFIG, "problems": PROBLEMS, "volatile": ["out"]} | changes))


def sample(problem_id="a", index=0, score=0.5, text="so \\boxed{2}\u2028\nend", **changes):
    completion = Completion(index, text, 7, "stop", 3)
    fields = {"answer": "2", "answer_id": 0, "gold_id": 0, "steps": (0.25, 0.75)}
    fields |= {"verifier_tokens": 11, "note": None} | changes
    return Sample(problem_id, completion, score, **fields)


def decision(problem_id="a", num_samples=1):
    ledger = TokenLedger(completed=7, aborted=2, verifier=11)
    law = {"a": 2.5, "b": 0.5}
    selected = 0 if num_samples else -1
    return Decision(problem_id, num_samples, 7, selected, "bound_reached", 3, law, ledger)


GOOD = {
    "problem_id": "a",
    "index": 5,
    "score": 0.5,
    "answer_id": 0,
    "gold_id": 0,
    "answer": "2",
    "tokens": 7,
    "finish_reason": "stop",
    "prompt_tokens": 3,
    "completion": "so 2",
}
DECIDED = dataclasses.asdict(decision("b"))


def test_ledgers_entries_of_an_older_version_are_passed_over(tmp_path):
    with opened(tmp_path) as run:
        run.add_sample(sample())
        run.add_decision(decision())
    log = tmp_path / "decisions.jsonl"
    log.write_text(log.read_text().replace('"predictor": 0', '"predictor": 0, "search": 0'))
    with opened(tmp_path) as run:
        back = run.decision("a")
        assert back is not None
        assert back.ledger == decision().ledger


def test_everything_comes_back(tmp_path):
    with opened(tmp_path) as run:
        samples = [sample(), sample(index=2, note="truncated", answer=None, answer_id=-1)]
        for one in samples:
            run.add_drawn("a", one.completion)
            run.add_sample(one)
        lonely = Completion(1, "half \ud800", -1, "length")
        run.add_drawn("a", lonely)
        run.add_sample(sample("b", steps=(), verifier_tokens=0))
        run.add_decision(decision("b"))
        assert run.samples("a") == []  # what was there when it was opened
    with opened(tmp_path) as run:
        assert run.notes == []
        assert run.num_samples == 3
        assert run.samples("a") == samples
        # Half a surrogate pair cannot be written in UTF-8.
        assert run.unscored("a") == [Completion(1, "half ?", -1, "length")]
        assert run.unscored("b") == []
        back = run.decision("b")
        assert back is not None
        assert back.ledger == decision().ledger
        assert back.params == {"a": 2.5, "b": 0.5}
        assert run.decision("a") is None
        run.finish()
        assert not (tmp_path / "drawn.jsonl").exists()
    with opened(tmp_path) as run:
        assert run.samples("a") == samples


def test_only_the_completion_returned_keeps_its_text_in_memory(tmp_path):
    with opened(tmp_path) as run:
        for index in range(3):
            run.add_sample(sample(index=index))
        run.add_decision(decision(num_samples=3))
    with opened(tmp_path) as run:
        texts = [bool(one.completion.text) for one in run.samples("a")]
        assert texts == [True, False, False]


@pytest.mark.parametrize("name", ["samples.jsonl", "drawn.jsonl", "decisions.jsonl"])
@pytest.mark.parametrize("missing", [1, 20])
def test_a_torn_last_line_is_dropped(tmp_path, name, missing):
    with opened(tmp_path) as run:
        for index in range(2):
            run.add_drawn("a", sample(index=index).completion)
            run.add_sample(sample(index=index))
        for problem in PROBLEMS:
            run.add_decision(decision(problem.id, num_samples=1 - (problem.id == "b")))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-missing])
    with opened(tmp_path) as run:
        (note,) = run.notes
        assert name in note
        first, last = whole.splitlines(keepends=True)
        assert (tmp_path / name).read_bytes() == first
        assert f"{len(last) - missing} bytes" in note
        if name == "samples.jsonl":
            # It was drawn all the same.
            assert run.num_samples == 1


def test_a_file_that_is_one_torn_line_is_empty(tmp_path):
    opened(tmp_path).close()
    (tmp_path / "samples.jsonl").write_bytes(b'{"problem_id": "' + b"x" * 200_000)
    with opened(tmp_path) as run:
        assert run.num_samples == 0
        assert len(run.notes) == 1
    assert (tmp_path / "samples.jsonl").read_bytes() == b""


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    opened(tmp_path).close()
    other = CONFIG.replace("s_min: 0.9", "s_min: 0.8").replace("out: here", "out: there")
    with pytest.raises(RunError, match=r"policy\.s_min is 0\.9, now 0\.8; go on") as raised:
        opened(tmp_path, config=other)
    assert "out" not in str(raised.value).split("differs")[1].replace("without", "")
    opened(tmp_path, config=CONFIG.replace("out: here", "out: there")).close()
    problems = [PROBLEMS[0], Problem("b", "3+3?", "6")]
    with pytest.raises(RunError, match=r"problems\.jsonl differs: line 2 is .*2\+2.*now .*3\+3"):
        opened(tmp_path, problems=problems)
    opened(tmp_path).close()


def test_two_processes_cannot_be_at_one_run(tmp_path):
    with opened(tmp_path), pytest.raises(RunError, match=r"process \d+ is at this run"):
        opened(tmp_path)
    opened(tmp_path).close()


def test_a_line_that_is_no_record_is_named(tmp_path):
    opened(tmp_path).close()
    for line in ("{}", "not JSON", "[]", json.dumps({"problem_id": "a", "index": 0})):
        (tmp_path / "samples.jsonl").write_text(line + "\n")
        with pytest.raises(RunError, match=r"samples\.jsonl: line 1: not a record of a run"):
            opened(tmp_path)


DAMAGE = {
    "samples.jsonl": [
        b"\x00\xff\x00\xfe",
        b"[" * 100_000,
        b"7",
        *(
            json.dumps({**GOOD, **wrong}).encode()
            for wrong in (
                {"score": 7.5},
                {"score": math.nan},
                {"score": "x"},
                {"score": True},
                {"index": -4},
                {"index": 10**400},
                {"index": 1.5},
                {"tokens": -5},
                {"tokens": "many"},
                {"answer": 5},
                {"answer_id": -9},
                {"finish_reason": ["stop"]},
                {"steps": [0.5, 2]},
                {"steps": 0.5},
                {"problem_id": None},
                {"completion": None},
            )
        ),
    ],
    "decisions.jsonl": [
        b"{}",
        *(
            json.dumps({**DECIDED, **wrong}).encode()
            for wrong in (
                {"selected_index": 9999},
                {"num_samples": -3},
                {"num_samples": 3},
                {"tokens": None},
                {"ledger": 5},
                {"ledger": {"completed": "x", "aborted": 0, "verifier": 0, "predictor": 0}},
                {"unheard": 1},
            )
        ),
    ],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_all_damage_is_named_at_once_and_set_aside_when_asked(name, tmp_path):
    with opened(tmp_path) as run:
        run.add_sample(sample())
        run.add_sample(sample("b"))
        run.add_decision(decision())
    log = tmp_path / name
    whole = log.read_bytes()
    log.write_bytes(b"".join(line + b"\n" for line in DAMAGE[name]) + whole)
    for line in (1, len(DAMAGE[name])):
        kept = log.read_bytes()
        with pytest.raises(RunError, match=rf"{name}: line 1: .*and \d+ lines more; add --repair"):
            opened(tmp_path)
        assert log.read_bytes() == kept, line
    with opened(tmp_path, repair=True) as run:
        assert [one.completion.index for one in run.samples("b")] == [0]
        assert run.decision("a") == decision()
        assert run.num_samples == 2
        (note,) = run.notes
        assert f"has {len(DAMAGE[name])} lines" in note
    assert log.read_bytes() == whole
    aside = (tmp_path / f"{name}.damaged").read_bytes()
    assert aside == b"".join(line + b"\n" for line in DAMAGE[name])
    with opened(tmp_path) as run:
        assert run.notes == []


def test_decisions_whose_samples_are_gone_are_drawn_again_together(tmp_path):
    with opened(tmp_path) as run:
        for problem_id in "ab":
            run.add_sample(sample(problem_id))
            run.add_decision(decision(problem_id))
    (tmp_path / "samples.jsonl").write_bytes(b"")
    with pytest.raises(RunError, match=r"completion 0 of problem 'a' is not there\), and 1 lines"):
        opened(tmp_path)
    with opened(tmp_path, repair=True) as run:
        assert run.decision("a") is run.decision("b") is None
    opened(tmp_path).close()


@pytest.mark.parametrize("name", ["config.yaml", "problems.jsonl", "versions.json"])
@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"{" * 5000, b"- [a\n  b: }", None])
def test_what_says_whose_a_run_is_may_be_damaged(name, text, tmp_path):
    with opened(tmp_path) as run:
        run.add_sample(sample())
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(text)
    if name != "versions.json":  # which is but a record
        with pytest.raises(RunError, match=f"{name}"):
            opened(tmp_path)
    if name == "config.yaml" or text is None:
        with opened(tmp_path, repair=True) as run:
            assert run.num_samples == 1
        opened(tmp_path).close()


def test_a_run_of_before_a_field_was_there_has_its_default(tmp_path):
    opened(tmp_path).close()
    newer = CONFIG + "equal_seconds: 5.0\n"
    opened(tmp_path, config=newer, defaults="equal_seconds: 5.0").close()
    with pytest.raises(RunError, match=r"equal_seconds is 5\.0, now 4\.0"):
        opened(tmp_path, config=CONFIG + "equal_seconds: 4.0\n", defaults="equal_seconds: 5.0")
    with pytest.raises(RunError, match=r"equal_seconds is missing, now 5\.0"):
        opened(tmp_path, config=newer)


def test_a_sample_twice_is_noticed(tmp_path):
    with opened(tmp_path) as run:
        run.add_sample(sample())
        run.add_sample(sample())
    with pytest.raises(RunError, match=r"line 2: .*completion 0 of 'a' is there already"):
        opened(tmp_path)


def test_what_is_no_folder_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="file"):
        opened(file)
    (tmp_path / "samples.jsonl").write_text("")
    with pytest.raises(RunError, match=r"config\.yaml: .*No such file"):
        opened(tmp_path)


@contextlib.asynccontextmanager
async def writing(run):
    """The writer, beside what adds."""
    writer = asyncio.ensure_future(run.keep_writing())
    try:
        yield writer
    finally:
        writer.cancel()
        await asyncio.wait([writer])


async def written(run, *samples):
    """Adds samples as a run does."""
    async with writing(run):
        for one in samples:
            run.add_sample(one)
            await run.durable()


def test_durable_means_on_disk(tmp_path):
    async def watched():
        with opened(tmp_path) as run:
            async with writing(run):
                for index in range(5):
                    run.add_sample(sample(index=index))
                    await run.durable()
                    lines = (tmp_path / "samples.jsonl").read_bytes().splitlines()
                    assert [json.loads(line)["index"] for line in lines] == list(range(index + 1))

    asyncio.run(watched())


def test_what_nobody_waits_for_is_written_soon_and_together(tmp_path):
    async def watched():
        loop, sizes, added = asyncio.get_running_loop(), {0}, 0
        began = loop.time()
        with opened(tmp_path) as run:
            async with writing(run), asyncio.timeout(60):
                while max(sizes) < 100:
                    run.add_sample(sample(index=added))
                    added += 1
                    await asyncio.sleep(0.001)
                    sizes.add(run.num_samples)
                while run.num_samples < added:
                    await asyncio.sleep(0.001)
        return len(sizes), loop.time() - began

    seen, seconds = asyncio.run(watched())
    # A line waits a twentieth of a second for others, so that there are at most so many writes.
    assert seen <= seconds / 0.05 + 2


@pytest.mark.parametrize("turns", range(6))
def test_a_writer_that_is_cancelled_ends_whatever_it_waits_for(tmp_path, turns):
    async def cancelled():
        with opened(tmp_path) as run:
            writer = asyncio.ensure_future(run.keep_writing())
            run.add_sample(sample())
            await asyncio.sleep(0)
            kept = asyncio.ensure_future(run.durable())
            for _ in range(turns):
                await asyncio.sleep(0)
            writer.cancel()
            ended, _ = await asyncio.wait([writer], timeout=30)
            kept.cancel()
            writer.cancel()
            return bool(ended) and writer.cancelled()

    assert asyncio.run(cancelled())


def test_a_full_disk_keeps_whole_lines_and_says_so(tmp_path):
    with opened(tmp_path) as run:
        asyncio.run(written(run, sample()))
        line = (tmp_path / "samples.jsonl").stat().st_size
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * line + line // 2, before[1]))
        try:
            with pytest.raises(RunError, match=r"cannot be written.*make room"):
                asyncio.run(written(run, *(sample(index=index) for index in range(1, 5))))
            # Nothing more is added behind the gap.
            with pytest.raises(RunError):
                asyncio.run(run.durable())
            # What is said to be kept is on disk.
            assert run.num_samples == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with opened(tmp_path) as run:
        assert run.notes == []
        assert [one.completion.index for one in run.samples("a")] == [0, 1]


def test_a_full_disk_keeps_what_had_room_of_lines_written_together(tmp_path):
    with opened(tmp_path) as run:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        for index in range(20):
            run.add_sample(sample(index=index))
        try:
            with pytest.raises(RunError, match="cannot be written"):
                run.finish()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        written = (tmp_path / "samples.jsonl").read_bytes()
        assert 600 < len(written) <= 1000
        assert written.endswith(b"\n")


def test_a_run_is_read_as_a_pool_of_what_was_decided_on(tmp_path):
    with opened(tmp_path) as run:
        # Of "a" the policy decided on two; the fourth had ended before the third was aborted. Of
        # "b", which is not decided, the second is still missing.
        for index in (1, 0, 3):
            run.add_sample(sample(index=index, score=0.1 * index))
        for index in (0, 2):
            run.add_sample(sample("b", index=index, answer="5", answer_id=1))
        run.add_decision(decision(num_samples=2))
    with open(tmp_path / "samples.jsonl", "ab") as file:
        file.write(b'{"problem_id": "b", "ind')  # it is still going on
    pool = read_pool(tmp_path)
    assert pool.problem_ids.tolist() == ["a", "b"]
    assert pool.mask.tolist() == [[True, True], [True, False]]
    assert pool.scores is not None
    assert pool.scores[0].tolist() == pytest.approx([0.0, 0.1])
    assert pool.correct is not None
    assert pool.correct.tolist() == [[True, True], [False, False]]
    assert pool.tokens[0].tolist() == [7, 7]


def test_decisions_of_before_laws_had_names_are_read(tmp_path):
    with opened(tmp_path) as run:
        run.add_sample(sample("b"))
        run.add_decision(decision("b"))
    file = tmp_path / "decisions.jsonl"
    (line,) = map(json.loads, file.read_text().splitlines())
    del line["params"]
    for fields, params in (
        ({"loc": 0.5, "scale": 0.1}, {"loc": 0.5, "scale": 0.1}),
        ({"loc": None, "scale": None}, {}),
    ):
        file.write_text(json.dumps(line | fields) + "\n")
        with opened(tmp_path) as run:
            back = run.decision("b")
            assert back is not None
            assert back.params == params


def begun(run, *added):
    """What a shard has left in a part of a run."""
    part = run.begin_part()
    with Part(part, kind="parallel") as kept:
        for one in added:
            kept.add_decision(one) if isinstance(one, Decision) else kept.add_sample(one)
    return part


def test_parts_are_read_whatever_they_are_called_and_become_the_runs_own(tmp_path):
    with opened(tmp_path) as run:
        run.add_sample(sample())
        begun(run, sample(index=1))
        # What a decision rests on need not be in the same part.
        begun(run, sample(index=2), decision(num_samples=3), sample("b"))
    decided, samples = read_run(tmp_path)
    assert decided == {"a": decision(num_samples=3)}
    assert [one.completion.index for one in samples["a"]] == [0, 1, 2]
    with opened(tmp_path) as run:
        assert run.notes == []
        assert run.num_samples == 4
        assert {one.completion.index for one in run.samples("a")} == {0, 1, 2}
        assert run.earlier("b") == Earlier([sample("b")], [], TokenLedger())
        assert run.begin_part().name == "02"
        run.add_decision(decision("b"))
        run.finish()
        assert run.num_samples == 4
    assert not (tmp_path / "shards").exists()
    assert len((tmp_path / "samples.jsonl").read_bytes().splitlines()) == 4
    with opened(tmp_path) as run:
        assert run.decision("a") == decision(num_samples=3)
        assert run.decision("b") == decision("b")


def test_a_finish_that_was_cut_off_keeps_nothing_twice(tmp_path):
    with opened(tmp_path) as run:
        part = begun(run, sample(), decision())
    for name in ("samples.jsonl", "decisions.jsonl"):  # gathered, and the part is still there
        (tmp_path / name).write_bytes((part / name).read_bytes())
    assert read_pool(tmp_path).mask.tolist() == [[True]]
    with opened(tmp_path) as run:
        assert run.samples("a") == [sample()]
        run.finish()
    for name in ("samples.jsonl", "decisions.jsonl"):
        assert len((tmp_path / name).read_bytes().splitlines()) == 1


def test_a_part_that_is_damaged_is_named_and_set_aside(tmp_path):
    with opened(tmp_path) as run:
        part = begun(run, sample(), sample(index=1), decision(num_samples=2))
    log = part / "samples.jsonl"
    first, _ = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first + b"{}\n" + b'{"problem_id": "a", "ind')
    with pytest.raises(RunError, match=r"shards/00/samples\.jsonl: line 2: .* and 1 lines more"):
        opened(tmp_path)
    with opened(tmp_path, repair=True) as run:
        assert run.samples("a") == [sample()]
        assert run.decision("a") is None
    assert log.with_name("samples.jsonl.damaged").read_bytes() == b"{}\n"


def test_a_part_goes_on_from_what_it_and_others_hold(tmp_path):
    lost = Completion(3, "half", 5, "stop")
    with opened(tmp_path) as run:
        run.add_drawn("a", lost)
        run.add_spent("a", TokenLedger(aborted=4))
        run.add_sample(sample())
    with opened(tmp_path) as run:
        earlier = run.earlier("a")
        assert run.earlier("b") is None
        part = begun(run, sample(index=1))
        with Part(part, kind="parallel") as kept:
            kept.take("a", earlier)
            assert kept.samples("a") == [sample(), sample(index=1)]
            assert kept.unscored("a") == [lost]
            assert kept.spent("a") == TokenLedger(aborted=4)
