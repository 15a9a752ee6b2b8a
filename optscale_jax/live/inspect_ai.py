"""A policy that stops the epochs of an evaluation by inspect_ai: its protocol `EarlyStopping`.

inspect_ai runs the epochs and scores them. Before each it asks whether to leave it out, and when
one has ended it tells its scores, which the policy is shown in the order of the epochs.
"""

import dataclasses
import importlib
import math
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from optscale_jax.answers import AnswerIds, Equal, answers_equal, extract_gold
from optscale_jax.errors import InputError
from optscale_jax.live.decider import Decider
from optscale_jax.policies import Policy, StopReason, capped
from optscale_jax.readers.inspect_ai import GRADES
from optscale_jax.records import Completion, Sample

__all__ = ["EarlyStopping"]


@dataclasses.dataclass
class _Work:
    """The epochs of one sample so far; those that have ended wait until it is their turn."""

    state: Any
    more: int
    ids: AnswerIds
    ended: dict[int, tuple[float, str | None, int]] = dataclasses.field(default_factory=dict)
    passed: int = 0  # epochs that were shown to the policy or have no score
    shown: list[int] = dataclasses.field(default_factory=list)


class EarlyStopping:
    """Leaves out a sample's epochs once a policy has enough: `Task(early_stopping=...)`.

    A decision is made on the first epochs, as a replay of their scores makes it. An epoch that is
    under way when it falls runs on, and is not counted. One that ends in an error and is not
    retried has the sample's later epochs all run. What was decided is in the log, at
    `results.early_stopping.metadata`.

    Args:
        policy: Decides how many; an evaluation of fewer epochs than its max_samples is its cap.
        scorer: The scorer whose values are the scores, in [0, 1] or C, P, I or N, and whose answers
            are compared; an epoch with the value NaN is passed over. None: the only one.
        priors: A prior for each sample's id, from a predictor; ids that it lacks get the policy's.
        equal: Whether two answers are the same.

    Raises:
        InputError: If inspect_ai is not installed, or the policy couples problems or is sequential;
            in the evaluation, if there is no such scorer, or a value is not in [0, 1].
    """

    def __init__(
        self,
        policy: Policy,
        *,
        scorer: str | None = None,
        priors: Mapping[str, Any] | None = None,
        equal: Equal = answers_equal,
    ):
        if policy.couples_problems or policy.kind != "parallel":
            raise InputError("epochs are independent draws of one problem; give a policy for them")
        if policy.signals:
            raise InputError(f"epochs have a score alone, and the policy reads {policy.signals}")
        try:
            self._util = importlib.import_module("inspect_ai.util")
        except ImportError as error:
            raise InputError(
                f"inspect_ai cannot be imported ({error}): pip install 'optscale-jax[inspect]'"
            ) from error
        self._policy, self._scorer, self._equal = policy, scorer, equal
        self._priors = priors or {}
        # One evaluation may run several models at once, each in a context of its own.
        self._task: ContextVar[tuple[Decider, dict[str, _Work]]] = ContextVar("task")

    async def start_task(self, task: Any, samples: list[Any], epochs: int) -> str:
        """Begins an evaluation; returns the name that its log has for this."""
        del task
        decide = Decider(capped(self._policy, min(epochs, int(self._policy.max_samples))))
        ids = [str(sample.id) for sample in samples]
        starts = (decide.start(self._priors.get(id), i, len(ids)) for i, id in enumerate(ids))
        works = [_Work(*start, AnswerIds(equal=self._equal)) for start in starts]
        self._task.set((decide, dict(zip(ids, works, strict=True))))
        return f"optscale_jax {type(self._policy).__name__}"

    async def schedule_sample(self, id: str | int, epoch: int) -> Any:
        """An `EarlyStop` if the sample's policy has enough; None, at once, while it has not."""
        decide, works = self._task.get()
        work = works.get(str(id))  # None of a sample that was added later
        if work is None or work.more > 0 or epoch <= work.passed:
            return None
        return self._util.EarlyStop(id=id, epoch=epoch, reason=_decision(decide, work)["reason"])

    async def complete_sample(self, id: str | int, epoch: int, scores: Mapping[str, Any]) -> None:
        """Shows the policy what has ended, as far as there is no gap."""
        decide, works = self._task.get()
        if (work := works.get(str(id))) is None:
            return
        work.ended[epoch] = self._read(f"sample {id!r}, epoch {epoch}", scores)
        while work.more > 0 and (now := work.ended.get(work.passed + 1)) is not None:
            work.passed += 1
            score, answer, tokens = now
            if math.isnan(score):
                continue
            # An answer that the scorer does not say is unknown, which only votes have to know.
            unknown = answer is None and not self._policy.uses_answers
            said = None if answer is None else extract_gold(answer)
            drawn = Completion(len(work.shown), "", tokens)
            sample = Sample(str(id), drawn, score, said, 0 if unknown else work.ids.add(said), -1)
            work.state, work.more = decide.step_now(work.state, sample)
            work.shown.append(work.passed)

    async def complete_task(self) -> dict[str, Any]:
        """What was decided on each sample, for the log."""
        decide, works = self._task.get()
        return {"samples": {id: _decision(decide, work) for id, work in works.items()}}

    def _read(self, where: str, scores: Mapping[str, Any]) -> tuple[float, str | None, int]:
        name = self._scorer or (next(iter(scores)) if len(scores) == 1 else "")
        if name not in scores:
            raise InputError(f"{where}: name its scorer, {name!r} is none of {[*scores]}")
        score = scores[name].score
        value = GRADES.get(score.value.upper(), -1) if isinstance(score.value, str) else score.value
        if not isinstance(value, int | float) or not (0 <= value <= 1 or value != value):
            raise InputError(
                f"{where}: scorer {name!r} gave {score.value!r}; scores are in [0, 1], or grades"
            )
        try:
            tokens = int(self._util.sample_limits().token.usage)
        except RuntimeError:  # an epoch taken over from an earlier log
            tokens = 0
        return float(value), score.answer, tokens or -1  # 0 where the model does not say


def _decision(decide: Decider, work: _Work) -> dict[str, Any]:
    selected, info = decide.end(work.state)
    return {
        "epochs": len(work.shown),
        "selected_epoch": None if selected < 0 else work.shown[selected],
        "reason": StopReason(int(info.stop_reason)).name.lower(),
        "required": int(info.required),
    }
