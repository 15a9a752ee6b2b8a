"""Labels, cache, features, head and losses of the predictor, on small random models."""

import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from optscale_jax import Prior, ScoreStats, TruncatedNormal, synthetic_pool
from optscale_jax.empirical_bayes import log_marginal, posterior_nodes
from optscale_jax.errors import InputError
from optscale_jax.predictor.cache import FeatureCache, Item, text_key
from optscale_jax.predictor.features import FeatureConfig, extract, make_recipe
from optscale_jax.predictor.head import Head, loc_of_mean, to_prior, with_widths
from optscale_jax.predictor.labels import labels_of_pool, lines, read_labels
from optscale_jax.predictor.losses import (
    LossConfig,
    Spread,
    Targets,
    likelihood,
    marginal,
    squared_error,
    weighted,
)
from tests.checkpoints import save_model

REFERENCE = Prior(1.5, 0.2, 0.6, 0.08)
TEXTS = ["2 + 2 = ?", "What is the area of a circle of radius 3?", "Hm.", "Add 17 and 25." * 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# Labels -------------------------------------------------------------------------------------------


def test_labels_of_a_pool_come_back_from_their_file(tmp_path):
    pool = synthetic_pool(jax.random.key(0), num_problems=5, num_samples=16)
    labels = labels_of_pool(pool, "pool")
    assert pool.scores is not None
    np.testing.assert_allclose(labels.stats.mean, pool.scores.mean(1), rtol=1e-6)
    np.testing.assert_allclose(labels.sd, pool.scores.std(1), rtol=1e-5)
    labels = labels.with_texts({name: f"text of {name}" for name in labels.problem_ids}, "texts")
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(lines(labels)))
    again = read_labels(path)
    assert (again.problem_ids, again.texts) == (labels.problem_ids, labels.texts)
    for name in ("n", "mean", "m2"):
        np.testing.assert_array_equal(getattr(again.stats, name), getattr(labels.stats, name))


def test_labels_with_mean_and_sd_need_a_count(tmp_path):
    path = write(tmp_path / "l.jsonl", {"id": 3, "score_mean": 0.9, "score_std": 0.1})
    labels = read_labels(path, num_samples=64)
    np.testing.assert_allclose(labels.stats.m2, 64 * 0.1**2)
    with pytest.raises(InputError, match=r"line 1: no field 'n'.*--num_samples"):
        read_labels(path)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"problem_id": "a", "problem": "text"}, "no scores"),
        (
            {"problem": "text", "n": 4, "mean": 0.5, "m2": 0.1},
            "no id; give it in unique_id or problem_id or id",
        ),
        ({"id": "a", "n": 4, "mean": math.nan, "m2": 0.1}, "mean is nan; it must be a finite"),
        ({"id": "a", "n": 4, "mean": 1.2, "m2": 0.1}, "mean is 1.2; scores are in"),
        ({"id": "a", "n": 4, "mean": 0.5, "m2": -1}, "m2 is -1; it must be at least 0"),
        ({"id": "a", "n": 4, "mean": 0.99, "m2": 1.0}, "spread less"),
        ({"id": "a", "n": 0, "mean": 0.5, "m2": 0.1}, "n is 0; it must be a whole number"),
        ({"id": "a", "n": 4, "mean": 0.5, "m2": 0.1, "problem": " "}, "problem is no text"),
    ],
)
def test_labels_say_what_is_wrong(tmp_path, record, says):
    with pytest.raises(InputError, match=says):
        read_labels(write(tmp_path / "l.jsonl", record))


@pytest.mark.parametrize(("n", "m2", "what"), [(1, 0.0, "n = 1"), (5, 0.0, "sd = 0, 5 equal")])
def test_labels_without_spread_are_refused_or_left_out(tmp_path, n, m2, what):
    good = {"id": "good", "n": 4, "mean": 0.5, "m2": 0.1}
    labels = read_labels(
        write(tmp_path / "l.jsonl", good, {"id": "flat", "n": n, "mean": 0.5, "m2": m2})
    )
    with pytest.raises(InputError, match=f"problem 'flat': {what}"):
        labels.with_spread(leave_out=False)
    assert labels.with_spread(leave_out=True).problem_ids == ("good",)
    with pytest.raises(InputError, match="no problem whose scores spread is left"):
        labels.take([1]).with_spread(leave_out=True)


def test_equal_scores_are_kept_with_a_least_spread(tmp_path):
    records = [("flat", 5, 0.0), ("narrow", 4, 4 * 0.01**2), ("wide", 4, 4 * 0.1**2), ("one", 1, 0)]
    path = write(
        tmp_path / "l.jsonl", *({"id": i, "n": n, "mean": 0.5, "m2": m2} for i, n, m2 in records)
    )
    labels = read_labels(path)
    with pytest.raises(InputError, match=r"'flat': sd = 0, 5 equal.*--min_sd 0.02"):
        labels.with_spread(leave_out=False)
    kept = labels.with_spread(leave_out=True, min_sd=0.02)
    assert kept.problem_ids == ("flat", "narrow", "wide")
    np.testing.assert_allclose(kept.sd, [0.02, 0.02, 0.1])
    # One score has no spread, whatever is taken for the least.
    with pytest.raises(InputError, match=r"'one': n = 1.*; leave them out"):
        labels.with_spread(leave_out=False, min_sd=0.02)


def test_a_missing_text_is_named(tmp_path):
    path = write(tmp_path / "l.jsonl", *({"id": i, "n": 4, "mean": 0.5, "m2": 0.1} for i in "abc"))
    with pytest.raises(InputError, match=r"no text for problem 'b'.* and 1 more"):
        read_labels(path).with_texts({"a": "text"}, "problems.jsonl")


# Cache --------------------------------------------------------------------------------------------

RECIPE = {"model": "some/model", "layers": [1]}


def filled(root, dtype="float32") -> tuple[FeatureCache, list[str], list[Item]]:
    keys = [text_key(text) for text in TEXTS]
    rng = np.random.default_rng(0)
    items = [Item(rng.normal(size=(n, 3)).astype(dtype), n) for n in (1, 4, 2, 3)]
    cache = FeatureCache(root, RECIPE)
    cache.add(keys[:2], items[:2])
    cache.add(keys[2:], items[2:])
    return cache, keys, items


def test_cache_gives_back_what_it_was_given(tmp_path):
    _, keys, items = filled(tmp_path)
    again = FeatureCache(tmp_path, RECIPE)
    for key, item in zip(keys, items, strict=True):
        np.testing.assert_array_equal(again[key].rows, item.rows)
        assert again[key].tokens == item.tokens
    assert text_key("another") not in again


@pytest.mark.parametrize("harm", ["cut", "flip", "no data", "half an index"])
def test_damage_costs_a_shard_and_nothing_else(tmp_path, harm):
    cache, keys, items = filled(tmp_path)
    assert cache.folder is not None
    data = sorted(cache.folder.glob("*.bin"), key=os.path.getmtime)[0]
    if harm == "cut":
        data.write_bytes(data.read_bytes()[:-1])
    elif harm == "flip":
        raw = bytearray(data.read_bytes())
        raw[5] ^= 1
        data.write_bytes(raw)
    elif harm == "no data":
        data.unlink()
    else:
        index = data.with_suffix(".json")
        index.write_bytes(index.read_bytes()[:20])
    again = FeatureCache(tmp_path, RECIPE)
    there = [key in again for key in keys]
    assert there in ([False, False, True, True], [True, True, False, False])
    for key, item in zip(keys, items, strict=True):
        if key in again:
            np.testing.assert_array_equal(again[key].rows, item.rows)
    assert len(list(cache.folder.glob("*.bin"))) == 1


def test_cache_of_another_model_is_refused(tmp_path):
    cache, *_ = filled(tmp_path)
    assert cache.folder is not None
    record = cache.folder / "recipe.json"
    record.write_text(record.read_text().replace("some/model", "another"))
    with pytest.raises(InputError, match="of another model or recipe"):
        FeatureCache(tmp_path, RECIPE)


# Features -----------------------------------------------------------------------------------------


def test_features_do_not_depend_on_the_batch_or_its_padding(model):
    config = FeatureConfig(model=str(model), layers=[1, -1], batch_tokens=1)
    alone, recipe = extract(TEXTS, config, "tokens")
    together, _ = extract(TEXTS, FeatureConfig(model=str(model), layers=[1, 2]), "tokens")
    assert recipe.layers == (1, 2)
    assert alone.width == 2 * 64
    for text, one, other in zip(TEXTS, alone.rows, together.rows, strict=True):
        assert len(one) == len(text)  # bytes are the tokens
        np.testing.assert_allclose(one, other, atol=1e-5)
    pooled, _ = extract(TEXTS, config, "mean")
    last, _ = extract(TEXTS, config, "last")
    for index, rows in enumerate(alone.rows):
        np.testing.assert_allclose(pooled.rows[index][0], rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(last.rows[index][0], rows[-1], atol=1e-6)


@pytest.mark.parametrize("pooling", ["tokens", "mean"])
def test_flax_makes_the_features_of_transformers(model, pooling):
    config = FeatureConfig(model=str(model), layers=[1, 2], batch_tokens=64)
    torch, recipe = extract(TEXTS, config, pooling)
    flax, same = extract(
        TEXTS, FeatureConfig(**{**vars(config), "backend": "flax"}), pooling, expected=recipe
    )
    assert same == recipe
    np.testing.assert_array_equal(torch.tokens, flax.tokens)
    for one, other in zip(torch.rows, flax.rows, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_bfloat16_features_survive_the_cache(model, tmp_path):
    config = FeatureConfig(model=str(model), dtype="bfloat16", max_tokens=8)
    first, _ = extract(TEXTS, config, "tokens", cache=tmp_path)
    second, _ = extract(TEXTS, config, "tokens", cache=tmp_path)
    exact, _ = extract(TEXTS, FeatureConfig(model=str(model), max_tokens=8), "tokens")
    assert (first.computed, second.computed) == (len(TEXTS), 0)
    assert second.tokens.max() == 8
    for one, other, full in zip(first.rows, second.rows, exact.rows, strict=True):
        assert one.dtype.name == "bfloat16"
        np.testing.assert_array_equal(one, other)
        # Eight bits of mantissa, through two layers.
        np.testing.assert_allclose(np.float32(one), full, atol=0.06 * np.abs(full).max())


def test_only_new_texts_are_read(model, tmp_path):
    config = FeatureConfig(model=str(model))
    extract(TEXTS[:2], config, "mean", cache=tmp_path)
    done = []
    found, _ = extract([*TEXTS, TEXTS[3]], config, "mean", cache=tmp_path, advance=done.append)
    assert found.computed == 2
    assert len(found.rows) == 5
    np.testing.assert_array_equal(found.rows[3], found.rows[4])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "/no/such/folder"}, "no such folder"),
        ({"model": "package:no_such_package/model"}, "pip install no-such-package"),
        ({"layers": [3]}, "has layers 0 to 2"),
        ({"layers": [2, -1]}, "names a layer twice"),
    ],
)
def test_features_say_what_is_wrong(model, change, says):
    config = FeatureConfig(**{"model": str(model), **change})
    with pytest.raises(InputError, match=says):
        extract(TEXTS, config, "mean")
    with pytest.raises(InputError, match="text 2 of 2 is blank"):
        extract(["a", " "], FeatureConfig(model=str(model)), "mean")


def test_a_checkpoint_of_other_features_is_refused(model, tmp_path):
    recipe = make_recipe(FeatureConfig(model=str(model)), "mean")
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="trained on other features: fingerprint"):
        extract(TEXTS, FeatureConfig(model=str(other)), "mean", expected=recipe)
    with pytest.raises(InputError, match="layers is"):
        extract(TEXTS, FeatureConfig(model=str(model), layers=[1]), "mean", expected=recipe)


jitted_prior = jax.jit(to_prior)

# Head ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["attention", "mean", "last"])
@pytest.mark.parametrize("towers", [1, 2])
def test_head_ignores_padding(pooling, towers):
    shape = {"pooling": pooling, "hidden": [8], "dropout": [0.5], "towers": towers}
    head = Head(6, **shape, rngs=nnx.Rngs(0))
    if pooling == "attention":  # starts at 0, which attends to all alike
        head.query.kernel[...] = jax.random.normal(jax.random.key(2), (6, 1))
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    mask = jnp.arange(5) < jnp.array([[3], [5]])
    outputs = head(x, mask)
    assert outputs.shape == (2, 4)
    rubbish = jnp.where(mask[..., None], x, jnp.nan)
    np.testing.assert_allclose(head(rubbish, mask), outputs, atol=1e-6)
    np.testing.assert_allclose(head(x[:1, :3], mask[:1, :3]), outputs[:1], atol=1e-6)
    assert not np.allclose(head(x, mask, key=jax.random.key(1)), outputs)


@pytest.mark.parametrize("reference", [REFERENCE, Prior(0.5, 0.1, 0.1, 0.02)])
def test_outputs_of_zero_are_the_reference(reference):
    prior = jitted_prior(jnp.zeros((1, 4)), reference)
    for name in ("loc", "scale", "loc_sd", "scale_sd"):
        np.testing.assert_allclose(getattr(prior, name)[0], getattr(reference, name), rtol=1e-3)


@settings(max_examples=30)
@given(st.lists(st.floats(-1e4, 1e4), min_size=4, max_size=4))
def test_no_outputs_leave_the_domain(outputs):
    prior = jitted_prior(jnp.array([outputs], jnp.float32), REFERENCE)
    assert np.isfinite(prior.loc).all()
    for width in (prior.scale, prior.loc_sd, prior.scale_sd):
        assert np.isfinite(width).all()
        assert (np.asarray(width) > 0).all()


def test_widths_that_are_added_are_those_of_the_sum():
    rng = np.random.default_rng(0)
    outputs = jnp.asarray(3 * rng.normal(size=(40, 4)), jnp.float32)
    added = jnp.array([0.0, 0.0, 0.7, -1.2])
    expected = jitted_prior(outputs + added, REFERENCE)
    found = with_widths(jitted_prior(outputs, REFERENCE), outputs, added)
    for name in ("loc", "scale", "loc_sd", "scale_sd"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5)


def test_loc_of_mean_inverts_the_mean():
    ends = [1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5]
    mean, scale = jnp.meshgrid(
        jnp.array([*ends, *(1 - e for e in ends)]), jnp.array([0.003, 0.03, 0.1, 0.3, 1.0, 3.0])
    )
    loc = jax.jit(loc_of_mean)(mean, scale)
    law = TruncatedNormal(loc, scale)
    nearer = jnp.minimum(mean, 1 - mean)
    # A mean next to 1 is known to one unit of its last place only.
    np.testing.assert_allclose((law.mean() - mean) / nearer, 0, atol=2e-3)
    slopes = jax.jit(jax.grad(lambda mean, scale: loc_of_mean(mean, scale).sum()))(mean, scale)
    np.testing.assert_allclose(slopes, scale**2 / law.variance(), rtol=1e-4)


# Losses -------------------------------------------------------------------------------------------


def test_losses_are_what_they_say():
    stats = ScoreStats(jnp.array([64.0, 8.0]), jnp.array([0.9, 0.5]), jnp.array([0.3, 0.2]))
    nodes = posterior_nodes(stats, REFERENCE)
    prior = Prior(*(jnp.array(v) for v in ([1.2, 0.5], [0.15, 0.2], [0.3, 0.1], [0.05, 0.05])))
    targets = Targets(stats, nodes, Spread(mean=0.05, sd=0.03))

    np.testing.assert_allclose(marginal(prior, targets), -log_marginal(nodes, prior), rtol=1e-6)
    both = weighted(prior, targets, marginal=2.0, squared_error=0.0, likelihood=0.5)
    expected = 2 * marginal(prior, targets) + 0.5 * likelihood(prior, targets)
    np.testing.assert_allclose(both, expected, rtol=1e-6)
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=(2, 64))
    stats = ScoreStats.from_scores(scores)
    targets = targets._replace(stats=stats)
    law = TruncatedNormal(prior.loc[:, None], prior.scale[:, None])
    np.testing.assert_allclose(
        likelihood(prior, targets), -law.log_prob(scores).mean(1), rtol=1e-4, atol=1e-5
    )
    narrow = Prior(prior.loc, prior.scale, 1e-4, 1e-4)
    law = TruncatedNormal(prior.loc, prior.scale)
    np.testing.assert_allclose(
        squared_error(narrow, targets),
        ((law.mean() - stats.mean) / 0.05) ** 2 + ((law.stddev() - scores.std(1)) / 0.03) ** 2,
        rtol=1e-3,
    )


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (-1.0, 1.0, 0.0), (math.nan, 1.0, 0.0)])
def test_weights_outside_their_domain_are_refused(weights):
    with pytest.raises(ValueError, match="weights are at least 0"):
        LossConfig("weighted", *weights)
