"""The parts of a training, shipped or one's own: the head, the loss and the optimizer.

Each is found by its name (`optscale_jax/plugins.py`) or given as it is, and checked on shapes alone
before any work is done.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from optscale_jax.checks import at_least, positive, within
from optscale_jax.empirical_bayes import Posterior
from optscale_jax.errors import InputError, PredictorError
from optscale_jax.estimation import Prior, ScoreStats
from optscale_jax.plugins import load_object
from optscale_jax.predictor.head import HEADS, OUTPUTS, HeadConfig
from optscale_jax.predictor.losses import LOSSES, Loss, LossConfig, Spread, Targets

__all__ = [
    "GivenHead",
    "GivenLoss",
    "GivenOptimizer",
    "HeadMaker",
    "OptimizerConfig",
    "Parts",
    "adamw",
    "find_head",
    "warmup_cosine",
]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay to 0, or another optimizer.

    Attributes:
        name: adamw, or the name of one's own, module:name or ./file.py:name: an
            optax.GradientTransformation, or a function that makes one, called with the number of
            steps and those of the fields below that its signature names.
        learning_rate: At the end of the warm-up, above 0.
        weight_decay: Decay of matrices, at least 0.
        clip: Largest norm of a gradient, above 0; .inf for any.
        warmup: Share of all steps that the warm-up takes, in [0, 1).
    """

    name: str = "adamw"
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: float = 0.1

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain."""
        positive(self, "learning_rate", of="optimizer.")
        at_least(self, 0, "weight_decay", of="optimizer.")
        within(self, "[0, 1)", "warmup", of="optimizer.")
        if not self.clip > 0:
            raise InputError(f"optimizer.clip is {self.clip}; it must be above 0")


def warmup_cosine(steps: int, *, learning_rate: float, warmup: float) -> optax.Schedule:
    """The learning rate by a step's index, as `OptimizerConfig` says."""
    return optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, round(warmup * steps), max(steps, 1)
    )


@functools.lru_cache(maxsize=16)  # the same object again: steps with it share a compilation
def adamw(
    steps: int, *, learning_rate: float, weight_decay: float, clip: float, warmup: float
) -> optax.GradientTransformation:
    """AdamW for so many steps; `OptimizerConfig` says what the numbers are."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(
            warmup_cosine(steps, learning_rate=learning_rate, warmup=warmup),
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


HeadMaker = Callable[..., nnx.Module]
"""(width of the features, rngs) to a module of (features, mask, key) to outputs."""
GivenHead = HeadConfig | HeadMaker | str
GivenLoss = LossConfig | Loss | str
GivenOptimizer = OptimizerConfig | optax.GradientTransformation | Callable[..., Any] | str

_KINDS: dict[str, tuple[type, Mapping[str, Any]]] = {
    "head": (HeadConfig, HEADS),
    "loss": (LossConfig, LOSSES),
    "optimizer": (OptimizerConfig, {"adamw": adamw}),
}
_TEXTS, _LENGTH = 3, 2
# Texts, and tokens of each, of the batch whose shapes are checked.


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a training is made of, found and ready to be called.

    Attributes:
        head: (width, rngs) to a module.
        loss: (prior, targets) to a loss for each problem.
        names: Of "head", "loss" and "optimizer", for messages.
    """

    head: HeadMaker
    loss: Loss
    _optimizer: Any
    names: dict[str, str]

    @classmethod
    def find(cls, head: GivenHead, loss: GivenLoss, optimizer: GivenOptimizer) -> "Parts":
        """Finds the parts that are given by name or configuration.

        Raises:
            PluginError: If there is none of that name, or it cannot be imported.
        """
        given = dict(zip(_KINDS, (head, loss, optimizer), strict=True))
        found = [_find(part, what) for what, part in given.items()]
        return cls(*found, names={what: _message(what, part) for what, part in given.items()})

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """The optimizer of a run of that many steps.

        Raises:
            PredictorError: If what was given makes none.
        """
        found, message = self._optimizer, self.names["optimizer"]
        if not isinstance(found, optax.GradientTransformation) and callable(found):
            with _own_errors(message, "called with the number of steps"):
                found = found(steps)
        if not isinstance(found, optax.GradientTransformation):
            raise PredictorError(
                f"{message}: is of type {type(found).__name__}; expected an "
                "optax.GradientTransformation, or a function of the number of steps that makes one"
            )
        return found

    def check(self, width: int, *, tokens: bool) -> None:
        """Checks the shapes of what head and loss give, without computing anything.

        Args:
            width: Of the features.
            tokens: Whether there is a row for each token, or one for each text.

        Raises:
            PredictorError: If one is not of the shape that training needs.
        """
        self._check_head(width, _LENGTH if tokens else 1)
        abstract: Any = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        each, nodes = abstract((_TEXTS,)), abstract((_TEXTS, 2))
        stats = ScoreStats(each, each, each)
        targets = Targets(stats, Posterior(nodes, nodes, nodes), Spread(1.0, 1.0))
        message = self.names["loss"]
        with _own_errors(message, "called with (prior, targets)"):
            found = jax.eval_shape(self.loss, Prior(each, each, each, each), targets)
        _check_array(message, found, (_TEXTS,), f"one number for each of {_TEXTS} problems")

    def _check_head(self, width: int, length: int) -> None:
        message = self.names["head"]
        if isinstance(self.head, nnx.Module):
            raise PredictorError(
                f"{message}: is a module already; give what makes one, such as its class: each "
                "member has weights of its own"
            )
        with _own_errors(message, f"called with ({width}, rngs=...)"):
            module = nnx.eval_shape(lambda: self.head(width, rngs=nnx.Rngs(0)))
        if not isinstance(module, nnx.Module):
            raise PredictorError(
                f"{message}: makes a {type(module).__name__}; expected a flax.nnx.Module"
            )
        _, _, rest = nnx.split(module, nnx.Param, ...)
        for path, leaf in nnx.to_flat_state(rest):
            raise PredictorError(
                f"{message}: keeps {'.'.join(map(str, path))} ({type(leaf).__name__}), which is "
                "no nnx.Param: it would not be trained or saved; hand `key` to what draws at "
                "random, as in dropout(x, deterministic=key is None, rngs=key)"
            )

        def outputs(x, mask, key):
            module: Any = self.head(width, rngs=nnx.Rngs(0))
            return module(x, mask), module(x, mask, key=key)

        x = jax.ShapeDtypeStruct((_TEXTS, length, width), jnp.float32)
        mask = jax.ShapeDtypeStruct((_TEXTS, length), bool)
        with _own_errors(message, f"called with features of shape {x.shape}, mask, key=..."):
            both = jax.eval_shape(outputs, x, mask, jax.random.key(0))
        for found in both:
            expected = "of each text the mean, the scale and how sure it is of both (to_prior)"
            _check_array(message, found, (_TEXTS, OUTPUTS), expected)


def find_head(head: GivenHead) -> HeadMaker:
    """What makes a head that is given as it is, by name or by configuration.

    Raises:
        PluginError: If there is none of that name, or it cannot be imported.
    """
    return _find(head, "head")


def _find(given: Any, what: str) -> Any:
    """A part as it is given, or as its configuration names it, with the fields that it takes."""
    config_class, shipped = _KINDS[what]
    if isinstance(given, str):
        given = config_class(name=given)
    if not isinstance(given, config_class):
        return given
    part = load_object(given.name, what=what, shipped=shipped, must_call=what != "optimizer")
    if not callable(part):
        return part
    # A class's metaclass hides what its constructor takes.
    taken = inspect.signature(part.__init__ if isinstance(part, type) else part).parameters
    fields = {name: value for name, value in vars(given).items() if name in taken}
    fields.pop("name", None)
    hashable = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return _with_fields(part, tuple(hashable.items())) if fields else part


@functools.lru_cache(maxsize=64)  # the same object again: what it is used in is compiled once
def _with_fields(part: Callable[..., Any], fields: tuple[tuple[str, Any], ...]) -> Any:
    return functools.partial(part, **dict(fields))


def _message(what: str, given: Any) -> str:
    """What a message about a part begins with."""
    name = given if isinstance(given, str) else getattr(given, "name", None)
    return f"{what} {name or getattr(given, '__qualname__', None) or type(given).__name__}"


@contextlib.contextmanager
def _own_errors(message: str, doing: str) -> Iterator[None]:
    """One line for whatever a part of one's own raises."""
    try:
        yield
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise PredictorError(f"{message}: {doing}: {type(error).__name__}: {first}") from error


def _check_array(message: str, found: Any, shape: tuple[int, ...], expected: str) -> None:
    if not isinstance(found, jax.ShapeDtypeStruct):
        raise PredictorError(f"{message}: gives a {type(found).__name__}; expected an array")
    if found.shape != shape or not jnp.issubdtype(found.dtype, jnp.floating):
        raise PredictorError(
            f"{message}: gives {found.dtype}{list(found.shape)}; expected floats {list(shape)}, "
            f"{expected}"
        )
