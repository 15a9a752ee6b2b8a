"""What a predictor is trained on and how good it is, for the commands that train one."""

import dataclasses
import math
from collections.abc import Sequence

from rich.progress import Progress

from optscale_jax.checks import at_least
from optscale_jax.cli.config import parse
from optscale_jax.errors import InputError
from optscale_jax.predictor.calibration import COVERAGE, Quality
from optscale_jax.predictor.features import FeatureConfig, Features, Recipe, extract
from optscale_jax.predictor.labels import Labels, read_labels
from optscale_jax.predictor.training import TrainingConfig
from optscale_jax.problems import load_problems
from optscale_jax.report.tables import Table
from optscale_jax.shipped import located

__all__ = [
    "DistributedConfig",
    "PredictorConfig",
    "configured",
    "load_labels",
    "quality_table",
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
    labels = read_labels(located(config.labels), num_samples=config.num_samples)
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


def quality_table(
    title: str,
    labels: Sequence[str],
    rows: Sequence[tuple[Sequence[str], Quality]],
    notes: Sequence[str] = (),
) -> Table:
    """How good priors are, a row for each.

    Args:
        title: The table's.
        labels: Headings of the rows' labels.
        rows: Labels and quality of each; what is not known is left empty.
        notes: What stands below, before what the columns are.
    """
    forms = {"mean_error": ".5f", "mean_rank": ".3f", "sd_error": ".6f", "sd_rank": ".3f"}
    forms |= {"coverage": ".1%", "nll": ".3f"}

    def cells(quality: Quality) -> list[str]:
        found = ((getattr(quality, name), form) for name, form in forms.items())
        return ["" if math.isnan(value) else format(value, form) for value, form in found]

    head = ["mean: error", "rank", "sd: error", "rank", f"{COVERAGE:.0%} interval", "nats"]
    return Table(
        title=title,
        columns=[*labels, *head],
        rows=[[*names, *cells(quality)] for names, quality in rows],
        notes=[
            *notes,
            "error: squared, of the mean (sd) of a problem's scores; rank: Spearman's correlation",
            "interval: share of the problems whose mean is inside their central interval",
            "nats: negative log marginal likelihood of a problem's scores",
        ],
    )
