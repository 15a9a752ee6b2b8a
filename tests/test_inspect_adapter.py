"""inspect_ai's evaluations run as many epochs as a replay of the same scores draws completions."""

import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from optscale_jax import InputError, policies, replay, synthetic_pool
from optscale_jax.live.inspect_ai import EarlyStopping

needs_inspect_ai = pytest.mark.inspect_ai
# The warnings of inspect_ai and of what it uses are theirs.
pytestmark = pytest.mark.filterwarnings("ignore")
POOL = synthetic_pool(jax.random.key(3), num_problems=6, num_samples=12)
assert (POOL.answers == -1).any()
RULES = {
    "first_hit": policies.first_hit(0.8, 12),
    "optscale": policies.optscale(0.8, 0.9, 12),
    "adaptive_self_consistency": policies.adaptive_self_consistency(0.9, 12),
}


def evaluated(stopping, tmp_path, *, pool=POOL, epochs=12, broken=(), models=("a",), **options):
    """The logs of an evaluation, one a model, whose scorer says what the pool has."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput, ModelUsage, get_model
    from inspect_ai.scorer import Score, mean, scorer, std
    from inspect_ai.solver import solver

    @solver
    def fragile():
        async def solve(state, generate):
            if (state.sample_id, state.epoch) in broken:
                raise RuntimeError("a fault of this epoch's own")
            return await generate(state)

        return solve

    @scorer(metrics=[mean(), std()], name="verifier")
    def verifier():
        async def score(state, target):
            place = pool.problem_ids.tolist().index(state.sample_id), state.epoch - 1
            value, answer = pool.scores[place].item(), None
            if pool.answers is not None:
                answer = "" if pool.answers[place] == -1 else str(pool.answers[place])
            return Score(value=value, answer=answer)

        return score

    def reply(*_):
        # The mock would fetch a tokenizer to count tokens.
        usage = ModelUsage(input_tokens=5, output_tokens=4, total_tokens=9)
        return ModelOutput.from_content("mockllm", "as the pool says").model_copy(
            update={"usage": usage}
        )

    task = Task(
        dataset=[Sample(id=name, input="?", target="!") for name in pool.problem_ids.tolist()],
        solver=fragile(),
        scorer=verifier(),
        early_stopping=stopping,
        epochs=epochs,
    )
    return eval(
        task,
        model=[get_model(f"mockllm/{name}", custom_outputs=reply) for name in models],
        log_dir=str(tmp_path),
        display="none",
        **{"max_samples": 1} | options,
    )


def epochs_run(log):
    names = [sample.id for sample in log.samples]
    return [names.count(name) for name in POOL.problem_ids.tolist()]


def decided(log):
    found = log.results.early_stopping.metadata["samples"]
    return [found[name] for name in POOL.problem_ids.tolist()]


@needs_inspect_ai
@pytest.mark.parametrize("name", RULES)
def test_epochs_run_are_those_that_a_replay_draws(name, tmp_path):
    (log,) = evaluated(EarlyStopping(RULES[name]), tmp_path)
    assert log.status == "success", log.error
    expected = replay(POOL, RULES[name])
    drawn = expected.num_samples[0].tolist()
    assert min(drawn) < 12
    assert epochs_run(log) == drawn
    assert [each["epochs"] for each in decided(log)] == drawn
    assert [each["selected_epoch"] for each in decided(log)] == (
        expected.selected_index[0] + 1
    ).tolist()
    assert [each["reason"] for each in decided(log)] == [
        policies.StopReason(int(reason)).name.lower() for reason in expected.stop_reason[0]
    ]
    stops = log.results.early_stopping.early_stops
    assert len(stops) == 12 * len(drawn) - sum(drawn)


@needs_inspect_ai
def test_epochs_at_once_and_models_at_once_change_no_decision(tmp_path):
    stopping = EarlyStopping(RULES["first_hit"], scorer="verifier")
    logs = evaluated(stopping, tmp_path, models=("a", "b"), max_samples=8, max_tasks=2)
    drawn = replay(POOL, RULES["first_hit"]).num_samples[0]
    assert len(logs) == 2
    for log in logs:
        assert log.status == "success", log.error
        assert [each["epochs"] for each in decided(log)] == drawn.tolist()
        assert (np.array(epochs_run(log)) >= drawn).all()


@needs_inspect_ai
def test_fewer_epochs_than_the_policy_may_draw_are_its_cap(tmp_path):
    (log,) = evaluated(EarlyStopping(RULES["optscale"]), tmp_path, epochs=4)
    expected = replay(POOL, policies.capped(RULES["optscale"], 4))
    assert epochs_run(log) == expected.num_samples[0].tolist()


@needs_inspect_ai
def test_an_epoch_that_ends_in_an_error_is_waited_for_without_blocking(tmp_path):
    drawn = replay(POOL, RULES["first_hit"]).num_samples[0].tolist()
    first, spared = POOL.problem_ids.tolist()[0], {"fail_on_error": False}
    (log,) = evaluated(EarlyStopping(RULES["first_hit"]), tmp_path, broken={(first, 1)}, **spared)
    assert log.status == "success", log.error
    assert epochs_run(log) == [12, *drawn[1:]]
    assert decided(log)[0] == {
        "epochs": 0,
        "selected_epoch": None,
        "reason": "running",
        "required": -1,
    }


@needs_inspect_ai
def test_an_epoch_without_a_score_is_passed_over(tmp_path):
    scores = np.array(POOL.scores)
    scores[:, 0] = np.nan
    pool = SimpleNamespace(problem_ids=POOL.problem_ids, answers=POOL.answers, scores=scores)
    (log,) = evaluated(EarlyStopping(RULES["first_hit"]), tmp_path, pool=pool)
    for found, rest in zip(decided(log), scores[:, 1:], strict=True):
        hits = np.flatnonzero(rest >= 0.8)
        assert found["epochs"] == (hits[0] + 1 if len(hits) else 11)
        assert found["selected_epoch"] == found["epochs"] + 1 or not len(hits)


@needs_inspect_ai
def test_grades_are_scores_and_an_answer_that_is_not_said_may_be_returned(tmp_path):
    right = np.asarray(POOL.scores) >= 0.8
    pool = SimpleNamespace(
        problem_ids=POOL.problem_ids, answers=None, scores=np.where(right, "C", "I")
    )
    (log,) = evaluated(EarlyStopping(policies.first_hit(1.0, 12)), tmp_path, pool=pool)
    assert epochs_run(log) == np.where(right.any(1), right.argmax(1) + 1, 12).tolist()


@needs_inspect_ai
def test_tokens_are_those_of_an_epochs_usage(tmp_path):
    class Budget(policies.Policy):
        rule_uses_tokens = True

        def rule(self, state):
            return policies.until(state.tokens > 18)  # an epoch takes 9

    (log,) = evaluated(EarlyStopping(Budget(max_samples=12)), tmp_path)
    assert epochs_run(log) == [3] * 6


@needs_inspect_ai
def test_a_score_that_is_none_ends_the_evaluation_with_its_place(tmp_path):
    shifted = SimpleNamespace(
        problem_ids=POOL.problem_ids, answers=POOL.answers, scores=np.array(POOL.scores) + 1
    )
    (log,) = evaluated(EarlyStopping(RULES["first_hit"]), tmp_path, pool=shifted)
    assert log.status == "error"
    assert "epoch 1: scorer 'verifier' gave 1." in log.error.message
    (log,) = evaluated(EarlyStopping(RULES["first_hit"], scorer="prm"), tmp_path)
    assert "name its scorer, 'prm' is none of ['verifier']" in log.error.message


@pytest.mark.parametrize(
    "policy",
    [policies.mr_thinking(4), policies.difficulty_adaptive_self_consistency(0.9, 12)],
    ids=["sequential", "coupled"],
)
def test_policies_that_cannot_decide_on_epochs_are_refused(policy):
    with pytest.raises(InputError, match="independent draws"):
        EarlyStopping(policy)


def test_without_inspect_ai_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai.util", None)
    with pytest.raises(
        InputError, match=r"^inspect_ai cannot.*pip install 'optscale-jax\[inspect\]'$"
    ):
        EarlyStopping(RULES["first_hit"])
