"""Qwen2 in Flax, with Hugging Face checkpoints in and out.

The decoder of Qwen2 and Qwen2.5 (RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied
or untied embeddings), as a language model or with the head of a process reward model, as in
Qwen2.5-Math-PRM-7B. Attributes are named as in the checkpoints, so that a parameter's path is its
name there; only Flax's own leaf names (kernel, scale, embedding) are translated.

References:
    Qwen team (2024), Qwen2.5 Technical Report, arXiv 2412.15115.
    Zhang et al. (2025), The Lessons of Developing Process Reward Models in Mathematical Reasoning,
        arXiv 2501.07301.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from optscale_jax.checks import at_least
from optscale_jax.errors import CheckpointError, InputError

__all__ = ["Qwen2", "Qwen2Config"]

Head = Literal["language_model", "process_reward"]

_ARCHITECTURES: dict[Head, str] = {
    "language_model": "Qwen2ForCausalLM",
    "process_reward": "Qwen2ForProcessRewardModel",
}
_WEIGHTS = "model.safetensors"
# A field's type -> the types of JSON's values that will do, and what they are called.
_TYPES: dict[Any, tuple[tuple[type, ...], str]] = {
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    Head: ((str,), "text"),
}
# Flax's name of a leaf -> the checkpoint's.
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """Sizes of a Qwen2 model, named as in a checkpoint's config.json.

    Attributes:
        vocab_size: Rows of the embedding.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward layers.
        num_hidden_layers: Decoder layers.
        num_attention_heads: Query heads.
        num_key_value_heads: Heads of keys and values; divides num_attention_heads.
        head_dim: Width of a head, even; None = hidden_size / num_attention_heads.
        rope_theta: Base of the rotary wavelengths.
        rms_norm_eps: Added to the mean square in RMSNorm.
        tie_word_embeddings: Whether the output projection is the embedding itself.
        max_position_embeddings: Longest sequence that the model was made for, in tokens.
        head: What the last layer feeds: next-token logits, or the two labels of a step.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None = None
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768
    head: Head = "language_model"

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit together."""
        at_least(self, 1, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        heads = self.num_attention_heads
        if self.num_key_value_heads < 1 or heads % self.num_key_value_heads:
            raise InputError(
                f"num_key_value_heads is {self.num_key_value_heads}; it must divide the {heads} "
                "num_attention_heads"
            )
        if self.head_dim is None and self.hidden_size % heads:
            raise InputError(
                f"hidden_size is {self.hidden_size}; it must be a multiple of the {heads} "
                "num_attention_heads, or give head_dim"
            )
        if self.head_width % 2:
            raise InputError(f"head_dim is {self.head_width}; rotary positions need an even one")

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> "Qwen2Config":
        """Reads config.json of a Hugging Face checkpoint.

        Raises:
            CheckpointError: If the file is missing or damaged, is not of a Qwen2 model, or asks for
                something that this model does not do.
        """
        path = Path(directory) / "config.json"
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(
                f"{path}: {error.strerror}; give the folder of a Hugging Face checkpoint"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(given, dict) or given.get("model_type") != "qwen2":
            found = given.get("model_type") if isinstance(given, dict) else given
            raise CheckpointError(f"{path}: model_type is {found!r}; it must be 'qwen2'")
        given = {name: value for name, value in given.items() if value is not None}
        (architecture, *_) = given.get("architectures") or [_ARCHITECTURES["language_model"]]
        heads: dict[Any, Head] = {name: head for head, name in _ARCHITECTURES.items()}
        if architecture not in heads:
            raise CheckpointError(
                f"{path}: the architecture is {architecture!r}; it must be {' or '.join(heads)}"
            )
        # transformers 5 keeps the base of the wavelengths in rope_parameters, 4 beside the sizes.
        rope_field = "rope_parameters" if "rope_parameters" in given else "rope_scaling"
        rope = given.get(rope_field, {})
        if not isinstance(rope, dict):
            raise CheckpointError(f"{path}: {rope_field} is {rope!r}; it must be an object")
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise CheckpointError(f"{path}: rope_type is {rope}; only the default one is supported")
        if given.get("use_sliding_window"):
            raise CheckpointError(f"{path}: use_sliding_window is true; it is not supported")
        if given.get("hidden_act", "silu") != "silu":
            raise CheckpointError(f"{path}: hidden_act is {given['hidden_act']!r}; it must be silu")
        # What transformers takes where a file does not say.
        given = {"rope_theta": 10000.0, **given, **rope, "head": heads[architecture]}
        if "num_attention_heads" in given:
            given.setdefault("num_key_value_heads", given["num_attention_heads"])
        try:
            return cls(**dict(_checked_fields(cls, given)))
        except InputError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def to_json(self, **extra: Any) -> str:
        """The text of a Hugging Face checkpoint's config.json, with further entries."""
        values = dataclasses.asdict(self)
        head, theta = values.pop("head"), self.rope_theta
        values |= {
            "architectures": [_ARCHITECTURES[head]],
            "model_type": "qwen2",
            "head_dim": self.head_width,
            "hidden_act": "silu",
            "use_sliding_window": False,
            # transformers 5 reads this spelling, 4 the one beside the sizes.
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        }
        if head == "process_reward":
            values["num_labels"] = 2
        return json.dumps(values | extra, indent=2, sort_keys=True) + "\n"


def _checked_fields(cls: type[Qwen2Config], given: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of config.json that are fields, after a look at their types."""
    for field in dataclasses.fields(cls):
        if field.name in given:
            value = given[field.name]
            types, words = _TYPES.get(field.type, ((int,), "an integer"))
            # To Python, true is a number.
            if type(value) not in types:
                raise InputError(f"{field.name} is {value!r}; it must be {words}")
            yield field.name, value
        elif field.default is dataclasses.MISSING:
            raise InputError(f"{field.name} is missing")


def _linear(
    inputs: int, outputs: int, rngs: nnx.Rngs, *, bias: bool = False, residual_depth: int = 1
) -> nnx.Linear:
    # Not Hugging Face's 0.02 whatever the width: in a narrow model that leaves attention uniform
    # for hundreds of steps. What is added to the residual stream adds up over the depth.
    start = nnx.initializers.variance_scaling(1 / residual_depth, "fan_in", "normal")
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=start, rngs=rngs)


def _rotate(
    x: Float[Array, "batch length heads width"],
    cos: Float[Array, "batch length 1 half"],
    sin: Float[Array, "batch length 1 half"],
) -> Float[Array, "batch length heads width"]:
    """Rotary positions on halves (not on interleaved pairs), as Hugging Face stores them."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs):
        self.width = config.head_width
        queries = config.num_attention_heads * self.width
        shared = config.num_key_value_heads * self.width
        self.q_proj = _linear(config.hidden_size, queries, rngs, bias=True)
        self.k_proj = _linear(config.hidden_size, shared, rngs, bias=True)
        self.v_proj = _linear(config.hidden_size, shared, rngs, bias=True)
        depth = 2 * config.num_hidden_layers
        self.o_proj = _linear(queries, config.hidden_size, rngs, residual_depth=depth)

    def __call__(self, x, rotation, mask):
        """x: [batch, length, width] to the same shape; see `Qwen2.hidden_states`."""

        def heads(projected):
            return projected.reshape(*x.shape[:2], -1, self.width)

        out = jax.nn.dot_product_attention(
            _rotate(heads(self.q_proj(x)), *rotation),
            _rotate(heads(self.k_proj(x)), *rotation),
            heads(self.v_proj(x)),
            mask=mask,
            is_causal=True,
        )
        return self.o_proj(out.reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """SwiGLU."""

    def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs):
        narrow, wide, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        self.gate_proj = _linear(narrow, wide, rngs)
        self.up_proj = _linear(narrow, wide, rngs)
        self.down_proj = _linear(wide, narrow, rngs, residual_depth=2 * depth)

    def __call__(self, x):
        """x: [batch, length, width] to the same shape."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nnx.Module):
    """Attention, then the feed-forward layer, each on a normalised copy and added back."""

    def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs):
        norm = {"epsilon": config.rms_norm_eps, "rngs": rngs}
        self.input_layernorm = nnx.RMSNorm(config.hidden_size, **norm)
        self.self_attn = Attention(config, rngs=rngs)
        self.post_attention_layernorm = nnx.RMSNorm(config.hidden_size, **norm)
        self.mlp = FeedForward(config, rngs=rngs)

    def __call__(self, x, rotation, mask):
        """x: [batch, length, width] to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nnx.Module):
    """Embedding, layers and the last norm: what checkpoints keep under `model`."""

    def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs):
        self.embed_tokens = nnx.Embed(
            config.vocab_size,
            config.hidden_size,
            embedding_init=nnx.initializers.normal(config.hidden_size**-0.5),
            rngs=rngs,
        )
        self.layers = nnx.List(
            [DecoderLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )
        self.norm = nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)


class Qwen2(nnx.Module):
    """A Qwen2 model of the sizes in `config`: tokens to next-token logits, or to a step's labels.

    Tokens [batch, length] are ids, padded on either side; `mask` is True where there is one, None
    everywhere. What comes out of padding means nothing.
    """

    def __init__(self, config: Qwen2Config, *, rngs: nnx.Rngs):
        self.config = config
        self.model = Decoder(config, rngs=rngs)
        if config.head == "process_reward":
            # Named 0 and 2 in checkpoints, where a ReLU without weights is 1.
            width = config.hidden_size
            first, second = (_linear(width, out, rngs, bias=True) for out in (width, 2))
            self.score = nnx.Dict({"0": first, "2": second})
        elif not config.tie_word_embeddings:
            self.lm_head = _linear(config.hidden_size, config.vocab_size, rngs)

    def hidden_states(
        self,
        tokens: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        layer: int = -1,
    ) -> Float[Array, "batch length width"]:
        """Hidden states after one of the layers.

        Args:
            tokens: As the class says.
            mask: Likewise.
            layer: 0 for the embeddings, i for the output of the i-th layer; the last one, and -1,
                with the last norm applied. Negative ones count from the end, as in transformers.

        Raises:
            ValueError: If there is no such layer.
        """
        depth = self.config.num_hidden_layers
        if not -depth - 1 <= layer <= depth:
            raise ValueError(f"layer is {layer}; the model has layers 0 to {depth}")
        return next(itertools.islice(self.states(tokens, mask), layer % (depth + 1), None))

    def states(
        self, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"] | None = None
    ) -> Iterator[Float[Array, "batch length width"]]:
        """The hidden states layer by layer, each computed when it is asked for.

        Yields:
            The embeddings, then the output of each layer, the last norm applied to the last one.
        """
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        keys = None
        if mask is not None:
            positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
            keys = mask[:, None, None, :]
        x = self.model.embed_tokens(tokens)
        # In float32 whatever the weights are: angles of thousands of radians have no digits left
        # in bfloat16.
        half = jnp.arange(0, self.config.head_width, 2, dtype=jnp.float32)
        angles = positions[..., None] * self.config.rope_theta ** (-half / self.config.head_width)
        rotation = (jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :])
        for decoder_layer in self.model.layers:
            yield x
            x = decoder_layer(x, rotation, keys)
        yield self.model.norm(x)

    def __call__(
        self, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"] | None = None
    ) -> Float[Array, "batch length outputs"]:
        """Logits of the next token at each position, vocab_size of them, or of (bad, good)."""
        return self.logits(self.hidden_states(tokens, mask))

    def logits(
        self, states: Float[Array, "batch length width"]
    ) -> Float[Array, "batch length outputs"]:
        """What the head says of the hidden states of the last layer."""
        if self.config.head == "process_reward":
            return self.score["2"](jax.nn.relu(self.score["0"](states)))
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.attend(states)
        return self.lm_head(states)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], *, dtype: Any = jnp.float32
    ) -> "Qwen2":
        """Reads a Hugging Face checkpoint: config.json and safetensors, in one file or in shards.

        Args:
            directory: The checkpoint's folder.
            dtype: Floating type to hold and compute the model in.

        Raises:
            CheckpointError: If a file is missing or damaged, or a tensor is missing or of a wrong
                shape.
        """
        config = Qwen2Config.from_pretrained(directory)
        # No weights are drawn: a 7B model would be made twice.
        model = nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
        with contextlib.ExitStack() as stack:
            files = _open_weights(Path(directory), stack)
            for path, leaf in _leaves(model):
                name = _checkpoint_name(path)
                if name not in files:
                    raise CheckpointError(f"{directory}: there is no tensor {name}")
                value = files[name].get_tensor(name)
                value = value.T if path[-1] == "kernel" else value
                if value.shape != leaf.shape:
                    raise CheckpointError(
                        f"{directory}: {name} has shape {value.shape}; the configuration asks for "
                        f"{leaf.shape}"
                    )
                leaf.set_value(jnp.asarray(np.asarray(value, dtype)))
        _compute_in(model, dtype)
        return model

    def save_pretrained(self, directory: str | os.PathLike[str], **extra: Any) -> None:
        """Writes config.json and model.safetensors, as transformers and vLLM read them.

        Args:
            directory: Where to; made if it does not exist.
            **extra: Further entries of config.json, such as eos_token_id.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for path, leaf in _leaves(self):
            value = np.asarray(leaf.get_value())
            # A transposed view would be written in the order of its memory.
            tensors[_checkpoint_name(path)] = np.ascontiguousarray(
                value.T if path[-1] == "kernel" else value
            )
        (dtype,) = {str(value.dtype) for value in tensors.values()}
        text = self.config.to_json(**{"dtype": dtype, **extra})
        (folder / "config.json").write_text(text, encoding="utf-8")
        save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
        # safetensors writes a file that its owner alone can read.
        shutil.copymode(folder / "config.json", folder / _WEIGHTS)


def _leaves(model: nnx.Module) -> Iterator[tuple[tuple[Any, ...], nnx.Param]]:
    yield from nnx.to_flat_state(nnx.state(model, nnx.Param))


def _checkpoint_name(path: tuple[Any, ...]) -> str:
    return ".".join([*map(str, path[:-1]), _LEAVES[path[-1]]])


def _compute_in(model: nnx.Module, dtype: Any) -> None:
    """Makes every layer compute in the type of its weights, which is not all they go by."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Linear | nnx.Embed | nnx.RMSNorm):
            module.dtype = dtype


def _open_weights(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Tensor name to the open file that holds it."""
    index = folder / (_WEIGHTS + ".index.json")
    names = [_WEIGHTS]
    if index.exists():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not an index of safetensors files") from error
    found = {}
    for name in names:
        try:
            file = stack.enter_context(safe_open(folder / name, framework="np"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder / name}: there is no such file") from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / name}: damaged: {error}; copy it again") from error
        found |= dict.fromkeys(file.keys(), file)
    return found
