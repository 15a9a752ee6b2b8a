"""The one error of this package: something given to it cannot be used."""

from optscale_jax.errors import InputError

__all__ = ["PredictorError"]


class PredictorError(InputError):
    """Labels, features or a checkpoint that cannot be used: one line that says what and why."""
