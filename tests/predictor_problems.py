"""Problems whose features carry their difficulty, and their training, also as a process of its own.

    python -m tests.predictor_problems [COORDINATOR PROCESSES PROCESS]

prints the losses of each epoch as JSON, for the tests that compare numbers of devices.
"""

import json
import sys

import jax
import numpy as np

from optscale_jax import synthetic_pool
from optscale_jax.predictor.features import Features
from optscale_jax.predictor.head import HeadConfig
from optscale_jax.predictor.labels import Labels, labels_of_pool
from optscale_jax.predictor.training import OptimizerConfig, TrainingConfig, train
from optscale_jax.synthetic import SyntheticConfig, synthetic_problems

CONFIG = TrainingConfig(
    head=HeadConfig(hidden=[16], dropout=[0.1]),
    optimizer=OptimizerConfig(learning_rate=0.02),
    members=2,
    epochs=4,
    batch_size=40,
)


def problems(count: int = 240, *, tokens: bool = False) -> tuple[Features, Labels]:
    """Features that are difficulty and noise, a row for each problem or several."""
    key, config = jax.random.key(0), SyntheticConfig(score_scale_spread=0.1)
    pool = synthetic_pool(key, num_problems=count, num_samples=24, config=config)
    truth = synthetic_problems(key, num_problems=count, config=config)
    rng = np.random.default_rng(0)
    rows = []
    for difficulty in truth.difficulty:
        noise = rng.normal(size=(rng.integers(1, 20) if tokens else 1, 5))
        noise[:, 0] = difficulty + 0.3 * noise[:, 0]
        rows.append(noise.astype(np.float32))
    labels = labels_of_pool(pool, "synthetic")
    labels = labels.with_texts({name: f"text of {name}" for name in labels.problem_ids}, "")
    return Features(rows, np.array([len(each) for each in rows]), count), labels


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
