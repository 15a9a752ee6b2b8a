"""The two models that are shipped: what they can do, and that every library reads them alike."""

import asyncio
import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from eval.bench.live import TransformersPrm, sample_all
from optscale_jax import Pool, policies, replay
from optscale_jax.backends import Score
from optscale_jax.backends.config import SamplerConfig, VerifierConfig, make_sampler, make_verifier
from optscale_jax.backends.prm import split_steps
from optscale_jax.models import Qwen2
from optscale_jax.predictor.labels import read_labels
from optscale_jax.problems import Problem, load_problems
from optscale_jax.tiny import (
    Chain,
    check_steps,
    draw_chains,
    labels_path,
    pool_path,
    reasoner_path,
    verifier_path,
)
from optscale_jax.tiny.tokenizer import build_tokenizer
from train.tiny import GROUPS, IGNORED, Examples, Judged, TinyConfig, auc

FOLDERS = {"reasoner": reasoner_path(), "verifier": verifier_path()}
# Apart from the seeds of training, of the shipped pool and of the predictor's labels.
SEED = 271_828


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@functools.cache
def model(name: str) -> Qwen2:
    return Qwen2.from_pretrained(FOLDERS[name])


@nnx.jit
def run(model: Qwen2, tokens: jax.Array) -> jax.Array:
    return model(tokens)


def log_probabilities(name: str, items: list, tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Log-probabilities and targets of each item, at the positions where the model is asked."""
    examples = Examples(name, tokenizer)
    level_of = {id(item): (item if isinstance(item, Chain) else item.chain).level for item in items}
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for group in GROUPS:
        members = [item for item in items if level_of[id(item)] in group]
        if not members:
            continue
        batch = examples.batch(members, group)
        logs = np.asarray(jax.nn.log_softmax(run(model(name), jnp.asarray(batch.tokens))))
        for row, item in enumerate(members):
            asked = batch.targets[row] != IGNORED
            found[id(item)] = logs[row][asked], batch.targets[row][asked]
    return [found[id(item)] for item in items]


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_shipped_is_small_and_complete(name, tokenizer):
    folder = FOLDERS[name]
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert files.keys() >= {"config.json", "model.safetensors", "tokenizer.json", "training.json"}
    assert max(files.values()) <= 4e6
    shipped = transformers.AutoTokenizer.from_pretrained(folder)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.chat_template == tokenizer.chat_template
    assert len(shipped) == model(name).config.vocab_size
    record = json.loads((folder / "training.json").read_text())
    assert TinyConfig(**{**record["config"], "model": None, "out": ""}).task == name


def test_transformers_computes_the_same_from_the_shipped_reasoner(tokenizer):
    theirs = transformers.Qwen2ForCausalLM.from_pretrained(FOLDERS["reasoner"]).eval()
    chains = draw_chains(SEED, 4, levels=GROUPS[0])
    tokens = Examples("reasoner", tokenizer).batch(chains, GROUPS[0]).tokens
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    ours = run(model("reasoner"), jnp.asarray(tokens))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_greedy_decoding_solves_the_easiest_problems(tokenizer):
    chains = draw_chains(SEED, 100, levels=[2])
    # Greedy decoding writes the right solution if and only if every token of it is the likeliest.
    solved = [
        bool((logs.argmax(-1) == targets).all())
        for logs, targets in log_probabilities("reasoner", chains, tokenizer)
    ]
    assert np.mean(solved) > 0.9


def test_the_best_of_more_solutions_is_right_more_often():
    """What the verifier is for: on the shipped pool, which the two models have made."""
    pool = Pool.load(pool_path())
    assert pool.scores.shape[0] >= 400
    assert pool.scores.shape[1] == 64
    assert np.unique(pool.problem_ids).size == pool.scores.shape[0]

    def accuracy(n):
        outcome = replay(pool, policies.best_of_n(n), key=jax.random.key(0), num_permutations=10)
        return float(outcome.correct.mean())

    single, few, many = accuracy(1), accuracy(8), accuracy(64)
    assert single == pytest.approx(pool.correct.mean(), abs=0.02)
    # The difference of two policies on 400 problems is known to some 2 points.
    assert few > single + 0.05
    assert many > few - 0.02
    assert 0 <= pool.scores.min() < 0.7
    assert 0.8 < pool.scores.max() <= 1


def test_the_shipped_statistics_are_of_other_problems():
    labels = read_labels(labels_path())
    assert len(labels.texts) >= 3000
    pool_texts = {problem.text for problem in load_problems("arithmetic-5")}
    # There are only some ten thousand problems of two operations, which are drawn twice at times.
    common = pool_texts & set(labels.texts)
    assert len(common) < 0.02 * len(labels.texts)


# On vLLM ------------------------------------------------------------------------------------------


def on_vllm(test):
    """Marks a test that runs engines."""
    for mark in (
        pytest.mark.vllm,
        # Those of vLLM and torch, when they are imported and when an engine ends.
        pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
        pytest.mark.filterwarnings("ignore::ResourceWarning"),
        pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    ):
        test = mark(test)
    return test


class Scored(NamedTuple):
    """A solution that the reasoner wrote on vLLM, and what the verifier said of it there."""

    judged: Judged
    finished: bool
    score: Score


@pytest.fixture(scope="module")
def scored() -> list[Scored]:
    chains = draw_chains(SEED, 350)
    problems = [Problem(str(index), chain.question) for index, chain in enumerate(chains)]
    sampling = SamplerConfig(
        model=str(FOLDERS["reasoner"]), temperature=0.7, top_p=1.0, max_tokens=160
    )

    async def sample_and_score():
        sampler = make_sampler(sampling, seed=0)
        try:
            drawn = await sample_all(sampler, problems, 1)
        finally:
            await sampler.close()
        verifier = make_verifier(VerifierConfig(model=str(FOLDERS["verifier"])), seed=0)
        try:
            pairs = zip(problems, drawn, strict=True)
            return drawn, await asyncio.gather(*(verifier.score(*pair) for pair in pairs))
        finally:
            await verifier.close()

    drawn, scores = asyncio.run(sample_and_score())
    found = []
    for chain, (one,), (score,) in zip(chains, drawn, scores, strict=True):
        steps = split_steps(one.text)
        judged = Judged(chain, steps, check_steps(chain, steps))
        found.append(Scored(judged, one.finish_reason == "stop", score))
    return found


@on_vllm
def test_the_reasoner_is_right_on_easy_problems_and_wrong_on_hard_ones(scored):
    right = {level: [] for level in range(2, 9)}
    for judged, *_ in scored:
        whole = len(judged.steps) == judged.chain.level + 1
        right[judged.chain.level].append(whole and all(judged.labels))
    # 50 problems of a level: .92 and .11 were measured on more, and the standard error is .045.
    assert np.mean(right[2]) > 0.8
    assert np.mean(right[8]) < 0.3
    assert 0.4 < np.mean(np.concatenate(list(right.values()))) < 0.7


@on_vllm
def test_the_verifier_tells_good_steps_from_bad_and_is_fallible(scored):
    labels = np.concatenate([one.judged.labels for one in scored if one.finished])
    steps = np.concatenate([one.score.steps for one in scored if one.finished])
    assert 0.85 < auc(steps, labels) < 0.98


@on_vllm
def test_step_scores_on_vllm_are_those_of_flax_and_of_transformers(scored, tokenizer):
    finished = [one for one in scored if one.finished]
    ours = log_probabilities("verifier", [one.judged for one in finished], tokenizer)
    compared = 0
    for one, (logs, _) in zip(finished, ours, strict=True):
        if len(logs) == len(one.judged.steps):  # not cut off at the length of a training batch
            np.testing.assert_allclose(one.score.steps, np.exp(logs[:, 1]), rtol=0, atol=1e-4)
            compared += 1
    assert compared > 0.9 * len(finished)
    theirs = TransformersPrm(FOLDERS["verifier"])
    for one in finished[:50]:
        expected = theirs.step_scores(one.judged.chain.question, one.judged.steps)
        np.testing.assert_allclose(one.score.steps, expected, rtol=0, atol=1e-4)
