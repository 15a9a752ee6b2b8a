"""What a predictor is trained on and how good it is, for the commands that train one."""

import dataclasses

from rich.progress import Progress

from optscale_jax.checks import at_least
from optscale_jax.cli.config import parse
from optscale_jax.errors import InputError
from optscale_jax.predictor.features import FeatureConfig, Features, Recipe, extract
from optscale_jax.predictor.labels import Labels, read_labels
from optscale_jax.predictor.training import TrainingConfig
from optscale_jax.problems import load_problems

__all__ = [
    "DistributedConfig",
    "PredictorConfig",
    "configured",
    "load_labels",
    "read_features",
]


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Processes that train together.

    Attributes:
        coordinator: HOST:PORT of process 0, the same in all. null: one process, or what the cluster
            says (TPU pods, Slurm) if auto is set.
        processes: How many there are.
        process: Which one this is, from 0.
        auto: Whether to let JAX find all of this out from the cluster.
    """

    coordinator: str | None = None
    processes: int = 1
    process: int = 0
    auto: bool = False

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain."""
        if not 0 <= self.process < self.processes:
            raise InputError(f"distributed.process is {self.process} of {self.processes} (from 0)")
        if self.processes > 1 and self.coordinator is None:
            raise InputError("distributed.coordinator is not given; it is HOST:PORT of process 0")


@dataclasses.dataclass(frozen=True)
class PredictorConfig:
    """What a predictor is trained on, and how.

    Attributes:
        labels: JSON lines file of train.labels, or with score_mean, score_std and n. Needed.
        problems: JSON lines file with the problems' texts, or a benchmark's name, for labels
            without texts.
        num_samples: Number of scores behind each label, for labels without n.
        leave_out_constant: Whether to leave out problems with one score or equal ones, which have
            no spread, instead of refusing them.
        min_sd: Standard deviation, in [0, 1/2], that the scores of a problem are taken to have at
            least, so that problems of several equal scores can be learned from. 0: none.
        features: Of which model.
        training: How.
        cache: Folder of the features' cache. null: features are not kept.
        out: Folder for the predictor, made if it does not exist.
        distributed: Processes that train together.
    """

    labels: str | None = None
    problems: str | None = None
    num_samples: int | None = None
    leave_out_constant: bool = False
    min_sd: float = 0.0
    features: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    cache: str | None = "runs/features"
    out: str = "runs/predictor"
    distributed: DistributedConfig = DistributedConfig()

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain."""
        at_least(self, 1, "num_samples")
        if not 0 <= self.min_sd <= 0.5:
            raise InputError(f"min_sd is {self.min_sd}; it must be in [0, 1/2]")


def configured(path: str, labels: str | None) -> tuple[PredictorConfig, Labels]:
    """A configuration of train.predictor from its file, and the labels that it trains on.

    Args:
        path: The file, or the name of a shipped one.
        labels: The labels' file; None: the one that the configuration names.

    Raises:
        InputError: If either cannot be read, or there are no labels.
    """
    given = [] if labels is None else ["--labels", labels]
    config = parse(PredictorConfig, ["--config", path, *given], configs="predictor")
    return config, load_labels(config)


def load_labels(config: PredictorConfig) -> Labels:
    """The labels that a configuration trains on, every one with its problem's text.

    Raises:
        InputError: If there are none, or they cannot be used.
    """
    if config.labels is None:
        raise InputError("labels is not given; use --labels FILE")
    labels = read_labels(config.labels, num_samples=config.num_samples)
    labels = labels.with_spread(leave_out=config.leave_out_constant, min_sd=config.min_sd)
    texts: dict[str, str] = {}
    if config.problems is not None:
        texts = {p.id: p.text for p in load_problems(config.problems)}
    return labels.with_texts(texts, config.problems or "--problems FILE is not given")


def read_features(
    config: PredictorConfig, labels: Labels, bar: Progress
) -> tuple[Features, Recipe]:
    """The features of the labels' texts, with a bar while the model reads them.

    Raises:
        InputError: If there is no such model.
    """
    task = bar.add_task("features", total=len(labels))
    found = extract(
        [text for text in labels.texts if text is not None],
        config.features,
        config.training.head.features,
        cache=config.cache,
        advance=lambda count: bar.advance(task, count),
    )
    bar.remove_task(task)
    return found
