"""A trained predictor as files, and its use: texts to priors.

The folder of a predictor has

    predictor.safetensors    the head's weights and the features' normalisation
    predictor.json           the features' recipe, the head's name and shape, the reference prior,
                             what is added to the outputs, and how good it is

Builds on all other modules of this package; `python -m train.predictor` makes one, and
`python -m eval.predict` uses it.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from optscale_jax.errors import InputError, PredictorError
from optscale_jax.estimation import Prior
from optscale_jax.files import atomic_write
from optscale_jax.hub import local
from optscale_jax.plugins import PluginError, load_object
from optscale_jax.predictor import ensemble
from optscale_jax.predictor.calibration import Offsets, Points, central_interval
from optscale_jax.predictor.data import Normalisation
from optscale_jax.predictor.features import FeatureConfig, Recipe, extract, padded
from optscale_jax.predictor.head import HeadConfig, to_prior
from optscale_jax.predictor.parts import GivenHead, find_head
from optscale_jax.predictor.training import Fitted, text_hashes

__all__ = ["FILES", "Kind", "Prediction", "Predictor", "prior_lines"]

FILES = ("predictor.safetensors", "predictor.json")
_VERSION = 4
_READ = (3, 4)
# Version 3 has its offsets in the heads' own biases.
_BATCH = 64
_PAPER_WIDTH = 0.1
_PRIOR = ("loc", "scale", "loc_sd", "scale_sd")
_to_prior = jax.jit(to_prior)

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
        head: Which head, and so on to `points` as in `Fitted`; the members' outputs are averaged.
        record: How it was trained and how good it is, as JSON.
        seen: `text_hashes` of what it was trained on; none of a predictor that kept none.
    """

    features: FeatureConfig
    recipe: Recipe
    head: GivenHead
    params: dict[str, np.ndarray]
    normalisation: Normalisation
    reference: Prior
    offsets: Offsets
    points: Points
    record: dict[str, Any]
    seen: np.ndarray

    @classmethod
    def of(
        cls,
        fitted: Fitted,
        features: FeatureConfig,
        recipe: Recipe,
        record: dict[str, Any] | None = None,
    ) -> "Predictor":
        """The predictor that training made.

        Args:
            fitted: What `train` gives.
            features: What `extract` was given.
            recipe: What it gave.
            record: How the head was trained, as JSON, to be kept with it.
        """
        quality = {
            split: {name: each._asdict() for name, each in of_split.items()}
            for split, of_split in fitted.quality.items()
        }
        return cls(
            features,
            recipe,
            *(fitted.head, fitted.params, fitted.normalisation),
            *(fitted.reference, fitted.offsets, fitted.points),
            record={**(record or {}), "epochs": fitted.epochs, "quality": quality},
            seen=fitted.seen,
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the predictor's files into a folder; the last one only when the other is whole.

        Raises:
            PredictorError: If the head is one that no name would find again.
        """
        described = {
            "version": _VERSION,
            "features": dataclasses.asdict(self.features),
            "recipe": {**self.recipe._asdict(), "layers": list(self.recipe.layers)},
            "head": dataclasses.asdict(_named(self.head)),
            "reference": {name: float(getattr(self.reference, name)) for name in _PRIOR},
            "offsets": self.offsets._asdict(),
            "points": self.points._asdict(),
            "record": self.record,
        }
        tensors = {f"head.{name}": value for name, value in self.params.items()}
        tensors["features.mean"], tensors["features.sd"] = self.normalisation
        tensors["texts.seen"] = self.seen
        tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        text = json.dumps(_without_nan(described), indent=1) + "\n"
        for name, data in zip(FILES, (save(tensors), text.encode()), strict=True):
            with atomic_write(Path(folder) / name, binary=True) as file:
                file.write(data)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Predictor":
        """Reads a predictor.

        Args:
            folder: Its folder, or `hf://OWNER/NAME` for one on a hub.

        Raises:
            InputError: If a file is missing or damaged, they are not of one predictor, or the
                head is one's own and is no longer found.
        """
        place = local(folder, kind="model", files=FILES)
        weights, description = (place / name for name in FILES)
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
        if described.get("version") not in _READ:
            raise PredictorError(
                f"{description}: version {described.get('version')}, and this code reads "
                f"{' and '.join(map(str, _READ))}; train the predictor again"
            )
        heads = {name: value for name, value in tensors.items() if name.startswith("head.")}
        try:
            predictor = cls(
                features=FeatureConfig(**described["features"]),
                recipe=Recipe.from_json(described["recipe"]),
                head=HeadConfig(**described["head"]),
                params={name.removeprefix("head."): value for name, value in heads.items()},
                normalisation=Normalisation(tensors["features.mean"], tensors["features.sd"]),
                reference=Prior(**described["reference"]),
                offsets=Offsets(**described.get("offsets", {})),
                points=Points(**{k: tuple(map(float, v)) for k, v in described["points"].items()}),
                record=described["record"],
                seen=tensors.get("texts.seen", text_hashes([])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PredictorError(f"{folder}: damaged: {error!r}") from error
        try:
            expected = ensemble.shapes(predictor._abstract()[1])
        except InputError as error:
            raise PredictorError(f"{description}: {error}") from error
        found = {name: value.shape[1:] for name, value in predictor.params.items()}
        members = {value.shape[0] for value in predictor.params.values()}
        if expected != found or len(members) != 1:
            raise PredictorError(f"{folder}: the weights are not those of the head described")
        return predictor

    def _abstract(self) -> tuple[Any, Any]:
        return ensemble.abstract(find_head(self.head), len(self.normalisation.mean))

    def has_seen(self, texts: Sequence[str]) -> int:
        """How many of the texts it was trained on."""
        return int(np.isin(text_hashes(texts), self.seen).sum())

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
            InputError: If the model is not the one that the head was trained on, or a text is
                blank.
        """
        if kind == "pooled":
            tokens = np.zeros(len(texts), np.int64)
            prior = jax.tree.map(lambda v: np.full(len(texts), v, np.float32), self.reference)
        else:
            prior, tokens = self._priors(texts, model, cache, advance)
        points = Points() if kind == "pooled" else self.points
        mean, sd = points(prior)
        low, high = central_interval(prior)
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
            texts, config, self.recipe.pooling, cache=cache, expected=self.recipe, advance=advance
        )
        graph, shapes = self._abstract()
        params = ensemble.unflatten(shapes, self.params)
        outputs_of = ensemble.make_outputs(graph)

        # In order of length, so that batches have little padding; lengths are powers of two.
        lengths = np.array([len(rows) for rows in found.rows])
        values = np.zeros((len(texts), 4), np.float32)
        order = np.argsort(-lengths, kind="stable")
        for start in range(0, len(texts), _BATCH):
            batch = order[start : start + _BATCH]
            longest = 1 << (int(lengths[batch].max()) - 1).bit_length()
            rows = [self.normalisation(found.rows[index]) for index in batch]
            outputs = np.asarray(outputs_of(params, *padded(rows, _BATCH, longest)))
            values[batch] = outputs.mean(axis=1)[: len(batch)]
        return _to_prior(self.offsets(values), self.reference), found.tokens


def _named(head: GivenHead) -> HeadConfig:
    """The configuration that finds a head again."""
    if isinstance(head, str):
        return HeadConfig(name=head)
    if isinstance(head, HeadConfig):
        return head
    name = f"{getattr(head, '__module__', '')}:{getattr(head, '__qualname__', '')}"
    try:
        # In another process, __main__ is another program.
        again = None if name.startswith("__main__:") else load_object(name, what="head")
    except PluginError:
        again = None
    if again is not head:
        raise PredictorError(
            f"head {name}: no name finds it again; put it into a file and give train its name, "
            "such as ./my_heads.py:make"
        )
    return HeadConfig(name=name)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def prior_lines(problem_ids: Sequence[str], found: Prediction) -> Iterator[str]:
    """The priors of problems [P] as lines of a file, which `study.priors.priors_of` reads back."""
    columns = {name: getattr(found.prior, name) for name in _PRIOR}
    columns |= {
        name: getattr(found, name) for name in ("tokens", "mean", "sd", "mean_low", "mean_high")
    }
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    for problem_id, row in zip(problem_ids, values, strict=True):
        record = {"problem_id": problem_id, **dict(zip(columns, row, strict=True))}
        yield json.dumps(record, ensure_ascii=False) + "\n"
