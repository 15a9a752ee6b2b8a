"""What users say of answers: labelled completions for a calibration, and whether claims come true.

An answer that is right makes every completion of its request right that has the same answer, and
all others wrong. Of one that is wrong nobody knows which other answer is right, so none is counted
as right. Every completion that the decision rests on becomes a line (`readers.jsonl`) without any
text; those that ended behind a missing one, at a limit, are left out, for they are the short ones.
"""

import asyncio
import collections
import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from optscale_jax.files import append_lines
from optscale_jax.gateway.config import FeedbackConfig
from optscale_jax.gateway.metrics import Claims, Metrics
from optscale_jax.gateway.protocol import ApiError
from optscale_jax.live.engine import Solution
from optscale_jax.records import Sample

__all__ = ["Feedback", "claims_against_truth", "read_feedback"]

log = logging.getLogger("optscale.serve")
_WINDOW = 1000  # answers with feedback that a drift is looked for in
_ALARM = 1e-4  # a smaller chance than this is none


def claims_against_truth(claimed: Sequence[float], right: Sequence[bool]) -> Claims:
    """How far claims are from what came true, and how likely that is by chance.

    With claims that are right, how many of n answers are right is Poisson-binomial of their
    confidences; the chance is twice that of its nearer tail, at most 1.

    Args:
        claimed: Confidences in [0, 1], at least one.
        right: Whether each came true.
    """
    from scipy.stats import poisson_binom  # slow to import, and of no use before feedback

    count, hits, law = len(claimed), sum(right), poisson_binom(list(claimed))
    chance = min(2 * float(min(law.cdf(hits), law.sf(hits - 1))), 1.0)
    return Claims(count, sum(claimed) / count, hits / count, chance, chance < _ALARM)


class Labelled(NamedTuple):
    """One completion's line, without what feedback says of it."""

    answer: int
    fields: dict[str, Any]


@dataclasses.dataclass
class _Request:
    """What is remembered of a request, without its texts."""

    who: str
    model: str
    name: str
    file: str
    answer: int
    confidence: float | None
    completions: Sequence[Labelled]
    correct: bool | None = None
    written: int = 0


class Feedback:
    """Requests that feedback may come for, and what has come."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._known: dict[str, collections.OrderedDict[str, _Request]] = {}
        self._claims: dict[tuple[str, str], collections.deque[tuple[float, bool]]] = {}
        self._lock = asyncio.Lock()

    def remember(
        self,
        request_id: str,
        config: FeedbackConfig,
        model: str,
        name: str,
        who: str,
        solution: Solution,
    ) -> None:
        """Keeps what feedback on a request would label, if its model's configuration asks for it.

        Args:
            request_id: The request's, as its answer has it.
            config: Its model's.
            model: The model's name.
            name: The policy's name.
            who: The name of the key that it came with.
            solution: With an answer.
        """
        if config.file is None:
            return
        assert solution.selected is not None
        whole = [one for i, one in enumerate(solution.samples) if one.completion.index == i]
        held = self._known.setdefault(model, collections.OrderedDict())
        held[request_id] = _Request(
            who,
            model,
            name,
            config.file,
            solution.selected.answer_id,
            solution.decision.confidence,
            tuple(Labelled(one.answer_id, _fields(one)) for one in whole),
        )
        while len(held) > config.remembered:
            held.popitem(last=False)

    async def give(self, request_id: str, correct: bool, who: str) -> dict[str, Any]:
        """Takes feedback on a request's (first) answer; the same once more changes nothing.

        Args:
            request_id: The id of its answer, with or without what stands before the dash.
            correct: Whether the answer is right.
            who: The name of the key that the feedback comes with.

        Returns:
            What the client is told.

        Raises:
            ApiError: The request is not remembered, other feedback came before, or the file cannot
                be written.
        """
        name = request_id.rpartition("-")[2]
        found = next((held[name] for held in self._known.values() if name in held), None)
        if found is None or found.who != who:
            message = (
                "No such request is remembered: it is too old, took no feedback, or was asked of "
                "another process or with another key."
            )
            raise ApiError(404, message, param="request_id", code="request_not_found")
        async with self._lock:
            if found.correct is None:
                lines = _lines(name, found, correct)
                try:
                    await asyncio.to_thread(append_lines, found.file, lines)
                except OSError as error:
                    log.error("%s: %s", found.file, error)
                    message = "The feedback could not be written, which is logged; send it again."
                    raise ApiError(503, message, code="not_written", retry_after=10.0) from error
                found.correct, found.written = correct, len(lines)
                await self._judge(found, correct)
        if found.correct != correct:
            message = "Other feedback was given for this request before, and stands."
            raise ApiError(409, message, param="correct", code="feedback_given")
        told = {"object": "feedback", "request_id": request_id, "correct": correct}
        return told | {"completions": found.written}

    async def _judge(self, found: _Request, correct: bool) -> None:
        by, claims = (found.model, found.name), None
        if found.confidence is not None:
            window = self._claims.setdefault(by, collections.deque(maxlen=_WINDOW))
            window.append((found.confidence, correct))
            claims = await asyncio.to_thread(claims_against_truth, *zip(*window, strict=True))
        if self._metrics.judged(*by, correct, claims):
            assert claims is not None
            log.warning(
                "%s@%s claims %.1f%% and is right in %.1f%% of %d: learn its calibration again",
                *by,
                100 * claims.claimed,
                100 * claims.realised,
                claims.count,
            )


def _fields(sample: Sample) -> dict[str, Any]:
    completion = sample.completion
    fields: dict[str, Any] = {"index": completion.index, "answer_id": sample.answer_id}
    if sample.score is not None:
        fields["score"] = sample.score
    if completion.tokens >= 0:
        fields["tokens"] = completion.tokens
    signals = {name: None if x != x else x for name, x in sample.signals.items()}
    return fields | {"signals": signals}


def _lines(request_id: str, found: _Request, correct: bool) -> list[bytes]:
    """The lines of a request; none where its answer cannot be compared with the others."""
    if found.answer == -1:
        return []
    about = {"problem_id": request_id, "model": found.model, "policy": found.name}
    gold = {"gold_id": found.answer} if correct else {}
    return [
        json.dumps(
            about | one.fields | {"correct": correct and one.answer == found.answer} | gold
        ).encode()
        + b"\n"
        for one in found.completions
    ]


def read_feedback(body: Any) -> tuple[str, bool]:
    """The request's id and whether its answer is right, of a body of /v1/feedback.

    Raises:
        ApiError: It is no such body.
    """
    if not isinstance(body, dict) or set(body) != {"request_id", "correct"}:
        message = 'Send {"request_id": the answer\'s id, "correct": true or false}.'
        raise ApiError(400, message)
    if not isinstance(body["request_id"], str):
        raise ApiError(400, "request_id must be a text.", param="request_id")
    if not isinstance(body["correct"], bool):
        raise ApiError(400, "correct must be true or false.", param="correct")
    return body["request_id"], body["correct"]
