"""A replay of several rules, here and in a process of several devices:

python -m tests.replayed FILE
"""

import sys

import jax
import numpy as np

from optscale_jax import policies, replay, synthetic_pool
from optscale_jax.calibration import Calibration
from optscale_jax.estimation import Prior


def results() -> dict[str, np.ndarray]:
    """Everything that is found out: 37 problems, which no number of devices but one divides."""
    pool = synthetic_pool(jax.random.key(3), num_problems=37, num_samples=16)
    rng = np.random.default_rng(0)
    prior = Prior(rng.uniform(0.3, 0.9, 37), 0.1, 0.2, 0.5)
    rules = {
        "optscale": (policies.optscale(0.8, 0.9, 16), prior),
        "stack": (policies.stack([policies.optscale(s, 0.9, 16) for s in (0.6, 0.8)]), None),
        "votes": (policies.self_consistency(8), None),
        "all at once": (policies.difficulty_adaptive_self_consistency(0.9, 16), None),
        "calibrated": (
            policies.calibrated_vote(
                Calibration.default(verifier_is_calibrated=True, tokens=100.0), 8, 16
            ),
            None,
        ),
    }
    found = {}
    for name, (rule, given) in rules.items():
        result = replay(pool, rule, key=jax.random.key(1), num_permutations=2, prior=given)
        fields = result._asdict()
        fields |= fields.pop("params")
        found |= {f"{name}: {field}": value for field, value in fields.items()}
    return found


if __name__ == "__main__":
    assert len(jax.local_devices()) == 8
    np.savez(sys.argv[1], **results())
