"""Trains a head: one pure jitted step, data parallel over all devices of all processes.

The order of the problems and the dropout are functions of the seed, the epoch and the step, and a
checkpoint holds all of the state, so that a run that was cut off ends with the weights, bit for
bit, that it would have ended with. Every process holds all features and gives its devices their
part of each batch; what the step computes does not depend on how many devices share it, but for
the order of its sums.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from optscale_jax.empirical_bayes import (
    Posterior,
    fit_pooled_prior,
    log_marginal,
    posterior_nodes,
    predictive,
    predictive_interval,
    predictive_spread,
)
from optscale_jax.estimation import Prior, ScoreStats
from optscale_jax.predictor.errors import PredictorError
from optscale_jax.predictor.features import Features
from optscale_jax.predictor.head import OUTPUTS, Head, HeadConfig, to_prior
from optscale_jax.predictor.labels import Labels
from optscale_jax.predictor.losses import LossConfig, Spread, per_problem

__all__ = [
    "Fitted",
    "Normalisation",
    "OptimizerConfig",
    "Points",
    "Quality",
    "SplitConfig",
    "Splits",
    "TrainingConfig",
    "quality",
    "rank_correlation",
    "split",
    "train",
]

COVERAGE = 0.8
"""Coverage of the interval whose honesty is reported."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay to 0.

    Attributes:
        learning_rate: At the end of the warm-up, above 0.
        weight_decay: Decay of matrices, at least 0.
        clip: Largest norm of a gradient, above 0.
        warmup: Share of all steps that the warm-up takes, in [0, 1).
    """

    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: float = 0.1

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the field.
        """
        for name, inside, domain in (
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"),
            ("clip", self.clip > 0, "above 0"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
        ):
            if not inside:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be {domain}")


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How problems are kept from training, at random; those with the same text stay together.

    Attributes:
        folds: Parts of equal size, at least 2. Member m of the ensemble is not trained on part m,
            which serves its early stopping and the calibration of the widths.
        test: Share that only the report at the end sees, in [0, 1).
    """

    folds: int = 5
    test: float = 0.1

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the field.
        """
        if self.folds < 2:
            raise ValueError(f"split.folds is {self.folds}; it must be at least 2")
        if not 0 <= self.test < 1:
            raise ValueError(f"split.test is {self.test}; it must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a head is trained.

    Attributes:
        head: Shape of the head.
        loss: What is minimised.
        optimizer: How.
        split: What is kept from training.
        members: Heads whose outputs are averaged, each trained without a fold of its own; from 1
            to split.folds.
        epochs: Most passes over the training problems, at least 1.
        patience: Epochs without a better validation likelihood before stopping, at least 1.
        batch_size: Problems in a step, at least 1.
        calibrate: Whether to fit two factors of the widths, and the regressions of `Points`,
            to the validation problems at the end.
        seed: Of the split, the weights, the order and the dropout, at least 0.
    """

    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = OptimizerConfig()
    split: SplitConfig = SplitConfig()
    members: int = 5
    epochs: int = 12
    patience: int = 6
    batch_size: int = 128
    calibrate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the field.
        """
        for name, least in (("epochs", 1), ("patience", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 1 <= self.members <= self.split.folds:
            raise ValueError(
                f"members is {self.members}; it must be from 1 to split.folds, {self.split.folds}"
            )


class Splits(NamedTuple):
    """Rows of the problems that are trained on and of those that are not, and everyone's fold."""

    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]
    fold: Int[np.ndarray, " problems"]


class Normalisation(NamedTuple):
    """Mean and sd of each feature over the training problems' rows."""

    mean: Float[np.ndarray, " width"]
    sd: Float[np.ndarray, " width"]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Rows [..., D] with the mean taken off and the sd divided out, float32."""
        return (np.asarray(rows, np.float32) - self.mean) / self.sd


_RIDGE = 1.0
# Of the regressions of point predictions: worth one problem, for columns that hardly differ.


class Points(NamedTuple):
    """Linear regressions from what a prior expects, and how sure it is, to point predictions.

    Scores are no truncated normal exactly. A law that is likely has, on average, a smaller standard
    deviation than the scores, and one with theirs would be less likely; so the prior stays as it
    is, and its point predictions are put right by least squares.

    Attributes:
        mean: Intercept, and slope of the expected mean.
        sd: Intercept, and slopes of the expected mean and sd (`predictive`) and of their sds over
            the prior (`predictive_spread`).
    """

    mean: tuple[float, ...] = (0.0, 1.0)
    sd: tuple[float, ...] = (0.0, 0.0, 1.0, 0.0, 0.0)

    @classmethod
    def fit(cls, prior: Prior, stats: ScoreStats) -> "Points":
        """Least squares over problems.

        Args:
            prior: Fields [P], of problems that these priors were not trained on.
            stats: Statistics of their scores [P].
        """
        own_sd = np.sqrt(np.asarray(stats.m2) / np.asarray(stats.n))
        columns = _columns(prior)
        return cls(_regression(columns[:, :1], stats.mean), _regression(columns, own_sd))

    def __call__(self, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
        """The point predictions of mean and sd [P], in [0, 1] and [0, 1/2]."""
        columns = _columns(prior)

        def line(slopes, most):
            value = slopes[0] + columns[:, : len(slopes) - 1] @ np.asarray(slopes[1:])
            return np.clip(value, 0, most).astype(np.float32)

        return line(self.mean, 1.0), line(self.sd, 0.5)


def _columns(prior: Prior) -> np.ndarray:
    return np.stack([*predictive(prior), *predictive_spread(prior)], axis=-1).astype(np.float64)


def _regression(x: np.ndarray, y: ArrayLike) -> tuple[float, ...]:
    """Intercept and slopes of least squares, the slopes with a ridge."""
    y = np.asarray(y, np.float64)
    centre, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    z = (x - centre) / scale
    gram = z.T @ z + _RIDGE * np.eye(x.shape[1])
    slopes = np.linalg.solve(gram, z.T @ (y - y.mean())) / scale
    return float(y.mean() - slopes @ centre), *map(float, slopes)


_AS_EXPECTED = Points()


class Quality(NamedTuple):
    """How good priors are on problems.

    Attributes:
        problems: How many problems.
        mean_error: Mean squared error of the predicted mean of the scores (`Points`).
        mean_rank: Its rank correlation with the truth (Spearman); NaN for a constant.
        sd_error: The same of the predicted standard deviation.
        sd_rank: Likewise.
        coverage: Share of means inside the central 80% interval.
        nll: Minus the mean log marginal likelihood of a problem's scores, in nats a problem.
    """

    problems: int
    mean_error: float
    mean_rank: float
    sd_error: float
    sd_rank: float
    coverage: float
    nll: float


class Fitted(NamedTuple):
    """A trained head.

    Attributes:
        params: The members' parameters, by path, [members, ...] each.
        normalisation: Of the features.
        reference: The pooled prior of the training problems, which the outputs deviate from.
        points: What makes point predictions of the priors.
        splits: Who was trained on.
        quality: The quality of the "head" and of the "pooled" prior, for "held_out", where each
            problem has the prior of the one member that was not trained on it, and for "test".
        epochs: Epochs trained, and the one whose weights these are.
    """

    params: dict[str, np.ndarray]
    normalisation: Normalisation
    reference: Prior
    points: Points
    splits: Splits
    quality: dict[str, dict[str, Quality]]
    epochs: dict[str, int]


class State(NamedTuple):
    """All that a step reads and writes."""

    step: Array
    params: Any
    optimizer: Any


class Batch(NamedTuple):
    """Problems of a step; `weight` is 0 for those that only fill it up or are a member's fold."""

    features: Float[Array, "batch length width"]
    mask: Bool[Array, "batch length"]
    stats: ScoreStats
    posterior: Posterior
    weight: Float[Array, "batch members"]


def split(labels: Labels, config: SplitConfig, seed: int) -> Splits:
    """Splits problems at random, those with the same text together.

    Raises:
        PredictorError: If a part that was asked for is empty.
    """
    groups: dict[str, list[int]] = {}
    for row, text in enumerate(labels.texts):
        groups.setdefault(text or labels.problem_ids[row], []).append(row)
    order = np.random.default_rng([seed, 0]).permutation(len(groups))
    members = list(groups.values())
    count = round(config.test * len(groups))
    test = sorted(row for index in order[:count] for row in members[index])
    fold = np.full(len(labels), -1)
    for place, index in enumerate(order[count:]):
        fold[members[index]] = place % config.folds
    train = np.flatnonzero(fold >= 0)
    fewest = int(np.min(np.bincount(fold[train], minlength=config.folds))) if len(train) else 0
    for name, size in (("a fold", fewest), ("test", len(test) if config.test else 2)):
        if size < 2:
            raise PredictorError(
                f"{labels.source}: {size} of {len(labels)} problems for {name}; it needs two: give "
                "more problems, or other shares (split.folds, split.test)"
            )
    return Splits(train, np.array(test, int), fold)


# The step -----------------------------------------------------------------------------------------


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of that many steps."""
    schedule = make_schedule(config, steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate at each step."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, round(config.warmup * steps), max(steps, 1)
    )


def make_step(
    graph: Any,
    optimizer: optax.GradientTransformation,
    loss: LossConfig,
    spread: Spread,
    reference: Prior,
    seed: int,
) -> Callable[[State, Batch], tuple[State, Array]]:
    """The step of all members: (state, batch) to (state, mean loss), pure and jitted."""

    def batch_loss(params, weight, key, batch):
        outputs = nnx.merge(graph, params)(batch.features, batch.mask, key=key)
        prior = to_prior(outputs, reference)
        each = per_problem(prior, batch.stats, batch.posterior, spread, loss)
        return jnp.sum(weight * each) / jnp.maximum(jnp.sum(weight), 1)

    def member_step(params, optimizer_state, weight, key, batch):
        value, gradient = jax.value_and_grad(batch_loss)(params, weight, key, batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, value

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: Batch) -> tuple[State, Array]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.random.split(key, batch.weight.shape[1])
        params, optimizer_state, values = jax.vmap(member_step, in_axes=(0, 0, 1, 0, None))(
            state.params, state.optimizer, batch.weight, keys, batch
        )
        return State(state.step + 1, params, optimizer_state), jnp.mean(values)

    return step


# Data ---------------------------------------------------------------------------------------------


class Problems:
    """Features and labels of all problems on the host, and their batches on the devices."""

    def __init__(
        self,
        features: Features,
        normalisation: Normalisation,
        stats: ScoreStats,
        posterior: Posterior,
        trains: np.ndarray,
        mesh: Mesh,
    ):
        self.trains = trains.astype(np.float32)  # [P, members] who is trained on whom
        self.rows = features.rows
        self.normalisation = normalisation
        self.stats = jax.tree.map(lambda v: np.asarray(v, np.float32), stats)
        self.posterior = jax.tree.map(np.asarray, posterior)
        self.mesh = mesh
        pooled = all(len(rows) == 1 for rows in features.rows)
        self.pooled = normalisation(np.concatenate(features.rows)) if pooled else None

    def batch(self, rows: np.ndarray, size: int) -> Batch:
        """A batch of `size` for the devices to share, filled up with the last row if short."""
        devices = self.mesh.devices.size
        size = -(-size // devices) * devices
        weight = np.zeros((size, self.trains.shape[1]), np.float32)
        weight[: len(rows)] = self.trains[rows]
        rows = np.concatenate([rows, np.full(size - len(rows), rows[-1])])
        if self.pooled is not None:
            features = self.pooled[rows][:, None]
            mask = np.ones((size, 1), bool)
        else:
            # Padded to powers of two: few compilations.
            lengths = np.array([len(self.rows[row]) for row in rows])
            length = max(16, 1 << (int(lengths.max()) - 1).bit_length())
            mask = np.arange(length) < lengths[:, None]
            features = np.zeros((size, length, self.rows[0].shape[1]), np.float32)
            for index, row in enumerate(rows):
                features[index, : lengths[index]] = self.normalisation(self.rows[row])
        stats, posterior = jax.tree.map(lambda v: v[rows], (self.stats, self.posterior))
        batch = Batch(features, mask, stats, posterior, weight)  # pyright: ignore[reportArgumentType]
        sharding = NamedSharding(self.mesh, PartitionSpec("data"))
        return jax.tree.map(
            lambda v: jax.make_array_from_callback(v.shape, sharding, lambda index: v[index]), batch
        )

    def order(self, rows: np.ndarray, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
        """The batches of an epoch; token-level features in groups of similar length."""
        random = np.random.default_rng([seed, 1, epoch])
        rows = random.permutation(rows)
        if self.pooled is None:
            lengths = np.array([len(self.rows[row]) for row in rows])
            # Sorted within stretches of eight batches, so that batches differ between epochs.
            stretch = np.arange(len(rows)) // (8 * size)
            rows = rows[np.lexsort((lengths, stretch))]
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        return iter([batches[index] for index in random.permutation(len(batches))])


# Training -----------------------------------------------------------------------------------------


def train(
    features: Features,
    labels: Labels,
    config: TrainingConfig,
    *,
    checkpoints: Path | None = None,
    log: Callable[[dict[str, float]], None] | None = None,
    resumed: Callable[[int], None] | None = None,
) -> Fitted:
    """Trains a head on frozen features.

    Args:
        features: Of the labels' texts; tokens' rows for attention, one row a text otherwise.
        labels: Problems whose scores spread (`Labels.with_spread`).
        config: How.
        checkpoints: Folder for checkpoints, one an epoch; a run that finds one there goes on from
            it. None: none are made.
        log: Called after each epoch with its numbers.
        resumed: Called with the epoch that a checkpoint was found of.

    Returns:
        The head with the best validation likelihood.

    Raises:
        PredictorError: If a split is empty, there are fewer training problems than devices, or
            features are not finite.
    """
    splits = split(labels, config.split, config.seed)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    if len(splits.train) < mesh.devices.size:
        raise PredictorError(
            f"{labels.source}: {len(splits.train)} problems to train on for {mesh.devices.size} "
            "devices; give more problems, or fewer devices"
        )
    for row, rows in enumerate(features.rows):
        if not np.all(np.isfinite(np.asarray(rows, np.float32))):
            raise PredictorError(
                f"{labels.source}: features of problem {labels.problem_ids[row]!r} are not finite"
            )

    # Everything that does not change, on one device: each process computes the same.
    stats = ScoreStats(
        *(np.float32(v) for v in (labels.stats.n, labels.stats.mean, labels.stats.m2))
    )
    of_train = jax.tree.map(lambda v: v[splits.train], stats)
    reference = jax.tree.map(np.asarray, fit_pooled_prior(of_train))
    posterior = posterior_nodes(stats, reference)
    # In nats over the reference, so that 0 is what the pooled prior gets.
    evidence = np.asarray(log_marginal(posterior, reference))
    relative = posterior._replace(log_weight=np.asarray(posterior.log_weight) - evidence[:, None])
    sd = labels.sd[splits.train]
    spread = Spread(
        mean=float(np.std(labels.stats.mean[splits.train])) or 1.0, sd=float(np.std(sd)) or 1.0
    )
    normalisation = _normalise([features.rows[row] for row in splits.train])
    folds = np.arange(config.members)
    trains = splits.fold[:, None] != folds
    problems = Problems(features, normalisation, stats, relative, trains, mesh)
    held_out = np.flatnonzero(np.isin(splits.fold, folds))

    def initial(key):
        return nnx.split(Head(config.head, features.width, rngs=nnx.Rngs(key)), nnx.Param)[1]

    graph = nnx.split(Head(config.head, features.width, rngs=nnx.Rngs(0)), nnx.Param)[0]
    params = jax.vmap(initial)(jax.random.split(jax.random.key(config.seed), config.members))
    steps_per_epoch = -(-len(splits.train) // config.batch_size)
    optimizer = make_optimizer(config.optimizer, steps_per_epoch * config.epochs)
    schedule = make_schedule(config.optimizer, steps_per_epoch * config.epochs)
    state = State(jnp.zeros((), jnp.int32), params, jax.vmap(optimizer.init)(params))
    progress = _Progress(0, 0, math.inf, params)
    if checkpoints is not None:
        with _Checkpoints(checkpoints) as store:
            state, progress = store.latest(state, progress)
        if progress.epoch and resumed is not None:
            resumed(progress.epoch)
    state = _replicate(state, mesh)

    step = make_step(graph, optimizer, config.loss, spread, reference, config.seed)
    outputs_of = _make_outputs(graph, mesh)

    # The member that was not trained on a held-out problem.
    unseen_by = splits.fold[held_out]

    def outputs(params, rows):
        return _predict(outputs_of, params, problems, rows, config.batch_size)

    def gain(outputs, rows):
        each = jax.tree.map(lambda v: v[rows], problems.posterior)
        return float(np.mean(log_marginal(each, _to_prior(jnp.asarray(outputs), reference))))

    with _Checkpoints(checkpoints) as store:
        while progress.epoch < config.epochs and progress.stale < config.patience:
            started = time.perf_counter()
            losses, weights = [], []
            for rows in problems.order(
                splits.train, config.batch_size, config.seed, progress.epoch
            ):
                state, value = step(state, problems.batch(rows, config.batch_size))
                losses.append(value)
                weights.append(len(rows))
            loss = float(np.average(np.asarray(jax.device_get(losses)), weights=weights))
            if not math.isfinite(loss):
                raise PredictorError(
                    f"{labels.source}: the loss of epoch {progress.epoch + 1} is {loss}; lower "
                    "--optimizer.learning_rate"
                )
            unseen = outputs(state.params, held_out)[np.arange(len(held_out)), unseen_by]
            validation = gain(unseen, held_out)
            better = -validation < progress.best
            progress = _Progress(
                epoch=progress.epoch + 1,
                stale=0 if better else progress.stale + 1,
                best=min(-validation, progress.best),
                params=jax.tree.map(np.asarray, state.params) if better else progress.params,
            )
            store.save(jax.tree.map(np.asarray, state), progress)
            if log is not None:
                log(
                    {
                        "epoch": progress.epoch,
                        "step": int(state.step),
                        "loss": loss,
                        "validation_gain": validation,
                        "learning_rate": float(np.asarray(schedule(int(state.step)))),
                        "seconds": round(time.perf_counter() - started, 3),
                    }
                )

    best = _replicate(progress.params, mesh)
    flat = _flatten(progress.params)
    unseen = outputs(best, held_out)[np.arange(len(held_out)), unseen_by]
    offset, points = np.zeros(OUTPUTS, np.float32), Points()
    if config.calibrate:
        offset = _calibrate(unseen, held_out, problems, reference)
        _shift_output(flat, offset, config.head)
        prior = _to_prior(jnp.asarray(unseen + offset), reference)
        points = Points.fit(prior, jax.tree.map(lambda v: v[held_out], stats))
    parts = {"held_out": (unseen, held_out)}
    if len(splits.test):
        parts["test"] = outputs(best, splits.test).mean(axis=1), splits.test
    found = {}
    for name, (values, rows) in parts.items():
        part, nodes = jax.tree.map(lambda v, rows=rows: v[rows], (stats, posterior))
        found[name] = {
            "head": quality(
                _to_prior(jnp.asarray(values + offset), reference), part, nodes, points
            ),
            "pooled": quality(reference, part, nodes),
        }
    return Fitted(
        params=flat,
        normalisation=normalisation,
        reference=reference,
        points=points,
        splits=splits,
        quality=found,
        epochs={"trained": progress.epoch, "best": progress.epoch - progress.stale},
    )


_to_prior = jax.jit(to_prior)


def _normalise(rows: list[np.ndarray]) -> Normalisation:
    # Two passes in float64 over one array a time: token-level features may be larger than memory.
    count = sum(len(each) for each in rows)
    mean, square = np.zeros((2, rows[0].shape[1]))
    for each in rows:
        mean += np.sum(each, axis=0, dtype=np.float64) / count
    for each in rows:
        square += np.sum((each.astype(np.float64) - mean) ** 2, axis=0) / count
    sd = np.sqrt(square)
    # A feature that is constant but for rounding says nothing, and is left as it is.
    constant = sd <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
    return Normalisation(mean.astype(np.float32), np.where(constant, 1.0, sd).astype(np.float32))


def _replicate(tree: Any, mesh: Mesh) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(leaf):
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, tree)


def _make_outputs(graph: Any, mesh: Mesh) -> Callable[[Any, Batch], Array]:
    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def outputs(params, batch):
        def member(params):
            return nnx.merge(graph, params)(batch.features, batch.mask)

        return jax.vmap(member, out_axes=1)(params)

    return outputs


def _predict(
    outputs_of: Callable[[Any, Batch], Array],
    params: Any,
    problems: Problems,
    rows: np.ndarray,
    size: int,
) -> Float[np.ndarray, "rows members outputs"]:
    parts = []
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        parts.append(np.asarray(outputs_of(params, problems.batch(some, size)))[: len(some)])
    return np.concatenate(parts)


# After training -----------------------------------------------------------------------------------


def _calibrate(
    outputs: np.ndarray, rows: np.ndarray, problems: Problems, reference: Prior
) -> np.ndarray:
    """[4] what to add to the outputs of the widths, for priors that are honest on these problems.

    A head is surer on problems that it was trained on than it should be on others. How the widths
    compare with each other is fitted to the validation likelihood; how wide they are, to the
    coverage of the central interval, which the likelihood alone leaves too wide, because a
    problem's law is no truncated normal exactly.
    """
    posterior, stats = jax.tree.map(lambda v: v[rows], (problems.posterior, problems.stats))
    start = jnp.asarray(outputs)

    def prior(widths):
        return to_prior(start + jnp.concatenate([jnp.zeros(OUTPUTS - 2), widths]), reference)

    @jax.jit
    def fit():
        def loss(widths):
            return -jnp.mean(log_marginal(posterior, prior(widths)))

        def newton(_, widths):
            gradient, hessian = jax.grad(loss)(widths), jax.hessian(loss)(widths)
            values, vectors = jnp.linalg.eigh(hessian)
            values = jnp.maximum(jnp.abs(values), 1e-3)
            step = jnp.clip(-vectors @ ((vectors.T @ gradient) / values), -0.5, 0.5)
            return jnp.where(loss(widths + step) < loss(widths), widths + step, widths + step / 8)

        return jax.lax.fori_loop(0, 8, newton, jnp.zeros(2))

    @jax.jit
    def halve(ends, widths):
        middle = ends.mean()
        interval = predictive_interval(prior(widths + middle), COVERAGE, stats.n)
        inside = (interval[:, 0] <= stats.mean) & (stats.mean <= interval[:, 1])
        wide = jnp.mean(inside) > COVERAGE
        return jnp.where(wide, jnp.stack([ends[0], middle]), jnp.stack([middle, ends[1]]))

    widths, ends = fit(), jnp.array([-1.5, 1.5])
    for _ in range(12):
        ends = halve(ends, widths)
    widths = widths + ends.mean()
    return np.concatenate([np.zeros(OUTPUTS - 2, np.float32), np.asarray(widths)])


def _shift_output(params: dict[str, np.ndarray], offset: np.ndarray, config: HeadConfig) -> None:
    """Adds an offset to the biases of the output layers, in place."""
    parts = {1: [[0, 1, 2, 3]], 2: [[0, 2], [1, 3]]}[config.towers]
    for tower, outputs in enumerate(parts):
        name = f"towers.{tower}.output.bias"
        params[name] = params[name] + offset[outputs].astype(params[name].dtype)


def quality(
    prior: Prior, stats: ScoreStats, posterior: Posterior, points: Points = _AS_EXPECTED
) -> Quality:
    """Measures priors against what came of the problems.

    Args:
        prior: Fields [P], or scalar for one prior for all.
        stats: Statistics of the scores [P].
        posterior: Nodes of the same problems.
        points: What makes point predictions of the priors.

    Returns:
        The figures.
    """
    prior = jax.tree.map(lambda v: jnp.broadcast_to(jnp.asarray(v), stats.mean.shape), prior)
    mean, sd = points(prior)
    low, high = np.moveaxis(np.asarray(predictive_interval(prior, COVERAGE, stats.n)), -1, 0)
    own_mean = np.asarray(stats.mean)
    own_sd = np.sqrt(np.asarray(stats.m2) / np.asarray(stats.n))
    return Quality(
        problems=len(own_mean),
        mean_error=float(np.mean((mean - own_mean) ** 2)),
        mean_rank=rank_correlation(mean, own_mean),
        sd_error=float(np.mean((sd - own_sd) ** 2)),
        sd_rank=rank_correlation(sd, own_sd),
        coverage=float(np.mean((low <= own_mean) & (own_mean <= high))),
        nll=-float(np.mean(log_marginal(posterior, prior))),
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation.

    Args:
        a: [P] any real numbers.
        b: [P] likewise.

    Returns:
        The correlation of the ranks, ties sharing theirs; NaN if one of the two is constant.
    """

    def ranks(values):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    a, b = ranks(a), ranks(b)
    if not (a.std() and b.std()):
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


# Checkpoints --------------------------------------------------------------------------------------


class _Progress(NamedTuple):
    """How far training is, beside the state: the best weights so far and since when."""

    epoch: int
    stale: int
    best: float
    params: Any


class _Checkpoints:
    """Orbax checkpoints of the state; nothing without a folder."""

    def __init__(self, folder: Path | None):
        self._manager = None
        if folder is None:
            return
        import orbax.checkpoint as ocp

        process = jax.process_index()
        self._ocp = ocp
        # The state is the same in all processes: the first one writes it alone.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}, barrier_sync_key_prefix="optscale"
            ),
        )
        self._writes = process == 0
        folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def __enter__(self) -> "_Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        if self._manager is not None:
            self._manager.close()

    @staticmethod
    def _tree(state: State, progress: _Progress) -> dict[str, Any]:
        return {
            "step": state.step,
            "params": _flatten(state.params),
            "optimizer": dict(enumerate(jax.tree.leaves(state.optimizer))),
            "best": _flatten(progress.params),
            "progress": np.array([progress.epoch, progress.stale, progress.best], np.float64),
        }

    def save(self, state: State, progress: _Progress) -> None:
        if self._manager is None or not self._writes:
            return
        tree = jax.tree.map(np.asarray, self._tree(state, progress))
        tree = {**tree, "optimizer": {str(k): v for k, v in tree["optimizer"].items()}}
        self._manager.save(progress.epoch, args=self._ocp.args.StandardSave(tree))

    def latest(self, state: State, progress: _Progress) -> tuple[State, _Progress]:
        if self._manager is None or self._manager.latest_step() is None:
            return state, progress
        tree = jax.tree.map(np.asarray, self._tree(state, progress))
        tree = {**tree, "optimizer": {str(k): v for k, v in tree["optimizer"].items()}}
        found: Any = self._manager.restore(
            self._manager.latest_step(), args=self._ocp.args.StandardRestore(tree)
        )
        leaves, structure = jax.tree.flatten(state.optimizer)
        leaves = [np.asarray(found["optimizer"][str(i)]) for i in range(len(leaves))]
        epoch, stale, best = np.asarray(found["progress"]).tolist()
        return (
            State(
                np.asarray(found["step"]),  # pyright: ignore[reportArgumentType]
                _unflatten(state.params, found["params"]),
                jax.tree.unflatten(structure, leaves),
            ),
            _Progress(int(epoch), int(stale), best, _unflatten(progress.params, found["best"])),
        )


def _flatten(params: Any) -> dict[str, np.ndarray]:
    """Parameters by path, such as towers.0.layers.1.kernel."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def _unflatten(like: Any, flat: dict[str, Any]) -> Any:
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(structure, [np.asarray(flat[_name(path)]) for path, _ in leaves])


def _name(path: tuple[Any, ...]) -> str:
    parts = [
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    ]
    return ".".join(part for part in parts if part != "value")
