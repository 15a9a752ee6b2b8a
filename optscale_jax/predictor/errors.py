"""The one error of this package: something given to it cannot be used."""

__all__ = ["PredictorError"]


class PredictorError(ValueError):
    """Labels, features or a checkpoint that cannot be used: one line that says what and why."""
