"""What the gateway counts: for Prometheus in its own form, and for the page in JSON."""

import collections
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from optscale_jax.live.engine import Solution
from optscale_jax.policies import Policy
from optscale_jax.records import Decision, TokenLedger

__all__ = ["Answered", "Claims", "Completed", "Metrics", "counted"]

_SECONDS = tuple(a * 10**b for b in range(-3, 3) for a in (1, 2, 5))
_RECENT = 30  # requests that the page shows
_STEP, _STEPS = 10, 60  # seconds of a bar of the page, and how many bars there are


def counted(count: Any) -> int | None:
    """A count of tokens; None for NaN, which is an unknown one."""
    return None if math.isnan(count) else int(count)


class Completed(NamedTuple):
    """One completion that a decision rests on, without its text."""

    index: int
    score: float | None
    answer: int  # equal where the answers are; -1 = none
    tokens: int  # -1 = unknown


class Claims(NamedTuple):
    """Claimed confidence against what came true, of the last answers with feedback."""

    count: int
    claimed: float  # mean confidence
    realised: float  # share that was right
    chance: float  # how likely claims that are right are as far off
    alarm: bool  # whether that is too unlikely


class Answered(NamedTuple):
    """What is kept of a request for the page: numbers, and nothing that was asked or answered."""

    id: str
    at: float  # seconds since 1970
    model: str
    name: str  # the policy's
    policy: Policy
    most: int  # the policy's max_samples
    decision: Decision
    completions: Sequence[Completed]
    spent: int | None  # tokens drawn
    saved: int | None  # tokens that max_samples of the same mean length would have taken beyond
    seconds: float

    def summary(self) -> dict[str, Any]:
        """What the page lists."""
        decision = self.decision
        return {
            "id": self.id,
            "at": self.at,
            "name": f"{self.model}@{self.name}",
            "samples": decision.num_samples,
            "most": self.most,
            "spent": self.spent,
            "saved": self.saved,
            "seconds": round(self.seconds, 4),
            "stop_reason": decision.stop_reason,
            "confidence": decision.confidence,
            "selected": decision.selected_index,
            "indices": [one.index for one in self.completions],
            "scores": [one.score for one in self.completions],
        }


class Metrics:
    """The metrics of one gateway, on a registry of their own, and its last requests."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def made(kind, name, doc, labels=(), **options):
            return kind(f"optscale_{name}", doc, labels, registry=registry, **options)

        by = ("model", "policy")
        self.requests = made(Counter, "requests", "Requests by their status.", ("model", "status"))
        self.stops = made(Counter, "stops", "Answers by stop reason.", (*by, "reason"))
        self.tokens = made(Counter, "tokens", "Tokens by what they went to.", ("model", "kind"))
        self.samples = made(Counter, "samples", "Completions that answers rest on.", by)
        self.saved = made(Counter, "saved_samples", "Completions below the policy's cap.", by)
        told = "Tokens that the policy's cap would have taken beyond those drawn, at their length."
        self.saved_tokens = made(Counter, "saved_tokens", told, by)
        told = "Time to an answer."
        self.seconds = made(Histogram, "request_duration_seconds", told, by, buckets=_SECONDS)
        tenths = [i / 10 for i in range(1, 11)]
        self.confidence = made(Histogram, "confidence", "P(right) claimed.", by, buckets=tenths)
        told = "Answers by what feedback says of them."
        self.feedback = made(Counter, "feedback", told, (*by, "correct"))
        self.drift = [
            made(Gauge, f"drift_{field}", f"{told}, of the last answers with feedback.", by)
            for field, told in (
                ("answers", "Answers that claimed a confidence"),
                ("claimed", "Mean confidence claimed"),
                ("realised", "Share that was right"),
                ("chance", "How likely claims that are right are as far off"),
                ("alarm", "1 if chance does not explain the difference, else 0"),
            )
        ]
        self.claims: dict[tuple[str, str], Claims] = {}
        self.in_flight = made(Gauge, "requests_in_flight", "Requests at work.")
        self.queued = made(Gauge, "requests_queued", "Requests that wait.")
        self.share = made(Gauge, "budget_share", "Share of its budget that a request gets.")
        self.share.set(1)
        self.since = time.time()
        self.recent: collections.deque[Answered] = collections.deque(maxlen=_RECENT)
        self._steps: collections.deque[list[int]] = collections.deque(maxlen=_STEPS)

    def text(self) -> bytes:
        """All of them in Prometheus' own form."""
        return generate_latest(self.registry)

    def spent(self, model: str, ledger: TokenLedger) -> None:
        """Counts what went to a request, also to one whose client has gone."""
        for kind in ("completed", "aborted", "verifier"):
            if (tokens := counted(getattr(ledger, kind))) is not None:
                self.tokens.labels(model, kind).inc(tokens)

    def answered(
        self,
        request_id: str,
        model: str,
        name: str,
        policy: Policy,
        solution: Solution,
        seconds: float,
    ) -> None:
        """Counts what a request came to.

        Args:
            request_id: The request's, as its answer has it.
            model: The model's name.
            name: The policy's name.
            policy: The policy, whose max_samples is what is saved against.
            solution: With limits, so that its completions are whole.
            seconds: That it took.
        """
        decision, by, most = solution.decision, (model, name), int(policy.max_samples)
        self.spent(model, decision.ledger)
        self.stops.labels(*by, decision.stop_reason).inc()
        self.samples.labels(*by).inc(decision.num_samples)
        self.saved.labels(*by).inc(max(most - decision.num_samples, 0))
        self.seconds.labels(*by).observe(seconds)
        if decision.confidence is not None:
            self.confidence.labels(*by).observe(decision.confidence)
        spent = counted(decision.ledger.completed + decision.ledger.aborted)
        lengths = [one.completion.tokens for one in solution.samples]
        saved = None
        if spent is not None and lengths and min(lengths) >= 0:
            saved = max(round(most * sum(lengths) / len(lengths)) - spent, 0)
            self.saved_tokens.labels(*by).inc(saved)
        completions = [
            Completed(one.completion.index, one.score, one.answer_id, one.completion.tokens)
            for one in solution.samples
        ]
        now = time.time()
        told = (policy, most, decision, completions, spent, saved, seconds)
        self.recent.appendleft(Answered(request_id, now, model, name, *told))
        step = int(now) // _STEP
        if not self._steps or self._steps[-1][0] != step:
            self._steps.append([step, 0, 0, 0])
        for place, more in enumerate((1, spent or 0, saved or 0), 1):
            self._steps[-1][place] += more

    def judged(self, model: str, name: str, correct: bool, claims: Claims | None) -> bool:
        """Counts feedback on an answer of a policy.

        Args:
            model: The model's name.
            name: The policy's name.
            correct: Whether the answer was right.
            claims: With this one; None if it claimed nothing.

        Returns:
            Whether the alarm has just gone off.
        """
        self.feedback.labels(model, name, str(correct).lower()).inc()
        if claims is None:
            return False
        before = self.claims.get((model, name))
        self.claims[model, name] = claims
        for gauge, value in zip(self.drift, claims, strict=True):
            gauge.labels(model, name).set(float(value))
        return claims.alarm and not (before and before.alarm)

    def numbers(self) -> dict[str, Any]:
        """What the page shows: the metrics' own numbers, and the last requests."""
        held: dict[str, list[tuple[Mapping[str, str], float]]] = collections.defaultdict(list)
        for metric in self.registry.collect():
            for one in metric.samples:
                held[one.name.removeprefix("optscale_")].append((one.labels, one.value))

        def total(name: str, *labels: str) -> dict[Any, float]:
            """Sums by the values of labels: themselves for one, in a tuple otherwise."""
            found: dict[Any, float] = collections.defaultdict(float)
            for given, value in held[name]:
                key = tuple(given[label] for label in labels)
                found[key[0] if len(key) == 1 else key] += value
            return found

        def histogram(name: str) -> dict[str, Any]:
            by_edge = total(f"{name}_bucket", "le")
            edges = [float(edge) for edge in by_edge]
            below = [0.0, *by_edge.values()]
            counts = [b - a for a, b in itertools.pairwise(below)]
            count = sum(counts)
            mean = total(f"{name}_sum")[()] / count if count else None
            return {"edges": edges[:-1], "counts": counts, "count": count, "mean": mean}

        seconds = histogram("request_duration_seconds")
        for name, share in (("p50", 0.5), ("p95", 0.95)):
            seconds[name] = _quantile(seconds["edges"], seconds["counts"], share)
        by = ("model", "policy")
        answers = total("request_duration_seconds_count", *by)
        took = total("request_duration_seconds_sum", *by)
        claims, claimed = total("confidence_count", *by), total("confidence_sum", *by)
        samples, saved = total("samples_total", *by), total("saved_samples_total", *by)
        now = time.time()
        first = int(now) // _STEP - _STEPS + 1
        steps = {step: rest for step, *rest in self._steps if step >= first}
        return {
            "at": now,
            "since": self.since,
            "requests": total("requests_total", "status"),
            "in_flight": total("requests_in_flight")[()],
            "queued": total("requests_queued")[()],
            "budget_share": total("budget_share")[()],
            "tokens": total("tokens_total", "kind"),
            "saved_tokens": total("saved_tokens_total")[()],
            "stops": total("stops_total", "reason"),
            "confidence": histogram("confidence"),
            "seconds": seconds,
            "policies": [
                {
                    "name": "@".join(each),
                    "answers": count,
                    "samples": samples[each] / count,
                    "saved": saved[each] / (saved[each] + samples[each] or 1),
                    "seconds": took[each] / count,
                    "confidence": claimed[each] / claims[each] if claims[each] else None,
                }
                for each, count in answers.items()
            ],
            "claims": [
                {"name": "@".join(by), **claims._asdict()} for by, claims in self.claims.items()
            ],
            "step": _STEP,
            "steps": [steps.get(step, [0, 0, 0]) for step in range(first, first + _STEPS)],
            "recent": [one.summary() for one in self.recent],
        }


def _quantile(edges: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """A quantile of a histogram, by a straight line within its bin, as Prometheus has it."""
    target, before, low = share * sum(counts), 0.0, 0.0
    for edge, count in zip(edges, counts, strict=False):
        if count and before + count >= target:
            return low + (edge - low) * (target - before) / count
        before, low = before + count, edge
    return edges[-1] if target else None
