"""Policies as a configuration names them: shipped ones, one's own, and grids of them."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates.jax import distributions as tfd

from optscale_jax import (
    NormalInverseGamma,
    Prior,
    laws,
    policies,
    replay,
    required_samples,
    synthetic_pool,
)
from optscale_jax.errors import InputError
from optscale_jax.study.registry import (
    PolicyConfig,
    PriorConfig,
    describe,
    expand,
    policy_config,
)

KEY = jax.random.key(0)
PATIENCE = '''"""A rule of one's own."""

from optscale_jax import policies


class Patience(policies.Policy):
    """Stops once the best score has not risen for some completions.

    Attributes:
        patience: Completions to wait for a rise, at least 1.
    """

    patience: int

    def rule(self, state):
        waited = state.count - 1 - state.best.index
        return policies.until((state.count > 0) & (waited >= self.patience))


def worst(max_samples: int):
    return max_samples
'''


@pytest.fixture(scope="module")
def pool():
    return synthetic_pool(jax.random.key(3), num_problems=40, num_samples=16)


@pytest.fixture
def rules(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(PATIENCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The configuration's class ------------------------------------------------------------------------


def test_every_argument_of_every_policy_has_a_documented_field():
    documented = {line.strip().split(":")[0] for line in PolicyConfig.__doc__.splitlines()}
    for name, factory in policies.RULES.items():
        for argument in inspect.signature(factory).parameters:
            assert argument in documented, f"{name} takes {argument}"


def test_words_and_numbers_are_what_the_factories_say():
    kinds = {field.name: field.type for field in dataclasses.fields(PolicyConfig)}
    assert kinds["s_min"] == float | list[float] | None
    assert kinds["max_samples"] == int | list[int] | None
    assert kinds["stop_at_s_min"] == bool | list[bool] | None
    assert "every_sample" in str(kinds["decide"])
    assert "first_tokens" in str(kinds["difficulty"])
    assert "float" not in str(kinds["difficulty"])
    assert kinds["prior"] is PriorConfig


# Grids --------------------------------------------------------------------------------------------


def test_a_grid_is_the_product_with_its_caps_outermost():
    config = PolicyConfig(
        "optscale", s_min=[0.8, 0.9], alpha=[0.9, 0.95], max_samples=[8, 16], decide="once"
    )
    (entry,) = expand(config, "policy")
    assert entry.varying == ["s_min", "alpha", "max_samples"]
    found = [(s["max_samples"], s["s_min"], s["alpha"]) for s in entry.settings]
    assert found == [(c, s, a) for c in (8, 16) for s in (0.8, 0.9) for a in (0.9, 0.95)]
    # The rule's own default, which goes by the cap.
    assert [setting["min_samples"] for setting in entry.settings] == [3] * 4 + [5] * 4
    assert describe(entry.settings[0], "optscale") == (
        "s_min=0.8 alpha=0.9 max_samples=8 min_samples=3 decide=once"
    )
    assert [policy.max_samples for policy in entry.policies] == [8] * 4 + [16] * 4


def test_settings_of_one_structure_are_one_stack_whatever_their_caps():
    config = PolicyConfig("optscale", s_min=[0.85, 0.95], alpha=0.9, max_samples=[4, 8])
    (entry,) = expand(config, "policy")
    ((indices, stacked),) = entry.stacks()
    assert indices == [0, 1, 2, 3]
    # Of which tests/test_replay.py shows that each draws as if made alone.
    np.testing.assert_allclose(stacked.s_min, [0.85, 0.95] * 2)
    np.testing.assert_array_equal(stacked.max_samples, [4, 4, 8, 8])


def test_settings_that_differ_in_a_choice_are_stacks_apart():
    config = PolicyConfig(
        "difficulty_adaptive_self_consistency",
        threshold=0.9,
        max_samples=[4, 8],
        judge_window=[1, 3],
        window=3,
    )
    (entry,) = expand(config, "policy")
    found = [{entry.settings[i]["judge_window"] for i in indices} for indices, _ in entry.stacks()]
    assert sorted(map(sorted, found)) == [[1], [3]]
    assert sorted(i for indices, _ in entry.stacks() for i in indices) == [0, 1, 2, 3]


def test_lists_of_words_are_entries_of_their_own():
    config = PolicyConfig(
        "optscale", s_min=0.9, alpha=[0.9, 0.95], max_samples=8, decide=["every_sample", "once"]
    )
    entries = expand(config, "policy")
    assert [entry.label for entry in entries] == ["optscale, every_sample", "optscale, once"]
    assert [len(entry.settings) for entry in entries] == [2, 2]
    assert [entry.varying for entry in entries] == [["alpha"], ["alpha"]]


# One's own ----------------------------------------------------------------------------------------


def test_a_rule_of_ones_own_is_named_by_its_file(rules, pool):
    name = "./my_rules.py:Patience"
    made = policy_config([name])
    assert "Completions to wait for a rise" in made.__doc__
    (entry,) = expand(made(name, patience=[2, 4], max_samples=[8, 16]), "policy")
    assert describe(entry.settings[0], name) == "max_samples=8 patience=2"
    assert entry.settings[0]["selection"] == "best_score"
    ((indices, stacked),) = entry.stacks()
    result = replay(pool, stacked, key=KEY, num_permutations=2)
    for index in indices:
        alone = replay(pool, entry.policies[index], key=KEY, num_permutations=2)
        np.testing.assert_array_equal(result.num_samples[index], alone.num_samples)
    # In plain Python: how long the record of each prefix has stood.
    stored = replay(pool, entry.policies[-1])
    for p, row in enumerate(pool.scores):
        records = [
            int(np.argmax(np.where(pool.eligible[p, :n], row[:n], -1))) for n in range(1, 17)
        ]
        stop = next((n for n in range(1, 17) if n - 1 - records[n - 1] >= 4), 16)
        assert stored.num_samples[0, p] == stop


OPTSCALE = {"name": "optscale", "s_min": 0.9, "alpha": 0.9, "max_samples": 8}
HIT = {"name": "first_hit", "s_min": 0.9, "max_samples": 8}
GAIN = {"name": "hit_or_gain", "s_hi": 0.9, "gain": 0.01, "max_samples": 8}
GAMMA = {"loc": 0.6, "strength": 1.0, "shape": 2.0, "rate": 0.02}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"name": "./my_rules.py:Patiense"}, ["policy.name", "did you mean Patience?"]),
        ({"name": "./no_rules.py:Patience"}, ["policy.name", "no file"]),
        ({"name": "no_such_module:rule"}, ["policy.name", "no module no_such_module"]),
        ({"name": "optscall"}, ["policy.name", "did you mean optscale?"]),
        ({"name": "./my_rules.py:worst", "max_samples": 8}, ["worst gives 8", "policies.Policy"]),
        ({"name": "./my_rules.py:Patience"}, ["policy.max_samples", "needs it"]),
        (OPTSCALE | {"law": "gamma"}, ["law 'gamma': no such law", "truncated_normal"]),
        (HIT | {"selection": "majorty"}, ["selection 'majorty'", "did you mean majority?"]),
        (HIT | {"s_min": []}, ["policy.s_min: an empty list"]),
        (HIT | {"s_min": [0.9, 0.9]}, ["given twice"]),
        (HIT | {"alpha": 0.5}, ["policy.alpha: first_hit does not take it"]),
        (GAIN | {"prior": PriorConfig(0.8, 0.1)}, ["prior.scale", "loc, strength, shape, rate"]),
        (
            GAIN | {"prior": PriorConfig(0.8, strength=1.0)},
            ["give all of loc, strength, shape, rate"],
        ),
        (
            GAIN | {"prior": PriorConfig(**GAMMA | {"shape": 0.5})},
            ["shape must be above 0.5, found 0.5"],
        ),
        (
            OPTSCALE | {"prior": PriorConfig(0.8, 0.1, rate=1.0)},
            ["prior.rate", "loc, scale, loc_sd"],
        ),
        (OPTSCALE | {"prior": PriorConfig(0.8)}, ["give all of loc, scale, or none"]),
    ],
)
def test_what_cannot_be_a_policy_is_one_clear_line(rules, config, says):
    own = [config["name"]] if config["name"] == "./my_rules.py:Patience" else []
    with pytest.raises(InputError) as caught:
        expand(policy_config(own)(**config), "policy")
    message = str(caught.value)
    assert "\n" not in message
    for words in says:
        assert words in message


def test_a_rule_of_ones_own_decides_alike_in_every_command(rules, pool):
    """Replayed, reported on and run live from YAML, with overrides."""
    from eval import check_decisions, report, solve
    from eval import replay as replay_command

    pool.save(rules / "pool.npz")
    rule = {"name": "./my_rules.py:Patience", "label": "patience", "patience": 3, "max_samples": 16}
    best = {"name": "best_of_n", "n": 16, "label": "best-of-N"}
    config = {"policy": rule, "compare": [best], "baseline": "best-of-N", "resamples": 50}
    (rules / "mine.yaml").write_text(json.dumps(config))
    arguments = ["--config", "mine.yaml", "--pool", "pool.npz", "--permutations", "0"]
    assert replay_command.main([*arguments, "--out", "replayed", "--policy.patience", "2"]) == 0
    header, *rows = (rules / "replayed" / "per_problem.csv").read_text().splitlines()
    counts = [int(row.split(",")[header.split(",").index("n_samples")]) for row in rows[:40]]
    alone = expand(policy_config([rule["name"]])(**rule | {"patience": 2}), "policy")[0]
    assert counts == replay(pool, alone.policies[0]).num_samples[0].tolist()

    given = ["--comparison", "mine.yaml", "--pools", "pool.npz", "--resamples", "50"]
    assert report.main([*given, "--permutations", "2", "--laws", "[]", "--out", "reported"]) == 0
    assert "patience" in (rules / "reported" / "table.csv").read_text()

    live = {"recorded": {"pool": "pool.npz"}, "policy": rule, "out": "live"}
    (rules / "live.yaml").write_text(json.dumps(live))
    assert solve.main(["--config", "live.yaml"]) == 0
    assert check_decisions.main(["live"]) == 0


def test_a_prior_in_numbers_is_that_of_the_rule():
    config = PolicyConfig(**GAIN | {"gain": [0.01, 0.1]}, prior=PriorConfig(**GAMMA))
    (entry,) = expand(config, "policy")
    prior = NormalInverseGamma(**GAMMA)
    assert entry.policies == [policies.hit_or_gain(0.9, g, 8, prior) for g in (0.01, 0.1)]
    assert describe(entry.settings[0], "hit_or_gain") == (
        "s_hi=0.9 gain=0.01 max_samples=8 prior.loc=0.6 prior.strength=1 prior.shape=2 "
        "prior.rate=0.02"
    )


# Laws ---------------------------------------------------------------------------------------------


class Mute(laws.Law):
    """A law whose distribution cannot say how probable a score below another is."""

    parameters = ("p",)

    def start(self, prior, dtype):
        return {"p": jnp.asarray(0.5, dtype)}

    def fit(self, memory, prior=None):
        return {"p": memory.mean}, None

    def distribution(self, params):
        return tfd.Dirichlet(jnp.stack([params["p"], params["p"]]))


@pytest.mark.parametrize(
    ("law", "says"),
    [
        (Mute(), "the distribution of Mute has no log_cdf, which the bound reads"),
        ("betta", "law 'betta': no such law.*did you mean beta"),
        ("optscale_jax.laws:START", "has no START"),
        ("math:pi", "is no optscale_jax.laws.Law"),
    ],
)
def test_what_cannot_be_a_law_is_one_clear_line(law, says):
    with pytest.raises(ValueError, match=says) as caught:
        policies.optscale(0.9, 0.9, 8, law=law)
    assert "\n" not in str(caught.value)


def test_a_prior_for_a_law_that_takes_none_is_refused():
    with pytest.raises(ValueError, match="takes no prior"):
        policies.optscale(0.9, 0.9, 8, law="beta", prior=Prior(0.5, 0.1, 0.1, 0.1))


@pytest.mark.parametrize("law", ["beta", "logit_normal", "truncated_normal_with_atoms"])
def test_optscale_with_another_law_is_the_bound_of_its_fit(pool, law):
    result = replay(pool, policies.optscale(0.8, 0.9, 16, 3, law=law))
    part = laws.LAWS[law]
    assert result.params.keys() == set(part.parameters)
    n = result.num_samples[0]
    params, _ = laws.fit_rows(part, pool.scores, np.arange(16) < n[:, None])
    # Fitted score by score there, from whole rows here: float32 both.
    for name, value in params.items():
        np.testing.assert_allclose(result.params[name][0], value, rtol=1e-3, atol=1e-6)
    needed = np.asarray(required_samples(part.distribution(params), 0.8, 0.9, 16))
    assert np.all((n == 16) | (n >= needed))
