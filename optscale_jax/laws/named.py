"""The shipped laws by name, and one's own."""

import jax
import jax.numpy as jnp

from optscale_jax.estimation import Prior
from optscale_jax.laws.base import Law
from optscale_jax.laws.beta import beta
from optscale_jax.laws.logit_normal import logit_normal
from optscale_jax.laws.truncated_normal import truncated_normal
from optscale_jax.laws.with_atoms import with_atoms
from optscale_jax.plugins import make_part

__all__ = ["LAWS", "make_law"]

LAWS: dict[str, Law] = {
    "truncated_normal": truncated_normal(),
    "beta": beta(),
    "logit_normal": logit_normal(),
}
LAWS |= {f"{name}_with_atoms": with_atoms(law) for name, law in LAWS.items()}
"""The shipped laws by name."""


def make_law(law: str | Law) -> Law:
    """The law of a name in `LAWS`, such as "beta", or of `module:name`, or the one given.

    Raises:
      ValueError: no law has that name, it is no law, or its distribution has no log_cdf.
    """
    law = make_part(law, Law, what="law", shipped=LAWS)
    if any(law is shipped for shipped in LAWS.values()):
        return law
    dtype = jnp.result_type(float)

    def log_cdf(score):
        # A start that wants a prior is as good as any for what is asked here.
        prior = Prior(0.5, 0.2, 0.1, 0.1) if law.takes_prior else None
        return law.distribution(law.start(prior, dtype)).log_cdf(score)

    try:
        jax.eval_shape(log_cdf, jax.ShapeDtypeStruct((), dtype))
    except (NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"law: the distribution of {type(law).__name__} has no log_cdf, which the bound reads; "
            f"give it one ({error})"
        ) from error
    return law
