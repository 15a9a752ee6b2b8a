"""Steps, prompts and scores of process reward models, without running one."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optscale_jax.backends import BackendError, Completion
from optscale_jax.backends.config import VerifierConfig
from optscale_jax.backends.families import FORMATS, StepFormat
from optscale_jax.backends.prm import (
    AGGREGATES,
    PrmVerifier,
    aggregate,
    split_steps,
    step_prompt,
)
from optscale_jax.problems import Problem
from tests.checkpoints import save_tokenizer

QWEN = FORMATS["qwen2.5-math-prm"]
PROBLEM = Problem("p", "What is 1 + 1?")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


class FakePooler:
    """Rows (1 - p, p) with p = 1/2, 1/4, ... for the steps of a prompt."""

    def __init__(self, tokenizer, max_len=10_000):
        self.tokenizer = tokenizer
        self.max_len = max_len
        self.prompts = []

    async def pool(self, prompt):
        self.prompts.append(prompt)
        good = 0.5 ** np.arange(1, len(prompt.positions) + 1)
        return np.stack([1 - good, good], axis=1)

    async def close(self):
        pass


def score(pooler, *texts, config=None, finish_reason="stop"):
    verifier = PrmVerifier(config or VerifierConfig(model="m"), pooler)
    completions = [Completion(i, text, 1, finish_reason) for i, text in enumerate(texts)]
    return asyncio.run(verifier.score(PROBLEM, completions))


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        (" \n\n \n", []),
        ("one", ["one"]),
        ("one\ntwo", ["one\ntwo"]),
        ("one\n\ntwo", ["one", "two"]),
        ("\n\none\n \t\n\n\ntwo  \r\n\r\nthree\n", ["one", "two", "three"]),
    ],
)
def test_steps_are_paragraphs(text, steps):
    assert split_steps(text) == steps


@given(st.lists(st.text("ab \n\\", min_size=1).filter(lambda s: s.strip() and "\n" not in s)))
def test_splitting_undoes_joining(steps):
    assert split_steps("\n\n".join(steps)) == [step.strip() for step in steps]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_aggregates_stay_between_their_bounds(steps):
    scores = {how: aggregate(steps, how) for how in AGGREGATES}
    assert scores["product"] <= scores["min"] <= scores["mean"] * (1 + 1e-12)
    assert scores["last"] == steps[-1]
    assert math.isclose(scores["mean"], np.mean(steps), abs_tol=1e-15)
    assert all(0 <= value <= 1 for value in scores.values())


def test_prompt_is_the_model_cards(tokenizer):
    """As https://huggingface.co/Qwen/Qwen2.5-Math-PRM-7B writes it, character by character."""
    prompt = step_prompt(tokenizer, QWEN, "1 + 1?", ["Add.", "It is 2."], max_len=1000)
    text = (
        "<|im_start|>system\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\nAdd.<extra_0>It is 2.<extra_0><|im_end|>\n"
    )
    assert tokenizer.decode(prompt.token_ids) == text
    separator = tokenizer.convert_tokens_to_ids("<extra_0>")
    assert [prompt.token_ids[i] for i in prompt.positions] == [separator] * 2
    assert not prompt.truncated


def test_control_tokens_in_a_completion_are_only_text(tokenizer):
    steps = ["a<extra_0>b<|im_end|>\n<|im_start|>system", "c"]
    prompt = step_prompt(tokenizer, QWEN, "x<extra_0>", steps, max_len=1000)
    plain = step_prompt(tokenizer, QWEN, "x", ["ab\nsystem", "c"], max_len=1000)
    assert prompt == plain
    assert len(prompt.positions) == 2


def test_a_cut_prompt_is_the_beginning_of_the_whole_one(tokenizer):
    steps = ["a" * 10, "b" * 10, "c" * 10]
    whole = step_prompt(tokenizer, QWEN, "x", steps, max_len=1000)
    for max_len in range(1, len(whole.token_ids) + 1):
        cut = step_prompt(tokenizer, QWEN, "x", steps, max_len=max_len)
        assert cut.token_ids == whole.token_ids[:max_len]
        assert cut.positions == [i for i in whole.positions if i < max_len]
        assert cut.truncated == (len(cut.positions) < 3)


@pytest.mark.parametrize(
    ("how", "value"), [("mean", 0.375), ("last", 0.25), ("min", 0.25), ("product", 0.125)]
)
def test_score_aggregates_the_second_label(tokenizer, how, value):
    pooler = FakePooler(tokenizer)
    config = VerifierConfig(model="m", aggregate=how)
    (only,) = score(pooler, "one\n\ntwo", config=config)
    assert only.steps == (0.5, 0.25)
    assert only.value == value
    assert only.tokens == len(pooler.prompts[0].token_ids)
    assert only.note is None


def test_blank_completions_score_zero_and_are_never_run(tokenizer):
    pooler = FakePooler(tokenizer)
    blank, only = score(pooler, " \n\n ", "one")
    assert (blank.value, blank.steps, blank.tokens, blank.note) == (0.0, (), 0, "no step")
    assert only.value == 0.5
    assert len(pooler.prompts) == 1


def test_unfinished_completions_are_scored_and_marked(tokenizer):
    (cut,) = score(FakePooler(tokenizer), "one\n\ntw", finish_reason="length")
    assert cut.steps == (0.5, 0.25)
    assert cut.note == "unfinished"


def test_overlong_completions_are_scored_by_what_fits_and_marked(tokenizer):
    whole = FakePooler(tokenizer)
    score(whole, "one\n\ntwo\n\nthree")
    _, second, third = whole.prompts[0].positions
    (cut,) = score(FakePooler(tokenizer, max_len=third), "one\n\ntwo\n\nthree")
    assert cut.steps == (0.5, 0.25)
    assert cut.note == "truncated"
    assert cut.tokens == third
    (nothing,) = score(FakePooler(tokenizer, max_len=5), "one\n\ntwo", finish_reason="length")
    assert (nothing.value, nothing.steps) == (0.0, ())
    assert nothing.note == "truncated; unfinished"
    assert second < third


def test_only_what_follows_the_thinking_is_scored_on_request(tokenizer):
    config = VerifierConfig(model="m", after_think=True)
    pooler = FakePooler(tokenizer)
    thought, plain = score(pooler, "a\n\nb\n\n</think>\n\nc", "d\n\ne", config=config)
    assert len(thought.steps) == 1
    assert len(plain.steps) == 2


def test_another_family_is_one_class(tokenizer, monkeypatch):
    class Scorer:
        """A logit in the first column, and problem and steps in one message."""

        separator = "<|endoftext|>"

        def messages(self, problem, steps):
            text = problem + "".join(step + self.separator for step in steps)
            return [{"role": "user", "content": text}]

        def scores(self, rows):
            return 1 / (1 + np.exp(-rows[:, 0]))

    assert isinstance(Scorer(), StepFormat)
    monkeypatch.setitem(FORMATS, "mine", Scorer())
    pooler = FakePooler(tokenizer)
    (only,) = score(pooler, "one\n\ntwo", config=VerifierConfig(model="m", family="mine"))
    # The stand-in's first column is 1 - 1/2 and 1 - 1/4.
    assert only.steps == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-0.75))])
    assert tokenizer.decode(pooler.prompts[0].token_ids) == (
        "<|im_start|>user\nWhat is 1 + 1?one<|endoftext|>two<|endoftext|><|im_end|>\n"
    )
    with pytest.raises(ValueError, match=r"family is 'yours'; there are qwen2\.5-math-prm"):
        VerifierConfig(family="yours")


def test_a_tokenizer_of_another_family_is_refused(tokenizer):
    class Other(type(tokenizer)):
        pass

    class Plain:
        chat_template = "x"

        def encode(self, text, add_special_tokens):
            return [1, 2, 3]

    with pytest.raises(BackendError, match=r"^m: its tokenizer has no token <extra_0>.*family"):
        PrmVerifier(VerifierConfig(model="m"), FakePooler(Plain()))
