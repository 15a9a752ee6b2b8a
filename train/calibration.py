"""Learns from labelled problems what a verifier's scores are worth, for the calibrated vote.

    optscale train calibration --pool runs/sample --out calibration.json

Reads whatever eval.replay does. Prints how far the probabilities that it claims can be relied on,
on problems left out, and writes a small file of JSON that `policy.calibration` takes.
"""

import dataclasses
import sys

from optscale_jax.calibration import Calibration, Labels, signal_names
from optscale_jax.checks import at_least
from optscale_jax.cli import command
from optscale_jax.errors import InputError
from optscale_jax.study.learning import FEW_PROBLEMS, learn_calibration, signs_of_quality
from optscale_jax.study.pools import PoolSource, ReadConfig

__all__ = ["CalibrationConfig", "main"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationConfig(ReadConfig):
    """Where scored completions are, and where to write what they teach.

    Attributes:
        pool: Path of a pool of any format of docs/formats.md, or of a run's directory. Needed.
        labels: What is taken for the truth: the pool's labels, or with none the answer that leads
            when all completions are drawn, which needs no labels; P is then the probability that
            the leader stays.
        signals: Names of the signals to try beside the score, with commas between them; "" for
            none. null: all that the pool has but the verifier's tokens. They are kept only if
            they pay.
        folds: Folds over problems to check with, at least 2.
        seed: Of folds and orders, at least 0.
        out: The file to write.
    """

    pool: str | None = None
    labels: Labels = "pool"
    signals: str | None = None
    folds: int = 5
    seed: int = 0
    out: str = "calibration.json"

    def __post_init__(self) -> None:
        at_least(self, 2, "folds")
        at_least(self, 0, "seed")


def run(config: CalibrationConfig) -> None:
    """Reads the pool, learns, and writes the calibration.

    Raises:
        InputError: If the pool cannot be used.
    """
    if config.pool is None:
        raise InputError("pool is not given; use --pool PATH")
    pool = PoolSource(config.pool, config.read).open()
    names = None if config.signals is None else signal_names(config.signals)
    found = learn_calibration(
        pool,
        labels=config.labels,
        signals=names,
        num_folds=config.folds,
        seed=config.seed,
        where=config.pool,
    )
    found.save(config.out)
    print(f"{config.out}: {_words(found)}")
    claims = "the leader stays" if config.labels == "none" else "the answer is right"
    assert found.reliability is not None
    print(f"P({claims}), claimed on problems left out, and the share that came true:")
    for claimed, right, count in zip(*found.reliability[1:], strict=True):
        print(f"  {claimed:6.1%} {right:6.1%}   of {count:.0f}")
    print(f"mean difference (expected calibration error): {found.reliability.error:.3f}")
    tried = signs_of_quality(pool) if names is None else names
    if left_out := [name for name in tried if name not in found.signals]:
        print(f"note: no better with {', '.join(left_out)}: left out", file=sys.stderr)
    if found.num_problems < FEW_PROBLEMS:
        print(
            f"note: learnt on {found.num_problems} problems; with fewer than {FEW_PROBLEMS} it is "
            "mostly the default",
            file=sys.stderr,
        )
    if config.labels == "none":
        print(
            "note: learnt without labels: where verifier and majority err together, so does this",
            file=sys.stderr,
        )


def _words(found: Calibration) -> str:
    read = ", ".join(("the score", *found.signals))
    told = found.origin.verifier or "a verifier whose name is not known (--verifier NAME)"
    return f"{found.num_problems} problems, from {read} of {told}"


main = command(CalibrationConfig, run, __name__)

if __name__ == "__main__":
    sys.exit(main())
