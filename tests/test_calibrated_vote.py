"""The calibrated vote against its equations in plain Python, and what it is learnt from."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from optscale_jax import policies
from optscale_jax.calibration import SCORE, Calibration, Origin, Table, reliability
from optscale_jax.cli.console import main
from optscale_jax.errors import InputError
from optscale_jax.policies import Observation, StopReason
from optscale_jax.pool import Pool
from optscale_jax.replay import replay
from optscale_jax.study.learning import cross_fitted, learn_calibration
from optscale_jax.study.tuning import folds
from optscale_jax.tiny import pool_path

KNOTS = np.array([0.0, 0.2, 0.5, 0.9, 1.0])
# Flat from .5 to .9, where scores differ and what they are worth does not.
LOG_ODDS = np.array([-3.0, -2.0, 0.5, 0.5, 2.5])
CALIBRATION = Calibration(
    {SCORE: Table(KNOTS, LOG_ODDS)}, weights=(0.8, 0.6, 0.25, 0.1), tokens=20.0
)


def by_hand(scores, answers, tokens, budget, *, unit="completions", calibration=CALIBRATION):
    """(completions drawn, completion returned, P(right)) by the equations."""
    w1, w2, w3, none = calibration.weights
    (table,) = calibration.tables.values()
    g = np.interp(scores, *table)
    spent, drawn, p, lead = 0.0, 0, 0.0, None
    while drawn < len(scores) and not (drawn and spent >= budget * (1 - p)):
        counts = unit != "tokens" and (tokens[drawn] < 0 or not calibration.tokens)
        mean = 1.0 if unit == "tokens" else calibration.tokens
        spent += 1.0 if counts else tokens[drawn] / mean
        drawn += 1
        seen = [i for i in range(drawn) if answers[i] >= 0 and tokens[i] != 0]
        u = {}
        for answer in dict.fromkeys(answers[i] for i in seen):
            own = [g[i] for i in seen if answers[i] == answer]
            u[answer] = w1 * max(own) + (w2 + w3 * np.mean(own)) * math.log(len(own))
        if u:
            total = math.exp(none) + sum(map(math.exp, u.values()))
            lead = max(u, key=u.__getitem__)
            p = math.exp(u[lead]) / total
    own = [i for i in range(drawn) if answers[i] == lead and tokens[i] != 0]
    selected = -1 if lead is None else max(own, key=lambda i: scores[i])
    return drawn, selected, p


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(5)
    shape = 60, 24
    # A few answers a problem, the right one scored higher; some completions empty or answerless.
    right = rng.random((60, 1))
    answers = np.where(rng.random(shape) < right, 0, rng.integers(1, 5, shape))
    scores = np.clip(np.where(answers == 0, 0.7, 0.45) + 0.2 * rng.normal(size=shape), 0, 1)
    return Pool.from_arrays(
        scores=scores.astype(np.float32),
        answers=np.where(rng.random(shape) < 0.1, -1, answers),
        tokens=rng.integers(0, 40, shape),
        gold=np.zeros(60, int),
    )


@pytest.mark.parametrize(("unit", "mean"), [("completions", 20), ("completions", 0), ("tokens", 0)])
def test_replay_decides_as_the_equations_do(pool, unit, mean):
    scale = 20.0 if unit == "tokens" else 1.0
    budgets = [scale * b for b in (0.5, 3.0, 17.0, 200.0)]
    calibration = dataclasses.replace(CALIBRATION, tokens=float(mean))
    stacked = policies.stack(
        [policies.calibrated_vote(calibration, b, 24, unit=unit) for b in budgets]
    )
    result = replay(pool, stacked)
    stopped_early = 0
    for s, budget in enumerate(budgets):
        for i in range(pool.num_problems):
            drawn, selected, p = by_hand(
                pool.scores[i].astype(float),
                pool.answers[i],
                pool.tokens[i],
                budget,
                unit=unit,
                calibration=calibration,
            )
            assert result.num_samples[s, 0, i] == drawn
            assert result.selected_index[s, 0, i] == selected
            assert result.confidence[s, 0, i] == pytest.approx(p, abs=1e-5)
            stopped_early += 1 < drawn < 24
    assert stopped_early > 50


def test_the_plain_driver_decides_as_replay_does(pool):
    policy = policies.calibrated_vote(CALIBRATION, 5.0, 24)
    result = replay(pool, policy)
    for i in range(5):
        shown = zip(pool.scores[i], pool.answers[i], pool.tokens[i], range(24), strict=True)
        outcome = policies.run(policy, (Observation(*each) for each in shown))
        assert outcome.num_samples == result.num_samples[0, i]
        assert outcome.selected_index == result.selected_index[0, i]
        assert outcome.info.confidence == pytest.approx(result.confidence[0, i], abs=1e-6)
        reason = StopReason(int(outcome.info.stop_reason))
        assert reason == (
            StopReason.MAX_SAMPLES if outcome.num_samples == 24 else StopReason.DOUBT_SMALL
        )


def test_special_weights_are_best_of_n_and_the_majority(pool):
    for weights, other in (
        ((1.0, 0.0, 0.0, 0.0), policies.best_of_n(24)),
        ((0.0, 1.0, 0.0, 0.0), policies.self_consistency(24)),
    ):
        table = {SCORE: Table(np.array([0.0, 1.0]), np.array([-4.0, 4.0]))}
        policy = policies.calibrated_vote(Calibration(table, weights), 1e9, 24)
        a, b = replay(pool, policy), replay(pool, other)
        first = pool.answers[np.arange(60), a.selected_index[0]]
        second = pool.answers[np.arange(60), b.selected_index[0]]
        np.testing.assert_array_equal(first, second)


def test_each_problem_may_have_a_calibration_of_its_own(pool):
    fold = folds(pool.num_problems, 3, seed=1)
    evidence = cross_fitted(pool, fold)
    policy = policies.calibrated_vote(None, 6.0, 24)
    whole = replay(pool, policy, prior=evidence)
    for f in range(3):
        own = np.flatnonzero(fold == f)
        one = jax.tree.map(lambda v, own=own: v[own[0]], evidence)
        part = replay(pool.subset(own), policy, prior=one)
        np.testing.assert_array_equal(part.num_samples[0], whole.num_samples[0, own])
        # What is learnt does not read the labels of the problems that it is for.
        gold = np.where(fold == f, 3, 0)
        arrays = {"scores": pool.scores, "answers": pool.answers, "tokens": pool.tokens}
        again = cross_fitted(Pool.from_arrays(**arrays, gold=gold), fold)
        jax.tree.map(
            lambda a, b, own=own: np.testing.assert_array_equal(a[own], b[own]), evidence, again
        )


def test_a_calibration_finds_the_log_odds_that_scores_were_drawn_with():
    rng = np.random.default_rng(0)
    scores = rng.random((400, 20))
    truth = 6 * scores - 4
    correct = rng.random((400, 20)) < 1 / (1 + np.exp(-truth))
    pool = Pool.from_arrays(
        scores=scores, correct=correct, answers=np.where(correct, 0, rng.integers(1, 9, (400, 20)))
    )
    found = learn_calibration(pool)
    at = np.linspace(0.1, 0.9, 9)
    error = np.interp(at, *found.tables[SCORE]) - (6 * at - 4)
    # 8,000 draws in 24 bins of 333: a bin's log-odds have a standard error of 1 / sqrt(333 p q),
    # .18 at p = .1; the mean with the smoother half halves it. Four of them.
    assert np.abs(error).max() < 4 * 0.18 / 2
    assert found.reliability.error < 0.03
    assert found.num_problems == 400


def test_claims_hold_where_the_vote_stops_on_problems_left_out():
    pool = Pool.load(pool_path())
    policy = policies.stack([policies.calibrated_vote(None, b, 64) for b in (2.0, 8.0, 32.0)])
    evidence = cross_fitted(pool, folds(pool.num_problems, 5))
    result = replay(pool, policy, key=jax.random.key(0), num_permutations=5, prior=evidence)
    rng = np.random.default_rng(0)
    for claimed, correct in zip(result.confidence, result.correct, strict=True):
        # Were the claims perfect: one draw a problem, as its orders mostly end alike.
        perfect = [reliability(claimed, rng.random(400) < claimed).error for _ in range(200)]
        assert reliability(claimed, correct).error < np.quantile(perfect, 0.95)


def test_a_file_says_what_was_learnt(pool, tmp_path):
    pool = pool.with_origin(Origin("mine", "min", "small"))
    found = learn_calibration(pool)
    found.save(tmp_path / "one.json")
    again = Calibration.load(tmp_path / "one.json")
    assert again.origin == found.origin
    assert again.weights == found.weights
    np.testing.assert_array_equal(again.tables[SCORE], found.tables[SCORE])
    np.testing.assert_array_equal(again.reliability.claimed, found.reliability.claimed)
    jax.tree.map(np.testing.assert_array_equal, again.evidence, found.evidence)
    from_file = policies.calibrated_vote(str(tmp_path / "one.json"), 4.0, 24)
    np.testing.assert_array_equal(
        replay(pool, from_file).tokens,
        replay(pool, policies.calibrated_vote(found, 4.0, 24)).tokens,
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"version": 1', '"version": 2', "version is 2, and this reads 1"),
        ('"format": "calibration"', '"format": "x"', "is no calibration"),
        ('"best": 0.8', '"best": "a"', "best must be finite numbers"),
        ('"tokens_per_completion": 20.0', '"tokens_per_completion": -1', "it must be at least 0"),
        ('"labels": "pool"', '"labels": "all"', "labels is 'all'"),
        ("0.2,", "0.9,", "tables.score.knots do not rise"),
        ('"score"', '"scores"', "lacks 'score'"),
        ("{", "[", "is no JSON"),
    ],
)
def test_a_damaged_file_is_refused_by_the_field(tmp_path, old, new, says):
    path = tmp_path / "one.json"
    CALIBRATION.save(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=says) as error:
        Calibration.load(path)
    assert str(path) in str(error.value)


def test_another_verifier_is_refused_and_another_generator_a_warning(pool, tmp_path):
    learn_calibration(pool.with_origin(Origin("prm", "min", "small"))).save(tmp_path / "prm.json")
    policy = policies.calibrated_vote(str(tmp_path / "prm.json"), 4.0, 8)

    def on(*origin, policy=policy):
        return replay(pool.with_origin(Origin(*origin)), policy)

    on("prm", "min", "small")
    with pytest.raises(InputError, match="learnt for verifier prm, and these scores' is judge"):
        on("judge", "min", "small")
    with pytest.raises(InputError, match="learnt for aggregate min, and these scores' is not kn"):
        on("prm", None, "small")
    forced = policies.calibrated_vote(str(tmp_path / "prm.json"), 4.0, 8, force=True)
    with pytest.warns(UserWarning, match="used all the same"):
        on("judge", "min", "small", policy=forced)
    with pytest.warns(UserWarning, match="generator small, and these' is large"):
        on("prm", "min", "large")
    with pytest.raises(InputError, match="nothing is known"):
        Calibration.default()


def test_pools_that_teach_nothing_are_refused(pool):
    scores, answers = pool.scores, pool.answers
    gold = np.zeros(60, int)
    for arrays, says in (
        ({"answers": answers, "gold": gold}, "no scores"),
        ({"scores": scores, "correct": answers == 0}, "no answers"),
        ({"scores": scores, "answers": answers}, "does not say which completions are right"),
        ({"scores": np.full_like(scores, 0.5), "answers": answers, "gold": gold}, "all scores are"),
        ({"scores": scores, "answers": answers, "gold": gold + 9}, "every completion is wrong"),
        (
            {"scores": scores[:3], "answers": answers[:3], "gold": gold[:3]},
            "3 problems, fewer than the 5 folds",
        ),
    ):
        with pytest.raises(InputError, match=says):
            learn_calibration(Pool.from_arrays(**arrays))
    unlabelled = learn_calibration(Pool.from_arrays(scores=scores, answers=answers), labels="none")
    assert unlabelled.labels == "none"
    for budget in (0, -1.0, math.inf):
        with pytest.raises(ValueError, match="budget must be above 0"):
            policies.calibrated_vote(CALIBRATION, budget, 8)
    with pytest.raises(InputError, match="needs a calibration"):
        replay(pool, policies.calibrated_vote(None, 4.0, 8))
    with pytest.raises(InputError, match="lacks the length of some"):
        replay(
            Pool.from_arrays(scores=scores, answers=answers),
            policies.calibrated_vote(CALIBRATION, 4.0, 8, unit="tokens"),
        )


def test_a_second_signal_is_kept_where_it_pays_and_read_alike_everywhere(pool):
    rng = np.random.default_rng(2)
    told = np.where(pool.correct, 5.0, 0.0) + 4 * rng.normal(size=pool.mask.shape)
    arrays = {
        "scores": pool.scores,
        "answers": pool.answers,
        "tokens": pool.tokens,
        "gold": pool.gold,
    }
    signals = {
        "telling": np.where(rng.random(pool.mask.shape) < 0.2, np.nan, told),
        "falling": -told,
    }
    both = Pool.from_arrays(**arrays, signals=signals)
    for names in (["telling"], ["falling"]):
        found = learn_calibration(both, signals=names)
        assert found.signals == tuple(names)
        assert found.reliability.error < 0.1
        slope = np.diff(found.tables[names[0]].log_odds)
        assert (slope >= 0).all() if names == ["telling"] else (slope <= 0).all()
    # What the verifier cost says nothing of quality, however telling it is.
    signals = {"noise": rng.normal(size=pool.mask.shape), "verifier_tokens": pool.correct}
    noise = Pool.from_arrays(**arrays, signals=signals)
    assert learn_calibration(noise).signals == ()

    found = learn_calibration(both, signals=["telling"])
    policy = policies.calibrated_vote(found, 5.0, 24)
    result = replay(both, policy)
    for i in range(5):
        g = sum(
            np.nan_to_num(np.interp(values, *found.tables[name]))
            for name, values in (("score", both.scores[i]), ("telling", both.signals["telling"][i]))
        )
        same = Calibration(
            {SCORE: Table(np.array([-50.0, 50.0]), np.array([-50.0, 50.0]))},
            found.weights,
            found.tokens,
        )
        drawn, _, p = by_hand(g, pool.answers[i], pool.tokens[i], 5.0, calibration=same)
        assert result.num_samples[0, i] == drawn
        assert result.confidence[0, i] == pytest.approx(p, abs=1e-4)


def test_the_pages_example_runs(capsys):
    page = (Path(__file__).resolve().parents[1] / "docs" / "calibrated_vote.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(compile(code, "calibrated_vote.md", "exec"), {})
    correct, tokens, claimed = map(float, capsys.readouterr().out.split())
    # 200 problems, so a standard error of .033 and of .02 for the claim.
    assert 0.6 < correct < 0.85
    assert abs(claimed - correct) < 0.08
    assert 300 < tokens < 1500


def test_the_command_learns_writes_and_warns(tmp_path, capsys):
    out = tmp_path / "found.json"
    few = Pool.load(pool_path()).subset(slice(12))
    few.save(tmp_path / "few.npz")
    assert main(["train", "calibration", f"--pool={tmp_path / 'few.npz'}", f"--out={out}"]) == 0
    said = capsys.readouterr()
    assert "12 problems, from the score of package:optscale_jax/tiny/verifier" in said.out
    assert "fewer than 20" in said.err
    assert Calibration.load(out).origin == few.origin

    arguments = [f"--pool={tmp_path / 'few.npz'}", f"--out={out}", "--labels=none"]
    assert main(["train-calibration", *arguments]) == 0
    said = capsys.readouterr()
    assert "P(the leader stays)" in said.out
    assert "learnt without labels" in said.err

    used = ["--policy.name=calibrated_vote", f"--policy.calibration={out}", "--permutations=1"]
    replayed = ["replay", *used, "--policy.max_samples=8", f"--out={tmp_path / 'run'}"]
    other = tmp_path / "other.npz"
    few.with_origin(Origin(verifier="mine")).save(other)
    assert main([*replayed, f"--pool={other}"]) == 2
    assert "learnt for verifier package:optscale_jax/tiny/verifier, and these scores' is mine" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
    assert main([*replayed, f"--pool={other}", "--policy.force=true"]) == 0
    assert "used all the same" in capsys.readouterr().err
    assert main(["train", "calibration", f"--out={out}"]) == 2
    assert "pool is not given" in capsys.readouterr().err
