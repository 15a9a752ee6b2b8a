"""Checkpoints of a training: all that its next step and its end depend on."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from optscale_jax.errors import PredictorError
from optscale_jax.predictor.ensemble import flatten, unflatten

__all__ = ["Checkpoints", "Progress", "State"]


class State(NamedTuple):
    """All that a step reads and writes."""

    step: Array | np.ndarray
    params: Any
    optimizer: Any


class Progress(NamedTuple):
    """How far training is, beside the state: the best weights so far and since when."""

    epoch: int
    stale: int
    best: float
    params: Any


class Checkpoints:
    """Orbax checkpoints of the state, the last two; nothing without a folder.

    The state is the same in all processes: the first one writes it alone.
    """

    def __init__(self, folder: Path | None):
        self._manager = None
        if folder is None:
            return
        import orbax.checkpoint as ocp

        self._ocp, self._folder = ocp, folder
        process = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}, barrier_sync_key_prefix="optscale"
            ),
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        if self._manager is not None:
            self._manager.close()

    def save(self, state: State, progress: Progress) -> None:
        """Writes a checkpoint of an epoch."""
        if self._manager is not None and jax.process_index() == 0:
            tree = _tree(state, progress)
            self._manager.save(progress.epoch, args=self._ocp.args.StandardSave(tree))

    def latest(self, state: State, progress: Progress) -> tuple[State, Progress]:
        """The last checkpoint, of the structure and shapes given; what is given without one.

        Raises:
            PredictorError: If it is the checkpoint of another head or optimizer.
        """
        if self._manager is None or (last := self._manager.latest_step()) is None:
            return state, progress
        tree = _tree(state, progress)
        try:
            found: Any = self._manager.restore(last, args=self._ocp.args.StandardRestore(tree))
        except (KeyError, TypeError, ValueError) as error:
            raise PredictorError(
                f"{self._folder}: checkpoints of another head or optimizer; give another folder, "
                "or remove them"
            ) from error
        leaves, structure = jax.tree.flatten(state.optimizer)
        leaves = [np.asarray(found["optimizer"][str(i)]) for i in range(len(leaves))]
        params, best = (unflatten(state.params, found[name]) for name in ("params", "best"))
        epoch, stale, least = found["progress"].tolist()
        return (
            State(np.asarray(found["step"]), params, jax.tree.unflatten(structure, leaves)),
            Progress(int(epoch), int(stale), least, best),
        )


def _tree(state: State, progress: Progress) -> dict[str, Any]:
    leaves = jax.tree.leaves(state.optimizer)
    return {
        "step": np.asarray(state.step),
        "params": flatten(state.params),
        "optimizer": {str(index): np.asarray(leaf) for index, leaf in enumerate(leaves)},
        "best": flatten(progress.params),
        "progress": np.array([progress.epoch, progress.stale, progress.best], np.float64),
    }
