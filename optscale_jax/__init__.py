"""OptScale in JAX: how many completions a problem needs, decided while sampling.

The law of verifier scores (`TruncatedNormal`), its fits (`fit_mle`, `fit_map`), the bound
(`required_samples`), stopping rules (`policies`), their replay over recorded completions (`Pool`,
`replay`), and the live loop (`solve`). `import optscale_jax` is light: it loads JAX, TFP and NumPy
only; the live loop is loaded when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from optscale_jax import laws, policies
from optscale_jax.bounds import expected_best, marginal_gain, required_samples, success_probability
from optscale_jax.calibration import Calibration
from optscale_jax.distributions import BestOfN, TruncatedNormal
from optscale_jax.errors import InputError, PoolError
from optscale_jax.estimation import Prior, ScoreStats, fit_map, fit_mle
from optscale_jax.laws import Law
from optscale_jax.normal_inverse_gamma import NormalInverseGamma
from optscale_jax.policies import Policy
from optscale_jax.pool import Pool
from optscale_jax.replay import ReplayResult, replay
from optscale_jax.synthetic import SyntheticConfig, synthetic_pool

if TYPE_CHECKING:
    from optscale_jax.live.engine import solve, solve_async

__all__ = [
    "BestOfN",
    "Calibration",
    "InputError",
    "Law",
    "NormalInverseGamma",
    "Policy",
    "Pool",
    "PoolError",
    "Prior",
    "ReplayResult",
    "ScoreStats",
    "SyntheticConfig",
    "TruncatedNormal",
    "expected_best",
    "fit_map",
    "fit_mle",
    "laws",
    "marginal_gain",
    "policies",
    "replay",
    "required_samples",
    "solve",
    "solve_async",
    "success_probability",
    "synthetic_pool",
]


def __getattr__(name: str) -> Any:
    if name in ("solve", "solve_async"):
        from optscale_jax.live import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
