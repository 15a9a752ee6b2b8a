"""Odd requests of every kind: no 500, no hang, and OpenAI's form whatever comes."""

import contextlib
import json
import random
import subprocess
import sys

import httpx
import pytest

from optscale_jax.gateway.config import LimitsConfig, ServeConfig
from optscale_jax.gateway.protocol import FIELDS, OPTIONS, UNUSED, VLLM_FIELDS
from optscale_jax.study.registry import PolicyConfig
from tests.gateway import Upstream, box, gateway, served

PATHS = {"chat": "chat/completions", "text": "completions"}
NAMES = {"model", "n", "stream", "stream_options", "optscale", "messages", "prompt", "role"}
NAMES |= {"content", "type", "text", "url", "image_url", "include_usage", "json_schema", "odd"}
NAMES = sorted(NAMES.union(*FIELDS.values(), OPTIONS, UNUSED, VLLM_FIELDS))


def value(rng, depth=0):
    """Any JSON, and what only Python's reader takes for it."""
    kind = rng.randrange(9 if depth < 3 else 7)
    if kind == 7:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {rng.choice(NAMES): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    if kind == 6:
        deep = rng.choice(["x", []])
        for _ in range(rng.choice([3, 90, 200, 900])):
            deep = rng.choice([[deep], {"content": deep}])
        return deep
    numbers = [0, 1, -1, 2, 0.5, 2**63, 10**400, -(10**400), 1e308, 1e-320, float("nan"), -0.0]
    texts = [
        "",
        "x",
        "m",
        "m@self_consistency",
        "user",
        "\ud800",
        "\0",
        "é" * 999,
        "http://10.0.0.1",
    ]
    return rng.choice([None, True, False, *numbers, *texts, "json_object", "y" * 100_000])


def changed(rng, body):
    """The body with a value somewhere that is not meant to be there."""
    here, name = body, rng.choice(NAMES)
    while isinstance(here, (dict, list)) and here and rng.random() < 0.5:
        keys = list(here) if isinstance(here, dict) else range(len(here))
        inside = here[rng.choice(keys)]
        if not isinstance(inside, (dict, list)):
            break
        here = inside
    if isinstance(here, list):
        here.append(value(rng))
    elif here and rng.random() < 0.3:
        here[rng.choice(list(here))] = value(rng)
    else:
        here[name] = value(rng)


def request(rng):
    """A path, and bytes to send there."""
    kind = rng.choice(list(PATHS))
    message = {"role": "user", "content": [{"type": "text", "text": "What is 2 + 2?"}]}
    body = {"model": "m", "optscale": {"max_samples": 2}, "stream": rng.random() < 0.3}
    body |= {"messages": [message]} if kind == "chat" else {"prompt": "2 + 2 ="}
    for _ in range(rng.randrange(4)):
        changed(rng, body)
    raw = bytearray(json.dumps(body).encode())
    if rng.random() < 0.15:
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        del raw[rng.choice([len(raw), rng.randrange(len(raw))]) :]
    return PATHS[kind], bytes(raw)


def fuzz(url, seed, count):
    """Sends so many; returns how many were answered with each status."""
    rng, met = random.Random(seed), {}
    with httpx.Client(timeout=20) as client:
        for _ in range(count):
            path, raw = request(rng)
            found = client.post(f"{url}/v1/{path}", content=raw)
            met[found.status_code] = met.get(found.status_code, 0) + 1
            told = f"{found.status_code} to {raw[:3000]!r}: {found.text[:500]}"
            assert found.status_code in (200, 400, 404, 413, 503, 504), told
            if found.headers["content-type"].startswith("text/event-stream"):
                events = [one for one in found.text.split("\n\n") if one.startswith("data: ")]
                assert events[-1] == "data: [DONE]", told
                continue
            body = found.json()
            if found.status_code == 200:
                assert {"choices", "usage"} <= set(body), told
            else:
                assert set(body["error"]) == {"message", "type", "param", "code"}, told
                assert len(found.content) < 10_000, told
    return met


@contextlib.contextmanager
def fuzzed():
    rule = PolicyConfig("self_consistency", n=4)

    def make(url):
        model = served(url, policies=(rule,), limits=LimitsConfig(seconds=10.0))
        return ServeConfig(models=[model])

    with gateway(Upstream(lambda body, i: box(i % 3)), make_config=make) as running:
        yield running.url


@pytest.fixture(scope="module")
def url():
    with fuzzed() as found:
        yield found


def test_no_body_whatsoever_makes_the_gateway_fail_or_hang(url):
    met = fuzz(url, 0, 300)
    assert met[200] > 50
    assert met[400] > 100


@pytest.mark.slow
def test_requests_and_answers_are_as_the_openapi_description_says(url, tmp_path):
    """Schemathesis' checks but one: 503 and 504 are described, and 500 is not."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    command += ["--exclude-checks=not_a_server_error", "--max-examples=5", "--seed=1"]
    command += ["--request-timeout=20", "--no-color"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert told.returncode == 0, told.stdout[:5000] + told.stderr
