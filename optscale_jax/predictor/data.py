"""Problems to train on: who is kept from training, what is computed of each, and batches.

Every process holds all features and gives its devices their part of each batch.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from optscale_jax.checks import at_least, within
from optscale_jax.empirical_bayes import Posterior, fit_pooled_prior, log_marginal, posterior_nodes
from optscale_jax.errors import PredictorError
from optscale_jax.estimation import Prior, ScoreStats
from optscale_jax.predictor.features import Features, padded
from optscale_jax.predictor.labels import Labels
from optscale_jax.predictor.losses import Spread

__all__ = ["Batch", "Normalisation", "Problems", "SplitConfig", "Splits", "replicate", "split"]


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
        """Refuses numbers outside their domain."""
        at_least(self, 2, "folds", of="split.")
        within(self, "[0, 1)", "test", of="split.")


class Splits(NamedTuple):
    """Rows of the problems that are trained on and of those that are not, and everyone's fold."""

    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]
    fold: Int[np.ndarray, " problems"]


class Normalisation(NamedTuple):
    """Mean and sd of each feature over the training problems' rows."""

    mean: Float[np.ndarray, " width"]
    sd: Float[np.ndarray, " width"]

    @classmethod
    def of(cls, rows: list[np.ndarray]) -> "Normalisation":
        """That of features, rows [..., D] of each problem."""
        # Two passes in float64 over one array a time: token-level features may be larger than
        # memory.
        count = sum(len(each) for each in rows)
        mean, square = np.zeros((2, rows[0].shape[1]))
        for each in rows:
            mean += np.sum(each, axis=0, dtype=np.float64) / count
        for each in rows:
            square += np.sum((each.astype(np.float64) - mean) ** 2, axis=0) / count
        sd = np.sqrt(square)
        # A feature that is constant but for rounding says nothing, and is left as it is.
        constant = sd <= 1e-6 * np.maximum(np.abs(mean), 1e-6)
        return cls(mean.astype(np.float32), np.where(constant, 1.0, sd).astype(np.float32))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Rows [..., D] with the mean taken off and the sd divided out, float32."""
        return (np.asarray(rows, np.float32) - self.mean) / self.sd


class Batch(NamedTuple):
    """Problems of a step; `weight` is 0 for those that only fill it up or are a member's fold."""

    features: Float[Any, "batch length width"]
    mask: Bool[Any, "batch length"]
    stats: ScoreStats
    posterior: Posterior
    weight: Float[Any, "batch members"]


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


@dataclasses.dataclass(frozen=True)
class Problems:
    """Features and labels of all problems on the host, and their batches on the devices.

    Attributes:
        splits: Who is trained on.
        members: Heads, each of which is kept from a fold of its own.
        rows: Features of each problem.
        normalisation: Of the features.
        reference: The pooled prior of the training problems.
        stats: Statistics of the scores [P], float32.
        posterior: Nodes under the reference [P, K].
        relative: The same with log weights that make the reference's marginal likelihood 1, so
            that 0 nats are what the pooled prior gets.
        spread: Units of squared errors.
        mesh: The devices.
        pooled: The normalised features [P, D], if there is one row for each problem.
    """

    splits: Splits
    members: int
    rows: list[np.ndarray]
    normalisation: Normalisation
    reference: Prior
    stats: ScoreStats
    posterior: Posterior
    relative: Posterior
    spread: Spread
    mesh: Mesh
    pooled: np.ndarray | None

    @classmethod
    def of(cls, features: Features, labels: Labels, splits: Splits, members: int) -> "Problems":
        """Computes what does not change in training; every process computes the same.

        Raises:
            PredictorError: If there are fewer training problems than devices, or features are not
                finite.
        """
        mesh = Mesh(np.array(jax.devices()), ("data",))
        if len(splits.train) < mesh.devices.size:
            raise PredictorError(
                f"{labels.source}: {len(splits.train)} problems to train on for "
                f"{mesh.devices.size} devices; give more problems, or fewer devices"
            )
        for row, rows in enumerate(features.rows):
            if not np.all(np.isfinite(np.asarray(rows, np.float32))):
                name = labels.problem_ids[row]
                raise PredictorError(
                    f"{labels.source}: features of problem {name!r} are not finite"
                )
        stats = labels.rounded()
        of_train = jax.tree.map(lambda v: v[splits.train], stats)
        reference = jax.tree.map(np.asarray, fit_pooled_prior(of_train))
        posterior = jax.tree.map(np.asarray, posterior_nodes(stats, reference))
        evidence = np.asarray(log_marginal(posterior, reference))
        normalisation = Normalisation.of([features.rows[row] for row in splits.train])
        pooled = all(len(rows) == 1 for rows in features.rows)
        return cls(
            splits=splits,
            members=members,
            rows=features.rows,
            normalisation=normalisation,
            reference=reference,
            stats=stats,
            posterior=posterior,
            relative=posterior._replace(log_weight=posterior.log_weight - evidence[:, None]),
            spread=Spread(
                mean=float(np.std(labels.stats.mean[splits.train])) or 1.0,
                sd=float(np.std(labels.sd[splits.train])) or 1.0,
            ),
            mesh=mesh,
            pooled=normalisation(np.concatenate(features.rows)) if pooled else None,
        )

    @property
    def held_out(self) -> Int[np.ndarray, " held_out"]:
        """Rows of the problems that some member is not trained on."""
        return np.flatnonzero(np.isin(self.splits.fold, np.arange(self.members)))

    def batch(self, rows: np.ndarray, size: int) -> Batch:
        """A batch of `size` for the devices to share, filled up with the last row if short."""
        devices = self.mesh.devices.size
        size = -(-size // devices) * devices
        weight = np.zeros((size, self.members), np.float32)
        weight[: len(rows)] = self.splits.fold[rows, None] != np.arange(self.members)
        rows = np.concatenate([rows, np.full(size - len(rows), rows[-1])])
        if self.pooled is not None:
            features = self.pooled[rows][:, None]
            mask = np.ones((size, 1), bool)
        else:
            tokens = [self.normalisation(self.rows[row]) for row in rows]
            # Padded to powers of two: few compilations.
            length = max(16, 1 << (max(map(len, tokens)) - 1).bit_length())
            features, mask = padded(tokens, size, length)
        stats, posterior = jax.tree.map(lambda v: v[rows], (self.stats, self.relative))
        batch = Batch(features, mask, stats, posterior, weight)
        return _placed(batch, NamedSharding(self.mesh, PartitionSpec("data")))

    def order(self, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
        """The batches of an epoch; token-level features in groups of similar length."""
        random = np.random.default_rng([seed, 1, epoch])
        rows = random.permutation(self.splits.train)
        if self.pooled is None:
            lengths = np.array([len(self.rows[row]) for row in rows])
            # Sorted within stretches of eight batches, so that batches differ between epochs.
            stretch = np.arange(len(rows)) // (8 * size)
            rows = rows[np.lexsort((lengths, stretch))]
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        return iter([batches[index] for index in random.permutation(len(batches))])


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Arrays of which every device has the whole."""
    return _placed(tree, NamedSharding(mesh, PartitionSpec()))


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    def place(leaf):
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, tree)
