"""What a score is worth: learnt on labelled problems, kept in one small file, read by a vote.

`study.learning` makes a `Calibration`; `policies.calibrated_vote` stops and votes by it. It belongs
to the verifier that gave the scores: another one's scores mean other things.
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import numpy as np

from optscale_jax.errors import InputError, PoolWarning
from optscale_jax.files import atomic_write
from optscale_jax.hub import local

__all__ = [
    "DEFAULT_WEIGHTS",
    "NOT_KNOWN",
    "NUM_KNOTS",
    "SCORE",
    "Calibration",
    "Evidence",
    "Labels",
    "Origin",
    "Reliability",
    "Table",
    "check_origin",
    "log_odds",
    "reliability",
    "signal_names",
]

Labels = Literal["pool", "none"]
"""What is taken for the truth: the pool's own labels, or the answer that leads when all completions
are drawn. Without labels P is the probability that the leader stays."""

NUM_KNOTS = 32
"""Room for knots in a table; the same for all, so that replay compiles once."""

DEFAULT_WEIGHTS = (0.75, 0.75, 0.25, 0.0)
"""Weights of the vote before any is learnt; see `Evidence`."""

SCORE = "score"
"""The name of the score among the signals."""

_VERSION = 1
_WEIGHTS = ("best", "repeats", "repeats_by_mean", "none")
_BINS = ("claimed", "right", "count")
# Scores nearer to 0 and 1 than this are as good as there: a log-odds has to be finite.
_EDGE = 1e-3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Evidence:
    """The numbers of a calibration, as the vote reads them: a pytree.

    A completion of score s and signals x_2, ..., x_J is right with log-odds

        g = sum_j t_j(x_j),    x_1 = s,

    each t_j read from a table by linear interpolation, and flat beyond its ends; a signal that is
    not known (NaN) adds 0.

    Attributes:
      knots: [J, NUM_KNOTS] of the J tables, rising.
      log_odds: [J, NUM_KNOTS] the tables' values there.
      weights: [4], w1, w2, w3 and b of `policies.calibrated_vote`.
      tokens: mean tokens of a completion; 0 where lengths are not known.
    """

    # How many axes a field has for one calibration; more in front are problems (policies.prior).
    axes: ClassVar[Mapping[str, int]] = {"knots": 2, "log_odds": 2, "weights": 1}

    knots: Any
    log_odds: Any
    weights: Any
    tokens: Any


class Table(NamedTuple):
    """A function of one signal: its values at rising knots, read off by linear interpolation."""

    knots: np.ndarray  # [n], n <= NUM_KNOTS
    log_odds: np.ndarray  # [n]


class Reliability(NamedTuple):
    """Claimed probabilities against what came true, in B bins of as many claims each."""

    error: float  # mean |claimed - right|, weighted by counts: the expected calibration error
    claimed: np.ndarray  # [B] mean claim
    right: np.ndarray  # [B] share that came true
    count: np.ndarray  # [B] number of claims


def reliability(claimed: Any, right: Any, num_bins: int = 10) -> Reliability:
    """Compares claims with what came true, in bins of equal mass.

    Args:
      claimed: probabilities, of any shape.
      right: whether it came true, of the same shape.
      num_bins: how many bins; fewer where there are fewer claims.
    """
    claims, truth = np.ravel(np.asarray(claimed, float)), np.ravel(np.asarray(right, float))
    order = np.argsort(claims, kind="stable")
    parts = np.array_split(order, min(num_bins, len(order)))
    mean, share = (np.array([v[part].mean() for part in parts]) for v in (claims, truth))
    count = np.array([len(part) for part in parts])
    error = float(np.sum(count * np.abs(mean - share)) / count.sum())
    return Reliability(error, mean, share, count)


class Origin(NamedTuple):
    """Who made scored completions; None = not known."""

    verifier: str | None = None
    aggregate: str | None = None  # of step scores: last, min, mean or product
    generator: str | None = None


NOT_KNOWN = Origin()


def check_origin(learnt: Origin, given: Origin, *, force: bool = False) -> None:
    """Refuses a calibration for another verifier's scores; warns of another generator.

    Args:
      learnt: who made the scores that it was learnt on.
      given: who made those that it is to be used on.
      force: whether to warn where it would refuse.

    Raises:
      InputError: the verifier, or what of its step scores makes the score, is another.
    """
    for field in ("verifier", "aggregate"):
        own, other = (getattr(each, field) or "not known" for each in (learnt, given))
        if own == other:
            continue
        says = f"calibration: learnt for {field} {own}, and these scores' is {other}"
        if not force:
            raise InputError(
                f"{says}; learn one for it (optscale train calibration), or give force: true"
            )
        warnings.warn(f"{says}; used all the same, as forced", PoolWarning, stacklevel=2)
    own, other = (each.generator or "not known" for each in (learnt, given))
    if own != other:
        says = f"calibration: learnt on completions of generator {own}, and these' is {other}"
        warnings.warn(says, PoolWarning, stacklevel=2)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is learnt of a verifier's scores on labelled problems.

    Attributes:
      tables: log-odds of being right by signal, added up: the score's first, then those of signals
        that pools and runs carry beside it.
      weights: w1, w2, w3 and b of `policies.calibrated_vote`.
      tokens: mean tokens of a completion; 0 where lengths are not known.
      origin: who made the scores.
      num_problems: how many problems it was learnt on; 0 for the default.
      labels: what was taken for the truth.
      reliability: P(the leading answer is right) as the vote claims it on problems left out, after
        1, 2, 3, 4, 6, 8, ... completions; None for the default.
    """

    tables: Mapping[str, Table]
    weights: tuple[float, ...] = DEFAULT_WEIGHTS
    tokens: float = 0.0
    origin: Origin = NOT_KNOWN
    num_problems: int = 0
    labels: Labels = "pool"
    reliability: Reliability | None = None

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that it reads beside the score."""
        return tuple(name for name in self.tables if name != SCORE)

    @property
    def evidence(self) -> Evidence:
        """The numbers as the vote reads them."""

        def padded(table: Table) -> tuple[np.ndarray, np.ndarray]:
            # Beyond the last knot it is flat, so more knots there change nothing.
            last, more = table.knots[-1], np.arange(1, NUM_KNOTS - len(table.knots) + 1)
            knots = np.append(table.knots, last + max(1.0, abs(last)) * more)
            return knots, np.append(table.log_odds, np.full(more.shape, table.log_odds[-1]))

        knots, values = map(np.stack, zip(*map(padded, self.tables.values()), strict=True))
        return Evidence(knots, values, np.asarray(self.weights, float), float(self.tokens))

    @classmethod
    def default(
        cls,
        *,
        verifier_is_calibrated: bool = False,
        tokens: float = 0.0,
        origin: Origin = NOT_KNOWN,
    ) -> "Calibration":
        """The calibration of a verifier whose scores are probabilities of being right.

        Args:
          verifier_is_calibrated: whether that is known of the verifier.
          tokens: mean tokens of a completion; 0 where that is not known.
          origin: who makes the scores.

        Raises:
          InputError: it is not known. A score of .9 may mean anything.
        """
        if not verifier_is_calibrated:
            raise InputError(
                "calibration: nothing is known of what this verifier's scores are worth; learn it "
                "on labelled problems (optscale train calibration), or say `calibration: scores` "
                "if they are probabilities of being right"
            )
        lower = np.array([0.0, *np.geomspace(_EDGE, 0.5, NUM_KNOTS // 2 - 1)])
        knots = np.concatenate([lower, 1 - lower[-2::-1]])
        return cls({SCORE: Table(knots, log_odds(knots))}, tokens=tokens, origin=origin)

    # The file -------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, whole or not at all."""
        found = self.reliability
        value = {
            "format": "calibration",
            "version": _VERSION,
            **self.origin._asdict(),
            "labels": self.labels,
            "num_problems": self.num_problems,
            "tokens_per_completion": self.tokens,
            "tables": {
                name: {"knots": table.knots.tolist(), "log_odds": table.log_odds.tolist()}
                for name, table in self.tables.items()
            },
            "weights": dict(zip(_WEIGHTS, map(float, self.weights), strict=True)),
            "reliability": None
            if found is None
            else {"error": found.error, **{name: getattr(found, name).tolist() for name in _BINS}},
        }
        with atomic_write(path) as file:
            json.dump(value, file, indent=1, allow_nan=False)
            file.write("\n")

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Reads what `save` wrote.

        Args:
          path: the file; `package:NAME/PATH`, or `hf://OWNER/NAME` for one on a hub.

        Raises:
          InputError: the file cannot be had or read, is of another version, or a field is wrong:
            one line that names it.
        """
        remedy = "learn it again (optscale train calibration)"
        file = local(path, kind="model", files=["calibration.json"])
        try:
            value = json.loads(file.read_text("utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: is no JSON; {remedy}") from error
        if not isinstance(value, dict) or value.get("format") != "calibration":
            raise InputError(f"{path}: is no calibration; {remedy}")
        if value.get("version") != _VERSION:
            raise InputError(
                f"{path}: version is {value.get('version')!r}, and this reads {_VERSION}; {remedy}"
            )
        try:
            return cls._from(value)
        except KeyError as error:
            raise InputError(f"{path}: lacks {error}; {remedy}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: {error}; {remedy}") from error

    @classmethod
    def _from(cls, value: Mapping[str, Any]) -> "Calibration":
        tables = {}
        for name, told in {SCORE: value["tables"][SCORE], **value["tables"]}.items():
            table = Table(*(_numbers(told, field, f"tables.{name}.") for field in Table._fields))
            if len(table.knots) != len(table.log_odds) or not 1 <= len(table.knots) <= NUM_KNOTS:
                raise ValueError(f"tables.{name} has not as many log_odds as knots, 1 to 32")
            if (np.diff(table.knots) <= 0).any():
                raise ValueError(f"tables.{name}.knots do not rise")
            tables[name] = table
        tokens, labels = _number(value, "tokens_per_completion"), value["labels"]
        if tokens < 0:
            raise ValueError(f"tokens_per_completion is {tokens:g}; it must be at least 0")
        if labels not in get_args(Labels):
            raise ValueError(f"labels is {labels!r}; it must be 'pool' or 'none'")
        names = [value.get(field) for field in Origin._fields]
        for field, name in zip(Origin._fields, names, strict=True):
            if not isinstance(name, str | None):
                raise ValueError(f"{field} is {name!r}; it must be a name or null")
        found = value["reliability"]
        if found is not None:
            bins = (_numbers(found, name, "reliability.") for name in _BINS)
            found = Reliability(_number(found, "error"), *bins)
        return cls(
            tables,
            tuple(_number(value["weights"], name) for name in _WEIGHTS),
            tokens,
            Origin(*names),
            int(_number(value, "num_problems")),
            labels,
            found,
        )


def signal_names(text: str) -> tuple[str, ...]:
    """Names of signals from one text with commas between them."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def log_odds(probability: Any) -> np.ndarray:
    """Log p - log(1 - p), with p kept at least 0.001 away from 0 and 1."""
    clipped = np.clip(probability, _EDGE, 1 - _EDGE)
    return np.log(clipped) - np.log1p(-clipped)


def _number(value: Mapping[str, Any], name: str) -> float:
    return float(_numbers({name: [value[name]]}, name, "")[0])


def _numbers(value: Mapping[str, Any], name: str, where: str) -> np.ndarray:
    found = value[name]
    numbers = isinstance(found, list) and not any(isinstance(v, bool | str | list) for v in found)
    array = np.asarray(found, float) if numbers else np.array(np.nan)
    if not np.isfinite(array).all():
        raise ValueError(f"{where}{name} must be finite numbers")
    return array
