"""Pools as a configuration names them: a file of any format that `read_pool` knows, or synthetic.

A `PoolSource` goes with the outcomes of a replay, so that who reads them finds the pool again.
"""

import contextlib
import dataclasses
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax

from optscale_jax.answers import EXTRACTORS
from optscale_jax.calibration import Origin
from optscale_jax.equivalence import comparison
from optscale_jax.errors import PoolWarning, bad_input
from optscale_jax.plugins import load_object
from optscale_jax.pool import BLOCK, Pool, Rescale
from optscale_jax.pool_directory import MANIFEST, AnyPool, PoolDirectory
from optscale_jax.readers import open_pool, pool_blocks
from optscale_jax.readers.records import data_path
from optscale_jax.synthetic import SyntheticConfig, synthetic_blocks, synthetic_pool

__all__ = ["SYNTHETIC", "PoolSource", "ReadConfig", "SyntheticPoolConfig", "checksum"]

SYNTHETIC = "synthetic"
"""What stands for a path where the pool is made on the spot."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How to read a file of completions; docs/formats.md has the formats.

    Attributes:
        format: The file's format, one of docs/formats.md, or module:function for a reader of one's
            own. auto: found out from its beginning.
        scores: Which scores to take: the array, field or scorer of that name, or a signal of a live
            run or an .npz, such as min_step. scores: the format's own.
        clip: Whether to move scores outside [0, 1] to the nearer end instead of refusing them.
        rescale: How to bring scores of any range into [0, 1]: sigmoid, exp (of log-probabilities),
            minmax (the pool's least to 0, its greatest to 1) or rank. null: not at all.
        prompts: A file with the problems and gold answers, for formats without.
        kind: Of an optscale file, whether its completions are parallel or sequential. null:
            parallel. The other formats say it themselves.
        aggregation: What makes a score of step scores: last, mean, min or prod. null: last of a
            search_and_learn file; otherwise step scores are refused.
        task: Of a folder of lm_eval, the only task to read. null: all.
        filter: Of an lm_eval file, the filter whose answers to take. null: read them off the
            completions.
        metric: The metric, field or scorer to take correctness from; answers: compare answers.
            null: what the file says itself.
        extract: How a completion's answer is read: auto, the last that it commits to in any of the
            usual forms; boxed; last_number; or module:function of its text.
        equal: When two answers are the same: text, numbers by value and all else by its normalised
            text; math, by algebra as well; or module:function of the gold answer and the answer.
        verifier: Name of the model that gave the scores, where the file does not say: a calibration
            is used on its own verifier's scores only.
        aggregate: Likewise, what of its step scores is a completion's score.
        generator: Likewise, name of the model that wrote the completions.
    """

    format: str = "auto"
    scores: str = "scores"
    clip: bool = False
    rescale: Rescale | None = None
    prompts: str | None = None
    kind: Literal["parallel", "sequential"] | None = None
    aggregation: str | None = None
    task: str | None = None
    filter: str | None = None
    metric: str | None = None
    extract: str = "auto"
    equal: str = "text"
    verifier: str | None = None
    aggregate: str | None = None
    generator: str | None = None

    @property
    def read(self) -> "ReadConfig":
        """These options alone, of a configuration that has others too."""
        return ReadConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(ReadConfig)})


@dataclasses.dataclass(frozen=True)
class SyntheticPoolConfig(SyntheticConfig):
    """The synthetic pool; optscale_jax/synthetic.py has the model's equations.

    Attributes:
        num_problems: Problems in the pool, at least 1.
        num_samples: Completions of each, at least 1.
        seed: Of the pool, at least 0.
    """

    num_problems: int = 500
    num_samples: int = 64
    seed: int = 0

    def make(self) -> Pool:
        """The pool; an `InputError` if a number is outside its domain."""
        with bad_input():
            return synthetic_pool(jax.random.key(self.seed), **self._arguments)

    def blocks(self) -> Iterator[Pool]:
        """The same, in blocks."""
        with bad_input():
            yield from synthetic_blocks(jax.random.key(self.seed), **self._arguments)

    @property
    def _arguments(self) -> dict[str, Any]:
        return {"num_problems": self.num_problems, "num_samples": self.num_samples, "config": self}


@dataclasses.dataclass(frozen=True)
class PoolSource:
    """Where a pool came from.

    Attributes:
        path: The file, or a folder with a `samples.jsonl` in it; `package:NAME/PATH` for one in a
            package, `hf://OWNER/NAME` for one on a hub; or `SYNTHETIC`.
        read: The options of its format.
        synthetic: What it was made with; None for a file.
        sha256: Checksum of the file when it was read; None if it was not taken, or was made.
    """

    path: str
    read: ReadConfig = ReadConfig()
    synthetic: SyntheticPoolConfig | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The pool's name in tables: its file's, without the suffix."""
        file = Path(self.path)
        return file.stem if file.suffix else file.resolve().name

    def load(self) -> Pool:
        """Reads the pool, or makes it; an `InputError` if it cannot be."""
        pool = self.open()
        return pool if isinstance(pool, Pool) else pool.load()

    def open(self) -> AnyPool:
        """The same; a large pool directory stays on disk, to be read in blocks."""
        if self.synthetic is not None:
            return self.synthetic.make()
        with self._options() as options:
            origin = Origin(*(options.pop(field, None) for field in Origin._fields))
            pool = open_pool(self.path, **options).with_origin(origin)
            if isinstance(pool, PoolDirectory) and pool.num_problems <= BLOCK:
                pool = pool.load()
        self._warn()
        return pool

    def blocks(self) -> Iterator[Pool]:
        """The pool some problems at a time, so few as its format allows (`readers.pool_blocks`)."""
        if self.synthetic is not None:
            yield from self.synthetic.blocks()
            return
        self._warn()
        with self._options() as options:
            origin = Origin(*(options.pop(field, None) for field in Origin._fields))
            yield from (b.with_origin(origin) for b in pool_blocks(self.path, **options))

    @contextlib.contextmanager
    def _options(self) -> Iterator[dict[str, Any]]:
        """The reader's options, of which only what was asked for: a format refuses others."""
        asked, defaults = dataclasses.asdict(self.read), dataclasses.asdict(ReadConfig())
        options = {name: value for name, value in asked.items() if value != defaults[name]}
        with bad_input(errors=(ImportError, ValueError)), contextlib.ExitStack() as stack:
            if extract := options.get("extract"):
                options["extract"] = load_object(extract, what="extract", shipped=EXTRACTORS)
            if equal := options.get("equal"):
                options["equal"] = stack.enter_context(comparison(equal))
            yield options

    def _warn(self) -> None:
        if rescaled := self.read.rescale:
            words = f"{self.path}: scores are rescaled ({rescaled})"
            warnings.warn(words, PoolWarning, stacklevel=3)

    def with_checksum(self) -> "PoolSource":
        """The same, with the checksum of the file as it is now."""
        if self.synthetic is not None:
            return self
        return dataclasses.replace(self, sha256=checksum(self.path))

    def what_changed(self) -> str | None:
        """Why the pool is not what it was, in words; None if it is."""
        if self.synthetic is not None:
            return None
        if not data_path(self.path).exists():
            return f"its pool, {self.path}, is no longer there"
        if self.sha256 not in (None, checksum(self.path)):
            return f"its pool, {self.path}, is another one now"
        return None

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "PoolSource":
        """The source whose fields, as `dataclasses.asdict` gives them, these are."""
        made = fields["synthetic"] and SyntheticPoolConfig(**fields["synthetic"])
        return cls(**(fields | {"read": ReadConfig(**fields["read"]), "synthetic": made}))


def checksum(path: str) -> str:
    """SHA-256 of a pool's files, read in pieces, because they may be larger than the memory."""
    place = data_path(path)
    files = [place]
    if place.is_dir():
        # A manifest has its parts' checksums; lines of completions are all that a run's pool is.
        alone = [file for name in (MANIFEST, "samples.jsonl") if (file := place / name).exists()]
        files = alone[:1] or sorted(place.rglob("*.*"))
    digest = hashlib.sha256()
    for file in filter(Path.is_file, files):
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
