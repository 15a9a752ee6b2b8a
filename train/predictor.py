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
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from optscale_jax.cli import command, package_versions, progress, show, to_yaml
from optscale_jax.cli.outputs import output_place
from optscale_jax.cli.predictors import (
    DistributedConfig,
    PredictorConfig,
    load_labels,
    read_features,
)
from optscale_jax.errors import InputError, bad_input
from optscale_jax.files import atomic_write
from optscale_jax.predictor.labels import Labels
from optscale_jax.report.priors import quality_table

__all__ = ["main"]

PACKAGES = ("optscale-jax", "jax", "flax", "optax", "torch", "transformers", "numpy")


def run(config: PredictorConfig) -> None:
    """Extracts the features, trains the head and writes the predictor.

    Raises:
        InputError: If the labels, the features or the output folder cannot be used.
    """
    labels = load_labels(config)
    _join(config.distributed)
    import jax  # after the processes have found each other

    from optscale_jax.predictor.data import split
    from optscale_jax.predictor.parts import Parts
    from optscale_jax.predictor.predictor import FILES, Predictor
    from optscale_jax.predictor.training import train

    leads = jax.process_index() == 0
    training = config.training
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(progress())
        # What can be wrong is found before the features' minutes, or at least before the folder.
        parts = Parts.find(training.head, training.loss, training.optimizer)
        split(labels, training.split, training.seed)
        features, recipe = read_features(config, labels, bar)
        parts.check(features.width, tokens=training.head.features == "tokens")

        identity = _identity(config, labels, recipe._asdict())
        out = stack.enter_context(output_place(Path(config.out), folder=True))
        _claim(out, config, identity, leads)
        log = stack.enter_context(_Log(out, leads))
        task = bar.add_task("training", total=training.epochs)

        def advance(numbers: dict[str, int | float]) -> None:
            log(numbers)
            words = f"training: {numbers['validation_gain']:+.3f} nats over pooled"
            bar.update(task, completed=numbers["epoch"], description=words)

        folder = out / "checkpoints"
        fitted = train(
            features, labels, training, checkpoints=folder, log=advance, resumed=log.resume
        )
        scores = float(np.mean(labels.stats.n))
        told = {"problems": len(labels), "scores": scores, "sha256": identity["labels"]}
        record = {
            "labels": told,
            "training": dataclasses.asdict(training),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "packages": package_versions(*PACKAGES),
        }
        if leads:
            Predictor.of(fitted, config.features, recipe, record).save(out)
    if leads:
        rows = [
            ((split, name, str(found.problems)), found)
            for split, each in fitted.quality.items()
            for name, found in each.items()
        ]
        labels_of = ("split", "prior", "problems")
        show(quality_table("How good the predicted priors are", labels_of, rows).to_rich())
        print(f"predictor: {Path(config.out) / FILES[1]}")


def _join(config: DistributedConfig) -> None:
    if config.coordinator is None and not config.auto:
        return
    import jax

    with bad_input("distributed", (ValueError, RuntimeError)):
        if config.auto:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(config.coordinator, config.processes, config.process)


# The output folder --------------------------------------------------------------------------------


def _identity(config: PredictorConfig, labels: Labels, recipe: dict[str, Any]) -> dict[str, Any]:
    """What a run has to have in common with the one that it goes on with."""
    digest = hashlib.sha256()
    for values in (labels.stats.n, labels.stats.mean, labels.stats.m2):
        digest.update(np.ascontiguousarray(values).tobytes())
    digest.update("\0".join(map(str, labels.texts)).encode())
    features = {name: value for name, value in recipe.items() if name != "model"}
    training = dataclasses.asdict(config.training)
    identity = {"labels": digest.hexdigest(), "features": features, "training": training}
    return json.loads(json.dumps(identity))  # as the file will have it


def _claim(out: Path, config: PredictorConfig, identity: dict[str, Any], leads: bool) -> None:
    """Makes the output folder, or checks that what is in it is this run's beginning."""
    record = out / "run.json"
    if record.is_file():
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{record}: damaged; give another --out") from error
        for name, value in identity.items():
            if before.get(name) != value:
                raise InputError(
                    f"--out: {out} holds a run with other {name}{_difference(before, name, value)};"
                    " give another folder, or remove it"
                )
    elif (out / "checkpoints").exists():
        raise InputError(f"--out: {out} has checkpoints of something else; give another folder")
    elif leads:
        header = "# The configuration as it ran: python -m train.predictor --config THIS_FILE\n"
        texts = {"config.yaml": header + to_yaml(config)}
        texts["run.json"] = json.dumps(identity, indent=1) + "\n"
        for name, text in texts.items():
            with atomic_write(out / name) as file:
                file.write(text)


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

    def __call__(self, numbers: dict[str, int | float]) -> None:
        if not self.leads:
            return
        if not hasattr(self, "_writer"):
            self._open()
        self._file.write(json.dumps(numbers) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, int(numbers["epoch"]))


main = command(
    PredictorConfig,
    run,
    __name__,
    configs="predictor",
    interrupted="checkpoints are kept; run the same command to go on",
)

if __name__ == "__main__":
    sys.exit(main())
