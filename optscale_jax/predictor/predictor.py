"""A trained predictor as files, and its use: texts to priors.

The folder of a predictor has

    predictor.safetensors    the head's weights and the features' normalisation
    predictor.json           the features' recipe, the head's shape, the reference prior, and how
                             good it is

Builds on all other modules of this package; `python -m train.predictor` makes one, and
`python -m eval.predict` uses it.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from optscale_jax.empirical_bayes import predictive_interval
from optscale_jax.estimation import Prior
from optscale_jax.predictor.errors import PredictorError
from optscale_jax.predictor.features import FeatureConfig, Recipe, extract
from optscale_jax.predictor.head import Head, HeadConfig, to_prior
from optscale_jax.predictor.training import COVERAGE, Fitted, Normalisation, Points

__all__ = ["FILES", "Kind", "Prediction", "Predictor"]

FILES = ("predictor.safetensors", "predictor.json")
_VERSION = 3
_BATCH = 64
_PAPER_WIDTH = 0.1

Kind = Literal["learned", "pooled", "paper"]


class Prediction(NamedTuple):
    """Priors of P problems, and what they say of the scores; arrays [P].

    Attributes:
        prior: The priors.
        mean: Best point prediction of the mean of the scores.
        sd: Best point prediction of their standard deviation.
        mean_low: Lower end of the central 80% interval for the mean of a problem's scores.
        mean_high: Upper end.
        tokens: Tokens that the predictor read.
    """

    prior: Prior
    mean: Float[np.ndarray, " problems"]
    sd: Float[np.ndarray, " problems"]
    mean_low: Float[np.ndarray, " problems"]
    mean_high: Float[np.ndarray, " problems"]
    tokens: Int[np.ndarray, " problems"]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained head with everything that it needs to read a text.

    Attributes:
        features: Which features, and how to get them.
        recipe: What they have to be.
        head: Shape of each head.
        params: The heads' parameters, by path, [members, ...] each; their outputs are averaged.
        normalisation: Of the features.
        reference: The pooled prior of the training problems, scalar fields.
        points: What makes point predictions of the priors.
        record: How it was trained and how good it is, as JSON.
    """

    features: FeatureConfig
    recipe: Recipe
    head: HeadConfig
    params: dict[str, np.ndarray]
    normalisation: Normalisation
    reference: Prior
    points: Points
    record: dict[str, Any]

    @classmethod
    def of(
        cls,
        fitted: Fitted,
        features: FeatureConfig,
        recipe: Recipe,
        head: HeadConfig,
        record: dict[str, Any],
    ) -> "Predictor":
        """The predictor that training made."""
        quality = {
            split: {name: each._asdict() for name, each in of_split.items()}
            for split, of_split in fitted.quality.items()
        }
        return cls(
            features=features,
            recipe=recipe,
            head=head,
            params=fitted.params,
            normalisation=fitted.normalisation,
            reference=fitted.reference,
            points=fitted.points,
            record={**record, "epochs": fitted.epochs, "quality": quality},
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the predictor's files into a folder; the last one only when the other is whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"head.{name}": value for name, value in self.params.items()}
        tensors["features.mean"], tensors["features.sd"] = self.normalisation
        tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        described = {
            "version": _VERSION,
            "features": dataclasses.asdict(self.features),
            "recipe": {**self.recipe._asdict(), "layers": list(self.recipe.layers)},
            "head": dataclasses.asdict(self.head),
            "reference": {
                name: float(getattr(self.reference, name))
                for name in ("loc", "scale", "loc_sd", "scale_sd")
            },
            "points": self.points._asdict(),
            "record": self.record,
        }
        text = json.dumps(_without_nan(described), indent=1) + "\n"
        for name, data in zip(FILES, (save(tensors), text.encode()), strict=True):
            temporary = folder / f".{name}.{os.getpid()}.tmp"
            temporary.write_bytes(data)
            os.replace(temporary, folder / name)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Predictor":
        """Reads a predictor.

        Raises:
            PredictorError: If a file is missing or damaged, or they are not of one predictor.
        """
        weights, description = (Path(folder) / name for name in FILES)
        try:
            described = json.loads(description.read_text(encoding="utf-8"))
            tensors = load_file(weights)
        except FileNotFoundError as error:
            raise PredictorError(
                f"{folder}: no {Path(error.filename or weights).name}; give a folder that python "
                "-m train.predictor has finished"
            ) from error
        except NotADirectoryError as error:
            raise PredictorError(f"{folder}: not a folder; give a predictor's folder") from error
        except (ValueError, SafetensorError) as error:
            raise PredictorError(f"{folder}: damaged: {error}") from error
        if described.get("version") != _VERSION:
            raise PredictorError(
                f"{description}: version {described.get('version')}, and this code reads "
                f"{_VERSION}; train the predictor again"
            )
        try:
            head = HeadConfig(**described["head"])
            predictor = cls(
                features=FeatureConfig(**described["features"]),
                recipe=Recipe.from_json(described["recipe"]),
                head=head,
                params={
                    name.removeprefix("head."): value
                    for name, value in tensors.items()
                    if name.startswith("head.")
                },
                normalisation=Normalisation(tensors["features.mean"], tensors["features.sd"]),
                reference=Prior(**described["reference"]),
                points=Points(**{k: tuple(map(float, v)) for k, v in described["points"].items()}),
                record=described["record"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PredictorError(f"{folder}: damaged: {error!r}") from error
        expected = {
            ".".join(map(str, path)): leaf.shape
            for path, leaf in nnx.to_flat_state(predictor._abstract()[1])
        }
        found = {name: value.shape[1:] for name, value in predictor.params.items()}
        members = {value.shape[0] for value in predictor.params.values()}
        if expected != found or len(members) != 1:
            raise PredictorError(f"{folder}: the weights are not those of the head described")
        return predictor

    def _abstract(self) -> tuple[Any, Any]:
        width = len(self.normalisation.mean)
        head = nnx.eval_shape(lambda: Head(self.head, width, rngs=nnx.Rngs(0)))
        return nnx.split(head, nnx.Param)

    def predict(
        self,
        texts: Sequence[str],
        *,
        kind: Kind = "learned",
        model: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> Prediction:
        """Priors of problems.

        Args:
            texts: Their texts, not blank.
            kind: "learned": the head's. "pooled": that of all training problems, whatever the
                text; no model is run and no token read. "paper": as the published code has it, with
                the predicted mean and sd in the place of loc and scale, and widths of 0.1.
            model: Where the features' model is, if not where it was when the head was trained.
            cache: Folder of a features' cache; None: none.
            advance: Called with the number of texts that are read.

        Returns:
            The priors.

        Raises:
            PredictorError: If the model is not the one that the head was trained on, or a text is
                blank.
        """
        if kind == "pooled":
            tokens = np.zeros(len(texts), np.int64)
            prior = jax.tree.map(lambda v: np.full(len(texts), v, np.float32), self.reference)
        else:
            prior, tokens = self._priors(texts, model, cache, advance)
        points = Points() if kind == "pooled" else self.points
        mean, sd = points(prior)
        low, high = np.moveaxis(np.asarray(predictive_interval(prior, COVERAGE)), -1, 0)
        if kind == "paper":
            width = np.full(len(texts), _PAPER_WIDTH, np.float32)
            prior = Prior(mean, sd, width, width)
        return Prediction(jax.tree.map(np.asarray, prior), mean, sd, low, high, tokens)

    def _priors(
        self,
        texts: Sequence[str],
        model: str | None,
        cache: str | os.PathLike[str] | None,
        advance: Callable[[int], None] | None,
    ) -> tuple[Prior, np.ndarray]:
        config = self.features
        if model is not None:
            config = dataclasses.replace(config, model=model, revision=None)
        found, _ = extract(
            texts,
            config,
            self.head.features,
            cache=cache,
            expected=self.recipe,
            advance=advance,
        )
        graph, shapes = self._abstract()
        flat = [
            (path, leaf.replace(self.params[".".join(map(str, path))]))
            for path, leaf in nnx.to_flat_state(shapes)
        ]
        state = nnx.from_flat_state(flat)

        @jax.jit
        def outputs(state, x, mask):
            each = jax.vmap(lambda member: nnx.merge(graph, member)(x, mask))(state)
            return jnp.mean(each, axis=0)

        # In order of length, so that batches have little padding; lengths are powers of two.
        lengths = np.array([len(rows) for rows in found.rows])
        values = np.zeros((len(texts), 4), np.float32)
        order = np.argsort(-lengths, kind="stable")
        for start in range(0, len(texts), _BATCH):
            batch = order[start : start + _BATCH]
            longest = 1 << (int(lengths[batch].max()) - 1).bit_length()
            x = np.zeros((_BATCH, longest, found.width), np.float32)
            mask = np.zeros((_BATCH, longest), bool)
            mask[:, 0] = True
            for row, index in enumerate(batch):
                x[row, : lengths[index]] = self.normalisation(found.rows[index])
                mask[row, : lengths[index]] = True
            values[batch] = np.asarray(outputs(state, x, mask))[: len(batch)]
        return to_prior(jnp.asarray(values), self.reference), found.tokens


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value
