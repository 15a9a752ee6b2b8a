"""Pools: the scored completions of a set of problems, drawn once and replayed by any policy.

A pool is checked once, and from then on every array in it can be relied on.
"""

import dataclasses
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Literal, cast, get_args

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Shaped

from optscale_jax.calibration import NOT_KNOWN, Origin
from optscale_jax.derived_signals import STEP_SIGNALS
from optscale_jax.errors import PoolError
from optscale_jax.files import atomic_write, refuse_bomb
from optscale_jax.hub import POOL_FILE, local

__all__ = ["BLOCK", "Pool", "PoolKind", "Rescale"]

BLOCK = 8192
"""Problems of a block: a pool of more is drawn for, replayed and read in blocks of so many."""

PoolKind = Literal["parallel", "sequential"]
"""Whether completions are independent draws, or each was written with the one before in view."""

Rescale = Literal["sigmoid", "exp", "minmax", "rank"]
"""What brings scores into [0, 1]: 1 / (1 + exp(-x)); exp(x), of log-probabilities; the least to 0
and the greatest to 1; or the share of the pool's scores that are lower, half of those that are
equal among them."""

_PER_COMPLETION = ("scores", "correct", "tokens", "answers", "mask")
_PER_PROBLEM = ("gold", "problem_ids")
_ORIGIN = "origin/"  # before what says who made the pool
_SIGNAL = "signals/"  # before a signal's name, where all arrays stand side by side
_NOT_AN_ARCHIVE = (
    *(OSError, ValueError, EOFError, KeyError, struct.error),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),
    # From NumPy's parser of a damaged header, which is Python's.
    *(tokenize.TokenError, SyntaxError, TypeError, ArithmeticError, MemoryError),
)
_ARRAY = b"\x93NUMPY"


# A plain dataclass of NumPy arrays rather than a pytree: a pool holds strings, is never traced, and
# stays on the host; replay sends to the device only what it needs. `eq=False` because comparing
# arrays with == has no truth value.
@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """P problems with N scored completions each.

    Build one with `Pool.load` or `Pool.from_arrays`, which check everything; the constructor itself
    checks nothing. The arrays are read-only. Where `mask` is False there is no completion, and the
    other arrays hold score 0, correct False, tokens -1, answer -1 and signals NaN there.

    Attributes:
        scores: [P, N] the verifier's score, in [0, 1]; None if the pool has no verifier.
        correct: [P, N] whether the completion is correct; None if correctness does not exist for
            the task or is not known.
        tokens: [P, N] length of the completion in tokens, at least 0; -1 = unknown.
        answers: [P, N] id of the final answer, equal within a problem if and only if the answers
            are; -1 = no answer in the completion; None if the task has no answers to compare.
        gold: [P] id of the right answer, in the same id space as `answers`; -1 = none.
        problem_ids: [P] unique names.
        mask: [P, N] True where there is a completion. Every problem has at least one, and its
            completions come first.
        kind: "parallel" if the completions of a problem are independent draws, in any order;
            "sequential" if each was written with the previous answer shown, so that only the first
            n of them, in order, are a run that could have happened.
        origin: Who made completions and scores, as far as it is known.
        signals: [P, N] each, further numbers by name, such as those of
            `optscale_jax.derived_signals`; NaN = not known of that completion.
    """

    scores: Float32[np.ndarray, "problems samples"] | None
    correct: Bool[np.ndarray, "problems samples"] | None
    tokens: Int32[np.ndarray, "problems samples"]
    answers: Int32[np.ndarray, "problems samples"] | None
    gold: Int32[np.ndarray, " problems"] | None
    problem_ids: Shaped[np.ndarray, " problems"]
    mask: Bool[np.ndarray, "problems samples"]
    kind: PoolKind = "parallel"
    origin: Origin = NOT_KNOWN
    signals: Mapping[str, Float32[np.ndarray, "problems samples"]] = dataclasses.field(
        default_factory=dict
    )

    def __repr__(self) -> str:
        """The pool in five lines: its size, its scores, what is right, its lengths, who made it."""
        there, right = self.mask, self.correct
        fewest = int(self.samples_per_problem.min())
        depth = f"{fewest} to " * (fewest < self.num_samples) + str(self.num_samples)
        lines = [f"Pool: {self.num_problems} problems x {depth} completions, {self.kind}"]
        if self.scores is None:
            lines.append("scores: none")
        else:
            found = self.scores[there]
            lines.append(f"scores: {found.min():.3f} to {found.max():.3f}, mean {found.mean():.3f}")
        if right is None:
            lines.append("right: not known")
        else:
            once = (right & there).any(1).mean()
            lines.append(
                f"right: {right[there].mean():.1%} of the completions, at least one in "
                f"{once:.1%} of the problems"
            )
        known = self.tokens[there & (self.tokens >= 0)]
        parts = ["tokens: not known"]
        if known.size:
            parts = [f"tokens: {known.min():,} to {known.max():,}, mean {known.mean():,.0f}"]
        if self.num_unanswered is not None:
            parts.append("without an answer: {} of {}".format(*self.num_unanswered))
        parts += [f"signals: {', '.join(self.signals)}"] if self.signals else []
        lines.append("; ".join(parts))
        made = ", ".join(f"{k} {v}" for k, v in self.origin._asdict().items() if v is not None)
        lines.append(f"made by: {made or 'not known'}")
        return "\n  ".join(lines)

    @property
    def num_problems(self) -> int:
        """P, the number of problems."""
        return self.mask.shape[0]

    @property
    def num_samples(self) -> int:
        """N, the number of completions of the problem that has most."""
        return self.mask.shape[1]

    @property
    def has_scores(self) -> bool:
        """Whether a verifier scored the completions."""
        return self.scores is not None

    @property
    def has_answers(self) -> bool:
        """Whether answers can be compared, as voting needs."""
        return self.answers is not None

    @property
    def has_tokens(self) -> bool:
        """Whether the length of every completion is known."""
        return bool(np.all(self.tokens[self.mask] >= 0))

    @property
    def signal_names(self) -> tuple[str, ...]:
        """Names of its signals."""
        return tuple(self.signals)

    @property
    def num_unanswered(self) -> tuple[int, int] | None:
        """How many completions have no answer, and of how many; None without answers."""
        if self.answers is None:
            return None
        return int((self.answers[self.mask] == -1).sum()), int(self.mask.sum())

    @property
    def samples_per_problem(self) -> Int[np.ndarray, " problems"]:
        """[P] number of completions of each problem, between 1 and N."""
        return self.mask.sum(axis=1)

    @property
    def eligible(self) -> Bool[np.ndarray, "problems samples"]:
        """[P, N] whether a completion may be returned, whatever its score.

        A completion is eligible if it exists, is not empty (`tokens` is not 0; an unknown length
        counts as not empty) and, where the pool has answers, contains one (`answers` is not -1).
        """
        eligible = self.mask & (self.tokens != 0)
        return eligible if self.answers is None else eligible & (self.answers != -1)

    def with_origin(self, origin: Origin) -> "Pool":
        """The pool with what is given of an origin in the place of its own."""
        given = {name: value for name, value in origin._asdict().items() if value is not None}
        return dataclasses.replace(self, origin=self.origin._replace(**given))

    @classmethod
    def from_arrays(
        cls,
        *,
        scores: Any = None,
        correct: Any = None,
        tokens: Any = None,
        answers: Any = None,
        gold: Any = None,
        problem_ids: Any = None,
        mask: Any = None,
        kind: str = "parallel",
        origin: Origin = NOT_KNOWN,
        signals: Mapping[str, Any] | None = None,
        clip: bool = False,
        rescale: str | None = None,
        source: str = "pool",
    ) -> "Pool":
        """Checks arrays and makes a pool of them; the arrays are copied.

        Args:
            scores: [P, N] numbers in [0, 1]. NaN everywhere means the same as None, no verifier.
            correct: [P, N] booleans, or numbers that are 0 or 1. If None, it is
                `answers == gold`, provided that every problem has a gold answer.
            tokens: [P, N] integers, at least 0, or -1 for unknown. If None, all unknown.
            answers: [P, N] integers, at least 0, or -1 for no answer.
            gold: [P] integers, at least 0, or -1 for none.
            problem_ids: [P] unique strings or integers. If None, "0", "1", ...
            mask: [P, N] booleans: True for a problem's completions, which come first in its row. If
                None, all True. The other arrays' values where it is False are ignored.
            kind: "parallel" or "sequential".
            origin: Who made completions and scores.
            signals: [P, N] finite numbers by name, of any range; NaN for not known.
            clip: Move scores outside [0, 1] to the nearer end instead of refusing them (for a
                verifier trained by regression, say). NaN and infinity are refused all the same.
            rescale: How to bring scores of any range into [0, 1], one of `Rescale`.
            source: What error messages call the pool: its path, usually.

        Returns:
            The pool, with float32 scores and signals, and int32 tokens, answers and gold.

        Raises:
            PoolError: If no [P, N] array is given, if P or N is 0, if shapes differ, if a value is
                outside its domain (the message names the first such place), or if the kind is
                neither of the two.
        """
        checked_kind = _kind(kind, source)
        given = dict(
            scores=scores,
            correct=correct,
            tokens=tokens,
            answers=answers,
            mask=mask,
            gold=gold,
            problem_ids=problem_ids,
            **{_SIGNAL + name: values for name, values in (signals or {}).items()},
        )
        arrays = {name: _as_array(v, name, source) for name, v in given.items() if v is not None}
        shape = _common_shape(arrays, source)
        present = np.ones(shape, bool)
        if "mask" in arrays:
            present = _booleans(arrays["mask"], "mask", source)
            _check_mask(present, source)

        def integers(name: str, minus_one: str, where: np.ndarray = present) -> Any:
            if name in arrays:
                return _integers(arrays[name], name, minus_one, where, source)
            return None

        scores = None
        if "scores" in arrays:
            scores = _scores(arrays["scores"], present, clip, rescale, source)
        tokens = integers("tokens", "unknown")
        answers = integers("answers", "no answer")
        gold = integers("gold", "no gold answer", np.ones(shape[0], bool))
        correct = None
        if "correct" in arrays:
            correct = _booleans(arrays["correct"], "correct", source, present)
        elif answers is not None and gold is not None and np.all(gold != -1):
            # No answer is -1 and a gold answer never is, so no answer is never correct.
            correct = answers == gold[:, None]
        pool = cls(
            scores=scores,
            correct=correct,
            tokens=np.full(shape, -1, np.int32) if tokens is None else tokens,
            answers=answers,
            gold=gold,
            problem_ids=_problem_ids(arrays.get("problem_ids", np.arange(shape[0])), source),
            mask=present,
            kind=checked_kind,
            origin=origin,
            signals={
                name.removeprefix(_SIGNAL): _signal(array, name, present, source)
                for name, array in arrays.items()
                if name.startswith(_SIGNAL)
            },
        )
        for array in pool._arrays().values():
            array.flags.writeable = False
        return pool

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        scores: str = "scores",
        clip: bool = False,
        rescale: str | None = None,
    ) -> "Pool":
        """Reads a pool from an `.npz` file.

        The file must hold `scores` and may hold the other arrays of `from_arrays`, and `kind` as an
        array without axes, under the same names, and signals as `signals/NAME`; arrays of other
        names are left alone. Nothing in the file is ever unpickled.

        Args:
            path: The file; `package:NAME/PATH`, or `hf://OWNER/NAME` for one on a hub.
            scores: The array to take the scores from, or one of the signals (see `scored_by`):
                `Pool.load(path, scores="min_step")`.
            clip: Move scores outside [0, 1] to the nearer end instead of refusing them.
            rescale: As for `from_arrays`.

        Returns:
            The pool. If the scores are all NaN (no verifier), its `scores` is None.

        Raises:
            PoolError: If the file is missing, is not a readable `.npz`, lacks the scores, or holds
                arrays that `from_arrays` refuses.
        """
        source = os.fspath(path)
        path = local(path, kind="dataset", files=[POOL_FILE])
        if not path.exists():
            raise PoolError(f"{source}: no such file; give the path of a pool's .npz")
        if path.is_dir():
            raise PoolError(
                f"{source}: a folder; give the path of a pool's .npz, or read it with read_pool"
            )
        try:
            file = open(path, "rb")  # noqa: SIM115 (closed by the with below)
        except OSError as error:
            raise PoolError(f"{source}: cannot be read ({error.strerror})") from error
        # Opened here, because np.load leaves the file open when it turns out not to be an archive.
        with file:
            arrays = _read_npz(file, scores, source)
        return cls.from_arrays(**arrays, clip=clip, rescale=rescale, source=source)

    def scored_by(
        self, signal: str, *, clip: bool = False, rescale: str | None = None, source: str = "pool"
    ) -> "Pool":
        """The pool with a signal in the place of its scores, such as the least step score.

        Its origin says so: a calibration of the one is none of the other.

        Args:
            signal: One of `signals`. A completion without steps has a score of 0 by its steps.
            clip: As for `from_arrays`.
            rescale: As for `from_arrays`; `exp` for `mean_logprob`.
            source: As for `from_arrays`.

        Raises:
            PoolError: If there is no such signal, or its values are no scores.
        """
        if signal not in self.signals:
            has = ", ".join(self.signals) or "none"
            raise PoolError(f"{source}: no signal {signal!r} to take for the score (it has {has})")
        arrays = self._arrays()
        arrays["scores"] = _of_no_step_0(signal, self.signals[signal])
        return Pool.from_arrays(
            **_arguments(arrays),
            kind=self.kind,
            origin=_origin_of(signal, self.origin),
            clip=clip,
            rescale=rescale,
            source=source,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the pool to an `.npz` file that `Pool.load` reads back unchanged.

        The file appears under its name only when it is complete (`files.atomic_write`), and equal
        pools give equal bytes.

        Raises:
            OSError: If the file cannot be written.
        """
        arrays = self._arrays()
        arrays.setdefault("scores", np.full(self.mask.shape, np.nan, np.float32))
        if np.all(self.mask):
            del arrays["mask"]
        if self.kind != "parallel":
            arrays["kind"] = np.array(self.kind)
        told = {name: value for name, value in self.origin._asdict().items() if value is not None}
        arrays |= {_ORIGIN + name: np.array(value) for name, value in told.items()}
        with atomic_write(path, binary=True) as file:
            # NumPy stamps the members with a fixed date; sorting fixes their order too.
            np.savez_compressed(file, **dict(sorted(arrays.items())))

    def subset(self, problems: Any) -> "Pool":
        """Keeps some problems, in the order given.

        Args:
            problems: A slice, integer indices [Q], a boolean selection [P], or problem ids.

        Returns:
            The pool of those problems, with the same N.

        Raises:
            PoolError: If a problem does not exist, is given twice, or if none is given.
        """
        if not isinstance(problems, slice):
            problems = np.atleast_1d(_as_array(problems, "problems", "subset"))
            if problems.dtype.kind == "U":
                place = {name: index for index, name in enumerate(self.problem_ids.tolist())}
                unknown = [name for name in problems.tolist() if name not in place]
                if unknown:
                    raise PoolError(f"subset: no problem {unknown[0]!r} in the pool")
                problems = np.array([place[name] for name in problems.tolist()], int)
            elif problems.size == 0:
                problems = problems.astype(int)
        try:
            kept = _arguments({name: a[problems] for name, a in self._arrays().items()})
        except IndexError as error:
            raise PoolError(f"subset: {error}") from error
        pool = Pool.from_arrays(**kept, kind=self.kind, origin=self.origin)
        # What is not known of all problems is not known of these either.
        return pool if self.correct is not None else dataclasses.replace(pool, correct=None)

    def blocks(self, size: int = BLOCK) -> Iterator["Pool"]:
        """The pool in parts of `size` problems, in order, with the same N; the last may have fewer.

        They are views of its arrays.
        """
        for first in range(0, self.num_problems, size):
            yield self._taken(slice(first, first + size))

    def filled(self, num_problems: int) -> "Pool":
        """The pool with its last problem again and again, for programs of a fixed shape.

        Its `problem_ids` are then no longer unique.
        """
        rows = np.minimum(np.arange(num_problems), self.num_problems - 1)
        return self if num_problems == self.num_problems else self._taken(rows)

    def _taken(self, rows: Any) -> "Pool":
        arrays = {name: array[rows] for name, array in self._arrays().items()}
        return dataclasses.replace(self, **_arguments(arrays))

    def _arrays(self) -> dict[str, Any]:
        """The arrays that there are, by name, as `save` writes them."""
        held = {name: getattr(self, name) for name in (*_PER_COMPLETION, *_PER_PROBLEM)}
        held |= {_SIGNAL + name: array for name, array in self.signals.items()}
        return {name: array for name, array in held.items() if array is not None}


def _arguments(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What `from_arrays` takes, of arrays side by side."""
    given: dict[str, Any] = {"signals": {}}
    for name, array in arrays.items():
        is_signal = name.startswith(_SIGNAL)
        (given["signals"] if is_signal else given)[name.removeprefix(_SIGNAL)] = array
    return given


def _kind(value: str, source: str) -> PoolKind:
    if value not in get_args(PoolKind):
        raise PoolError(f"{source}: kind is {value!r}; it must be 'parallel' or 'sequential'")
    return cast(PoolKind, value)


def _as_array(value: Any, name: str, source: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise PoolError(f"{source}: {name} is ragged; give a rectangular array") from error
    if array.dtype.kind == "O":
        raise PoolError(f"{source}: {name} holds Python objects; give numbers or strings")
    return array


def _read_npz(file: BinaryIO, scores: str, source: str) -> dict[str, Any]:
    # Told by its first bytes: NumPy would make room for whatever a lone array's header claims.
    if file.read(len(_ARRAY)) == _ARRAY:
        raise PoolError(f"{source}: a single array; a pool is an .npz with named arrays")
    file.seek(0)
    try:
        archive = np.load(file, allow_pickle=False)
    except _NOT_AN_ARCHIVE as error:
        raise PoolError(
            f"{source}: not a complete .npz file; write pools with Pool.save or np.savez"
        ) from error
    stored = scores if scores in archive.files else _SIGNAL + scores
    if stored not in archive.files:
        raise PoolError(
            f"{source}: no array {scores!r} (it has "
            f"{', '.join(archive.files[:20]) or 'none'}); store one, all NaN without a verifier"
        )
    members = archive.zip.infolist()
    refuse_bomb(source, sum(m.file_size for m in members), os.fstat(file.fileno()).st_size)
    stored_as = {field: field for field in (*_PER_COMPLETION, *_PER_PROBLEM, "kind")}
    stored_as |= {name: name for name in archive.files if name.startswith((_SIGNAL, _ORIGIN))}
    stored_as["scores"] = stored
    arrays: dict[str, Any] = {}
    for field, name in stored_as.items():
        if name not in archive.files:
            continue
        try:
            _check_claim(archive.zip, name, source)
            arrays[field] = archive[name]
        except PoolError:
            raise
        except _NOT_AN_ARCHIVE as error:
            raise PoolError(f"{source}: {name} is damaged; copy or make the file again") from error
    if "kind" in arrays:
        arrays["kind"] = str(arrays["kind"])
    told = {field: arrays.pop(_ORIGIN + field, None) for field in Origin._fields}
    words = {field: None if value is None else str(value) for field, value in told.items()}
    origin = Origin(**words)
    if scores != "scores":
        name = stored.removeprefix(_SIGNAL)
        arrays["scores"] = _of_no_step_0(name, arrays["scores"])
        origin = _origin_of(name, origin)
    return {**_arguments(arrays), "origin": origin}


def _of_no_step_0(signal: str, values: np.ndarray) -> np.ndarray:
    """A signal as scores: 0 without a step, since nothing speaks for such a completion."""
    return np.nan_to_num(values, nan=0.0) if signal in STEP_SIGNALS else values


def _origin_of(signal: str, origin: Origin) -> Origin:
    """Who made a signal that takes the place of the scores; not known if the scores' is not."""
    if origin == NOT_KNOWN:
        return NOT_KNOWN
    if signal in STEP_SIGNALS:
        return origin._replace(aggregate=STEP_SIGNALS[signal])
    return Origin(signal, None, origin.generator)


def _check_claim(archive: zipfile.ZipFile, name: str, source: str) -> None:
    """Refuses an array whose header does not go with its bytes, before they are read."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise PoolError(
                f"{source}: {name} holds Python objects, which are never unpickled; store numbers "
                "or strings"
            )
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - file.tell():
            raise PoolError(
                f"{source}: {name} says that it has {size} bytes, but the file has "
                f"{member.file_size - file.tell()}; it is damaged: copy or make it again"
            )


def _common_shape(arrays: Mapping[str, np.ndarray], source: str) -> tuple[int, int]:
    reference = next((name for name in _PER_COMPLETION if name in arrays), None)
    if reference is None:
        raise PoolError(f"{source}: no array with completions; give scores or answers")
    shape = arrays[reference].shape
    if len(shape) != 2:
        raise PoolError(
            f"{source}: {reference} has shape {shape}; it must have two axes, problems and samples"
        )
    if 0 in shape:
        raise PoolError(f"{source}: {reference} has shape {shape}; an empty pool cannot be used")
    for name, array in arrays.items():
        expected, remedy = shape, "both must be [problems, samples]"
        if name in _PER_PROBLEM:
            expected, remedy = shape[:1], f"it must have one entry a problem, {shape[:1]}"
        if array.shape != expected:
            raise PoolError(
                f"{source}: {name} has shape {array.shape} but {reference} has {shape}; {remedy}"
            )
    return shape


def _check_mask(mask: np.ndarray, source: str) -> None:
    empty = np.flatnonzero(~np.any(mask, axis=1))
    if empty.size:
        raise PoolError(f"{source}: mask[{empty[0]}] is all False; leave out an empty problem")
    late = mask[:, 1:] & ~mask[:, :-1]
    if np.any(late):
        row, column = np.argwhere(late)[0]
        raise PoolError(
            f"{source}: mask[{row}, {column + 1}] is True after a False; put a problem's "
            "completions first and the gaps last"
        )


def _scores(
    array: np.ndarray, present: np.ndarray, clip: bool, rescale: str | None, source: str
) -> np.ndarray | None:
    numbers = _real(array, "scores", source)
    missing = np.isnan(numbers)
    if np.all(missing[present]):
        return None
    _refuse(
        missing & present, numbers, "scores", "score every completion, or none (all NaN)", source
    )
    _refuse(np.isinf(numbers) & present, numbers, "scores", "scores are finite, in [0, 1]", source)
    if rescale is not None:
        numbers = np.zeros(numbers.shape)
        numbers[present] = _rescaled(array[present].astype(np.float64), rescale, source)
    scores = np.where(present, numbers, 0.0)
    # To float32 first: 1 + 1e-12 in float64 is a rounded 1, not an error.
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32)
    if clip:
        return np.clip(scores, np.float32(0), np.float32(1))
    outside = (scores < 0) | (scores > 1)
    remedy = (
        "scores are in [0, 1]; rescale them (--rescale rank), or move them to the nearer end "
        "(--clip true)"
    )
    _refuse(outside, numbers, "scores", remedy, source)
    return scores


def _signal(array: np.ndarray, name: str, present: np.ndarray, source: str) -> np.ndarray:
    numbers = _real(array, name, source)
    with np.errstate(over="ignore"):
        signal = np.where(present, numbers, np.nan).astype(np.float32)
    _refuse(np.isinf(signal), numbers, name, "give finite float32, or NaN for not known", source)
    return signal


def _rescaled(scores: np.ndarray, how: str, source: str) -> np.ndarray:
    if how == "sigmoid":
        return 0.5 * (1 + np.tanh(scores / 2))
    if how == "exp":
        if (most := scores.max()) > 0:
            raise PoolError(f"{source}: exp takes log-probabilities, at most 0; one is {most:g}")
        return np.exp(scores)
    if how == "rank":
        _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
        return ((np.cumsum(counts) - counts / 2) / len(scores))[place.reshape(scores.shape)]
    if how != "minmax":
        known = ", ".join(get_args(Rescale))
        raise PoolError(f"{source}: rescale is {how!r}; it must be one of {known}")
    # Halves, because the difference of two numbers may be larger than any number.
    low, high = scores.min() / 2, scores.max() / 2
    if low == high:
        raise PoolError(f"{source}: every score is {scores[0]}; minmax has nothing to rescale by")
    return (scores / 2 - low) / (high - low)


def _integers(
    array: np.ndarray, name: str, minus_one: str, present: np.ndarray, source: str
) -> np.ndarray:
    numbers = _real(array, name, source)
    if numbers.dtype.kind == "f":
        whole = np.isfinite(numbers) & (numbers == np.floor(numbers))
        _refuse(~whole & present, numbers, name, f"give integers, with -1 for {minus_one}", source)
    remedy = f"give integers of at least 0, or -1 for {minus_one}"
    _refuse((numbers < -1) & present, numbers, name, remedy, source)
    largest = np.iinfo(np.int32).max
    _refuse((numbers > largest) & present, numbers, name, f"at most {largest} fits", source)
    integers = np.full(numbers.shape, -1, np.int32)
    integers[present] = numbers[present].astype(np.int32)
    return integers


def _booleans(
    array: np.ndarray, name: str, source: str, present: np.ndarray | None = None
) -> np.ndarray:
    if array.dtype.kind == "b":
        booleans = array.copy()
    else:
        numbers = _real(array, name, source)
        wrong = (numbers != 0) & (numbers != 1)
        if present is not None:
            wrong &= present
        _refuse(wrong, numbers, name, "give booleans, or 0 and 1", source)
        booleans = numbers == 1
    return booleans if present is None else booleans & present


def _problem_ids(array: np.ndarray, source: str) -> np.ndarray:
    if array.dtype.kind not in "USiu":
        raise PoolError(f"{source}: problem_ids has type {array.dtype}; give strings")
    try:
        names = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array.astype(np.str_)
    except UnicodeDecodeError as error:
        raise PoolError(f"{source}: problem_ids is not UTF-8; give strings") from error
    _, first, counts = np.unique(names, return_index=True, return_counts=True)
    if np.any(counts > 1):
        original = first[counts > 1].min()
        repeated = np.flatnonzero(names == names[original])[1]
        raise PoolError(
            f"{source}: problem_ids[{repeated}] repeats {str(names[original])!r} of "
            f"problem_ids[{original}]; give each problem its own"
        )
    return np.array(names)


def _real(array: np.ndarray, name: str, source: str) -> np.ndarray:
    if array.dtype.kind == "b":
        return array.astype(np.int32)
    if array.dtype.kind not in "iuf":
        raise PoolError(f"{source}: {name} has type {array.dtype}; give real numbers")
    return array


def _refuse(wrong: np.ndarray, values: np.ndarray, name: str, remedy: str, source: str) -> None:
    if np.any(wrong):
        index = tuple(np.argwhere(wrong)[0].tolist())
        place = ", ".join(map(str, index))
        raise PoolError(f"{source}: {name}[{place}] is {values[index].item()}; {remedy}")
