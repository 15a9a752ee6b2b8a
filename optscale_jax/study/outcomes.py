"""What policies did over a pool: replaying a whole comparison, and its file `outcomes.npz`.

`eval.replay` makes the outcomes and writes the file; `eval.report` reads it, or makes them itself.
"""

import csv
import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from optscale_jax.errors import InputError, PoolError, bad_input
from optscale_jax.policies import Policy
from optscale_jax.pool import Pool
from optscale_jax.replay import ReplayResult, check_pool, replay
from optscale_jax.study.goodness_of_fit import fitted_law
from optscale_jax.study.metrics import known_tokens
from optscale_jax.study.priors import priors_of_entries
from optscale_jax.study.registry import Entry

__all__ = [
    "Replayed",
    "caps_of",
    "leave_out",
    "read_outcomes",
    "replay_entries",
    "write_outcomes",
]

ORACLE = "known_law"
"""The policy that is told each problem's law of scores: the fit to all its scores in the pool."""


class Replayed(NamedTuple):
    """One entry's outcomes, arrays over its S settings.

    Attributes:
        entry: The policy.
        settings: [S] all arguments of each setting.
        caps: [S] the most that each setting can draw.
        result: Fields [S, K, P].
    """

    entry: Entry
    settings: list[dict[str, Any]]
    caps: np.ndarray
    result: ReplayResult

    @property
    def outcomes(self) -> dict[str, np.ndarray]:
        """Metric to values [S, K, P], NaN where not known."""
        result = self.result
        unknown = np.full(result.num_samples.shape, np.nan)
        return {
            "accuracy": unknown if result.correct is None else result.correct,
            "samples": result.num_samples,
            "tokens": known_tokens(result.tokens),
            "score": result.score,
        }


def caps_of(entry: Entry) -> np.ndarray:
    """[S] the most that each setting of an entry can draw."""
    return np.array([policy.max_samples for policy in entry.policies])


def leave_out(
    entries: Iterable[Entry], pool: Pool, num_permutations: int
) -> tuple[list[Entry], list[str]]:
    """Keeps the settings that a pool can serve.

    Args:
        entries: The comparison.
        pool: The pool.
        num_permutations: As for `replay`.

    Returns:
        The entries with what is left of their settings, and a sentence for each entry that lost
        some, which says why.
    """
    kept, notes = [], []
    for entry in entries:
        served, reasons = [], {}
        for index, policy in enumerate(entry.policies):
            try:
                check_pool(pool, policy, num_permutations)
                served.append(index)
            except PoolError as error:
                reasons.setdefault(_reason(str(error)), []).append(policy.max_samples)
        for reason, caps in reasons.items():
            up_to = "" if not served else f" at N = {', '.join(map(str, sorted(set(caps))))}"
            notes.append(f"{entry.label}{up_to} is left out: {reason}")
        if served:
            kept.append(entry.only(served))
    return kept, notes


def _reason(message: str) -> str:
    """A refusal's reason without its remedy and without what it calls the pool."""
    message = message.removeprefix("pool: ")
    return message.split("; ")[0]


def replay_entries(
    pool: Pool,
    entries: Sequence[Entry],
    *,
    source: str,
    seed: int,
    num_permutations: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Replayed]:
    """Replays a comparison over a pool, all policies in the same orders.

    Args:
        pool: The pool.
        entries: The comparison.
        source: What messages call the pool.
        seed: Of the orders.
        num_permutations: K, or 0 for the stored order.
        advance: Called after each entry.

    Returns:
        The outcomes, in the entries' order.

    Raises:
        InputError: If the pool cannot serve a policy, or a policy's file of priors cannot be used.
    """
    priors, predictor_tokens = priors_of_entries(entries, pool)
    for entry in entries:
        told = entry.label in priors or any(s.get("prior") is not None for s in entry.settings)
        if entry.name == ORACLE and pool.has_scores and not told:
            priors[entry.label] = fitted_law(pool)

    def one(entry: Entry, policy: Policy) -> ReplayResult:
        with bad_input(f"{source}: {entry.where}", (PoolError,)):
            result = replay(
                pool,
                policy,
                key=jax.random.key(seed),
                num_permutations=num_permutations,
                prior=priors.get(entry.label),
            )
        read = predictor_tokens.get(entry.label)
        if read is None:
            return result
        known = result.tokens >= 0
        return result._replace(tokens=np.where(known, result.tokens + read, -1).astype(np.int32))

    # Compilation takes most of the time; XLA does it without the interpreter's lock, so a second
    # core helps. More threads than two would only hold more results in the making.
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as executor:
        pending = [
            [(at, executor.submit(one, entry, policy)) for at, policy in entry.stacks()]
            for entry in entries
        ]
        try:
            replayed = []
            for entry, futures in zip(entries, pending, strict=True):
                order = np.argsort([index for at, _ in futures for index in at])
                parts = [future.result() for _, future in futures]
                advance()
                replayed.append(
                    Replayed(
                        entry=entry,
                        settings=entry.settings,
                        caps=caps_of(entry),
                        result=jax.tree.map(
                            lambda *fields, order=order: np.concatenate(fields)[order], *parts
                        ),
                    )
                )
                futures.clear()
            return replayed
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


# The file -----------------------------------------------------------------------------------------


def write_outcomes(path: Path, replayed: Sequence[Replayed], pool: Pool) -> None:
    """Writes what `eval.report` reads: outcomes of every setting, permutation and problem.

    Arrays `num_samples`, `tokens` (-1 = unknown), `score` (NaN = none) and, if the pool knows it,
    `correct`, all [T, K, P] with the T settings of all policies in a row; `problem_ids` [P]; and
    `methods`, a JSON list with one object a policy: its name, label, settings and their caps.

    Args:
        path: The file.
        replayed: The outcomes.
        pool: The pool.
    """
    results = [each.result for each in replayed]

    def gathered(name: str) -> np.ndarray:
        return np.concatenate([getattr(result, name) for result in results])

    arrays: dict[str, Any] = {
        "methods": np.array(json.dumps([_method(each) for each in replayed], ensure_ascii=False)),
        "problem_ids": pool.problem_ids,
        "num_samples": gathered("num_samples"),
        "tokens": gathered("tokens"),
        "score": gathered("score"),
    }
    if pool.correct is not None:
        arrays["correct"] = gathered("correct")
    np.savez_compressed(path, **arrays)


def _method(each: Replayed) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        return value

    return {
        "policy": each.entry.name,
        "label": each.entry.label,
        "caps": each.caps.tolist(),
        "settings": [{name: plain(v) for name, v in s.items()} for s in each.settings],
    }


def read_outcomes(
    folder: Path,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], np.ndarray]:
    """Reads the outcomes in a folder that `eval.replay` wrote.

    Without an `outcomes.npz` they are read from `per_problem.csv`, whose `setting` column holds the
    arguments; scores of the completions returned are then not known.

    Args:
        folder: The folder.

    Returns:
        A list of methods, each with `policy`, `label`, `caps` and `settings`; the arrays
        `num_samples`, `tokens`, `score` and, where known, `correct`, all [T, K, P]; and the
        problem ids [P].

    Raises:
        InputError: If the folder has neither file, or they cannot be used.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that eval.replay wrote")
    file = folder / "outcomes.npz"
    if file.is_file():
        return _read_npz(file)
    file = folder / "per_problem.csv"
    if file.is_file():
        return _read_csv(file)
    raise InputError(
        f"{folder}: neither outcomes.npz nor per_problem.csv is in it; give a folder that "
        "eval.replay wrote"
    )


def _read_npz(file: Path) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], np.ndarray]:
    try:
        # Opened here, because np.load leaves a file open that it finds damaged.
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = dict(archive)
        methods = json.loads(str(arrays.pop("methods")))
        problem_ids = arrays.pop("problem_ids")
        total = sum(len(method["caps"]) for method in methods)
        shape = (total, arrays["num_samples"].shape[1], len(problem_ids))
        if any(array.shape != shape for array in arrays.values()):
            raise ValueError("arrays of different shapes")
        if not {"tokens", "score"} <= arrays.keys():
            raise KeyError("tokens or score")
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise InputError(f"{file}: not what eval.replay writes ({error}); run it again") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{file}: damaged or cut short; run eval.replay again") from error
    return methods, arrays, problem_ids


_CSV_COLUMNS = ("policy", "setting", "permutation", "problem_id", "n_samples", "tokens", "correct")


def _read_csv(file: Path) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], np.ndarray]:
    settings: dict[tuple[str, str], list[tuple[int, int, bool | None]]] = {}
    problems: dict[tuple[str, str], list[tuple[str, str]]] = {}
    with open(file, encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
        missing = [name for name in _CSV_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(
                f"{file}: no column {missing[0]!r}; give a folder that eval.replay wrote"
            )
        for row in reader:
            key = row["policy"], row["setting"]
            try:
                outcome = (
                    int(row["n_samples"]),
                    int(row["tokens"] or -1),
                    bool(int(row["correct"])) if row["correct"] else None,
                )
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"{file}: line {reader.line_num}: n_samples, tokens and correct must be "
                    "integers"
                ) from error
            settings.setdefault(key, []).append(outcome)
            problems.setdefault(key, []).append((row["permutation"], row["problem_id"]))
    if not settings:
        raise InputError(f"{file}: no rows")
    (first, order), *others = problems.items()
    ids = list(dict.fromkeys(problem for _, problem in order))
    for key, found in others:
        if found != order:
            raise InputError(
                f"{file}: {' '.join(key)} has other problems or permutations than {' '.join(first)}"
            )
    if len(order) % len(ids):
        raise InputError(f"{file}: {' '.join(first)} lacks some problems of a permutation")
    methods: dict[str, dict[str, Any]] = {}
    parts: dict[str, list[list[tuple[int, int, bool | None]]]] = {}
    for (policy, setting), outcomes in settings.items():
        arguments = _arguments(setting)
        cap = next((arguments[name] for name in _CAP_NAMES if name in arguments), None)
        if not isinstance(cap, int):
            cap = max(count for count, _, _ in outcomes)
        method = methods.setdefault(
            policy, {"policy": policy, "label": policy, "caps": [], "settings": []}
        )
        method["caps"].append(cap)
        method["settings"].append(arguments)
        parts.setdefault(policy, []).append(outcomes)
    flat = [outcomes for policy in methods for outcomes in parts[policy]]
    shape = (len(flat), -1, len(ids))
    arrays = {
        "num_samples": np.array([[o[0] for o in each] for each in flat]).reshape(shape),
        "tokens": np.array([[o[1] for o in each] for each in flat]).reshape(shape),
    }
    arrays["score"] = np.full(arrays["tokens"].shape, np.nan, np.float32)
    if any(o[2] is None for each in flat for o in each):
        raise InputError(
            f"{file}: it does not say which completions are correct; let eval.replay write "
            "outcomes.npz, which holds their scores"
        )
    arrays["correct"] = np.array([[o[2] for o in each] for each in flat]).reshape(shape)
    return list(methods.values()), arrays, np.array(ids)


_CAP_NAMES = ("max_samples", "n", "rounds")


def _arguments(setting: str) -> dict[str, Any]:
    """The arguments of a setting in words, "s_min=0.9 n=4"."""
    found: dict[str, Any] = {}
    for word in setting.split():
        name, _, text = word.partition("=")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
