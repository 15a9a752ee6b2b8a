"""Features on disk: memory-mapped, safe against a crash at any moment, keyed by what made them.

A cache's folder has one folder for each recipe, with

    recipe.json        what made the features, to tell a folder that was moved or edited
    NAME.bin           rows of features, one problem after another
    NAME.json          its index: the texts' hashes, rows and lengths, the file's size and checksum

A shard is written to temporary names, flushed to the disk and renamed, its index last: an index
that is there speaks of rows that are there. A shard that fails its checksum all the same is removed
and its texts are read by the model again. Several processes may fill one cache.
"""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from optscale_jax.predictor.errors import PredictorError

__all__ = ["FeatureCache", "Item", "text_key"]

_STALE_SECONDS = 3600.0
# Temporary files older than this were left by a process that was killed.


class Item(NamedTuple):
    """Features of one text.

    Attributes:
        rows: [R, D], one row a token, or one row in all if pooled; possibly memory-mapped.
        tokens: Tokens that the model read.
    """

    rows: np.ndarray
    tokens: int


def text_key(text: str) -> str:
    """The name of a text in a cache."""
    return hashlib.sha256(text.encode()).hexdigest()


class FeatureCache:
    """The features that one recipe has made so far.

    Attributes:
        folder: Where they are; None: nothing is kept.
    """

    def __init__(self, root: str | os.PathLike[str] | None, recipe: dict[str, Any]):
        """Opens the recipe's folder, or makes it.

        Args:
            root: The cache's folder; None for a cache in memory only.
            recipe: What makes the features, as JSON.

        Raises:
            PredictorError: If the folder holds features of another recipe.
        """
        self._items: dict[str, Item] = {}
        self.folder = None
        if root is None:
            return
        written = json.dumps(recipe, indent=1, sort_keys=True) + "\n"
        name = "".join(c if c.isalnum() else "-" for c in Path(str(recipe["model"])).name)
        digest = hashlib.sha256(written.encode()).hexdigest()[:16]
        self.folder = Path(root).expanduser() / f"{name}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / "recipe.json"
        if record.exists():
            if record.read_text(encoding="utf-8") != written:
                raise PredictorError(
                    f"{record}: the features here are of another model or recipe; remove the "
                    "folder, or give another --cache"
                )
        else:
            _write(record, written.encode())
        self._sweep()
        for index in sorted(self.folder.glob("*.json")):
            if index != record:
                self._open(index)

    def __contains__(self, key: str) -> bool:
        """Whether the features of a text are there, by `text_key`."""
        return key in self._items

    def __getitem__(self, key: str) -> Item:
        """The features of a text, by `text_key`."""
        return self._items[key]

    def add(self, keys: Sequence[str], items: Sequence[Item]) -> None:
        """Keeps features, as one shard.

        Args:
            keys: The texts' `text_key`s.
            items: Their features, all of one width and type.
        """
        if self.folder is None or not items:
            self._items.update(zip(keys, items, strict=True))
            return
        rows = np.ascontiguousarray(np.concatenate([item.rows for item in items]))
        # A name of its own: the first text's, and the process and time against another's.
        name = f"{keys[0][:16]}-{os.getpid()}-{time.time_ns()}"
        data = rows.view(np.uint8).reshape(-1)
        index = {
            "dtype": rows.dtype.name,
            "width": rows.shape[1],
            "bytes": data.size,
            "crc32": _checksum(data),
            "texts": [
                [key, len(item.rows), item.tokens] for key, item in zip(keys, items, strict=True)
            ],
        }
        _write(self.folder / f"{name}.bin", data)
        _write(self.folder / f"{name}.json", json.dumps(index).encode())
        self._open(self.folder / f"{name}.json")

    def _open(self, path: Path) -> None:
        data_path = path.with_suffix(".bin")
        try:
            index = json.loads(path.read_bytes())
            dtype = _dtype(index["dtype"])
            raw = np.memmap(data_path, np.uint8, "r")
            if raw.size != index["bytes"] or _checksum(raw) != index["crc32"]:
                raise ValueError("damaged")
            rows = raw.view(dtype).reshape(-1, index["width"])
            if len(rows) != sum(count for _, count, _ in index["texts"]):
                raise ValueError("damaged")
        except (OSError, ValueError, KeyError, TypeError):
            # Not worth a complaint: what is missing is made again.
            path.unlink(missing_ok=True)
            data_path.unlink(missing_ok=True)
            return
        start = 0
        for key, count, tokens in index["texts"]:
            self._items[key] = Item(rows[start : start + count], tokens)
            start += count

    def _sweep(self) -> None:
        assert self.folder is not None
        now = time.time()
        for path in self.folder.glob("*.tmp"):
            try:
                if now - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:  # another process was first
                pass


def _write(path: Path, data: Any) -> None:
    """Writes a file that is either there and whole, or not there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _checksum(data: Any) -> int:
    return zlib.crc32(data)


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
