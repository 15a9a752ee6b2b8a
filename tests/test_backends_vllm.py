"""Samplers and verifiers on real engines of vLLM, with small random models."""

import asyncio
import dataclasses
import functools
import math
import os
import shutil

import psutil
import pytest

from eval.bench.live import TransformersPrm
from optscale_jax.backends import cores, prm, sample_seed, vllm_sampler
from optscale_jax.backends.config import (
    EngineConfig,
    JudgeConfig,
    PromptConfig,
    SamplerConfig,
    VerifierConfig,
)
from optscale_jax.backends.cores import leave_workers_their_cores
from optscale_jax.backends.generative import GenerativeVerifier
from optscale_jax.backends.make import make_sampler, make_verifier
from optscale_jax.backends.prm import PrmVerifier
from optscale_jax.errors import BackendError, ProblemError
from optscale_jax.records import Completion, Problem
from tests.checkpoints import save_model
from tests.spellings import Obeyed, raised, scored

pytestmark = [
    pytest.mark.vllm,
    # Those of vLLM and torch, when they are imported and when an engine ends.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MAX_TOKENS = 100
CONTEXT = 512
PROBLEM = Problem("p", "What is 1 + 1?")


@pytest.fixture(scope="module")
def run():
    """Runs a coroutine; always on one loop, which an engine cannot change."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("checkpoints")
    return {
        "reasoner": save_model(base / "reasoner", context=CONTEXT),
        "verifier": save_model(base / "verifier", reward=True, context=CONTEXT),
    }


@pytest.fixture(scope="module")
def sampler(run, folders):
    config = SamplerConfig(
        model=str(folders["reasoner"]),
        prompt=PromptConfig(template="{problem} Box it: \\boxed{}."),
        temperature=1.0,
        top_p=1.0,
        max_tokens=MAX_TOKENS,
        # Of the tokens that may be drawn, where a judge may say but one of two.
        engine=EngineConfig(extra={"logprobs_mode": "processed_logprobs"}),
    )
    sampler = make_sampler(config, seed=3)
    yield sampler
    run(sampler.close())


@pytest.fixture(scope="module")
def verifier(run, folders):
    verifier = make_verifier(VerifierConfig(model=str(folders["verifier"])), seed=3)
    yield verifier
    run(verifier.close())


async def drawn(sampler, n, first_index=0, *, problem=PROBLEM, abort_after=None):
    abort = asyncio.Event()
    if abort_after is not None:
        asyncio.get_running_loop().call_later(abort_after, abort.set)
    found = [one async for one in sampler.sample(problem, n, first_index, abort=abort)]
    return sorted(found, key=lambda one: one.index)


def test_completions_are_a_function_of_seed_problem_and_index(run, sampler):
    first = run(drawn(sampler, 8))
    assert [one.index for one in first] == list(range(8))
    assert run(drawn(sampler, 8)) == first
    # The second round goes on where the first has ended, and repeats none of it.
    second = run(drawn(sampler, 4, first_index=4))
    assert second == first[4:]
    assert len({one.text for one in first}) == 8
    other = run(drawn(sampler, 8, problem=Problem("q", PROBLEM.text)))
    assert not {one.text for one in other} & {one.text for one in first}


def test_tokens_are_counted_and_the_limit_ends_a_completion(run, sampler):
    found = run(drawn(sampler, 32))
    assert {one.finish_reason for one in found} == {"stop", "length"}
    for one in found:
        assert (one.tokens == MAX_TOKENS) == (one.finish_reason == "length")
        assert 1 <= one.tokens <= MAX_TOKENS
        # The chat template around the problem, one token a byte and a control token.
        assert one.prompt_tokens == len("user\nWhat is 1 + 1? Box it: \\boxed{}.\nassistant\n") + 3


def test_aborted_completions_come_back_with_what_they_have_cost(run, sampler):
    # An abort before the engine knows of the requests, and one while it works on them.
    at_once = run(drawn(sampler, 16, abort_after=0))
    assert len(at_once) == 16
    assert sum(one.tokens for one in at_once) < 16 * MAX_TOKENS / 4

    async def abort_after_some():
        abort = asyncio.Event()
        found = []
        async for one in sampler.sample(PROBLEM, 512, 0, abort=abort):
            found.append(one)
            if len(found) == 8:
                abort.set()
        return found

    found = run(abort_after_some())
    assert sorted(one.index for one in found) == list(range(512))
    aborted = [one for one in found if one.finish_reason == "abort"]
    assert len(aborted) > 32
    assert sum(one.tokens for one in aborted) > 64
    whole = {one.index: one for one in run(drawn(sampler, 512))}
    for one in aborted:
        assert one.tokens <= whole[one.index].tokens
        # A token is a byte, and a character one or more; the last may be there in part.
        assert len(one.text) <= one.tokens
        assert whole[one.index].text.startswith(one.text.rstrip("\ufffd"))
    assert sampler._engine.llm.get_num_unfinished_requests() == 0


def test_leaving_the_iteration_ends_the_requests(run, sampler):
    async def only_one():
        stream = sampler.sample(PROBLEM, 16, 0, abort=asyncio.Event())
        async for _ in stream:
            break
        await stream.aclose()
        return sampler._engine.llm.get_num_unfinished_requests()

    assert run(only_one()) == 0


@pytest.mark.parametrize("own", [{}, {"skip_special_tokens": False}, {"stop_token_ids": [101]}])
def test_a_text_is_the_same_read_at_its_end_and_token_by_token(run, sampler, monkeypatch, own):
    for name, value in own.items():
        monkeypatch.setitem(sampler._params, name, value)
    at_its_end = run(drawn(sampler, 96))
    # Log-probabilities name their tokens, so that vLLM reads them as they come.
    monkeypatch.setitem(sampler._params, "logprobs", 0)
    token_by_token = run(drawn(sampler, 96))
    assert [one.text for one in at_its_end] == [one.text for one in token_by_token]
    assert [one.tokens for one in at_its_end] == [one.tokens for one in token_by_token]
    # Bytes of a random model: many are no character, and many are.
    broken = ["\ufffd" in one.text for one in at_its_end]
    assert any(broken)
    assert {one.finish_reason for one in at_its_end} == {"stop", "length"}


def test_a_text_of_whole_characters_is_read_the_same_way_too(run, sampler, monkeypatch):
    letters = sampler._tokenizer.convert_tokens_to_ids([*"abcdefghijklmnop"])
    monkeypatch.setitem(sampler._params, "allowed_token_ids", letters)
    at_its_end = run(drawn(sampler, 8))
    monkeypatch.setitem(sampler._params, "logprobs", 0)
    assert [one.text for one in at_its_end] == [one.text for one in run(drawn(sampler, 8))]
    assert all(one.text.isalpha() and len(one.text) == one.tokens for one in at_its_end)


def test_a_completion_ends_at_a_text_that_it_is_to_stop_at(run, sampler, monkeypatch):
    whole = run(drawn(sampler, 32))
    monkeypatch.setitem(sampler._params, "stop", ["e"])
    for one, before in zip(run(drawn(sampler, 32)), whole, strict=True):
        assert one.text.rstrip("\ufffd") == before.text.partition("e")[0].rstrip("\ufffd")


def test_many_problems_share_the_engine(run, sampler):
    async def all_at_once():
        problems = [Problem(str(i), f"What is {i} + 1?") for i in range(20)]
        return await asyncio.gather(*(drawn(sampler, 3, problem=one) for one in problems))

    found = run(all_at_once())
    assert [[one.index for one in group] for group in found] == [[0, 1, 2]] * 20
    # Some are empty.
    assert len({one.text for group in found for one in group}) > 50


def test_the_mean_of_log_probabilities_is_that_of_the_tokens_drawn(run, sampler, monkeypatch):
    assert all(one.mean_logprob is None for one in run(drawn(sampler, 2)))
    # What `logprobs: true` asks for, and then all of each place, as a judge has them.
    found = []
    for asked in (0, 20):
        monkeypatch.setitem(sampler._params, "logprobs", asked)
        monkeypatch.setitem(sampler._params, "flat_logprobs", True)
        monkeypatch.setitem(sampler._params, "max_tokens", 2)
        found.append(run(drawn(sampler, 96)))
    checked = 0
    for alone, weighed in zip(*found, strict=True):
        assert type(alone) is Completion
        assert alone.text == weighed.text
        assert alone.mean_logprob == pytest.approx(weighed.mean_logprob, abs=1e-5)
        # Of tokens that are texts of their own; others share theirs, such as none at all.
        if all(token.isascii() and token.isalnum() for token, _ in weighed.likely):
            each = [likely[token] for token, likely in weighed.likely]
            assert len(each) == alone.tokens
            assert alone.mean_logprob == pytest.approx(sum(each) / len(each), abs=1e-5)
            checked += 1
    assert checked >= 2


def test_a_judges_score_is_the_expectation_over_its_word(run, sampler, monkeypatch):
    monkeypatch.setitem(sampler._params, "logprobs", 20)
    monkeypatch.setitem(sampler._params, "max_tokens", 1)
    template, n = "{problem} {completion}", 512
    asked = Problem("p#0", f"{PROBLEM.text} It is 2.")
    (first, *_) = drawn_ones = run(drawn(sampler, n, problem=asked))
    # Two letters that the random model may begin with, as the verdict's two words.
    ((_, likely),) = first.likely
    letters = [one for one in likely if one.isascii() and one.isalnum()]
    one, *_, other = sorted(letters, key=lambda letter: -likely[letter])
    assert one.casefold() != other.casefold()
    config = JudgeConfig(
        template=template,
        samples=n,
        verdict=rf"\A({one}|{other})",
        positive=one,
        negative=other,
    )
    verifier = GenerativeVerifier(config, sampler)
    (score,) = run(verifier.score(PROBLEM, [Completion(0, "It is 2.", 1)]))
    verdicts = sum(verdict.text in (one, other) for verdict in drawn_ones)
    assert verdicts > 0
    p, q = (
        sum(math.exp(log) for token, log in likely.items() if token.casefold() == word.casefold())
        for word in (one, other)
    )
    assert score.value == pytest.approx(verdicts / n * p / (p + q), rel=1e-4)


def test_no_spelling_raises_a_judges_score(run, sampler, monkeypatch):
    # Letters, of which control tokens make this random model say the first.
    config = JudgeConfig(
        template="{problem} {completion}", samples=1, verdict="(.)", positive="b", negative="a"
    )
    allowed = sampler._tokenizer.convert_tokens_to_ids(["a", "b"])
    for name, value in {"logprobs": 20, "max_tokens": 1, "allowed_token_ids": allowed}.items():
        monkeypatch.setitem(sampler._params, name, value)
    judge = GenerativeVerifier(config, sampler)
    assert raised(lambda texts: scored(run, judge, texts)) == 0
    monkeypatch.setattr(vllm_sampler, "tokens_of", functools.cache(Obeyed))
    assert raised(lambda texts: scored(run, judge, texts)) > 2


def test_an_engines_workers_have_their_cores_to_themselves(sampler, folders, monkeypatch, request):
    def threads(*names):
        each = [one for one in psutil.Process().children(recursive=True) if one.name() in names]
        return [thread.id for one in each for thread in one.threads()]

    def shared_out():
        """The cores that workers are bound to, and those of all else."""
        workers = map(os.sched_getaffinity, threads("VLLM::Worker"))
        others = [thread.id for thread in psutil.Process().threads()] + threads("VLLM::EngineCor")
        bound = set().union(*(one for one in workers if one < whole))
        return bound, set().union(*map(os.sched_getaffinity, others))

    monkeypatch.setattr(cores, "_all", cores._all)
    leave_workers_their_cores()  # as a command that a test has run in this process may have done
    whole = cores._all
    assert whole is not None
    try:
        # The next engine to start, even where it fails.
        with pytest.raises(BackendError, match="no such argument"):
            make_sampler(
                SamplerConfig(model=str(folders["reasoner"]), engine=EngineConfig(extra={"x": 1})),
                seed=0,
            )
        bound, others = shared_out()
        assert bound
        assert others == whole - bound
        # It has all of them to choose from.
        request.getfixturevalue("verifier")
        assert shared_out() == (bound, others)
    finally:
        for thread in psutil.Process().threads():
            os.sched_setaffinity(thread.id, whole)


def test_no_spelling_raises_a_score(run, verifier, monkeypatch):
    assert raised(lambda texts: scored(run, verifier, texts)) == 0
    # The verifier is one that control tokens would convince.
    monkeypatch.setattr(prm, "tokens_of", functools.cache(Obeyed))
    assert raised(lambda texts: scored(run, verifier, texts)) > 10


def test_a_prompt_beyond_the_context_is_its_problems_error(run, sampler):
    with pytest.raises(ProblemError, match=r"^problem long: .* tokens.*max_model_len[^\n]*$"):
        run(drawn(sampler, 2, problem=Problem("long", "x" * CONTEXT)))
    assert (sampler.max_len, sampler.most_tokens) == (CONTEXT, MAX_TOKENS)
    assert len(run(drawn(sampler, 2))) == 2


@pytest.mark.parametrize("family", ["qwen2.5-math-prm", "qwen2.5-math-prm800k"])
def test_step_scores_are_those_of_transformers(run, verifier, folders, family):
    config = VerifierConfig(model=str(folders["verifier"]), family=family)
    verifier = PrmVerifier(config, verifier._pooler)
    texts = ["\n\n".join(f"Step {i}: {i * n} = {n}" for i in range(n)) for n in range(1, 13)]
    completions = [Completion(i, text, 1) for i, text in enumerate(texts)]
    scores = run(verifier.score(PROBLEM, completions))
    reference = TransformersPrm(folders["verifier"])
    for text, one in zip(texts, scores, strict=True):
        expected = reference.step_scores(PROBLEM.text, text.split("\n\n"))
        # Float32 through two implementations; the issue's own bound.
        assert one.steps == pytest.approx(expected, abs=1e-4)
        assert one.value == pytest.approx(sum(expected) / len(expected), abs=1e-4)
        assert one.note is None
    # A head that said the same of every step would pass the above.
    spread = [step for one in scores for step in one.steps]
    assert max(spread) - min(spread) > 0.01


def test_what_does_not_fit_the_verifier_changes_nothing_before_it(run, verifier):
    steps = [f"Step {i}: it is {i}" for i in range(60)]
    long, short, blank = run(
        verifier.score(
            PROBLEM,
            [
                Completion(0, "\n\n".join(steps), 1, "length"),
                Completion(1, "\n\n".join(steps[:5]), 1),
                Completion(2, "\n", 1),
            ],
        )
    )
    assert long.note == "truncated; unfinished"
    assert long.tokens == CONTEXT == verifier.most_tokens
    assert 5 < len(long.steps) < 60
    assert long.steps[:5] == pytest.approx(short.steps, abs=1e-5)
    assert blank.note == "no step"
    assert blank.value == 0.0


def test_seeds_are_many_and_apart():
    seeds = {sample_seed(r, p, i) for r in range(3) for p in ("a", "b", "a0") for i in range(50)}
    assert len(seeds) == 450
    assert all(0 <= seed < 2**53 for seed in seeds)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SamplerConfig(), r"model is empty"),
        (SamplerConfig(model="./nowhere"), r"^\./nowhere: no such folder; give"),
        (SamplerConfig(model="/a/b/c"), r"^/a/b/c: no such folder; give"),
        (SamplerConfig(model="{empty}"), r"no config\.json there"),
        (SamplerConfig(model="{model}", engine=EngineConfig(device="gpu")), r"wants a GPU"),
        (
            SamplerConfig(model="{model}", engine=EngineConfig(extra={"spped": 1})),
            r"engine\.extra\.spped: vLLM's engine has no such argument",
        ),
        (
            SamplerConfig(model="{model}", extra={"warmth": 2}),
            r"^the sampler's param.*warmth",
        ),
        (
            SamplerConfig(model="{model}", engine=EngineConfig(max_model_len=10**6)),
            r"vLLM cannot start it: .*max_model_len",
        ),
        # What goes wrong in the engine's own processes.
        (SamplerConfig(model="{hollow}"), r"vLLM cannot start it: .*[Cc]annot find any model wei"),
    ],
)
def test_what_cannot_be_made_is_one_clear_line(folders, tmp_path, config, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    hollow = shutil.copytree(folders["reasoner"], tmp_path / "hollow")
    (hollow / "model.safetensors").unlink()
    model = config.model.format(empty=empty, hollow=hollow, model=folders["reasoner"])
    with pytest.raises(BackendError, match=message) as caught:
        make_sampler(dataclasses.replace(config, model=model), seed=0)
    assert "\n" not in str(caught.value)


# Last, because it leaves the sampler dead.
def test_a_dead_engine_is_one_clear_line(run, sampler):
    engine = next(p for p in psutil.Process().children() if "EngineCore" in " ".join(p.cmdline()))

    async def kill_while_sampling():
        asyncio.get_running_loop().call_later(0.05, engine.kill)
        for _ in range(100):
            await drawn(sampler, 64)

    with pytest.raises(BackendError, match=r"the engine of .*reasoner has died.*log") as caught:
        run(kill_while_sampling())
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match="has died"):
        run(drawn(sampler, 1))
