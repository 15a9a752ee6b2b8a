"""Signals beside the score: a rule reads the same numbers in replay, in a plain loop and live."""

import asyncio
import dataclasses
import itertools
import json
import math

import jax
import numpy as np
import pytest

from optscale_jax import Pool, PoolError, replay
from optscale_jax.backends.recorded import RecordedSampler, RecordedVerifier, recorded_problems
from optscale_jax.calibration import NOT_KNOWN
from optscale_jax.derived_signals import derived_signals, mean_logprob
from optscale_jax.errors import EngineError, InputError, RecordError
from optscale_jax.live.decider import Decider
from optscale_jax.live.engine import solutions_pool, solve
from optscale_jax.live.inspect_ai import EarlyStopping
from optscale_jax.live.runs import Run
from optscale_jax.policies import Observation, Policy, StopReason, run, stack, until
from optscale_jax.readers import read_pool, write_jsonl
from optscale_jax.readers.live import live_blocks
from optscale_jax.records import Completion, Problem, Sample, Score
from optscale_jax.replay import permutations
from optscale_jax.typing import Number

KEY = jax.random.key(11)
SHAPE = (6, 8)


class Doubtful(Policy):
    """Draws until the least steps of finished completions add up to `enough`."""

    rule_uses_scores = False

    enough: Number

    @property
    def signals(self):
        return ("min_step", "finished")

    def start(self, prior):
        del prior
        return jax.numpy.zeros((), jax.numpy.result_type(float))

    def update(self, state, observation):
        least, finished = observation.signals
        return state.own + jax.numpy.where(jax.numpy.isnan(least), 0, least * finished)

    def rule(self, state):
        return until(state.own >= self.enough)


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(5)
    least = rng.random(SHAPE)
    least[rng.random(SHAPE) < 0.2] = np.nan
    return Pool.from_arrays(
        scores=rng.random(SHAPE),
        answers=rng.integers(0, 3, SHAPE),
        gold=np.zeros(SHAPE[0], int),
        tokens=rng.integers(1, 50, SHAPE),
        signals={"finished": rng.random(SHAPE) < 0.8, "min_step": least, "other": least},
    )


def test_replay_of_a_rule_that_reads_signals_is_the_plain_loop(pool):
    settings = [Doubtful(max_samples=cap, enough=enough) for cap, enough in ((8, 1.0), (6, 2.2))]
    result = replay(pool, stack(settings), key=KEY, num_permutations=2)
    orders = permutations(pool, KEY, 2)
    for s, k, p in itertools.product(range(2), range(2), range(SHAPE[0])):
        seen = [
            Observation(
                pool.scores[p, j],
                pool.answers[p, j],
                pool.tokens[p, j],
                np.int32(i),
                np.array([pool.signals["min_step"][p, j], pool.signals["finished"][p, j]]),
            )
            for i, j in enumerate(orders[k, p])
        ]
        want = run(settings[s], seen)
        assert result.num_samples[s, k, p] == want.num_samples
        assert result.selected_index[s, k, p] == orders[k, p, want.selected_index]
        # And the plain loop is the sum that the rule says it is.
        parts = [0.0 if np.isnan(o.signals[0]) else np.prod(o.signals) for o in seen]
        enough = np.flatnonzero(np.cumsum(parts) >= settings[s].enough)
        cap = int(settings[s].max_samples)
        assert want.num_samples == min(enough[0] + 1 if enough.size else cap, cap)
    assert {StopReason.SATISFIED, StopReason.MAX_SAMPLES} == set(result.stop_reason.flat)


def test_a_pool_without_a_signal_that_a_rule_reads_is_refused_by_name(pool):
    without = Pool.from_arrays(scores=pool.scores, signals={"finished": pool.scores})
    with pytest.raises(PoolError, match=r"no signal 'min_step', .* \(it has finished\)"):
        replay(without, Doubtful(max_samples=4, enough=1.0))


# Live ---------------------------------------------------------------------------------------------


def opened(path, problems):
    return Run(path, config="seed: 0\n", problems=problems)


def assert_live_is_replay(solutions, result):
    for s, solution in enumerate(solutions):
        assert solution.decision.num_samples == result.num_samples[0, s]
        assert solution.decision.selected_index == result.selected_index[0, s]


@pytest.mark.parametrize("scored", [True, False])
def test_a_recorded_run_reads_the_pools_signals_and_keeps_them(pool, tmp_path, scored):
    if not scored:
        pool = Pool.from_arrays(answers=pool.answers, tokens=pool.tokens, signals=pool.signals)
    rule = Doubtful(max_samples=8, enough=1.7, selection="best_score" if scored else "majority")
    problems = recorded_problems(pool)
    verifier = RecordedVerifier(pool) if scored else None
    with opened(tmp_path, problems) as run:
        solutions = solve(problems, RecordedSampler(pool), verifier, rule, run=run)
    result = replay(pool, rule)
    assert_live_is_replay(solutions, result)
    drawn = np.arange(SHAPE[1]) < result.num_samples[0][:, None]
    for read in (solutions_pool(solutions), read_pool(tmp_path).subset(pool.problem_ids)):
        assert set(read.signals) == set(pool.signals)
        for name, signal in read.signals.items():
            wanted = np.where(drawn, pool.signals[name], np.nan)[:, : read.num_samples]
            np.testing.assert_array_equal(signal, wanted)
        assert read.has_scores == scored
    # Opened again, the run has them too.
    with opened(tmp_path, problems) as run:
        again = solve(problems, RecordedSampler(pool), verifier, rule, run=run)
    both = zip(solutions, again, strict=True)
    assert all(str(a.samples) == str(b.samples) for a, b in both)


class Models:
    """Completions with three step scores each, of which the fourth is blank and the fifth long."""

    async def sample(self, problem, n, first_index, *, abort):
        for i in range(first_index, first_index + n):
            text = "" if i == 3 else f"\\boxed{{{i % 2}}}"
            end = "length" if i == 4 else "stop"
            yield Completion(i, text, 7, end, mean_logprob=None if i == 3 else -0.1 * (i + 1) / 3)

    async def score(self, problem, completions):
        steps = [() if c.index == 3 else (0.1 * (c.index + 1), 1 / 3, 0.7) for c in completions]
        return [Score(min(each, default=0.0), each, 9 * len(each)) for each in steps]

    async def close(self):
        pass


class Wordy(Doubtful):
    """The same of the mean step and the mean log-probability."""

    @property
    def signals(self):
        return ("mean_step", "mean_logprob")

    def update(self, state, observation):
        return state.own + jax.numpy.nan_to_num(jax.numpy.sum(observation.signals))


def test_live_and_its_record_read_what_the_models_say(tmp_path):
    problems = [Problem("a", "?", "0"), Problem("b", "?", "1")]
    rule = Wordy(max_samples=6, enough=10.0)
    with opened(tmp_path, problems) as run:
        solutions = solve(problems, Models(), Models(), rule, run=run)
    read = read_pool(tmp_path)
    index = np.arange(6)
    steps = np.stack([0.1 * (index + 1), np.full(6, 1 / 3), np.full(6, 0.7)])
    wanted = {
        "mean_step": [math.fsum(each) / 3 for each in steps.T],
        "min_step": steps.min(axis=0),
        "last_step": steps[-1],
        "mean_logprob": [-0.1 * (i + 1) / 3 for i in index],
        "finished": index != 4,
        "verifier_tokens": 27.0 * (index != 3),
    }
    assert set(read.signals) == set(wanted) == set(solutions_pool(solutions).signals)
    unknown = set(wanted) - {"finished", "verifier_tokens"}
    for name, values in wanted.items():
        signal = np.where((index == 3) & (name in unknown), np.nan, values).astype(np.float32)
        for got in (read, solutions_pool(solutions)):
            np.testing.assert_array_equal(got.signals[name], [signal, signal])
    assert_live_is_replay(solutions, replay(read, rule))
    # Decided at each length as replay decides it, to the last bit of the sums.
    sums = np.cumsum(
        np.nan_to_num(np.float32(wanted["mean_step"]) + np.float32(wanted["mean_logprob"]))
    )
    for enough in (sums[1], np.nextafter(sums[1], np.float32(9))):
        rule = Wordy(max_samples=6, enough=float(enough))
        solutions = solve(problems, Models(), Models(), rule)
        assert_live_is_replay(solutions, replay(read, rule))


def test_a_run_is_scored_by_its_log_probabilities_without_a_verifier(tmp_path):
    means = [-0.5, -0.25]
    lines = [
        {"problem_id": "a", "index": i, "answer": "1", "tokens": 3, "mean_logprob": mean}
        for i, mean in enumerate(means)
    ]
    (tmp_path / "samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "decisions.jsonl").write_text('{"problem_id": "a", "num_samples": 2}\n')
    asked = {"sampler": {"model": "small"}, "verify": False, "verifier": {}}
    (tmp_path / "config.yaml").write_text(json.dumps(asked))
    assert not read_pool(tmp_path).has_scores
    pool = read_pool(tmp_path, scores="logprob")
    np.testing.assert_allclose(pool.scores, [np.exp(means)], rtol=1e-6)
    assert pool.origin == ("mean log-probability", None, "small")
    with pytest.raises(ValueError, match="has score, logprob, last_step, mean_step or min_step"):
        read_pool(tmp_path, scores="judge")


STEPS = [[0.5, 0.25, 0.75], [], [0.125]]


@pytest.fixture
def scored_run(tmp_path):
    """A run scored by the means of step scores; the second completion has no step."""
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [
        {"problem_id": "a", "index": i, "answer": "1", "tokens": 3, "steps": steps,
         "score": np.mean(steps) if steps else 0.0, "mean_logprob": -0.5}
        for i, steps in enumerate(STEPS)
    ]  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "decisions.jsonl").write_text('{"problem_id": "a", "num_samples": 3}\n')
    asked = {
        "sampler": {"model": "small"},
        "verify": True,
        "verifier": {"kind": "prm", "model": "strict", "aggregate": "mean"},
    }
    (folder / "config.yaml").write_text(json.dumps(asked))
    return folder


@pytest.mark.parametrize(
    ("signal", "how", "wanted"),
    [
        ("min_step", "min", [0.25, 0, 0.125]),
        ("last_step", "last", [0.75, 0, 0.125]),
        ("mean_step", "mean", [0.5, 0, 0.125]),
    ],
)
def test_a_run_is_scored_by_another_aggregate_of_its_steps(
    scored_run, tmp_path, signal, how, wanted
):
    own = read_pool(scored_run)
    own.save(tmp_path / "pool.npz")
    blocks = [*live_blocks(scored_run, scores=signal)]
    from_file = [
        read_pool(tmp_path / "pool.npz", scores=name) for name in (signal, f"signals/{signal}")
    ]
    for pool in (read_pool(scored_run, scores=signal), *blocks, *from_file, own.scored_by(signal)):
        np.testing.assert_array_equal(pool.scores, np.float32([wanted]))
        # A calibration for one aggregate is none for another.
        assert pool.origin == ("strict", how, "small")
        for name, values in own.signals.items():
            np.testing.assert_array_equal(pool.signals[name], values)
        for field in ("answers", "tokens", "mask"):
            np.testing.assert_array_equal(getattr(pool, field), getattr(own, field))


def test_another_signal_is_another_verifier_and_what_is_no_score_is_refused(scored_run, tmp_path):
    own = read_pool(scored_run)
    file = tmp_path / "pool.npz"
    own.save(file)
    pools = [
        own.scored_by("mean_logprob", rescale="exp"),
        read_pool(file, scores="mean_logprob", rescale="exp"),
    ]
    for pool in pools:
        np.testing.assert_allclose(pool.scores, np.exp([[-0.5] * 3]), rtol=1e-6)
        assert pool.origin == ("mean_logprob", None, "small")
    # Nobody knows who made the scores of this one, so nobody knows of its signals.
    dataclasses.replace(own, origin=NOT_KNOWN).save(file)
    assert read_pool(file, scores="min_step").origin == NOT_KNOWN
    with pytest.raises(
        PoolError, match=r"no signal 'judge' to take for the score \(it has .*min_s"
    ):
        own.scored_by("judge")
    with pytest.raises(PoolError, match=r"no array 'judge' \(it has .*signals/min_step"):
        read_pool(file, scores="judge")
    for refused in (
        lambda: own.scored_by("mean_logprob"),
        lambda: Pool.load(file, scores="mean_logprob"),
    ):
        with pytest.raises(PoolError, match=r"is -0\.5; .*rescale"):
            refused()


def test_a_signal_that_models_do_not_give_is_named_at_the_first_completion():
    class Silent(Models):
        async def score(self, problem, completions):
            return [Score(0.5) for _ in completions]

    says = r"'a': completion 0 has no signal 'mean_step', which the policy reads \(it has mean_log"
    with pytest.raises(EngineError, match=says):
        solve([Problem("a", "?")], Models(), Silent(), Wordy(max_samples=6, enough=1.0))
    with pytest.raises(InputError, match="a score alone, and the policy reads"):
        EarlyStopping(Wordy(max_samples=6, enough=1.0))


def test_a_signal_is_missed_only_once_the_policy_comes_to_it():
    decide = Decider(Wordy(max_samples=6, enough=10.0))
    said = [Completion(i, "x", 7, mean_logprob=-0.1 if i < 2 else None) for i in range(3)]
    samples = [Sample("a", one, 0.5, "x", 0, -1, steps=(0.5,)) for one in said]

    async def shown(state, samples):
        return await decide.step(state, samples)

    state, wanted = asyncio.run(shown(decide.start(None, 0, 1)[0], samples))
    assert wanted == [1, 1]
    with pytest.raises(EngineError, match="completion 2 has no signal 'mean_logprob'"):
        asyncio.run(shown(state, samples[2:]))


# Files --------------------------------------------------------------------------------------------


def test_lines_give_a_pool_with_signals_back_bit_for_bit(pool, tmp_path):
    write_jsonl(pool, tmp_path / "pool.jsonl")
    read = read_pool(tmp_path / "pool.jsonl")
    assert set(read.signals) == set(pool.signals)
    for name, signal in pool.signals.items():
        np.testing.assert_array_equal(read.signals[name], signal)


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_readers_derive_the_signals_that_a_file_has(tmp_path):
    unknown = math.nan
    path = lines(
        tmp_path / "own.jsonl",
        {"problem_id": 0, "score": 0.5, "steps": [0.5, 0.25], "mean_logprob": -2},
        {"problem_id": 0, "score": 0.5, "step_scores": [1], "finish_reason": "max_tokens"},
        # Texts of steps are no scores, and what nobody could say is not known.
        {"problem_id": 0, "score": 0.5, "steps": ["so"], "mean_logprob": None},
        {"problem_id": 1, "score": 0.5, "finish_reason": "eos", "steps": [1e300]}
        | {"verifier_tokens": 7},
        {"problem_id": 1, "score": 0.5, "steps": [0.5], "signals": {"judge": 3, "min_step": None}},
    )
    steps = tmp_path / "steps.jsonl"
    lines(steps, {"problem_id": 0, "score": [0.5, 0.0]}, {"problem_id": 0, "score": [1, 0.25]})
    sal = {"answer": "1", "completions": ["1", "2"], "scores": [[0.5, 1], []]}
    official = {"completions": [["1", "2"]], "completion_tokens": [[3, 4]], "scores": [[0.5, 0.75]]}
    batch = {"message": {"content": "4"}, "finish_reason": "length"}
    batch["logprobs"] = {"content": [{"logprob": -1}, {"logprob": -2}]}
    body = {"choices": [batch, {"message": {"content": "5"}, "finish_reason": "stop"}]}
    found = {
        path: {
            "mean_step": [[0.375, 1, unknown], [unknown] * 3],
            "min_step": [[0.25, 1, unknown], [unknown] * 3],
            "last_step": [[0.25, 1, unknown], [unknown] * 3],
            "mean_logprob": [[-2, unknown, unknown], [unknown] * 3],
            "finished": [[unknown, 0, unknown], [1, unknown, unknown]],
            "judge": [[unknown] * 3, [unknown, 3, unknown]],
            "verifier_tokens": [[unknown] * 3, [7, unknown, unknown]],
        },
        steps: {
            "mean_step": [[0.25, 0.625]],
            "min_step": [[0, 0.25]],
            "last_step": [[0, 0.25]],
        },
        lines(
            tmp_path / "optscale.json",
            {"score": official | {"last_scores": [[1.0, 0.25]]}},
            # Of a list that is not taken for the score, what is none says nothing.
            {"score": official | {"last_scores": [["?", 0.25]]}},
        ): {
            "mean_step": [[0.5, 0.75], [0.5, 0.75]],
            "last_step": [[1, 0.25], [unknown, unknown]],
        },
        lines(tmp_path / "sal.jsonl", sal | {"completion_tokens": [3, 4]}): {
            "mean_step": [[0.75, unknown]],
            "min_step": [[0.5, unknown]],
            "last_step": [[1, unknown]],
        },
        lines(
            tmp_path / "nemo.jsonl",
            {"problem": "?", "expected_answer": "1", "generation": "1"}
            | {"reward_model_score": [0.5, 0.25]},
        ): {"mean_step": [[0.375]], "min_step": [[0.25]], "last_step": [[0.25]]},
        lines(
            tmp_path / "r1.jsonl",
            {"problem": "?", "answer": "1", "generations": ["1", "2"]}
            | {"is_reasoning_complete": [True, False]},
        ): {"finished": [[1, 0]]},
        lines(
            tmp_path / "batch.jsonl",
            {"custom_id": "a", "response": {"status_code": 200, "body": body}},
        ): {"mean_logprob": [[-1.5, unknown]], "finished": [[0, 1]]},
    }
    for file, wanted in found.items():
        options = {"aggregation": "min"} if file.stem in ("steps", "nemo") else {}
        signals = read_pool(file, **options).signals
        assert set(signals) == set(wanted), file
        for name, values in wanted.items():
            np.testing.assert_array_equal(signals[name], np.float32(values), err_msg=name)


@pytest.mark.parametrize(
    ("field", "says"),
    [
        (
            {"signals": {"judge": "high"}},
            "signals.judge is the string 'high'; a signal is a finite",
        ),
        ({"signals": {"judge": 1e39}}, r"signals.judge is 1e\+39; a signal is a finite number"),
        ({"signals": [1]}, "signals is a list; it must be an object"),
        ({"mean_logprob": 0.1}, "mean_logprob is 0.1; a log-probability is at most 0"),
    ],
)
def test_a_bad_signal_is_one_line_with_its_place(field, says, tmp_path):
    path = lines(
        tmp_path / "a.jsonl", {"problem_id": 0, "score": 1}, {"problem_id": 0, "score": 1} | field
    )
    with pytest.raises(RecordError, match=rf"a.jsonl: line 2: {says}") as caught:
        read_pool(path)
    assert "\n" not in str(caught.value)


def test_what_is_not_known_is_left_out():
    assert derived_signals() == {}
    assert derived_signals(steps=[1e39, 1.0], mean_logprob=-math.inf, finished=False) == {
        "finished": 0
    }
    assert derived_signals(steps=(0.25,)) == dict.fromkeys(
        ("mean_step", "min_step", "last_step"), 0.25
    )
    given = ((-3.0, 2), (1e-9, 1), (None, 2), (0.0, 0), (-math.inf, 1))
    assert [mean_logprob(*each) for each in given] == [-1.5, 0, None, None, None]
