"""Trains a head: one pure jitted step, data parallel over all devices of all processes.

The order of the problems and the dropout are functions of the seed, the epoch and the step, and a
checkpoint holds all of the state, so that a run that was cut off ends with the weights, bit for
bit, that it would have ended with. What the step computes does not depend on how many devices share
it, but for the order of its sums.

Builds on the parts (`parts`), the problems (`data`) and the heads' parameters (`ensemble`); what is
fitted afterwards is in `calibration`.
"""

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from optscale_jax.checks import at_least
from optscale_jax.empirical_bayes import log_marginal
from optscale_jax.errors import InputError, PredictorError
from optscale_jax.estimation import Prior
from optscale_jax.predictor import ensemble
from optscale_jax.predictor.calibration import Offsets, Points, Quality, quality
from optscale_jax.predictor.checkpoints import Checkpoints, Progress, State
from optscale_jax.predictor.data import (
    Batch,
    Normalisation,
    Problems,
    SplitConfig,
    Splits,
    replicate,
    split,
)
from optscale_jax.predictor.features import Features
from optscale_jax.predictor.head import HeadConfig, to_prior
from optscale_jax.predictor.labels import Labels
from optscale_jax.predictor.losses import Loss, LossConfig, Spread, Targets
from optscale_jax.predictor.parts import (
    GivenHead,
    GivenLoss,
    GivenOptimizer,
    OptimizerConfig,
    Parts,
    warmup_cosine,
)

__all__ = ["Fitted", "TrainingConfig", "text_hashes", "train"]

_to_prior = jax.jit(to_prior)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a head is trained.

    Attributes:
        head: Which head, and its shape.
        loss: What is minimised.
        optimizer: How.
        split: What is kept from training.
        members: Heads whose outputs are averaged, each trained without a fold of its own; from 1
            to split.folds.
        epochs: Most passes over the training problems, at least 1.
        patience: Epochs without a better validation likelihood before stopping, at least 1.
        batch_size: Problems in a step, at least 1.
        calibrate: Whether to fit two offsets of the outputs, and the regressions of the point
            predictions, to the validation problems at the end.
        seed: Of the split, the weights, the order and the dropout, at least 0.
    """

    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    members: int = 5
    epochs: int = 12
    patience: int = 6
    batch_size: int = 128
    calibrate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain."""
        at_least(self, 1, "epochs", "patience", "batch_size")
        at_least(self, 0, "seed")
        if not 1 <= self.members <= self.split.folds:
            raise InputError(
                f"members is {self.members}; it must be from 1 to split.folds, {self.split.folds}"
            )


_DEFAULT = TrainingConfig()


class Fitted(NamedTuple):
    """A trained head.

    Attributes:
        head: Which one, as it was given.
        params: The members' parameters, by path, [members, ...] each.
        normalisation: Of the features.
        reference: The pooled prior of the training problems, which the outputs deviate from.
        offsets: What is added to the outputs.
        points: What makes point predictions of the priors.
        splits: Who was trained on.
        quality: The quality of the "head" and of the "pooled" prior, for "held_out", where each
            problem has the prior of the one member that was not trained on it, and for "test".
        epochs: Epochs trained, and the one whose weights these are.
        seen: `text_hashes` of the problems trained on.
    """

    head: GivenHead
    params: dict[str, np.ndarray]
    normalisation: Normalisation
    reference: Prior
    offsets: Offsets
    points: Points
    splits: Splits
    quality: dict[str, dict[str, Quality]]
    epochs: dict[str, int]
    seen: np.ndarray


def text_hashes(texts: Iterable[str | None]) -> np.ndarray:
    """What tells texts from all others, uint64, one each; none for those that are None."""
    known = [text.encode() for text in texts if text is not None]
    return np.array([int(hashlib.sha256(text).hexdigest()[:16], 16) for text in known], np.uint64)


def train(
    features: Features,
    labels: Labels,
    config: TrainingConfig = _DEFAULT,
    *,
    head: GivenHead | None = None,
    loss: GivenLoss | None = None,
    optimizer: GivenOptimizer | None = None,
    checkpoints: Path | None = None,
    log: Callable[[dict[str, int | float]], None] | None = None,
    resumed: Callable[[int], None] | None = None,
) -> Fitted:
    """Trains a head on frozen features.

    Args:
        features: Of the labels' texts; tokens' rows for attention, one row a text otherwise.
        labels: Problems whose scores spread (`Labels.with_spread`).
        config: How.
        head: Instead of the configuration's: a shipped name, module:name or ./file.py:name; a
            configuration; or what makes the head, called with the features' width and rngs, such
            as a flax.nnx.Module's class. The module is called with features [B, length, width],
            mask [B, length] and key (None: no dropout), and gives outputs [B, 4] (`to_prior`).
        loss: Likewise: a name, a configuration, or a function of priors [B] and `Targets` [B] to
            numbers [B].
        optimizer: Likewise: a name, a configuration, an optax.GradientTransformation, or a function
            of the number of steps that makes one.
        checkpoints: Folder for checkpoints, one an epoch; a run that finds one there goes on from
            it. None: none are made.
        log: Called after each epoch with its numbers.
        resumed: Called with the epoch that a checkpoint was found of.

    Returns:
        The head with the best validation likelihood.

    Raises:
        InputError: If a part cannot be found or gives something of another shape, a split is
            empty, there are fewer training problems than devices, features are not finite, the
            checkpoints are another training's, or the loss is not finite.
    """
    head = config.head if head is None else head
    given = config.optimizer if optimizer is None else optimizer
    parts = Parts.find(head, config.loss if loss is None else loss, given)
    parts.check(features.width, tokens=any(len(rows) != 1 for rows in features.rows))
    splits = split(labels, config.split, config.seed)
    steps = -(-len(splits.train) // config.batch_size) * config.epochs
    optimizer = parts.optimizer(steps)
    loop = _Loop(
        config=config,
        problems=Problems.of(features, labels, splits, config.members),
        graph=ensemble.abstract(parts.head, features.width)[0],
        loss=parts.loss,
        optimizer=optimizer,
        learning_rate=_schedule(given, steps),
        source=labels.source,
    )
    start = ensemble.initial(parts.head, features.width, config.members, config.seed)
    with Checkpoints(checkpoints) as store:
        progress = loop.run(start, store, log, resumed)
    return _finish(loop, progress, head, text_hashes(labels.texts[row] for row in splits.train))


class _Loop(NamedTuple):
    """Epochs of steps, until the validation likelihood is no longer better."""

    config: TrainingConfig
    problems: Problems
    graph: Any
    loss: Loss
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule | None
    source: str

    def run(
        self,
        params: Any,
        store: Checkpoints,
        log: Callable[[dict[str, int | float]], None] | None,
        resumed: Callable[[int], None] | None,
    ) -> Progress:
        """Trains from some parameters, or from the last checkpoint."""
        optimizer = jax.jit(jax.vmap(self.optimizer.init))(params)
        state = State(np.zeros((), np.int32), params, optimizer)
        state, progress = store.latest(state, Progress(0, 0, math.inf, params))
        if progress.epoch and resumed is not None:
            resumed(progress.epoch)
        state = replicate(state, self.problems.mesh)
        while progress.epoch < self.config.epochs and progress.stale < self.config.patience:
            started = time.perf_counter()
            state, loss = self._epoch(state, progress.epoch)
            gain = self._validation_gain(state.params)
            better = -gain < progress.best
            progress = Progress(
                epoch=progress.epoch + 1,
                stale=0 if better else progress.stale + 1,
                best=min(-gain, progress.best),
                params=jax.tree.map(np.asarray, state.params) if better else progress.params,
            )
            store.save(jax.tree.map(np.asarray, state), progress)
            if log is not None:
                numbers = {"epoch": progress.epoch, "step": int(state.step), "loss": loss}
                numbers["validation_gain"] = gain
                if self.learning_rate is not None:
                    rate = self.learning_rate(int(state.step))
                    numbers["learning_rate"] = np.asarray(rate).item()
                log({**numbers, "seconds": round(time.perf_counter() - started, 3)})
        return progress

    def _epoch(self, state: State, epoch: int) -> tuple[State, float]:
        config, problems = self.config, self.problems
        step = _make_step(self.graph, self.loss, self.optimizer)
        key = np.asarray(jax.random.key_data(jax.random.key(config.seed)))
        losses, weights = [], []
        for rows in problems.order(config.batch_size, config.seed, epoch):
            batch = problems.batch(rows, config.batch_size)
            state, value = step(state, batch, problems.reference, problems.spread, key)
            losses.append(value)
            weights.append(len(rows))
        loss = float(np.average(np.asarray(jax.device_get(losses)), weights=weights))
        if not math.isfinite(loss):
            raise PredictorError(
                f"{self.source}: the loss of epoch {epoch + 1} is {loss}; lower "
                "--optimizer.learning_rate"
            )
        return state, loss

    def _validation_gain(self, params: Any) -> float:
        """Log marginal likelihood over the reference's, of members on what they have not seen."""
        problems = self.problems
        prior = _to_prior(jnp.asarray(self.unseen(params)), problems.reference)
        relative = jax.tree.map(itemgetter(problems.held_out), problems.relative)
        return float(np.mean(log_marginal(relative, prior)))

    def unseen(self, params: Any) -> Float[np.ndarray, "held_out outputs"]:
        """For each held-out problem, the outputs of the member that was not trained on it."""
        held_out = self.problems.held_out
        member = self.problems.splits.fold[held_out]
        return self.outputs(params, held_out)[np.arange(len(held_out)), member]

    def outputs(self, params: Any, rows: np.ndarray) -> Float[np.ndarray, "rows members outputs"]:
        """All members' outputs for some problems."""
        size = self.config.batch_size
        everywhere = NamedSharding(self.problems.mesh, PartitionSpec())
        outputs_of = ensemble.make_outputs(self.graph, everywhere)
        parts = []
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            batch = self.problems.batch(some, size)
            parts.append(np.asarray(outputs_of(params, batch.features, batch.mask))[: len(some)])
        return np.concatenate(parts)


@ensemble.once
def _make_step(graph: Any, loss: Loss, optimizer: optax.GradientTransformation) -> Callable:
    """The step of all members: pure, jitted, the same for every training with these parts."""

    def batch_loss(params, weight, key, batch, reference, spread):
        outputs = nnx.merge(graph, params)(batch.features, batch.mask, key=key)
        targets = Targets(batch.stats, batch.posterior, spread)
        each = loss(to_prior(outputs, reference), targets)
        return jnp.sum(weight * each) / jnp.maximum(jnp.sum(weight), 1)

    def member_step(params, optimizer_state, weight, key, batch, *fixed):
        value, gradient = jax.value_and_grad(batch_loss)(params, weight, key, batch, *fixed)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, value

    @functools.partial(jax.jit, donate_argnums=0)
    def step(
        state: State, batch: Batch, reference: Prior, spread: Spread, seed: Array
    ) -> tuple[State, Array]:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed), state.step)
        keys = jax.random.split(key, batch.weight.shape[1])
        axes = (0, 0, 1, 0, None, None, None)
        params, optimizer_state, values = jax.vmap(member_step, in_axes=axes)(
            state.params, state.optimizer, batch.weight, keys, batch, reference, spread
        )
        return State(state.step + 1, params, optimizer_state), jnp.mean(values)

    return step


def _schedule(given: GivenOptimizer, steps: int) -> optax.Schedule | None:
    """The learning rate of the shipped optimizer; another's is its own affair."""
    config = OptimizerConfig(name=given) if isinstance(given, str) else given
    if not isinstance(config, OptimizerConfig) or config.name != "adamw":
        return None
    return warmup_cosine(steps, learning_rate=config.learning_rate, warmup=config.warmup)


def _finish(loop: _Loop, progress: Progress, head: GivenHead, seen: np.ndarray) -> Fitted:
    """Calibrates the best weights and measures them."""
    problems, held_out = loop.problems, loop.problems.held_out
    best = replicate(progress.params, problems.mesh)
    unseen = loop.unseen(best)
    offsets, points = Offsets(), Points()
    if loop.config.calibrate:
        stats, relative = jax.tree.map(itemgetter(held_out), (problems.stats, problems.relative))
        prior = _to_prior(jnp.asarray(unseen), problems.reference)
        offsets = Offsets.fit(prior, unseen, stats, relative)
        points = Points.fit(_to_prior(offsets(unseen), problems.reference), stats)
    parts = {"held_out": (unseen, held_out)}
    if len(problems.splits.test):
        test = problems.splits.test
        parts["test"] = loop.outputs(best, test).mean(axis=1), test
    found = {}
    for name, (outputs, rows) in parts.items():
        stats, nodes = jax.tree.map(itemgetter(rows), (problems.stats, problems.posterior))
        prior = _to_prior(offsets(outputs), problems.reference)
        found[name] = {
            "head": quality(prior, stats, nodes, points),
            "pooled": quality(problems.reference, stats, nodes),
        }
    return Fitted(
        head=head,
        params=ensemble.flatten(progress.params),
        normalisation=problems.normalisation,
        reference=problems.reference,
        offsets=offsets,
        points=points,
        splits=problems.splits,
        quality=found,
        epochs={"trained": progress.epoch, "best": progress.epoch - progress.stale},
        seen=seen,
    )
