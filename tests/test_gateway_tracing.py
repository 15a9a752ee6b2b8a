"""Spans of the gateway's requests, read back with OpenTelemetry's own exporter in memory."""

import asyncio
import json
import subprocess
import sys

import httpx
import jax
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from optscale_jax import synthetic_pool
from optscale_jax.errors import InputError
from optscale_jax.gateway.config import ServeConfig
from optscale_jax.gateway.service import Service
from optscale_jax.gateway.tracing import Tracing, configured_tracing
from optscale_jax.live.config import RecordedConfig
from optscale_jax.study.registry import PolicyConfig
from tests.gateway import Upstream, box, gateway, served
from tests.test_gateway import sleeping

VARIABLES = ("EXPORTER_OTLP_ENDPOINT", "EXPORTER_OTLP_TRACES_ENDPOINT", "TRACES_EXPORTER")


@pytest.fixture
def spans():
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def of(upstream, *bodies, headers=None, status=200):
        with gateway(upstream) as running:
            running.service.tracing = Tracing(provider)
            for body in bodies:
                body = {"messages": [{"role": "user", "content": "Secret?"}], **body}
                url = f"{running.url}/v1/chat/completions"
                found = httpx.post(url, json=body, headers=headers, timeout=30)
                assert found.status_code == status
        return sorted(exporter.get_finished_spans(), key=lambda one: one.start_time)

    return of


def test_a_request_has_a_span_and_so_has_each_of_its_candidates(spans):
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    request, *candidates = spans(
        Upstream(lambda body, i: box(i % 2, tokens=10 + i)), {}, headers=headers
    )
    assert request.name == "chat m"
    assert (f"{request.context.trace_id:x}", f"{request.parent.span_id:x}") == (trace[1:], parent)
    told = dict(request.attributes)
    assert told.pop("optscale.selected_index") in range(4)
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.usage.output_tokens": 10 + 11 + 12 + 13,
        "optscale.policy": "self_consistency",
        "optscale.samples": 4,
        "optscale.candidates": 4,
        "optscale.stop_reason": "fixed_count",
    }
    assert [one.attributes["optscale.candidate.index"] for one in candidates] == [0, 1, 2, 3]
    for one in candidates:
        assert one.parent.span_id == request.context.span_id
        assert one.attributes["gen_ai.response.finish_reasons"] == ("stop",)
        assert request.start_time <= one.start_time < one.end_time <= request.end_time
    drawn = [one.attributes["gen_ai.usage.output_tokens"] for one in candidates]
    assert sorted(drawn) == [10, 11, 12, 13]
    assert "ecret" not in "".join(one.to_json() for one in (request, *candidates))


def test_what_is_aborted_and_what_fails_ends_its_spans_too(spans):
    slow = Upstream(lambda body, i: sleeping(30))
    request, *candidates = spans(slow, {"optscale": {"seconds": 0.3}}, status=504)
    assert request.status.is_ok is False
    assert request.attributes["error.type"] == "504"
    assert request.attributes["optscale.stop_reason"] == "seconds"
    assert [one.attributes.get("gen_ai.response.finish_reasons") for one in candidates] == [
        ("abort",)
    ] * 4


def test_scores_are_in_the_spans_of_those_that_are_scored(tmp_path):
    pool = synthetic_pool(jax.random.key(0), num_problems=1, num_samples=8)
    pool.save(tmp_path / "pool.npz")
    recorded = RecordedConfig(pool=str(tmp_path / "pool.npz"))
    rule = PolicyConfig("best_of_n", n=8)
    model = served("http://unused", policies=[rule], recorded=recorded, verify=True)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service = Service(ServeConfig(models=[model]))
    service.tracing = Tracing(provider)

    async def main():
        body = {"messages": [{"role": "user", "content": str(pool.problem_ids[0])}]}
        await service.answer(*service.read(body, "chat"))
        await service.close()

    asyncio.run(main())
    found = {
        one.attributes["optscale.candidate.index"]: one.attributes["optscale.score"]
        for one in exporter.get_finished_spans()
        if one.name == "candidate"
    }
    assert found == dict(enumerate(map(float, pool.scores[0])))


@pytest.mark.parametrize(
    ("variables", "made"),
    [
        ({}, False),
        ({"TRACES_EXPORTER": "none"}, False),
        ({"TRACES_EXPORTER": "console"}, True),
        ({"EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "SDK_DISABLED": "true"}, False),
    ],
)
def test_the_standard_variables_say_whether_there_are_traces(monkeypatch, variables, made):
    for name in VARIABLES:
        monkeypatch.delenv(f"OTEL_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_{name}", value)
    found = configured_tracing()
    assert (found is not None) == made
    if found is not None:
        found.close()


def test_an_exporter_that_there_is_not_stops_in_one_line(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "pigeon")
    with pytest.raises(InputError, match=r"no exporter 'pigeon' is installed; pip install"):
        configured_tracing()


def test_without_them_nothing_of_opentelemetry_is_imported():
    script = (
        "import json, os, sys\n"
        "[os.environ.pop(name) for name in list(os.environ) if name.startswith('OTEL_')]\n"
        "from optscale_jax.gateway import app, server, tracing\n"
        "assert tracing.configured_tracing() is None\n"
        "print(json.dumps([name for name in sys.modules if 'opentelemetry' in name]))"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert json.loads(run.stdout) == []
