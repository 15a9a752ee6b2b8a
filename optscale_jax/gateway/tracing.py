"""OpenTelemetry: a span for each request and for each of its candidates, where traces are wanted.

They are where the standard variables name an exporter (OTEL_EXPORTER_OTLP_ENDPOINT, or
OTEL_TRACES_EXPORTER); without them nothing of OpenTelemetry is imported. A request's span is within
that of whoever sent it a `traceparent`. No span has any text.
"""

import asyncio
import contextlib
import importlib.metadata
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from optscale_jax.backends.base import Sampler, Verifier
from optscale_jax.errors import InputError, bad_input
from optscale_jax.gateway.protocol import ApiError, Kind
from optscale_jax.live.engine import Engine, Solution
from optscale_jax.records import Completion, Problem, Score

__all__ = ["RequestSpan", "Tracing", "configured_tracing"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_GROUP = "opentelemetry_traces_exporter"


def configured_tracing() -> "Tracing | None":
    """What the environment asks for; None if it asks for no traces.

    Raises:
        InputError: It asks for an exporter that there is not.
    """
    given = os.environ.get
    if given("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    asked = given("OTEL_TRACES_EXPORTER") or ("otlp" if any(map(given, _ENDPOINTS)) else "")
    names = [name.strip() for name in asked.split(",") if name.strip() not in ("", "none")]
    if not names:
        return None
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # A name that OTEL_SERVICE_NAME gives wins.
    named = {} if given("OTEL_SERVICE_NAME") else {SERVICE_NAME: "optscale-gateway"}
    provider = TracerProvider(resource=Resource.create(named))
    protocol = given("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or given("OTEL_EXPORTER_OTLP_PROTOCOL")
    for name in names:
        if name == "otlp":
            name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
        found = [*importlib.metadata.entry_points(group=_GROUP, name=name)]
        if not found:
            raise InputError(
                f"OTEL_TRACES_EXPORTER: no exporter {name!r} is installed; "
                'pip install "optscale-jax[otel]" has otlp and console'
            )
        with bad_input(f"OTEL_TRACES_EXPORTER: {name}", (Exception,)):
            provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    return Tracing(provider)


class Tracing:
    """Makes spans.

    Args:
        provider: An `opentelemetry.sdk.trace.TracerProvider`.
    """

    def __init__(self, provider: Any):
        self._provider = provider
        self._tracer = provider.get_tracer("optscale_jax.gateway")

    @contextlib.contextmanager
    def request(
        self, headers: Mapping[str, str], kind: Kind, model: str, policy: str
    ) -> "Iterator[RequestSpan]":
        """The span of a request, as long as it lasts; what it raises is its status."""
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        above = TraceContextTextMapPropagator().extract(headers)
        operation = "chat" if kind == "chat" else "text_completion"
        about = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": model,
            "optscale.policy": policy,
        }
        span = self._tracer.start_span(f"{operation} {model}", above, SpanKind.SERVER, about)
        one = RequestSpan(self._tracer, span)
        try:
            yield one
        except BaseException as error:
            said = str(error.status) if isinstance(error, ApiError) else type(error).__name__
            span.set_attribute("error.type", said)
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            one.end()
            span.end()

    def close(self) -> None:
        """Sends what is not sent yet."""
        self._provider.shutdown()


class RequestSpan:
    """A request's span, and those of its candidates that have not ended."""

    def __init__(self, tracer: Any, span: Any):
        from opentelemetry.trace import set_span_in_context

        self._tracer, self._span = tracer, span
        self._within = set_span_in_context(span)
        self._open: dict[int, Any] = {}

    def begin(self, indices: range) -> None:
        """Candidates are begun to be drawn."""
        for index in indices:
            about = {"optscale.candidate.index": index}
            self._open[index] = self._tracer.start_span("candidate", self._within, attributes=about)

    def drawn(self, completion: Completion, *, last: bool) -> None:
        """A candidate has been drawn; its span ends if it is not going to be scored."""
        if (span := self._open.get(completion.index)) is None:
            return
        span.set_attribute("gen_ai.response.finish_reasons", [completion.finish_reason])
        if completion.tokens >= 0:
            span.set_attribute("gen_ai.usage.output_tokens", completion.tokens)
        if last or completion.finish_reason in ("abort", "error"):
            self._open.pop(completion.index).end()
        else:
            span.add_event("drawn")

    def scored(self, completion: Completion, score: Score) -> None:
        """A candidate has its score, and with it ends its span."""
        if (span := self._open.pop(completion.index, None)) is not None:
            span.set_attribute("optscale.score", score.value)
            if score.tokens:
                span.set_attribute("optscale.verifier_tokens", score.tokens)
            span.end()

    def solved(self, solution: Solution) -> None:
        """What the request came to."""
        decision = solution.decision
        told = {
            "optscale.samples": decision.num_samples,
            "optscale.candidates": solution.drawn,
            "optscale.stop_reason": decision.stop_reason,
            "optscale.selected_index": decision.selected_index,
        }
        if decision.confidence is not None:
            told["optscale.confidence"] = decision.confidence
        if (spent := decision.ledger.completed + decision.ledger.aborted) == spent:
            told["gen_ai.usage.output_tokens"] = int(spent)
        self._span.set_attributes(told)

    def end(self) -> None:
        """Ends the spans of candidates that nobody waits for any more."""
        while self._open:
            self._open.popitem()[1].end()

    def watched(self, engine: Engine) -> Engine:
        """The engine, with its sampler and its verifier seen to."""
        verifier = None if engine.verifier is None else _Verifier(engine.verifier, self)
        sampler = _Sampler(engine.sampler, self, scored=verifier is not None)
        return engine._replace(sampler=sampler, verifier=verifier)


class _Sampler:
    def __init__(self, sampler: Sampler, span: RequestSpan, *, scored: bool):
        self._sampler, self._span, self._scored = sampler, span, scored

    async def sample(
        self, problem: Problem, n: int, first_index: int, *, abort: asyncio.Event
    ) -> AsyncIterator[Completion]:
        self._span.begin(range(first_index, first_index + n))
        drawing = self._sampler.sample(problem, n, first_index, abort=abort)
        async with contextlib.aclosing(drawing):  # type: ignore[type-var]
            async for completion in drawing:
                self._span.drawn(completion, last=not self._scored)
                yield completion

    async def close(self) -> None:
        await self._sampler.close()


class _Verifier:
    def __init__(self, verifier: Verifier, span: RequestSpan):
        self._verifier, self._span = verifier, span

    async def score(self, problem: Problem, completions: Sequence[Completion]) -> list[Score]:
        scores = await self._verifier.score(problem, completions)
        for completion, score in zip(completions, scores, strict=True):
            self._span.scored(completion, score)
        return scores

    async def close(self) -> None:
        await self._verifier.close()
