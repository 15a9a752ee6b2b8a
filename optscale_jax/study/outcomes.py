"""What policies did over a pool, in one record that every other part of `study` and `report` reads.

`study.entries.replay_comparison` makes one of a configured comparison, `Outcomes.from_results` of
your own `replay` results; `save` and `load` keep it in a file, the `outcomes.npz` of a folder that
eval.replay writes.
"""

import dataclasses
import functools
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from optscale_jax.errors import InputError
from optscale_jax.pool import Pool
from optscale_jax.replay import ReplayResult
from optscale_jax.study.metrics import known_tokens
from optscale_jax.study.pools import PoolSource
from optscale_jax.study.registry import PriorConfig

__all__ = ["METRICS", "CostKind", "Method", "Outcomes", "ValueKind"]

FILE = "outcomes.npz"
VERSION = 1
METRICS = ("accuracy", "samples", "tokens", "score")
ValueKind = Literal["accuracy", "score"]
CostKind = Literal["tokens", "samples"]
_ABOUT = ("name", "label", "settings", "words", "varying", "oracle", "reads_scores")
# The fields of a method that are arrays [S, K, P], as in `ReplayResult`.
_OF_RESULT = ("num_samples", "tokens", "score", "correct", "selected_index", "stop_reason")
_OF_RESULT += ("confidence",)
_ARRAYS = (*_OF_RESULT, "verifier_tokens")
# Those that may be missing, in all methods or in some.
_OPTIONAL = ("correct", "confidence", "selected_index", "stop_reason", "verifier_tokens")


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """One policy's outcomes, arrays over its S settings, K permutations and P problems.

    Of a pool of very many problems they are over groups of problems instead, and floats, the means
    over each group (`study.blocks`).

    Attributes:
      name: the policy's name in the registry.
      label: its name in tables and figures.
      settings: [S] all arguments of each setting, as JSON has them.
      words: [S] those of each setting's arguments that tell it from others, in words.
      caps: int [S], the N of each setting: the most completions that it can draw.
      num_samples: int [S, K, P], completions drawn.
      tokens: int [S, K, P], tokens of all completions drawn; -1 where one of them is unknown.
      score: float [S, K, P], score of the completion returned; NaN if there is none.
      correct: bool [S, K, P], whether it is correct; None if the pool does not know.
      selected_index: int [S, K, P], its column in the pool; -1 = none was eligible. None of groups.
      stop_reason: int [S, K, P] `StopReason`. None of groups.
      varying: the arguments that were given several values.
      oracle: whether it knows what no policy can know, and so does not compete.
      confidence: float [S, K, P], P(the completion returned is right) as it claims; None if it
        claims none.
      reads_scores: whether it needs a verifier.
      share_scored: float [S, K], of groups: the share of problems whose completion has a score.
      verifier_tokens: float [S, K, P], of groups: tokens that the verifier read and wrote for the
        completions drawn; None where the pool does not say.
    """

    name: str
    label: str
    settings: Sequence[Mapping[str, Any]]
    words: Sequence[Mapping[str, str]]
    caps: np.ndarray
    num_samples: np.ndarray
    tokens: np.ndarray
    score: np.ndarray
    correct: np.ndarray | None
    selected_index: np.ndarray | None
    stop_reason: np.ndarray | None
    varying: Sequence[str] = ()
    oracle: bool = False
    confidence: np.ndarray | None = None
    reads_scores: bool = True
    share_scored: np.ndarray | None = None
    verifier_tokens: np.ndarray | None = None

    @classmethod
    def from_result(
        cls,
        label: str,
        result: ReplayResult | Sequence[ReplayResult],
        *,
        caps: int | Sequence[int],
        name: str | None = None,
        settings: Sequence[Mapping[str, Any]] | None = None,
        words: Sequence[Mapping[str, str]] | None = None,
        varying: Sequence[str] | None = None,
        oracle: bool = False,
        reads_scores: bool = True,
    ) -> "Method":
        """A method from what `replay` gives, and as much as is known of the attributes.

        Args:
          label: its name in tables and figures.
          result: fields [S, K, P], or [K, P] for one setting; or a result for each setting.
          caps: N of each setting, or of all.
          name: default the label.
          settings: default {"N": cap}.
          words: default all arguments.
          varying: default those that have several values.
          oracle: whether it does not compete.
          reads_scores: whether it needs a verifier.

        Raises:
          ValueError: the caps or the settings are not as many as the results' settings.
        """
        if not isinstance(result, ReplayResult):
            result = jax.tree.map(lambda *fields: np.stack(fields), *result)
        elif result.num_samples.ndim == 2:
            result = jax.tree.map(lambda field: field[None], result)
        arrays: dict[str, Any] = {field: getattr(result, field) for field in _OF_RESULT}
        if np.isnan(arrays["confidence"]).all():
            arrays["confidence"] = None
        count = len(arrays["num_samples"])
        spread = [caps] * count if isinstance(caps, int) else list(caps)
        if settings is None:
            settings = [{"N": int(cap)} for cap in spread]
        if not len(spread) == len(settings) == count:
            raise ValueError(
                f"{label}: {count} settings were replayed, but caps are {len(spread)} and settings "
                f"{len(settings)}"
            )
        if varying is None:
            first = settings[0]
            varying = [n for n in first if any(setting[n] != first[n] for setting in settings)]
        return cls(
            name=label if name is None else name,
            label=label,
            settings=[_plain(setting) for setting in settings],
            words=words or [{k: f"{k}={v}" for k, v in setting.items()} for setting in settings],
            caps=np.array(spread, int),
            varying=varying,
            oracle=oracle,
            reads_scores=reads_scores,
            **arrays,
        )

    def metric(self, metric: str) -> np.ndarray:
        """One of `METRICS`, float [S, K, P]; NaN where it is not known."""
        if metric == "tokens":
            return known_tokens(self.tokens)
        if metric == "accuracy" and self.correct is None:
            return np.full(self.score.shape, np.nan)
        values = {"accuracy": self.correct, "samples": self.num_samples, "score": self.score}
        return np.asarray(values[metric], float)

    def at(self, cap: int) -> np.ndarray:
        """Indices of the settings whose N is `cap`."""
        return np.flatnonzero(self.caps == cap)

    def knobs(self, settings: Sequence[int] | None = None) -> int:
        """How many arguments vary over some of the settings, or over all: what can be tuned."""
        among = self.settings if settings is None else [self.settings[i] for i in settings]
        return sum(len({repr(s.get(name)) for s in among}) > 1 for name in self.varying)

    def at_ends(self, index: int) -> list[str]:
        """The arguments of a setting that are the least or the most that was tried, but for N.

        A setting that is chosen there may be worse than one beyond, which nobody tried. Ends of
        what an argument can be are none: 0 and 1 of a threshold or a probability.
        """
        found = []
        for name in self.varying:
            values = [setting.get(name) for setting in self.settings]
            tried = [value for value in values if isinstance(value, float)]
            if len(tried) < len(values) or len(set(tried)) == 1:
                continue
            if tried[index] in {min(tried), max(tried)} - {0.0, 1.0}:
                found.append(name)
        return found

    def describe(self, index: int, without: Sequence[str] = ()) -> str:
        """A setting in words, such as "s_min=0.9 n=4", but for some of its arguments."""
        return " ".join(text for name, text in self.words[index].items() if name not in without)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """Methods that were replayed over the same pool in the same orders.

    Attributes:
      name: the pool's name.
      methods: the comparison.
      problem_ids: str [P].
      stored_order: whether the one permutation is the pool's stored order.
      baselines: labels of methods that differences are taken from: at each N, from the first that
        has one setting there.
      source: where the pool came from; None if it is not known.
      unanswered: `Pool.num_unanswered` of the pool.
      num_grouped: how many problems there are where the methods' arrays are over groups of them,
        [S, K, G], and `problem_ids` are the groups' numbers; None where they are over problems.
    """

    name: str
    methods: Sequence[Method]
    problem_ids: np.ndarray
    stored_order: bool = False
    baselines: Sequence[str] = ()
    source: PoolSource | None = None
    unanswered: tuple[int, int] | None = None
    num_grouped: int | None = None

    @classmethod
    def from_results(
        cls,
        pool: Pool,
        results: Mapping[str, ReplayResult | Sequence[ReplayResult]],
        *,
        caps: int | Sequence[int] | Mapping[str, int | Sequence[int]],
        settings: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        baselines: Sequence[str] = (),
        oracles: Sequence[str] = (),
        name: str = "pool",
        stored_order: bool = False,
    ) -> "Outcomes":
        """Outcomes from your own replays, with which everything of `study` and `report` works.

        Args:
          pool: the pool that all were replayed over, with the same key, so that they are paired.
          results: label to what `Method.from_result` takes.
          caps: the most completions that each setting can draw; for all, or by label.
          settings: label to the arguments of each setting; default {"N": cap}.
          baselines: labels that differences are taken from, the first that has an N.
          oracles: labels that do not compete.
          name: the pool's name in tables.
          stored_order: whether the replay was in the stored order.

        Raises:
          ValueError: results of other shapes than each other's or the pool's; caps or settings that
            are not as many as a result's settings; a label that no result has.
        """
        settings = settings or {}
        by_label = caps if isinstance(caps, Mapping) else dict.fromkeys(results, caps)
        for label in (*baselines, *oracles, *settings, *by_label):
            if label not in results:
                raise ValueError(f"{label!r} is not among the results: {', '.join(results)}")
        methods = [
            Method.from_result(
                label,
                result,
                caps=by_label[label],
                settings=settings.get(label),
                oracle=label in oracles,
            )
            for label, result in results.items()
        ]
        orders = methods[0].num_samples.shape[1]
        for method in methods:
            shape = method.num_samples.shape[1:]
            if shape != (orders, pool.num_problems):
                raise ValueError(
                    f"{method.label} has {shape} permutations and problems, but "
                    f"{methods[0].label} has {orders} permutations and the pool "
                    f"{pool.num_problems} problems; replay all over one pool in the same orders"
                )
        return cls(
            name,
            methods,
            pool.problem_ids,
            stored_order,
            baselines,
            unanswered=pool.num_unanswered,
        )

    @property
    def num_problems(self) -> int:
        """P."""
        return len(self.problem_ids) if self.num_grouped is None else self.num_grouped

    @property
    def num_permutations(self) -> int:
        """K, 1 for the stored order."""
        return self.methods[0].num_samples.shape[1]

    @property
    def permutation_numbers(self) -> np.ndarray:
        """[K] what files call the permutations: from 1, or 0 for the stored order."""
        return np.arange(self.num_permutations) + (0 if self.stored_order else 1)

    @property
    def caps(self) -> list[int]:
        """Every N that a method has, rising."""
        return sorted({int(cap) for method in self.methods for cap in method.caps})

    @property
    def value_kind(self) -> ValueKind:
        """What counts as won: accuracy where correctness is known, else the score."""
        return "score" if self.methods[0].correct is None else "accuracy"

    @functools.cached_property
    def cost_kind(self) -> CostKind:
        """What counts as spent: tokens where all are known, else completions."""
        known = all((method.tokens >= 0).all() for method in self.methods)
        return "tokens" if known else "samples"

    @property
    def kinds(self) -> tuple[ValueKind, CostKind]:
        """What counts as won, and what as spent."""
        return self.value_kind, self.cost_kind

    def value(self, method: Method) -> np.ndarray:
        """What a method won, float [S, K, P]; a score of 0 where none was returned."""
        value = np.nan_to_num(method.metric(self.value_kind))
        if self.value_kind == "accuracy" or method.share_scored is None:
            return value
        return value * method.share_scored[..., None]

    def cost(self, method: Method) -> np.ndarray:
        """What a method spent, float [S, K, P]."""
        return method.metric(self.cost_kind)

    def baseline(self, cap: int | None = None) -> tuple[str, np.ndarray, np.ndarray] | None:
        """Label, value [K, P] and cost [K, P] of what differences are taken from; None without one.

        Of the N asked for; of the largest that it has for None.
        """
        by_label = {method.label: method for method in self.methods}
        for method in (by_label[label] for label in self.baselines if label in by_label):
            at = method.at(int(method.caps.max()) if cap is None else cap)
            if at.size == 1:
                return method.label, self.value(method)[at[0]], self.cost(method)[at[0]]
        return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a compressed .npz file without pickles, in place of what is there.

        Arrays of `Method` with the T settings of all methods in a row, [T, K, P]; `problem_ids`
        [P]; and `about`, the other fields as JSON.
        """
        about = {
            "version": VERSION,
            "name": self.name,
            "stored_order": self.stored_order,
            "baselines": list(self.baselines),
            "source": self.source and dataclasses.asdict(self.source),
            "unanswered": self.unanswered,
            "num_grouped": self.num_grouped,
            "methods": [_told(method) for method in self.methods],
        }
        arrays: dict[str, Any] = {}
        for field in _ARRAYS:
            parts = [getattr(method, field) for method in self.methods]
            if all(part is None for part in parts):
                continue
            lacks = (np.full(m.num_samples.shape, np.nan, np.float32) for m in self.methods)
            filled = (n if part is None else part for part, n in zip(parts, lacks, strict=True))
            arrays[field] = np.concatenate(list(filled))
        np.savez_compressed(
            path,
            about=np.array(json.dumps(about, ensure_ascii=False)),
            problem_ids=self.problem_ids,
            **arrays,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Outcomes":
        """Reads a file that `save` wrote, or the `outcomes.npz` of a folder.

        Raises:
          InputError: there is no such file, or it cannot be used.
        """
        file = Path(path)
        if not file.exists():
            raise InputError(
                f"{file}: no such folder or file; give a folder that eval.replay wrote"
            )
        if file.is_dir() and not (file := file / FILE).is_file():
            raise InputError(
                f"{path}: no {FILE} is in it; give a folder that eval.replay wrote (with "
                "--outcomes true, the default)"
            )
        try:
            # Opened here, because np.load leaves a file open that it finds damaged.
            with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as archive:
                return _unpacked(dict(archive))
        except _OtherVersion as error:
            raise InputError(
                f"{file}: written by {error} version of this package; run eval.replay again, with "
                "--config and the config.yaml that stands beside it"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
            says = f"{file}: not what eval.replay writes ({error}); run it again"
            raise InputError(says) from error
        except (zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{file}: damaged or cut short; run eval.replay again") from error


def _told(method: Method) -> dict[str, Any]:
    """What is kept of a method as JSON."""
    share = method.share_scored
    return {field: getattr(method, field) for field in _ABOUT} | {
        "caps": method.caps.tolist(),
        "share_scored": None if share is None else share.tolist(),
    }


class _OtherVersion(Exception):
    """A file of another version; the message says of which."""


def _unpacked(arrays: dict[str, np.ndarray]) -> Outcomes:
    if "about" not in arrays and "methods" in arrays:
        raise _OtherVersion("an earlier")
    about = json.loads(str(arrays.pop("about")))
    if about["version"] != VERSION:
        raise _OtherVersion("an earlier" if about["version"] < VERSION else "a later")
    problem_ids = arrays.pop("problem_ids")
    arrays = {f: arrays[f] for f in _ARRAYS if f not in _OPTIONAL or f in arrays}
    total = sum(len(method["caps"]) for method in about["methods"])
    shape = (total, arrays["num_samples"].shape[1], len(problem_ids))
    if any(array.shape != shape for array in arrays.values()):
        raise ValueError("arrays of different shapes")
    methods, start = [], 0
    for method in about["methods"]:
        part = slice(start, start + len(method["caps"]))
        start = part.stop
        own: dict[str, Any] = {field: array[part] for field, array in arrays.items()}
        own |= {n: None for n in ("confidence", "verifier_tokens") if np.isnan(own.get(n, 0)).all()}
        caps, share = np.array(method.pop("caps")), method.pop("share_scored", None)
        own["share_scored"] = None if share is None else np.array(share)
        methods.append(Method(caps=caps, **(dict.fromkeys(_OPTIONAL) | own | method)))
    source = about["source"] and PoolSource.from_json(about["source"])
    return Outcomes(
        about["name"],
        methods,
        problem_ids,
        about["stored_order"],
        about["baselines"],
        source,
        unanswered=tuple(about["unanswered"]) if about.get("unanswered") else None,
        num_grouped=about.get("num_grouped"),
    )


def _plain(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A setting as JSON has it; a part of one's own by its name in Python."""

    def plain(value: Any) -> Any:
        if isinstance(value, PriorConfig):
            return value.given()
        return value if isinstance(value, bool | int | float | str | None) else repr(value)

    return {name: plain(value) for name, value in setting.items()}
