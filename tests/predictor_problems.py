"""Problems whose features carry their difficulty, and their training, also as a process of its own.

    python -m tests.predictor_problems [COORDINATOR PROCESSES PROCESS]

prints the losses of each epoch as JSON, for the test that compares numbers of devices.

All tests train on problems of these shapes: what is compiled once serves every training in a
process. The parts that training keeps from the heads, the test and the folds, are of one size.
"""

import functools
import json
import sys

import jax
import numpy as np

from optscale_jax import synthetic_pool
from optscale_jax.predictor.data import SplitConfig
from optscale_jax.predictor.features import Features
from optscale_jax.predictor.head import HeadConfig
from optscale_jax.predictor.labels import Labels, labels_of_pool
from optscale_jax.predictor.parts import OptimizerConfig
from optscale_jax.predictor.training import TrainingConfig, train
from optscale_jax.synthetic import SyntheticConfig, synthetic_problems

COUNT = 320
WIDTH = 64  # of tests.checkpoints.save_model
CONFIG = TrainingConfig(
    head=HeadConfig(hidden=[16], dropout=[0.1]),
    optimizer=OptimizerConfig(learning_rate=0.04),
    split=SplitConfig(folds=2, test=0.5),
    members=2,
    epochs=4,
    batch_size=40,
)


@functools.cache
def labelled() -> tuple[Labels, np.ndarray]:
    """Labels of synthetic problems, and their difficulties."""
    key, config = jax.random.key(0), SyntheticConfig(score_scale_spread=0.1)
    pool = synthetic_pool(key, num_problems=COUNT, num_samples=24, config=config)
    truth = synthetic_problems(key, num_problems=COUNT, config=config)
    labels = labels_of_pool(pool, "synthetic")
    texts = {name: f"text of {name}" for name in labels.problem_ids}
    return labels.with_texts(texts, ""), np.asarray(truth.difficulty)


def problems(count: int = COUNT, *, tokens: bool = False) -> tuple[Features, Labels]:
    """Features that are difficulty, noise and nothing; a row for each problem, or up to 16."""
    labels, difficulties = labelled()
    rng = np.random.default_rng(0)
    rows = []
    for difficulty in difficulties[:count]:
        own = np.zeros((rng.integers(1, 17) if tokens else 1, WIDTH), np.float32)
        own[:, :5] = rng.normal(size=(len(own), 5))
        own[:, 0] = difficulty + 0.3 * own[:, 0]
        rows.append(own)
    return Features(rows, np.array([len(each) for each in rows]), count), labels.take(slice(count))


def main(arguments: list[str]) -> None:
    """Trains, in one process or as one of several."""
    if arguments:
        coordinator, processes, process = arguments
        jax.distributed.initialize(coordinator, int(processes), int(process))
    losses: list[float] = []
    fitted = train(*problems(), CONFIG, log=lambda numbers: losses.append(numbers["loss"]))
    result = {"devices": jax.device_count(), "losses": losses}
    result["norm"] = float(sum(np.sum(np.float64(v) ** 2) for v in fitted.params.values()))
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
