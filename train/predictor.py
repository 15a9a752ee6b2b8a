"""Trains a predictor of priors: a head on frozen features of a language model.

    python -m train.predictor --config configs/predictor/minilm.yaml --labels labels.jsonl
        --out runs/predictor

The output folder gets

    predictor.safetensors, predictor.json    the predictor, for eval.predict
    metrics.jsonl      one line an epoch: loss, validation likelihood, learning rate
    tensorboard/       the same for TensorBoard
    checkpoints/       of the training; the same command goes on from the last one
    config.yaml        the configuration as it ran, for --config

On several machines, start the same command on each of them with --distributed.coordinator
HOST:PORT, --distributed.processes and, different on each, --distributed.process; all of their
devices share every batch. The output folder has to be on a disk that they share.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from eval.cli import BadInput, bad_input, command, parse, progress, to_yaml
from optscale_jax.predictor.calibration import COVERAGE
from optscale_jax.predictor.config import TrainingConfig
from optscale_jax.predictor.errors import PredictorError
from optscale_jax.predictor.features import FeatureConfig, Features, Recipe
from optscale_jax.predictor.labels import Labels, read_labels
from optscale_jax.predictor.quality import Quality
from optscale_jax.problems import ProblemsError, load_problems
from optscale_jax.report.tables import Table

__all__ = ["DistributedConfig", "PredictorConfig", "configured", "load_labels", "main"]


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
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the field.
        """
        if not 0 <= self.process < self.processes:
            raise ValueError(f"distributed.process is {self.process} of {self.processes} (from 0)")
        if self.processes > 1 and self.coordinator is None:
            raise ValueError("distributed.coordinator is not given; it is HOST:PORT of process 0")


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
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the field.
        """
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; it must be at least 1")
        if not 0 <= self.min_sd <= 0.5:
            raise ValueError(f"min_sd is {self.min_sd}; it must be in [0, 1/2]")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return command(
        PredictorConfig,
        run,
        argv,
        prog="python -m train.predictor",
        description="Trains a predictor of priors on frozen features of a language model.",
        interrupted="checkpoints are kept; run the same command to go on",
    )


def run(config: PredictorConfig) -> None:
    """Extracts the features, trains the head and writes the predictor.

    Raises:
        BadInput: If the labels, the features or the output folder cannot be used.
    """
    if config.labels is None:
        raise BadInput("labels is not given; use --labels FILE")
    labels = load_labels(config, config.labels)
    _join(config.distributed)
    import jax  # after the processes have found each other

    from optscale_jax.predictor.data import split
    from optscale_jax.predictor.parts import Parts
    from optscale_jax.predictor.predictor import FILES, Predictor
    from optscale_jax.predictor.training import train

    leads = jax.process_index() == 0
    out = Path(config.out).expanduser()
    training = config.training
    with progress() as bar, bad_input(errors=(PredictorError,)):
        # What can be wrong is found before the features' minutes, or at least before the folder.
        parts = Parts.find(training.head, training.loss, training.optimizer)
        split(labels, training.split, training.seed)
        features, recipe = _extract(config, labels, bar)
        parts.check(features.width, tokens=training.head.features == "tokens")

        identity = _identity(config, labels, recipe._asdict())
        with _folder(out, config, identity, leads), _Log(out, leads) as log:
            task = bar.add_task("training", total=training.epochs)

            def advance(numbers: dict[str, float]) -> None:
                log(numbers)
                bar.update(
                    task,
                    completed=numbers["epoch"],
                    description=f"training: {numbers['validation_gain']:+.3f} nats over pooled",
                )

            checkpoints = out / "checkpoints"
            fitted = train(
                features, labels, training, checkpoints=checkpoints, log=advance, resumed=log.resume
            )
            record = {
                "labels": {
                    "problems": len(labels),
                    "scores": float(np.mean(labels.stats.n)),
                    "sha256": identity["labels"],
                },
                "training": dataclasses.asdict(training),
                "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                "packages": _packages(),
            }
            if leads:
                Predictor.of(fitted, config.features, recipe, record).save(out)
    if leads:
        console = Console()
        if not console.is_terminal:  # in a log, lines need not break
            console = Console(width=120)
        console.print(_table(fitted.quality).to_rich())
        print(f"predictor: {out / FILES[1]}")


def configured(path: str, labels: str | None) -> tuple[PredictorConfig, Labels]:
    """A configuration of this command from its file, and the labels that it trains on.

    Args:
        path: The file.
        labels: The labels' file; None: the one that the configuration names.

    Raises:
        BadInput: If either cannot be read, or there are no labels.
    """
    given = [] if labels is None else ["--labels", labels]
    config = parse(PredictorConfig, ["--config", path, *given], prog="", description="")
    if config.labels is None:
        raise BadInput("labels is not given; use --labels FILE")
    return config, load_labels(config, config.labels)


def load_labels(config: PredictorConfig, path: str) -> Labels:
    """The labels that a configuration trains on, every one with its problem's text.

    Raises:
        BadInput: If they cannot be used.
    """
    with bad_input("labels"):
        labels = read_labels(path, num_samples=config.num_samples)
        labels = labels.with_spread(leave_out=config.leave_out_constant, min_sd=config.min_sd)
    texts: dict[str, str] = {}
    if config.problems is not None:
        with bad_input("problems", (ProblemsError,)):
            texts = {p.id: p.text for p in load_problems(config.problems)}
    with bad_input():
        return labels.with_texts(texts, config.problems or "--problems FILE is not given")


def _extract(config: PredictorConfig, labels: Labels, bar: Progress) -> tuple[Features, Recipe]:
    from optscale_jax.predictor.features import extract

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


def _join(config: DistributedConfig) -> None:
    if config.coordinator is None and not config.auto:
        return
    import jax

    with bad_input("distributed", (ValueError, RuntimeError)):
        if config.auto:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(config.coordinator, config.processes, config.process)


def _table(quality: dict[str, dict[str, Quality]]) -> Table:
    head = ["split", "prior", "problems", "mean: error", "rank", "sd: error", "rank"]
    return Table(
        title="How good the predicted priors are",
        columns=[*head, f"{COVERAGE:.0%} interval", "nats"],
        rows=[
            [
                split,
                name,
                str(q.problems),
                f"{q.mean_error:.5f}",
                "" if np.isnan(q.mean_rank) else f"{q.mean_rank:.3f}",
                f"{q.sd_error:.6f}",
                "" if np.isnan(q.sd_rank) else f"{q.sd_rank:.3f}",
                f"{q.coverage:.1%}",
                f"{q.nll:.3f}",
            ]
            for split, each in quality.items()
            for name, q in each.items()
        ],
        notes=[
            "error: squared, of the mean (sd) of a problem's scores; rank: Spearman's correlation",
            "interval: share of the problems whose mean is inside their central interval",
            "nats: negative log marginal likelihood of a problem's scores",
        ],
    )


# The output folder --------------------------------------------------------------------------------


def _identity(config: PredictorConfig, labels: Labels, recipe: dict[str, Any]) -> dict[str, Any]:
    """What a run has to have in common with the one that it goes on with."""
    digest = hashlib.sha256()
    for values in (labels.stats.n, labels.stats.mean, labels.stats.m2):
        digest.update(np.ascontiguousarray(values).tobytes())
    digest.update("\0".join(map(str, labels.texts)).encode())
    recipe = {name: value for name, value in recipe.items() if name != "model"}
    return json.loads(
        json.dumps(
            {
                "labels": digest.hexdigest(),
                "features": recipe,
                "training": dataclasses.asdict(config.training),
            }
        )
    )


@contextlib.contextmanager
def _folder(
    out: Path, config: PredictorConfig, identity: dict[str, Any], leads: bool
) -> Iterator[None]:
    """Makes the output folder, or checks that what is in it is this run's beginning."""
    record = out / "run.json"
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out: {out} is a file; give a folder")
    if record.is_file():
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"{record}: damaged; give another --out") from error
        for name, value in identity.items():
            if before.get(name) != value:
                raise BadInput(
                    f"--out: {out} holds a run with other {name}{_difference(before, name, value)};"
                    " give another folder, or remove it"
                )
    elif (out / "checkpoints").exists():
        raise BadInput(f"--out: {out} has checkpoints of something else; give another folder")
    elif leads:
        with bad_input("--out", (OSError,)):
            out.mkdir(parents=True, exist_ok=True)
            header = "# The configuration as it ran: python -m train.predictor --config THIS_FILE\n"
            (out / "config.yaml").write_text(header + to_yaml(config), encoding="utf-8")
            temporary = out / f".run.json.{os.getpid()}.tmp"
            temporary.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, record)
    yield


def _difference(before: dict[str, Any], name: str, value: Any) -> str:
    old = before.get(name)
    if not isinstance(value, dict) or not isinstance(old, dict):
        return ""
    field = next((f for f in value if old.get(f) != value[f]), None)
    return "" if field is None else f" ({field} is {old.get(field)} there, {value[field]} here)"


class _Log:
    """metrics.jsonl and TensorBoard's files, in the leading process."""

    def __init__(self, out: Path, leads: bool):
        self.out, self.leads = out, leads
        self.epoch = 0

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_writer"):
            self._file.close()
            self._writer.close()

    def resume(self, epoch: int) -> None:
        self.epoch = epoch
        if self.leads:
            print(f"going on after epoch {epoch}", file=sys.stderr)

    def _open(self) -> None:
        from tensorboardX import SummaryWriter

        # Lines of epochs after the checkpoint would come twice.
        path = self.out / "metrics.jsonl"
        kept = path.read_text(encoding="utf-8").splitlines()[: self.epoch] if path.exists() else []
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._file.writelines(line + "\n" for line in kept)
        folder = str(self.out / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=self.epoch + 1 if self.epoch else None)

    def __call__(self, numbers: dict[str, float]) -> None:
        if not self.leads:
            return
        if not hasattr(self, "_writer"):
            self._open()
        self._file.write(json.dumps(numbers) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, int(numbers["epoch"]))


def _packages() -> dict[str, str | None]:
    found = {}
    for name in ("optscale-jax", "jax", "flax", "optax", "torch", "transformers", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    sys.exit(main())
