"""Speed of the live backends against the straightforward way, as ratios within one run.

    python -m eval.bench.live [--quick true] [--out DIR]
    python -m eval.bench.live --device gpu --shape qwen2.5-7b --prm_shape qwen2.5-7b \
        --max_tokens 1024 --repeats 2 --in_flight 32

The sampler, one asynchronous request a completion, is held to one blocking `LLM.generate` of the
same requests: the same engine of vLLM, which returns only when all of them have ended. The live
loop is held to the same blocking call where the number of completions is known beforehand; with the
verifier beside it to drawing and reading one after the other; and where a policy decides to the
loop that knows the number. The verifier is held to transformers scoring one completion at a time,
in speed and in step scores. The models are the two of the small world that ship with the package,
or have the sizes of a big one, its weights made up, so that nothing is downloaded: vLLM does the
same work whatever the weights say. A completion of theirs ends as one token in 266 is drawn. The
exit code is 1 where a figure demanded is missed.
"""

import asyncio
import contextlib
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optscale_jax import Policy, policies
from optscale_jax.backends import sample_seed
from optscale_jax.backends.config import EngineConfig, PromptConfig, SamplerConfig, VerifierConfig
from optscale_jax.backends.cores import leave_workers_their_cores
from optscale_jax.backends.prm import PrmVerifier, split_steps
from optscale_jax.backends.vllm_engine import engine_arguments, engine_environment
from optscale_jax.backends.vllm_sampler import VllmSampler, prompt_token_ids
from optscale_jax.backends.vllm_verifier import VllmPooler
from optscale_jax.checks import at_least, one_of, within
from optscale_jax.cli import command
from optscale_jax.errors import BackendError, InputError
from optscale_jax.heap import freeze_heap
from optscale_jax.live.decider import decide_on_the_cpu
from optscale_jax.live.engine import Solution, solve_async
from optscale_jax.live.runs import Run
from optscale_jax.records import Completion, Problem, Score
from optscale_jax.tiny import SYSTEM_PROMPT, draw_chains, reasoner_path, verifier_path

from .rows import Limit, Report, finish


def _qwen(width: int, wide: int, heads: int, key_value_heads: int) -> dict[str, Any]:
    """Sizes in transformers' Qwen2Config; the vocabulary stays the tokenizer's."""
    return {
        "hidden_size": width,
        "intermediate_size": wide,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "num_hidden_layers": 28,
        "head_dim": 128,
        "max_position_embeddings": 4096,
        "dtype": "bfloat16",
    }


# Two engines of one kind can differ by several hundredths in speed for as long as they run, so that
# a comparison needs more than one of each.
_TURNS_OF_AN_ENGINE = 3
# For a second after its last work an engine goes on looking for more, on a CPU on the very core
# that another engine's workers are bound to.
_IDLE_SECONDS = 1.5

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "qwen2.5-1.5b": _qwen(1536, 8960, 12, 2),
    "qwen2.5-7b": _qwen(3584, 18944, 28, 4),
}


@dataclasses.dataclass(frozen=True)
class BenchLiveConfig:
    """What to measure.

    Attributes:
        reasoner: Folder of the model that is sampled. null: the one that ships with the package.
        verifier: Folder of the process reward model. null: the one that ships with the package.
        shape: Sizes that the reasoner is given, with weights made up: tiny, qwen2.5-1.5b or
            qwen2.5-7b. null: its own, and its weights.
        prm_shape: Likewise of the process reward model, which is then not held to transformers.
        device: Where the models run, as of an engine.
        memory_share: Share of a GPU's memory that each engine takes, in (0, 1]; two run at once.
        problems: Problems of the small world, at least 1.
        samples: Completions of each, at least 1.
        repeats: Times that sampling is measured, at least 1; the ways take turns, with new engines
            after every third, begun in the other order, and the medians are compared.
        scored_alone: Completions that transformers scores one at a time, at least 1.
        max_tokens: Longest completion, at least 1.
        in_flight: Problems at work at once where a policy decides, at least 1; twice as many are
            solved.
        quick: Whether to take a quarter of the problems.
        out: Folder for bench_live.json and bench_live.md, made if it does not exist. null: none.
    """

    reasoner: str | None = None
    verifier: str | None = None
    shape: str | None = None
    prm_shape: str | None = None
    device: Literal["auto", "cpu", "gpu"] = "auto"
    memory_share: float = 0.45
    problems: int = 64
    samples: int = 8
    repeats: int = 5
    scored_alone: int = 64
    max_tokens: int = 128
    in_flight: int = 200
    quick: bool = False
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain."""
        at_least(self, 1, "problems", "samples", "repeats")
        at_least(self, 1, "scored_alone", "max_tokens", "in_flight")
        within(self, "(0, 1]", "memory_share")
        for name in ("shape", "prm_shape"):
            if getattr(self, name) is not None:
                one_of(self, SHAPES, name)


@contextlib.contextmanager
def models(config: BenchLiveConfig) -> Iterator[tuple[SamplerConfig, VerifierConfig]]:
    """The reasoner and the verifier; those of a shape have a folder for as long as it lasts."""
    with tempfile.TemporaryDirectory() as folder:

        def model(name: str, source: str | Path, shape: str | None) -> dict[str, Any]:
            engine = EngineConfig(config.device, gpu_memory_utilization=config.memory_share)
            if shape is None:
                return {"model": str(source), "engine": engine}
            made = Path(folder) / name
            shutil.copytree(source, made, ignore=shutil.ignore_patterns("*.safetensors"))
            sizes = json.loads((made / "config.json").read_text()) | SHAPES[shape]
            (made / "config.json").write_text(json.dumps(sizes))
            extra = {"load_format": "dummy"}
            return {"model": str(made), "engine": dataclasses.replace(engine, extra=extra)}

        sampling = SamplerConfig(
            **model("reasoner", config.reasoner or reasoner_path(), config.shape),
            prompt=PromptConfig(),  # the reasoner is taught without a system message
            temperature=1.0,
            top_p=1.0,
            max_tokens=config.max_tokens,
        )
        verifier = model("verifier", config.verifier or verifier_path(), config.prm_shape)
        yield sampling, VerifierConfig(**verifier)


class TransformersPrm:
    """A checkpoint of Qwen2ForProcessRewardModel in transformers, as its model card uses it."""

    def __init__(self, folder: str | Path):
        import torch
        from safetensors.torch import load_file
        from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

        folder = Path(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        state = load_file(folder / "model.safetensors")
        # transformers has no such class; its card brings the code along.
        config = Qwen2Config(**json.loads((folder / "config.json").read_text()))
        self.model = Qwen2Model(config).eval()
        self.model.load_state_dict(_below(state, "model."))
        width = config.hidden_size
        self.head = torch.nn.Sequential(
            torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
        )
        self.head.load_state_dict(_below(state, "score."))

    def step_scores(self, problem: str, steps: Sequence[str]) -> list[float]:
        """Probability that each step is good."""
        import torch

        messages = [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": problem},
            {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
        ]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        ids = self.tokenizer.encode(text, return_tensors="pt", add_special_tokens=False)
        (separator,) = self.tokenizer.encode("<extra_0>", add_special_tokens=False)
        with torch.no_grad():
            logits = self.head(self.model(input_ids=ids).last_hidden_state)[0]
        return torch.softmax(logits, dim=-1)[ids[0] == separator, 1].tolist()


def _below(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}


async def sample_all(
    sampler: VllmSampler, problems: Sequence[Problem], n: int
) -> list[list[Completion]]:
    """Draws n completions of each problem, all problems at once."""

    async def one(problem: Problem) -> list[Completion]:
        drawn = sampler.sample(problem, n, 0, abort=asyncio.Event())
        return sorted([item async for item in drawn], key=lambda item: item.index)

    return await asyncio.gather(*(one(problem) for problem in problems))


async def score_all(
    verifier: PrmVerifier, problems: Sequence[Problem], completions: Sequence[Sequence[Completion]]
) -> list[list[Score]]:
    """Scores all completions of each problem at once."""
    pairs = zip(problems, completions, strict=True)
    return await asyncio.gather(*(verifier.score(*pair) for pair in pairs))


async def solve_in_a_run(
    problems: Sequence[Problem],
    sampler: VllmSampler,
    verifier: PrmVerifier | None,
    policy: Policy,
    **options: Any,
) -> list[Solution]:
    """The live loop as the commands run it, with everything it draws synced to disk."""
    with tempfile.TemporaryDirectory() as folder, Run(folder, config="", problems=problems) as run:
        return await solve_async(problems, sampler, verifier, policy, run=run, **options)


def sampled_tokens(solutions: Sequence[Solution]) -> int:
    """Tokens in completions that ended and in those aborted."""
    ledgers = [solution.decision.ledger for solution in solutions]
    return sum(ledger.completed + ledger.aborted for ledger in ledgers)


class Turn:
    """Times a block, which begins when engines that others have used are idle.

    Attributes:
        seconds: How long it took.
        busy: Processors that this process, without those of the engines, used meanwhile.
    """

    def __enter__(self) -> "Turn":
        time.sleep(_IDLE_SECONDS)
        self._began, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self.busy = (time.process_time() - self._cpu) / self.seconds


class Rates:
    """Tokens per second of several ways to draw them, which take turns."""

    def __init__(self, *ways: str) -> None:
        self._turns: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}

    def add(self, way: str, tokens: int, turn: Turn) -> None:
        """What one turn drew, and how long it took."""
        self._turns[way].append((tokens / turn.seconds, turn.busy))

    def against(self, report: Report, what: str, ways: tuple[str, str], share: float, more: str):
        """A row: the median of one way, in which no less than a share of another's is demanded."""
        (ours, busy), (base, usual) = (np.median(self._turns[way], axis=0) for way in ways)
        report.add(
            what,
            f"{ours:,.0f} against {base:,.0f}: {ours / base:.3f}{more}; beside its engines this "
            f"process uses {busy:.2f} processors, against {usual:.2f}",
            share=Limit(ours / base, ">=", share),
            **dict(zip(ways, (ours, base), strict=True)),
        )


def bench_beside(
    report: Report,
    config: BenchLiveConfig,
    problems: Sequence[Problem],
    sampler: VllmSampler,
    verifier: PrmVerifier,
    runner: asyncio.Runner,
) -> None:
    """The loop with the verifier beside it, against drawing and reading one after the other."""
    rule, seconds, ratios = policies.best_of_n(config.samples), [], []
    # One turn more, the first, which warms them up.
    for turn in range(config.repeats + 1):
        chosen = problems if turn else problems[: max(1, len(problems) // 8)]
        with Turn() as drawing:
            completions = runner.run(sample_all(sampler, chosen, config.samples))
        verifier.forget()
        with Turn() as reading:
            scores = runner.run(score_all(verifier, chosen, completions))
        verifier.forget()
        with Turn() as both:
            solved = runner.run(
                solve_in_a_run(chosen, sampler, verifier, rule, max_in_flight=len(chosen))
            )
        if turn:
            drawn = sum(one.tokens for each in completions for one in each)
            read = sum(score.tokens for each in scores for score in each)
            read_too = sum(solution.decision.ledger.verifier for solution in solved)
            # A batch's rounding changes some completions, and so how much is drawn and read.
            alone = np.array([drawing.seconds / drawn, reading.seconds / read])
            alone *= sampled_tokens(solved), read_too
            seconds.append((both.seconds, *alone))
            ratios.append(both.seconds / alone.sum())
    ratio, (took, draws, reads) = np.median(ratios), np.median(seconds, axis=0)
    report.add(
        "live loop with the verifier: seconds against drawing and reading, one after the other",
        f"{took:.1f} against {draws:.1f} + {reads:.1f}: {ratio:.2f} ({sampled_tokens(solved):,} "
        f"tokens drawn and {read_too:,} read)",
        ratio=Limit(float(ratio), "<=", 1.15),
    )


def bench_adaptive(
    report: Report,
    config: BenchLiveConfig,
    sampler: VllmSampler,
    verifier: PrmVerifier,
    runner: asyncio.Runner,
) -> None:
    """Tokens per second where a policy decides, against the loop that knows how many to draw."""
    in_flight = max(1, config.in_flight // 4) if config.quick else config.in_flight
    count = 2 * in_flight
    problems = [Problem(str(i), chain.question) for i, chain in enumerate(draw_chains(1, count))]
    cap = 2 * config.samples
    # Of the small verifier's scale, or of one that knows nothing, so that some problems stop and
    # others go on to the cap.
    s_min = 0.7 if config.prm_shape is None else 0.5
    rules = {
        "fixed": policies.best_of_n(config.samples),
        "adaptive": policies.optscale(s_min, 0.95, cap, min(4, cap)),
    }
    rates, drawn = Rates(*rules), dict[str, float]()
    # The first turn compiles the rules and warms up the engines.
    for turn in range(max(1, config.repeats // 2) + 1):
        for name, rule in rules.items():
            chosen = problems if turn else problems[: max(1, count // 8)]
            verifier.forget()
            with Turn() as taken:
                solutions = runner.run(
                    solve_in_a_run(chosen, sampler, verifier, rule, max_in_flight=in_flight)
                )
            if turn:
                rates.add(name, sampled_tokens(solutions), taken)
                drawn[name] = float(np.mean([s.decision.num_samples for s in solutions]))
    what = f"adaptive, {count} problems, {in_flight} in flight: tokens/s against a fixed pool"
    more = f" ({drawn['adaptive']:.1f} samples a problem against {drawn['fixed']:.0f})"
    rates.against(report, what, ("adaptive", "fixed"), 0.8, more)


class Blocking:
    """An engine of vLLM that is asked by one blocking call.

    Raises:
        BackendError: If the model cannot be used.
    """

    def __init__(self, sampling: SamplerConfig):
        self._sampling = sampling
        with engine_environment(sampling.engine, model=sampling.model):
            from vllm import LLM

            arguments = engine_arguments(sampling.engine, model=sampling.model, seeded=True)
            self._llm = LLM(**arguments, **sampling.engine.extra, enable_prefix_caching=True)
        freeze_heap()  # of what `LLM` leaves, as after the start of the sampler's engine

    def requests(self, problems: Sequence[Problem], n: int) -> tuple[list[Any], list[Any]]:
        """What `generate` needs for the n completions of each problem that a sampler draws."""
        from vllm import SamplingParams, TokensPrompt

        prompts, params = [], []
        for problem in problems:
            ids = prompt_token_ids(self._llm.get_tokenizer(), self._sampling.prompt, problem.text)
            prompts += [TokensPrompt(prompt_token_ids=ids) for _ in range(n)]
            seeds = [sample_seed(0, problem.id, index) for index in range(n)]
            most = self._sampling.max_tokens
            params += [SamplingParams(temperature=1.0, max_tokens=most, seed=s) for s in seeds]
        return prompts, params

    def generate(self, prompts: list[Any], params: list[Any]) -> list[Any]:
        """What vLLM returns once all of them have ended."""
        return self._llm.generate(prompts, params, use_tqdm=False)

    def close(self) -> None:
        """Ends the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()


@contextlib.contextmanager
def two_engines(
    sampling: SamplerConfig, runner: asyncio.Runner, *, blocking_first: bool
) -> Iterator[tuple[Blocking, VllmSampler]]:
    """The engine of the blocking call and that of the sampler, begun in one order or the other."""
    with contextlib.ExitStack() as engines:

        def begin_blocking() -> Blocking:
            blocking = Blocking(sampling)
            engines.callback(blocking.close)
            return blocking

        blocking = begin_blocking() if blocking_first else None
        sampler = VllmSampler(sampling, seed=0)
        engines.callback(lambda: runner.run(sampler.close()))
        yield blocking or begin_blocking(), sampler


def bench_sampler(
    report: Report,
    config: BenchLiveConfig,
    problems: Sequence[Problem],
    sampling: SamplerConfig,
    runner: asyncio.Runner,
) -> None:
    """Tokens per second of the sampler and of the loop against one blocking call."""
    rates, same = Rates("sampler", "blocking", "engine"), []
    # Votes, because no verifier belongs to what is compared here.
    rule = policies.best_of_n(config.samples, selection="majority")
    few = problems[: max(1, len(problems) // 8)]
    for turn in range(0, config.repeats, _TURNS_OF_AN_ENGINE):
        count = min(_TURNS_OF_AN_ENGINE, config.repeats - turn)
        blocking_first = turn // _TURNS_OF_AN_ENGINE % 2 == 0
        with two_engines(sampling, runner, blocking_first=blocking_first) as (blocking, sampler):
            # One turn of each more, the first, which warms them up.
            for chosen in (few, *[problems] * count):
                requests = blocking.requests(chosen, config.samples)
                with Turn() as first:
                    outputs = blocking.generate(*requests)
                with Turn() as second:
                    drawn = runner.run(sample_all(sampler, chosen, config.samples))
                with Turn() as third:
                    solved = runner.run(
                        solve_in_a_run(chosen, sampler, None, rule, max_in_flight=len(chosen))
                    )
                if chosen is few:
                    continue
                completions = [one for each in drawn for one in each]
                tokens = sum(len(one.outputs[0].token_ids) for one in outputs)
                rates.add("blocking", tokens, first)
                rates.add("sampler", sum(one.tokens for one in completions), second)
                rates.add("engine", sampled_tokens(solved), third)
                pairs = zip(outputs, completions, strict=True)
                same += [one.outputs[0].text == other.text for one, other in pairs]
    requests = len(problems) * config.samples
    what = f"{requests} requests: tokens/s against one blocking LLM.generate"
    more = f" ({np.mean(same):.1%} of the texts the same)"
    rates.against(report, f"sampler, {what}", ("sampler", "blocking"), 0.9, more)
    rates.against(report, f"live loop, {what}", ("engine", "blocking"), 0.98, "")


def bench_verifier(
    report: Report,
    config: BenchLiveConfig,
    problems: Sequence[Problem],
    completions: Sequence[Sequence[Completion]],
    verifier: PrmVerifier,
    runner: asyncio.Runner,
) -> None:
    """Speed and step scores of the verifier, which it ends, against transformers, one at a time."""
    verifier.forget()
    with Turn() as reading:
        scores = runner.run(score_all(verifier, problems, completions))
    # Now, as transformers is to have all cores.
    runner.run(verifier.close())
    distinct = np.mean([len({one.text for one in drawn}) / len(drawn) for drawn in completions])
    reference = TransformersPrm(config.verifier or verifier_path())
    chosen = [
        (problem, split_steps(one.text), score)
        for problem, drawn, scored in zip(problems, completions, scores, strict=True)
        for one, score in zip(drawn, scored, strict=True)
        if score.note is None
    ][:: max(1, sum(map(len, completions)) // config.scored_alone)][: config.scored_alone]
    if not chosen:
        raise InputError("no completion has a step and an end; raise max_tokens")
    reference.step_scores(chosen[0][0].text, chosen[0][1])
    with Turn() as one_by_one:
        alone = [reference.step_scores(problem.text, steps) for problem, steps, _ in chosen]
    batched = sum(map(len, completions)) / reading.seconds
    single = len(chosen) / one_by_one.seconds
    error = max(
        float(np.max(np.abs(np.subtract(theirs, score.steps))))
        for theirs, (_, _, score) in zip(alone, chosen, strict=True)
    )
    report.add(
        "verifier: completions/s against transformers one at a time",
        f"{batched:,.0f} against {single:,.0f}: {batched / single:.1f} ({distinct:.0%} of the "
        "completions have a text of their own)",
        speedup=Limit(batched / single, ">=", 3),
        verifier=batched,
        alone=single,
    )
    report.add(
        f"verifier: step scores against transformers, {len(chosen)} completions",
        f"{error:.1e} apart at most",
        error=Limit(error, "<=", 1e-4),
    )


def bench(config: BenchLiveConfig) -> int:
    """Measures everything, shows and writes it; returns 1 where a figure is missed."""
    return finish(lambda: measure(config), config.out, "bench_live", "live backends")


def measure(config: BenchLiveConfig) -> Report:
    """All measurements.

    Raises:
        InputError: If a model cannot be used.
    """
    decide_on_the_cpu()
    leave_workers_their_cores()
    report = Report()
    count = max(1, config.problems // 4) if config.quick else config.problems
    problems = [Problem(str(i), chain.question) for i, chain in enumerate(draw_chains(0, count))]
    try:
        # One loop for both engines, which cannot change theirs.
        with asyncio.Runner() as runner, models(config) as (sampling, scoring):
            bench_sampler(report, config, problems, sampling, runner)
            sampler = VllmSampler(sampling, seed=0)
            verifier = PrmVerifier(scoring, VllmPooler(scoring))
            bench_beside(report, config, problems, sampler, verifier, runner)
            bench_adaptive(report, config, sampler, verifier, runner)
            completions = runner.run(sample_all(sampler, problems, config.samples))
            runner.run(sampler.close())
            if config.prm_shape is None:
                bench_verifier(report, config, problems, completions, verifier, runner)
            else:
                runner.run(verifier.close())
    except BackendError as error:
        raise InputError(str(error)) from error
    return report


main = command(BenchLiveConfig, bench, __name__)

if __name__ == "__main__":
    sys.exit(main())
