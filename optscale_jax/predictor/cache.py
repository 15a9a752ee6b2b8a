"""Features on disk: memory-mapped, safe against a crash at any moment, keyed by what made them.

A cache's folder has one folder for each recipe, with

    recipe.json        what made the features, to tell a folder that was moved or edited
    NAME.bin           rows of features, one problem after another
    NAME.json          its index: the texts' hashes, rows and lengths, the file's size and checksum

A shard's index is written last: one that is there speaks of rows that are there. A shard that fails
its checksum all the same is removed and its texts are read by the model again. Several processes
may fill one cache.
"""

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - NumPy then knows bfloat16 by its name
import numpy as np

from optscale_jax.errors import PredictorError
from optscale_jax.files import atomic_write

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


class FeatureCache(dict[str, Item]):
    """The features that one recipe has made so far, by `text_key`.

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
        super().__init__()
        self.folder = None
        if root is None:
            return
        written = json.dumps(recipe, indent=1, sort_keys=True) + "\n"
        name = "".join(c if c.isalnum() else "-" for c in Path(str(recipe["model"])).name)
        digest = hashlib.sha256(written.encode()).hexdigest()[:16]
        self.folder = Path(root).expanduser() / f"{name}-{digest}"
        record = self.folder / "recipe.json"
        if not record.exists():
            with atomic_write(record) as file:
                file.write(written)
        elif record.read_text(encoding="utf-8") != written:
            raise PredictorError(
                f"{record}: the features here are of another model or recipe; remove the folder, "
                "or give another --cache"
            )
        for path in self.folder.glob("*.tmp"):
            with contextlib.suppress(FileNotFoundError):  # another process was first
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
        for index in sorted(self.folder.glob("*.json")):
            if index != record:
                self._open(index)

    def add(self, keys: Sequence[str], items: Sequence[Item]) -> None:
        """Keeps features, as one shard.

        Args:
            keys: The texts' `text_key`s.
            items: Their features, all of one width and type.
        """
        if self.folder is None or not items:
            self.update(zip(keys, items, strict=True))
            return
        rows = np.ascontiguousarray(np.concatenate([item.rows for item in items]))
        data = rows.view(np.uint8).reshape(-1)
        index = {
            "dtype": rows.dtype.name,
            "width": rows.shape[1],
            "bytes": data.size,
            "crc32": zlib.crc32(data.data),
            "texts": [
                [key, len(item.rows), item.tokens] for key, item in zip(keys, items, strict=True)
            ],
        }
        # A name of its own: the first text's, and the process and time against another's.
        path = self.folder / f"{keys[0][:16]}-{os.getpid()}-{time.time_ns()}.json"
        for target, content in ((path.with_suffix(".bin"), data), (path, json.dumps(index))):
            with atomic_write(target, binary=content is data) as file:
                file.write(content)
        self._open(path)

    def _open(self, path: Path) -> None:
        data = path.with_suffix(".bin")
        try:
            index = json.loads(path.read_bytes())
            raw = np.memmap(data, np.uint8, "r")
            if raw.size != index["bytes"] or zlib.crc32(raw.data) != index["crc32"]:
                raise ValueError("damaged")
            rows = raw.view(np.dtype(index["dtype"])).reshape(-1, index["width"])
            ends = np.cumsum([count for _, count, _ in index["texts"]])
            if len(rows) != ends[-1]:
                raise ValueError("damaged")
        except (OSError, ValueError, LookupError, TypeError):
            # Not worth a complaint: what is missing is made again.
            path.unlink(missing_ok=True)
            data.unlink(missing_ok=True)
            return
        for (key, count, tokens), end in zip(index["texts"], ends.tolist(), strict=True):
            self[key] = Item(rows[end - count : end], tokens)
