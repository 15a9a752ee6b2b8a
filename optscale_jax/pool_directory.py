"""Pool directories: pools of any size on disk, written as a stream and read in blocks.

    with PoolWriter("runs/large") as writer:
        for block in blocks:  # pools, each of some problems
            writer.add(block)
    pool = PoolDirectory("runs/large")

A part is a Parquet file of some thousands of problems, a row each, in which what there is of its
completions are lists. `pool.json`, the manifest, lists the parts with their checksums; until the
last of them is on disk it says that the pool is unfinished. `docs/formats.md` has the columns.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optscale_jax.calibration import Origin
from optscale_jax.errors import PoolError
from optscale_jax.files import atomic_write
from optscale_jax.pool import BLOCK, Pool

__all__ = ["MANIFEST", "AnyPool", "PoolDirectory", "PoolWriter"]

MANIFEST = "pool.json"
_FORMAT, _VERSION = "optscale pool", 1
_AGAIN = "copy it again, or make the pool again"
_PARTS = "part-*.parquet"
_SIGNAL = "signals/"
_COLUMNS = ("scores", "correct", "tokens", "answers", "gold")
# Of problems that lack a column which others of the pool have; signals are NaN. A truth that is not
# known of all problems is left out in the end.
_NOT_KNOWN: dict[str, tuple[type, Any]] = {"gold": (np.int32, -1), "correct": (np.bool_, False)}
_BYTES = 5  # of a completion in one column, with its mask


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        words = "pool directories need pyarrow; pip install 'optscale-jax[readers]'"
        raise PoolError(words) from error
    return pyarrow


@dataclasses.dataclass(frozen=True)
class _Part:
    """What the manifest says of a part."""

    file: str
    bytes: int
    sha256: str
    problems: int
    completions: int
    unanswered: int  # completions without an answer; 0 where the pool has no answers
    without_length: int  # completions whose length is not known


class PoolWriter:
    """Writes a pool directory as a stream, a part of it in memory at a time.

    Used in a `with`. Where that ends with an error, what was written is removed again. A process
    that is killed leaves a directory whose manifest says that it is unfinished, and which the next
    writer of the same path begins anew.

    Args:
        path: The directory; made if it does not exist.
        part_size: Problems of a part at most, at least 1.

    Raises:
        PoolError: If a finished pool or anything else is there already, or pyarrow is missing.
    """

    def __init__(self, path: str | os.PathLike[str], *, part_size: int = BLOCK):
        self.path = Path(path)
        self._part_size = part_size
        self._arrow = _arrow()
        self._held: list[Pool] = []  # what is not written yet
        self._parts: list[_Part] = []
        self._common: dict[str, Any] = {}  # what all problems have in common
        self._columns: set[str] = set()  # those that some problems have
        self._partly: set[str] = set()  # those of these that others lack
        self._num_samples = 0
        self._ids: set[str] = set()

    def __enter__(self) -> "PoolWriter":
        there = sorted(self.path.iterdir()) if self.path.is_dir() else []
        if there and not (self.path / MANIFEST).exists():
            raise PoolError(f"{self.path}: has other files in it; give a new or empty folder")
        if there and _manifest(self.path).get("finished"):
            raise PoolError(f"{self.path}: a pool is there already; remove it, or write elsewhere")
        self._save({"finished": False})
        for file in self.path.glob(_PARTS):
            file.unlink()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if kind is not None or not self._common:
                for name in (*(part.file for part in self._parts), MANIFEST):
                    (self.path / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # something else is in it by now
                    self.path.rmdir()

    @property
    def num_problems(self) -> int:
        """Problems added so far."""
        return len(self._ids)

    def add(self, pool: Pool) -> None:
        """Adds problems after those that are there.

        A signal that some problems lack is NaN there, a gold answer -1; what is right is known of
        all problems or of none.

        Raises:
            PoolError: If a problem is there already, or if these are of another kind or origin than
                those before, or have scores or answers where those have none, or the reverse.
        """
        first = str(pool.problem_ids[0])
        common = {"kind": pool.kind, "origin": pool.origin._asdict()}
        common |= {"has_scores": pool.has_scores, "has_answers": pool.has_answers}
        for field, value in common.items():
            if value != self._common.get(field, value):
                raise PoolError(
                    f"{self.path}: {field} is {value} from problem {first!r} on, and "
                    f"{self._common[field]} before; a pool has one"
                )
        for name in pool.problem_ids.tolist():
            if name in self._ids:
                raise PoolError(
                    f"{self.path}: problem {name!r} is given twice, or its lines stand "
                    "apart; give each problem once"
                )
            self._ids.add(name)
        columns = set(_arrays(pool))
        self._partly |= (self._columns ^ columns) if self._common else set()
        self._columns |= columns
        self._common = common
        self._num_samples = max(self._num_samples, pool.num_samples)
        for piece in pool.blocks(self._part_size):
            if sum(p.num_problems for p in (*self._held, piece)) > self._part_size:
                self._write()
            self._held.append(piece)

    def _write(self) -> None:
        """Writes what is held as a part."""
        columns = sorted(set().union(*map(_arrays, self._held)))
        table = self._arrow.concat_tables(
            [_table(pool, columns, self._arrow) for pool in self._held]
        )
        tokens = np.concatenate([pool.tokens[pool.mask] for pool in self._held])
        unanswered = sum((pool.num_unanswered or (0, 0))[0] for pool in self._held)
        self._held = []
        name, made = f"part-{len(self._parts):05d}.parquet", io.BytesIO()
        # The bytes of scores and lengths pack best apart; answers and truths repeat themselves.
        packed = {n: n in ("correct", "answers") for n in columns if n != "gold"}
        self._arrow.parquet.write_table(
            table,
            made,
            compression="zstd",
            compression_level=1,
            use_dictionary=[f"{n}.list.element" for n, often in packed.items() if often],
            use_byte_stream_split=[f"{n}.list.element" for n, often in packed.items() if not often],
        )
        with atomic_write(self.path / name, binary=True) as file:
            file.write(made.getbuffer())
        self._parts.append(
            _Part(
                file=name,
                bytes=made.tell(),
                sha256=hashlib.sha256(made.getbuffer()).hexdigest(),
                problems=len(table),
                completions=len(tokens),
                unanswered=unanswered,
                without_length=int((tokens < 0).sum()),
            )
        )

    def _finish(self) -> None:
        if not self._common:
            raise PoolError(f"{self.path}: no problem was added; a pool has one at least")
        self._write()
        self._save(
            {
                "kind": self._common["kind"],
                "origin": self._common["origin"],
                "num_samples": self._num_samples,
                "columns": sorted(self._columns - (self._partly & {"correct"})),
                "parts": [dataclasses.asdict(part) for part in self._parts],
            }
        )

    def _save(self, said: Mapping[str, Any]) -> None:
        whole = {"format": _FORMAT, "version": _VERSION, "finished": True, **said}
        with atomic_write(self.path / MANIFEST) as file:
            json.dump(whole, file, indent=1, ensure_ascii=False)
            file.write("\n")


class PoolDirectory:
    """A pool on disk. It says of itself what a `Pool` says, and gives its problems in blocks.

    Args:
        path: The directory.

    Attributes:
        kind: As of a `Pool`, and so are all others.
        origin: Likewise.
        num_samples: N, of the problem that has most.
        num_problems: P.
        has_scores: Likewise.
        has_answers: Likewise.
        has_tokens: Likewise.
        signal_names: Likewise.

    Raises:
        PoolError: If it is no pool directory, is unfinished, or a part is missing, cut short or not
            of it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        said = _manifest(self.path)
        if not said.get("finished"):
            raise PoolError(
                f"{self.path}: unfinished, its writer did not come to the end; write it again"
            )
        try:
            self._parts = [_Part(**part) for part in said["parts"]]
            self._columns: list[str] = [str(name) for name in said["columns"]]
            self.kind, self.num_samples = said["kind"], int(said["num_samples"])
            self.origin = Origin(**said["origin"])
            self.num_problems = sum(part.problems for part in self._parts)
            self._check()
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, PoolError):
                raise
            raise PoolError(f"{self.path / MANIFEST}: damaged ({error}); {_AGAIN}") from error
        self.has_scores, self.has_answers = (n in self._columns for n in ("scores", "answers"))
        self.has_tokens = not any(part.without_length for part in self._parts)
        signals = (name for name in self._columns if name.startswith(_SIGNAL))
        self.signal_names = tuple(name.removeprefix(_SIGNAL) for name in signals)

    def _check(self) -> None:
        count, listed = len(self._parts), {part.file for part in self._parts}
        for number, part in enumerate(self._parts, 1):
            file = self.path / part.file
            if not file.is_file():
                raise PoolError(f"{file}: part {number} of {count} is missing; {_AGAIN}")
            if (size := file.stat().st_size) != part.bytes:
                raise PoolError(f"{file}: {size} bytes of {part.bytes}; {_AGAIN}")
        for file in sorted(self.path.glob(_PARTS)):
            if file.name not in listed:
                raise PoolError(f"{file}: no part that {MANIFEST} lists; remove it")

    def with_origin(self, origin: Origin) -> "PoolDirectory":
        """As `Pool.with_origin`."""
        other = copy.copy(self)
        given = {name: value for name, value in origin._asdict().items() if value is not None}
        other.origin = self.origin._replace(**given)
        return other

    @property
    def num_unanswered(self) -> tuple[int, int] | None:
        """As of a `Pool`."""
        if not self.has_answers:
            return None
        none = sum(part.unanswered for part in self._parts)
        return none, sum(part.completions for part in self._parts)

    @functools.cached_property
    def problem_ids(self) -> np.ndarray:
        """[P] unique names."""
        return np.array([name for table in self._tables(["problem_id"]) for name in _ids(table)])

    @functools.cached_property
    def samples_per_problem(self) -> np.ndarray:
        """[P] number of completions of each problem."""
        return np.concatenate([_lengths(table) for table in self._tables(["tokens"])])

    def blocks(self, size: int = BLOCK) -> Iterator[Pool]:
        """As `Pool.blocks`; a block and a part are in memory at a time.

        Raises:
            PoolError: If a part cannot be read, or is not what was written.
        """
        held: list[Any] = []
        for table in self._tables():
            held.append(table)
            while sum(map(len, held)) >= size:
                whole = _arrow().concat_tables(held)
                yield self._pool(whole.slice(0, size))
                held = [whole.slice(size)]
        if sum(map(len, held)):
            yield self._pool(_arrow().concat_tables(held))

    def subset(self, problems: np.ndarray) -> Pool:
        """The pool of some problems, rising indices [Q]."""
        first, held = 0, []
        for table in self._tables():
            own = problems[(problems >= first) & (problems < first + len(table))] - first
            held.append(table.take(own))
            first += len(table)
        return self._pool(_arrow().concat_tables(held))

    def load(self) -> Pool:
        """The whole pool, in memory.

        Raises:
            PoolError: If it would take most of this machine's memory, or as `blocks`.
        """
        needed = 2 * _BYTES * self.num_problems * self.num_samples * len(self._columns)
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > there:
            raise PoolError(
                f"{self.path}: {self.num_problems:,} problems take {needed / 2**30:.0f} GiB while "
                f"they are read, of {there / 2**30:.0f}; replay, report and train calibration read "
                "them in blocks"
            )
        return next(self.blocks(self.num_problems))

    def _tables(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Each part's columns, or some of them."""
        arrow = _arrow()
        for part in self._parts:
            file = self.path / part.file
            try:
                data = file.read_bytes()
                if hashlib.sha256(data).hexdigest() != part.sha256:
                    raise PoolError(f"{file}: not as it was written; {_AGAIN}")
                table = arrow.parquet.read_table(arrow.BufferReader(data), columns=columns)
            except (OSError, arrow.ArrowException) as error:
                reason = " ".join(str(error).split())[:200]
                raise PoolError(f"{file}: cannot be read ({reason}); {_AGAIN}") from error
            yield table if columns else self._completed(table, arrow)

    def _completed(self, table: Any, arrow: Any) -> Any:
        """A part's table with the columns of all, those that it lacks not known."""
        have = {name: table[name].combine_chunks() for name in table.column_names}
        offsets = arrow.array(_offsets(_lengths(table)))
        for name in self._columns:
            if name == "gold":
                have.setdefault(name, arrow.array(np.full(len(table), -1, np.int32)))
            elif name not in have:
                unknown = np.full(offsets[-1].as_py(), np.nan, np.float32)
                have[name] = arrow.ListArray.from_arrays(offsets, arrow.array(unknown))
        return arrow.table({name: have[name] for name in ("problem_id", *self._columns)})

    def _pool(self, table: Any) -> Pool:
        mask = np.arange(self.num_samples) < _lengths(table)[:, None]
        arrays: dict[str, Any] = {}
        for name in self._columns:
            flat = table[name].combine_chunks()
            if name == "gold":
                arrays[name] = flat.to_numpy()
                continue
            flat = flat.flatten().to_numpy(zero_copy_only=False)
            arrays[name] = np.zeros(mask.shape, flat.dtype)
            arrays[name][mask] = flat
        pool = Pool.from_arrays(
            **{name: array for name, array in arrays.items() if not name.startswith(_SIGNAL)},
            signals={name: arrays[_SIGNAL + name] for name in self.signal_names},
            problem_ids=_ids(table),
            mask=mask,
            kind=self.kind,
            origin=self.origin,
            source=str(self.path),
        )
        # What is not known of all problems is not known of these either.
        return pool if "correct" in self._columns else dataclasses.replace(pool, correct=None)


AnyPool = Pool | PoolDirectory
"""What is read in blocks: a pool in memory, or one on disk."""


def _arrays(pool: Pool) -> dict[str, np.ndarray]:
    """A pool's columns, but for the problems' names."""
    named = {name: getattr(pool, name) for name in _COLUMNS}
    found = {name: array for name, array in named.items() if array is not None}
    return found | {_SIGNAL + name: array for name, array in pool.signals.items()}


def _table(pool: Pool, columns: Sequence[str], arrow: Any) -> Any:
    """A row a problem; of the columns those that it lacks are not known."""
    arrays = _arrays(pool)
    offsets = arrow.array(_offsets(pool.samples_per_problem))
    made = {"problem_id": arrow.array(pool.problem_ids.tolist(), arrow.string())}
    for name in columns:
        kind, unknown = _NOT_KNOWN.get(name, (np.float32, np.nan))
        shape = pool.mask.shape[: 1 if name == "gold" else 2]
        array = arrays.get(name, np.full(shape, unknown, kind))
        made[name] = arrow.array(array if name == "gold" else array[pool.mask])
        if name != "gold":
            made[name] = arrow.ListArray.from_arrays(offsets, made[name])
    return arrow.table(made)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _lengths(table: Any) -> np.ndarray:
    return table["tokens"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)


def _ids(table: Any) -> list[str]:
    return table["problem_id"].to_pylist()


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        said = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise PoolError(f"{file}: cannot be read ({error.strerror}); {_AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise PoolError(f"{file}: is no JSON; {_AGAIN}") from error
    if not isinstance(said, dict) or said.get("format") != _FORMAT:
        raise PoolError(f"{file}: is no manifest of a pool; {_AGAIN}")
    if said.get("version") != _VERSION:
        raise PoolError(f"{file}: version is {said.get('version')!r}, and this reads {_VERSION}")
    return said
