"""Trains the small reasoner, and the verifier of its steps.

    python -m train.tiny --config configs/tiny/reasoner.yaml --out optscale_jax/tiny/reasoner
    python -m train.tiny --config configs/tiny/verifier.yaml --out optscale_jax/tiny/verifier

The reasoner learns to write right solutions of chained arithmetic, and is stopped while it still
makes mistakes. The verifier starts from a reasoner's weights and learns to tell the good steps from
the bad in solutions that the reasoner samples; exact arithmetic labels them, and it never sees an
answer. The output is a Hugging Face checkpoint with its tokenizer, and training.json, the record of
how it came about.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from flax import nnx

from optscale_jax.backends.prm import split_steps
from optscale_jax.checks import at_least, positive, within
from optscale_jax.cli import command, output_folder, progress
from optscale_jax.errors import InputError, bad_input
from optscale_jax.models import Qwen2, Qwen2Config
from optscale_jax.tiny import SYSTEM_PROMPT, check_steps, draw_chains
from optscale_jax.tiny.arithmetic import LEVELS, Chain
from optscale_jax.tiny.tokenizer import END, STEP, build_tokenizer

__all__ = ["ModelConfig", "TinyConfig", "main"]

# Problems of similar length make a batch, so that little of it is padding.
GROUPS: tuple[tuple[int, ...], ...] = ((2, 3), (4, 5), (6, 7, 8))
IGNORED = -1
# Where in a step such as 45*7=35:15 stands what the last digits carry and give, and the result.
CARRY, GIVEN, FIRST, LAST = -5, -4, -2, -1
# Which of them a mistake changes together.
MISTAKES = ((FIRST,), (FIRST,), (CARRY, FIRST), (GIVEN, LAST), (LAST,))
# What is to be written after which character, from the end.
DIGITS = {-6: CARRY, -5: GIVEN, -3: FIRST, -2: LAST}
# Layers of the verifier after which it is asked for the right digits, and whether a step is right
# by itself; what is left compares, and looks back.
DIGITS_LAYER, STEP_LAYER = -3, -2
# Solutions of each validation problem, for how well they are told apart.
REPEATS = 8
# Apart from the seeds of problem files, which are single numbers.
TRAINING, VALIDATION, CORRUPTION = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model, as in `Qwen2Config`.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward layers.
        num_hidden_layers: Decoder layers.
        num_attention_heads: Query heads.
        num_key_value_heads: Heads of keys and values.
    """

    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    """What to train and for how long.

    Attributes:
        task: The reasoner, or the verifier of its steps.
        reasoner: Checkpoint whose solutions the verifier learns to judge.
        start: Checkpoint whose weights the model starts from. null: random ones.
        model: Sizes, where there is no start.
        steps: Training steps, at least 1.
        stop_at: Validation accuracy of the reasoner, or step AUC of the verifier, in (0, 1], at
            which training ends before its last step, so that the model still makes mistakes. null:
            train to the end.
        batch_size: Solutions in a step, at least 1.
        learning_rate: Peak, after the warm-up and before the cosine's fall to nothing.
        warmup: Steps of linear warm-up.
        weight_decay: AdamW's.
        solutions: Solutions that the reasoner samples for the verifier to learn from, one a
            problem; a tenth as many more, eight to a problem, are kept for validation.
        corrupted: Share of the solutions that the verifier learns from which are not sampled but
            right ones with one mistake of any kind, in [0, 1].
        early: Weight of what the verifier learns to say on the way, before its last layers: which
            digit is right next, and whether a step is right by itself. At least 0.
        temperature: Sampling temperature of those, and of the accuracy that is reported.
        seed: Of the weights, the problems and the sampling, at least 0.
        log_every: Steps between two measurements on validation problems.
        out: Folder for the checkpoint.
    """

    task: Literal["reasoner", "verifier"] = "reasoner"
    reasoner: str | None = None
    start: str | None = None
    model: ModelConfig = ModelConfig()
    steps: int = 1500
    stop_at: float | None = None
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    solutions: int = 20000
    corrupted: float = 0.4
    early: float = 1.0
    temperature: float = 0.8
    seed: int = 0
    log_every: int = 50
    out: str = "runs/tiny"

    def __post_init__(self) -> None:
        """Refuses what is outside its domain."""
        at_least(self, 1, "steps", "batch_size", "solutions", "log_every")
        at_least(self, 0, "warmup", "seed", "early")
        positive(self, "learning_rate", "temperature")
        within(self, "(0, 1]", "stop_at")
        within(self, "[0, 1]", "corrupted")
        if self.task == "verifier" and self.reasoner is None:
            raise InputError("reasoner is not given; the verifier learns from its solutions")


class Batch(NamedTuple):
    """Sequences, padded on the right.

    Attributes:
        tokens: [B, L] int32.
        targets: [B, L] int32: the next token where the solution is, or at the end of a step
            whether the solution is right up to there; IGNORED elsewhere.
        digits: [B, L] int32: the right digit, before the verifier reads one; IGNORED elsewhere.
        alone: [B, L] int32: at the end of a step whether it is right by itself; IGNORED elsewhere.
    """

    tokens: np.ndarray
    targets: np.ndarray
    digits: np.ndarray
    alone: np.ndarray


class Judged(NamedTuple):
    """A sampled solution with the labels of its steps."""

    chain: Chain
    steps: list[str]
    labels: list[bool]

    @classmethod
    def of(cls, chain: Chain, steps: list[str]) -> "Judged":
        """A solution of a problem, judged by exact arithmetic."""
        return cls(chain, steps, check_steps(chain, steps))


class Examples:
    """Turns problems and solutions into batches of a task."""

    def __init__(self, task: str, tokenizer: Any):
        self.task = task
        self.tokenizer = tokenizer
        self.step = tokenizer.convert_tokens_to_ids(STEP)
        self.end = tokenizer.convert_tokens_to_ids(END)
        # Length of a group's longest sequence, whatever its numbers; one compilation for each.
        self.lengths = {
            group: max(map(len, self._encode(draw_chains(0, 400, levels=group)))) + 1
            for group in GROUPS
        }

    def _encode(self, items: Sequence[Chain | Judged]) -> list[list[int]]:
        conversations = []
        for item in items:
            chain, steps = (item, item.steps) if isinstance(item, Chain) else item[:2]
            messages = {"system": SYSTEM_PROMPT, "user": chain.question}
            messages["assistant"] = "".join(step + STEP for step in steps)
            if self.task == "reasoner":
                messages = {"user": chain.question, "assistant": chain.solution}
            conversations.append([{"role": r, "content": c} for r, c in messages.items()])
        return self.tokenizer.apply_chat_template(conversations, return_dict=False)

    def batch(self, items: Sequence[Any], group: tuple[int, ...]) -> Batch:
        """Encodes items of one group of levels; what is longer than its length is cut off."""
        length = self.lengths[group]
        tokens = np.full((len(items), length), self.tokenizer.pad_token_id, np.int32)
        targets, digits, alone = np.full((3, len(items), length), IGNORED, np.int32)
        for row, (item, ids) in enumerate(zip(items, self._encode(items), strict=True)):
            ids = np.array(ids[:length], np.int32)
            tokens[row, : len(ids)] = ids
            if self.task == "verifier":
                ends = np.flatnonzero(ids == self.step)
                targets[row, ends] = item.labels[: len(ends)]
                for end, step, right in zip(ends, item.steps, _from_before(item), strict=False):
                    alone[row, end] = step == right
                    if right is not None and len(step) == len(right) and "=" in right:
                        for before, place in DIGITS.items():
                            digits[row, end + before] = int(right[place])
            else:
                # The user's message is followed by a newline, <|im_start|> and "assistant\n".
                question, end = np.flatnonzero(ids == self.end)
                begin = question + 3
                targets[row, begin:end] = ids[begin + 1 : end + 1]
        return Batch(tokens, targets, digits, alone)


def _from_before(judged: Judged) -> Iterator[str | None]:
    """What each step should be after the one before it as it is written, right or wrong."""
    value = str(judged.chain.start)
    for index, step in enumerate(judged.steps):
        known = value.isascii() and value.isdigit()
        right = None
        if known and index <= judged.chain.level:
            right = Chain(int(value), judged.chain.operations[index : index + 1]).steps[0]
        yield right
        value = step[-2:]


def corrupt(chain: Chain, random: np.random.Generator) -> Judged:
    """The right solution but for one mistake, from which it goes on without another.

    The reasoner's mistakes are nearly all of one kind, and a verifier that knows no others is
    helpless where one of them comes up among many samples. The generator draws the step, what is
    wrong in it and by how much.
    """
    index, shift = random.integers(chain.level), random.integers(1, 10)
    wrong = list(chain.steps[index])
    for place in MISTAKES[random.integers(len(MISTAKES))]:
        wrong[place] = str((int(wrong[place]) + shift) % 10)
    rest = Chain(int(wrong[FIRST] + wrong[LAST]), chain.operations[index + 1 :])
    return Judged.of(chain, [*chain.steps[:index], "".join(wrong), *rest.steps])


def run(config: TinyConfig) -> None:
    """Trains and writes the checkpoint.

    Raises:
        InputError: If a checkpoint cannot be read or the output not be written.
    """
    if config.reasoner is not None and not (Path(config.reasoner) / "config.json").is_file():
        raise InputError(f"reasoner: {config.reasoner} is not a checkpoint's folder")
    tokenizer = build_tokenizer()
    model = _model(config, len(tokenizer))
    examples = Examples(config.task, tokenizer)
    draw, validation = _data(config, examples)
    owned = ("config.json", "model.safetensors", "generation_config.json", "training.json")
    with output_folder(Path(config.out), owned) as folder:
        record = fit(model, draw, validation, config)
        ids = {"eos_token_id": examples.end, "pad_token_id": tokenizer.pad_token_id}
        model.save_pretrained(folder, **ids)
        tokenizer.save_pretrained(str(folder))
        settings = dataclasses.asdict(config) | {"out": None}
        written = {"command": "python -m train.tiny", "config": settings, "record": record}
        (folder / "training.json").write_text(json.dumps(written, indent=1) + "\n")
        if config.task == "reasoner":
            sampling = ids | {"do_sample": True, "temperature": config.temperature}
            (folder / "generation_config.json").write_text(json.dumps(sampling, indent=2) + "\n")
    print(json.dumps(record[-1], indent=1))
    print(f"checkpoint: {config.out}")


def _model(config: TinyConfig, vocab_size: int) -> Qwen2:
    ties = config.task == "reasoner"
    head = "language_model" if ties else "process_reward"
    if config.start is None:
        start, given = None, dataclasses.asdict(config.model)
        given |= {"vocab_size": vocab_size, "max_position_embeddings": 512, "rope_theta": 10000.0}
        with bad_input("model", (InputError,)):
            sizes = Qwen2Config(**given, head=head, tie_word_embeddings=ties)
    else:
        with bad_input("start", (InputError,)):
            start = Qwen2.from_pretrained(config.start)
        sizes = dataclasses.replace(start.config, head=head, tie_word_embeddings=ties)
    depth = sizes.num_hidden_layers
    if config.task == "verifier" and config.early and depth + DIGITS_LAYER < 0:
        raise InputError(
            f"early is {config.early}, and the model has {depth} layers: what it learns on the way "
            f"needs {-DIGITS_LAYER}; give a deeper one, or --early 0"
        )
    model = Qwen2(sizes, rngs=nnx.Rngs(config.seed))
    if start is not None and start.config == sizes:
        nnx.update(model, nnx.state(start))
    elif start is not None:  # of another task: its head is of no use
        nnx.update(model.model, nnx.state(start.model))
    return model


# Data ---------------------------------------------------------------------------------------------

Draw = Callable[[int], Batch]


def _data(config: TinyConfig, examples: Examples) -> tuple[Draw, dict[int, Batch]]:
    """A function from the step to its batch, and the validation batches by level."""
    group_of = {level: group for group in GROUPS for level in group}
    # A group in proportion to its levels, so that all levels are equally frequent; for the
    # verifier, which has the most to learn from long solutions, to its steps.
    weigh = len if config.task == "reasoner" else sum
    shares = np.array([weigh(group) for group in GROUPS]) / weigh(LEVELS)

    def group_at(step: int) -> tuple[int, ...]:
        return GROUPS[np.random.default_rng([config.seed, 0, step]).choice(len(GROUPS), p=shares)]

    if config.task == "reasoner":

        def draw(step: int) -> Batch:
            group = group_at(step)
            chains = draw_chains([config.seed, TRAINING, step], config.batch_size, levels=group)
            return examples.batch(chains, group)

        held_out = draw_chains([config.seed, VALIDATION], 700)
    else:
        solved = sample_solutions(config, draw_chains([config.seed, TRAINING], config.solutions))
        by_group = {g: [s for s in solved if group_of[s.chain.level] == g] for g in GROUPS}

        def draw(step: int) -> Batch:
            group = group_at(step)
            random = np.random.default_rng([config.seed, TRAINING, step])
            chosen = random.integers(len(by_group[group]), size=config.batch_size)
            items = [by_group[group][i] for i in chosen]
            random = np.random.default_rng([config.seed, CORRUPTION, step])
            for place in np.flatnonzero(random.random(len(items)) < config.corrupted):
                items[place] = corrupt(items[place].chain, random)
            return examples.batch(items, group)

        count = max(config.solutions // 10 // REPEATS, 50)
        problems = draw_chains([config.seed, VALIDATION], count)
        held_out = sample_solutions(config, [c for c in problems for _ in range(REPEATS)])
    chains = [item if isinstance(item, Chain) else item.chain for item in held_out]
    pairs = list(zip(chains, held_out, strict=True))
    validation = {
        level: examples.batch([item for c, item in pairs if c.level == level], group_of[level])
        for level in LEVELS
    }
    return draw, validation


def sample_solutions(config: TinyConfig, chains: list[Chain]) -> list[Judged]:
    """A solution of each problem by the reasoner, its steps labelled."""
    assert config.reasoner is not None  # the configuration's own check
    # vLLM's own defaults would use every core twice and leave no memory.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    sizes: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": 256}
    engine = LLM(config.reasoner, dtype="float32", enforce_eager=True, seed=config.seed, **sizes)
    conversations: list[Any] = [[{"role": "user", "content": chain.question}] for chain in chains]
    sampling = [
        SamplingParams(temperature=config.temperature, max_tokens=128, seed=config.seed + index)
        for index in range(len(chains))
    ]
    try:
        written = engine.chat(conversations, sampling)
    finally:
        # Training wants its cores and memory back.
        engine.llm_engine.engine_core.shutdown()
    pairs = zip(chains, written, strict=True)
    return [Judged.of(chain, split_steps(each.outputs[0].text)) for chain, each in pairs]


# Training -----------------------------------------------------------------------------------------


def fit(
    model: Qwen2, draw: Draw, validation: dict[int, Batch], config: TinyConfig
) -> list[dict[str, Any]]:
    """Trains a model in place, on the batch drawn at each step; one record a measurement."""
    reasons = config.task == "reasoner"
    graph, params = nnx.split(_Learner(model, nnx.Rngs(config.seed)))
    state = _optimizer(config).init(params)
    measure = reasoner_accuracy if reasons else verifier_quality
    record, losses, start = [], [], time.perf_counter()
    with progress() as bar:
        task = bar.add_task(f"training the {config.task}", total=config.steps)
        for step in range(config.steps):
            params, state, value = _update(params, state, draw(step), graph, config)
            losses.append(value)
            bar.advance(task)
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                entry = {
                    "step": step + 1,
                    "loss": float(jnp.stack(losses).mean()),
                    "seconds": round(time.perf_counter() - start, 1),
                    **measure(lambda t: np.asarray(_predict(params, t, graph, config)), validation),  # noqa: B023
                }
                record.append(entry)
                losses = []
                print(json.dumps(entry), file=sys.stderr, flush=True)
                reached = entry["accuracy" if reasons else "step_auc"]
                if config.stop_at is not None and reached >= config.stop_at:
                    break
    nnx.update(model, params.model)
    return record


def _optimizer(config: TinyConfig) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(config.warmup, config.steps - 1), config.steps
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay),
    )


@functools.partial(jax.jit, static_argnames=("graph", "config"), donate_argnums=(0, 1))
def _update(
    params: Any, state: Any, batch: Batch, graph: nnx.GraphDef, config: TinyConfig
) -> tuple[Any, Any, jax.Array]:
    def loss(params: Any) -> jax.Array:
        learner = nnx.merge(graph, params)
        states = list(learner.model.states(jnp.asarray(batch.tokens)))
        value = _cross_entropy(learner.model.logits(states[-1]), batch.targets)
        if config.task == "verifier" and config.early:
            early = _cross_entropy(learner.digit(states[DIGITS_LAYER]), batch.digits)
            early += _cross_entropy(learner.step(states[STEP_LAYER]), batch.alone)
            value += config.early * early
        return value

    value, gradient = jax.value_and_grad(loss)(params)
    changes, state = _optimizer(config).update(gradient, state, params)
    return optax.apply_updates(params, changes), state, value


@functools.partial(jax.jit, static_argnames=("graph", "config"))
def _predict(params: Any, tokens: jax.Array, graph: nnx.GraphDef, config: TinyConfig) -> jax.Array:
    logits = nnx.merge(graph, params).model(tokens)
    # The accuracy of a sample is at the temperature; a verifier has none.
    scale = config.temperature if config.task == "reasoner" else 1.0
    return jax.nn.log_softmax(logits / scale)


class _Learner(nnx.Module):
    """A model with the heads that it needs in training only."""

    def __init__(self, model: Qwen2, rngs: nnx.Rngs):
        self.model = model
        width = model.config.hidden_size
        self.digit, self.step = (
            nnx.Sequential(nnx.RMSNorm(width, rngs=rngs), nnx.Linear(width, outputs, rngs=rngs))
            for outputs in (10, 2)
        )


def _cross_entropy(logits: jax.Array, targets: np.ndarray) -> jax.Array:
    """Mean over all targets that are not ignored."""
    counted = targets != IGNORED
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, targets, 0))
    return jnp.sum(each * counted) / jnp.sum(counted)


Predict = Callable[[np.ndarray], np.ndarray]


def reasoner_accuracy(predict: Predict, validation: dict[int, Batch]) -> dict[str, Any]:
    """Probability that a sample is the right solution, without sampling.

    Args:
        predict: From tokens [B, L] to log-probabilities [B, L, V].
        validation: Level to batch.
    """
    by_level = {}
    for level, batch in validation.items():
        counted = batch.targets != IGNORED
        chosen = np.where(counted, batch.targets, 0)[..., None]
        each = np.take_along_axis(predict(batch.tokens), chosen, -1)[..., 0]
        by_level[level] = round(float(np.exp((each * counted).sum(1)).mean()), 4)
    mean = round(float(np.mean(list(by_level.values()))), 4)
    return {"accuracy": mean, "accuracy_by_level": by_level}


def verifier_quality(predict: Predict, validation: dict[int, Batch]) -> dict[str, Any]:
    """How well step scores separate good steps from bad, and right solutions from wrong ones.

    Args:
        predict: From tokens [B, L] to log-probabilities [B, L, 2].
        validation: Level to batch, REPEATS solutions to a problem.

    Returns:
        `step_auc` over all steps and `good`, the share of good ones; `solution_auc` of the mean
        step score, between solutions of the same problem, and `right`, the share of right ones.
    """
    scores, labels, solutions, rights = [], [], [], []
    for level, batch in validation.items():
        score, asked = predict(batch.tokens)[..., 1], batch.targets != IGNORED
        scores.append(score[asked])
        labels.append(batch.targets[asked])
        solutions.append((np.exp(score) * asked).sum(1) / np.maximum(asked.sum(1), 1))
        # All operations and the box.
        rights.append(((batch.targets == 1).sum(1) == level + 1).astype(int))
    score, label = np.concatenate(scores), np.concatenate(labels)
    solution, right = (np.concatenate(v).reshape(-1, REPEATS) for v in (solutions, rights))
    mixed = (right.min(1) == 0) & (right.max(1) == 1)
    within = [auc(s, r) for s, r in zip(solution[mixed], right[mixed], strict=True)]
    found = {"step_auc": auc(score, label), "good": label.mean()}
    found |= {"solution_auc": np.mean(within) if within else np.nan, "right": right.mean()}
    return {name: round(float(value), 4) for name, value in found.items()}


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a good step's score is above a bad one's, ties counted half.

    Args:
        scores: [n] any real numbers.
        labels: [n] 1 for good, 0 for bad; both must occur.
    """
    rank, good = scipy.stats.rankdata(scores), labels.sum()
    return float((rank[labels == 1].sum() - good * (good + 1) / 2) / (good * (len(labels) - good)))


main = command(TinyConfig, run, __name__, configs="tiny")

if __name__ == "__main__":
    sys.exit(main())
