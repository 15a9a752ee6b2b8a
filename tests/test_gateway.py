"""The gateway as OpenAI's own client sees it, over loopback servers."""

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import jax
import numpy as np
import openai
import pytest
import yaml

from eval.serve import main
from optscale_jax import Pool, policies, solve, synthetic_pool
from optscale_jax.backends.recorded import RecordedSampler, RecordedVerifier, recorded_problems
from optscale_jax.cli import parse
from optscale_jax.errors import InputError
from optscale_jax.gateway.config import KeyConfig, LimitsConfig, PricesConfig, ServeConfig
from optscale_jax.gateway.load import Share
from optscale_jax.gateway.metrics import Metrics
from optscale_jax.gateway.service import Model, Service
from optscale_jax.live.config import RecordedConfig
from optscale_jax.study.registry import PolicyConfig
from optscale_jax.tiny import pool_path
from tests.gateway import VOTE, Upstream, box, gateway, served
from tests.loopback import Endless, answer, chunk, events

ROOT = Path(__file__).resolve().parents[1]
MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]
FIRST_HIT = PolicyConfig("first_hit", s_min=0.9, max_samples=8)


@pytest.fixture(scope="module")
def plain():
    """A gateway over a server of the answers 5, 4, 4 and 3, in turn."""
    upstream = Upstream(lambda body, i: box([5, 4, 4, 3][i % 4], tokens=10))
    adaptive = PolicyConfig("adaptive_self_consistency", threshold=0.95, max_samples=8)

    def make(url):
        return ServeConfig(
            models=[served(url, policies=(VOTE, adaptive), limits=LimitsConfig(seconds=20.0))],
            max_body_bytes=20_000,
        )

    with gateway(upstream, make_config=make) as running:
        running.upstream = upstream
        upstream.requests.clear()
        yield running


def client(running, **options):
    given = {"base_url": f"{running.url}/v1", "api_key": "x", "max_retries": 0, **options}
    return openai.OpenAI(**given)


def ask(running, **fields):
    with client(running) as asked:
        given = {"model": "m", "messages": MESSAGES, **fields}
        found = asked.chat.completions.create(**given)
        return list(found) if fields.get("stream") else found


def post(running, body, path="chat/completions", **options):
    return httpx.post(f"{running.url}/v1/{path}", json=body, timeout=30, **options)


def sleeping(seconds, *, then=None):
    async def say(writer):
        await asyncio.sleep(seconds)
        writer.write(events(*(then or box(1))))

    return say


def held(gate):
    """A completion that comes once a `threading.Event` is set."""

    async def say(writer):
        while not gate.is_set():
            await asyncio.sleep(0.01)
        writer.write(events(*box(1)))

    return say


def posted_until_refused(running, bodies, refusals, gate, **options):
    """Requests at once, held upstream until so many of them are refused; their status codes."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        pending = [pool.submit(post, running, body, **options) for body in bodies]
        ended = as_completed(pending, timeout=25)
        try:
            first = [next(ended).result() for _ in range(refusals)]
        finally:
            gate.set()
        return first, [one.result() for one in ended]


# What comes back ----------------------------------------------------------------------------------


def test_a_chat_is_answered_by_the_vote_and_counts_all_that_was_drawn(plain):
    before = len(plain.upstream.requests)
    found = ask(plain, temperature=0.9, max_tokens=50, user="someone", stop=["END"])
    (choice,) = found.choices
    assert choice.message.content == "\\boxed{4}"
    assert (choice.finish_reason, found.model) == ("stop", "m@self_consistency")
    assert choice.optscale["samples"] == 4
    assert choice.optscale["stop_reason"] == "fixed_count"
    assert choice.optscale["selected_index"] in (0, 1, 2, 3)
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 40, 47)
    ledger = {"candidates": 4, "completed": 40, "aborted": 0, "verifier": 0, "money": None}
    assert usage.optscale == ledger
    bodies = [body for _, body in plain.upstream.requests[before:]]
    assert len({body["seed"] for body in bodies}) == 4
    for body in bodies:
        assert body["messages"] == MESSAGES
        assert (body["temperature"], body["max_tokens"], body["stop"]) == (0.9, 50, ["END"])
        assert not {"user", "optscale"} & set(body)


def test_a_stream_holds_the_same_answer_in_pieces_with_its_usage(plain):
    with client(plain) as asked:
        stream = asked.chat.completions.create(
            model="m@self_consistency",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
        )
        events = list(stream)
    assert "".join(e.choices[0].delta.content or "" for e in events[:-1]) == "\\boxed{4}"
    assert [e.choices[0].finish_reason for e in events[-3:-1]] == [None, "stop"]
    assert events[-2].choices[0].optscale["samples"] == 4
    assert events[-1].choices == []
    assert events[-1].usage.completion_tokens == 40


def test_the_asynchronous_client_and_plain_completions_work(plain):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{plain.url}/v1", api_key="x") as asked:
            one = await asked.completions.create(model="m", prompt="2 + 2 =")
            stream = await asked.completions.create(model="m", prompt="2 + 2 =", stream=True)
            return one, "".join([e.choices[0].text async for e in stream])

    one, streamed = asyncio.run(main())
    assert one.choices[0].text == streamed == "\\boxed{4}"
    head, body = plain.upstream.requests[-1]
    assert head.startswith("POST /v1/completions ")
    assert body["prompt"] == "2 + 2 ="


def test_n_answers_are_the_best_different_ones_in_order(plain):
    found = ask(plain, n=4)
    texts = [choice.message.content for choice in found.choices]
    assert texts[0] == "\\boxed{4}"
    assert sorted(texts[1:]) == ["\\boxed{3}", "\\boxed{5}"]
    assert [choice.index for choice in found.choices] == [0, 1, 2]


def test_a_request_chooses_within_the_servers_limits(plain):
    found = ask(plain, extra_body={"optscale": {"max_samples": 2}})
    assert found.choices[0].optscale["samples"] == 2
    given = {"policy": "adaptive_self_consistency", "n_candidates": 6}
    found = ask(plain, extra_body={"optscale": given})
    assert found.model == "m@adaptive_self_consistency"
    assert found.choices[0].optscale["samples"] == 6
    # All the same, so one is enough.
    assert ask(plain, temperature=0).choices[0].optscale["samples"] == 1


def test_the_same_seed_gives_the_same_completions(plain):
    def seeds(**fields):
        before = len(plain.upstream.requests)
        ask(plain, **fields)
        return sorted(body["seed"] for _, body in plain.upstream.requests[before:])

    assert seeds(seed=3) == seeds(seed=3) != seeds(seed=4)
    assert seeds() != seeds()


def test_tool_calls_are_voted_on_by_their_meaning_and_passed_on():
    def say(body, i):
        arguments = ['{"a": 1, "b": 2}', '{"b":2,"a":1}', '{"a": 9}'][i % 3]
        first = {"index": 0, "id": f"call_{i}", "type": "function"}
        first |= {"function": {"name": "add", "arguments": ""}}
        parts = [first, *({"index": 0, "function": {"arguments": c}} for c in arguments)]
        deltas = [{"delta": {"tool_calls": [one]}, "finish_reason": None} for one in parts]
        last = {"delta": {}, "finish_reason": "tool_calls"}
        return [{"choices": [one]} for one in (*deltas, last)]

    upstream = Upstream(say)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]

    def make(url):
        return ServeConfig(models=[served(url, policies=(PolicyConfig("self_consistency", n=3),))])

    with gateway(upstream, make_config=make) as running:
        found = ask(running, tools=tools, tool_choice="auto")
        streamed = ask(running, tools=tools, stream=True)
    (choice,) = found.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert call.function.name == "add"
    assert json.loads(call.function.arguments) == {"a": 1, "b": 2}
    assert upstream.requests[0][1]["tools"] == tools
    (call,) = [c for e in streamed for c in e.choices[0].delta.tool_calls or ()]
    assert json.loads(call.function.arguments) == {"a": 1, "b": 2}


def test_json_answers_and_logprobs_are_passed_on_and_free_texts_are_answers_too():
    def say(body, i):
        token = {"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": []}
        text = ['{"a": 1}', '{ "a":1 }', "[2]", "no"][i % 4]
        text = text if "response_format" in body else "Good morning!"
        one = chunk(text)
        one["choices"][0]["logprobs"] = {"content": [token]}
        return [one, chunk("", finish="length", tokens=3)]

    with gateway(Upstream(say)) as running:
        found = ask(running, response_format={"type": "json_object"}, logprobs=True)
        free = ask(running, messages=[{"role": "user", "content": "Say something."}])
    assert json.loads(found.choices[0].message.content) == {"a": 1}
    assert found.choices[0].finish_reason == "length"
    assert [one.logprob for one in found.choices[0].logprobs.content] == [-0.5]
    assert free.choices[0].message.content == "Good morning!"


PRIOR = {"loc": 0.6, "scale": 0.2}
RULES = {
    "optscale": {"s_min": 0.7, "alpha": 0.9, "max_samples": 16, "min_samples": 4},
    "best_of_n": {"n": 8},
    "first_hit": {"s_min": 0.9, "max_samples": 16},
    "hit_or_gain": {"s_hi": 0.9, "gain": 0.01, "max_samples": 16},
    "calibrated_vote": {
        "calibration": "package:optscale_jax/tiny/calibration.json",
        "budget": 8,
        "max_samples": 16,
    },
    "self_consistency": {"n": 8},
    "weighted_self_consistency": {"n": 8},
    "adaptive_self_consistency": {"threshold": 0.9, "max_samples": 16},
    "early_stopping_self_consistency": {"window": 4, "max_samples": 16},
    "known_law": {
        "s_min": 0.7,
        "alpha": 0.9,
        "max_samples": 16,
        "prior": {"loc": 0.6, "scale": 0.2},
    },
}
OWN = """
from optscale_jax import policies

class Patience(policies.Policy):
    patience: int

    def rule(self, state):
        waited = state.count - 1 - state.best.index
        return policies.until((state.count > 0) & (waited >= self.patience))
"""


def test_every_policy_and_a_rule_of_ones_own_decides_as_solve_does(tmp_path, monkeypatch):
    # Those that do not decide on one request by itself.
    assert set(RULES) == set(policies.RULES) - {
        "mr_thinking",
        "difficulty_adaptive_self_consistency",
    }
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rules.py").write_text(OWN)
    own = "./my_rules.py:Patience"
    rules = {own: {"label": "patience", "patience": 3, "max_samples": 16}, **RULES}
    listed = [{"name": name, **given} for name, given in rules.items()]
    shipped = Pool.load(pool_path())
    for seed in range(2):
        order = np.random.default_rng(seed).permuted(np.tile(np.arange(64), (8, 1)), axis=1)
        pool = Pool.from_arrays(
            scores=np.take_along_axis(shipped.scores[:8], order, 1),
            answers=np.take_along_axis(shipped.answers[:8], order, 1),
            tokens=np.take_along_axis(shipped.tokens[:8], order, 1),
            gold=shipped.gold[:8],
            problem_ids=shipped.problem_ids[:8],
            origin=shipped.origin,
        )
        pool.save(tmp_path / f"{seed}.npz")
    # A colon in a model's name makes no rule of it.
    models = [
        {"name": f"m:{seed}", "recorded": {"pool": f"{seed}.npz"}, "policies": listed}
        for seed in range(2)
    ]
    (tmp_path / "serve.yaml").write_text(json.dumps({"models": models}))
    config = parse(ServeConfig, ["--config", "serve.yaml"])
    with gateway(make_config=lambda: config) as running, client(running) as asked:

        def decided(name, problem):
            message = {"role": "user", "content": problem.text}
            (choice,) = asked.chat.completions.create(model=name, messages=[message]).choices
            return choice.optscale["selected_index"], choice.optscale["samples"]

        for model in config.models:
            pool = Pool.load(model.recorded.pool)
            problems = recorded_problems(pool)
            given = problems, RecordedSampler(pool), RecordedVerifier(pool)
            for label, one in model.configured_policies().items():
                expected = [solution.decision for solution in solve(*given, one.policy)]
                expected = [(one.selected_index, one.num_samples) for one in expected]
                assert [decided(f"{model.name}@{label}", one) for one in problems] == expected
        # What has not changed goes on, though the class of its configuration is made anew.
        before = running.service.models["m:0"]
        running.call(running.service.reload(parse(ServeConfig, ["--config", "serve.yaml"])))
        assert running.service.models["m:0"] is before
        with pytest.raises(openai.BadRequestError, match="no problem 'x'"):
            ask(running, model="m:0", messages=[{"role": "user", "content": "x"}])


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"model": "mm"}, 404, "did you mean m"),
        ({"model": "m@vote"}, 404, "does not exist"),
        ({"optscale": {"policy": "vote"}}, 400, "has no policy 'vote'"),
        ({"optscale": {"max_samples": 5}}, 400, "above the server's limit of 4"),
        ({"optscale": {"seconds": 21}}, 400, "above the server's limit of 20"),
        ({"optscale": {"n_candidates": 0}}, 400, "must be above 0"),
        ({"optscale": {"foo": 1}}, 400, "no such option"),
        ({"n": 17}, 400, "at most 16"),
        ({"n": True}, 400, "n must be an integer"),
        ({"max_tokens": 10**6}, 400, "max_tokens is 1000000; it must be from 1 to 4096"),
        (
            {"max_tokens": 9, "max_completion_tokens": 10**6},
            400,
            "max_completion_tokens is 1000000",
        ),
        ({"temperature": "hot"}, 400, "temperature must be a number"),
        ({"temperature": 3}, 400, "from 0 to 2"),
        ({"temprature": 1}, 400, "did you mean temperature"),
        ({"messages": []}, 400, "at least one"),
        ({"messages": ["hi"]}, 400, "objects with role"),
        ({"messages": [{"content": "hi"}]}, 400, "has no role"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "a text or a list"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}
                        ],
                    }
                ]
            },
            400,
            "are not fetched",
        ),
        ({"metadata": {"x": "y" * 30_000}}, 413, "longer than 20000 bytes"),
    ],
)
def test_a_bad_request_is_refused_in_openais_form_with_what_to_do(plain, fields, status, says):
    before = len(plain.upstream.requests)
    found = post(plain, {"model": "m", "messages": MESSAGES, **fields})
    error = found.json()["error"]
    assert found.status_code == status
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(plain.upstream.requests) == before


def test_bodies_that_are_no_requests_are_refused(plain):
    for raw in (b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 5000, b"{}", b'{"messages": null}'):
        found = httpx.post(f"{plain.url}/v1/chat/completions", content=raw)
        assert (found.status_code, set(found.json())) == (400, {"error"}), raw
    for path, status in (("/v1/none", 404), ("/v1/chat/completions", 405)):
        found = httpx.get(plain.url + path)
        assert (found.status_code, set(found.json())) == (status, {"error"})
    found = post(plain, {"model": "m", "prompt": ["a", "b"]}, "completions")
    assert "one text" in found.json()["error"]["message"]


def test_what_the_models_server_refuses_is_the_clients_to_mend():
    refusal = answer(400, {"error": {"message": "maximum context length is 100 tokens"}})
    upstream = Upstream(lambda body, i: refusal)
    with gateway(upstream) as running, pytest.raises(openai.BadRequestError) as caught:
        ask(running)
    assert caught.value.code == "context_length_exceeded"
    assert "127.0.0.1" not in str(caught.value)
    assert len(upstream.requests) <= 4


def test_a_dead_server_is_503_and_a_slow_one_504(plain):
    with gateway(Upstream(lambda body, i: answer(500, b"no"))) as running:
        with pytest.raises(openai.InternalServerError) as caught:
            ask(running)
        assert caught.value.status_code == 503
    with gateway(Upstream(lambda body, i: sleeping(30))) as running:
        with pytest.raises(openai.InternalServerError) as caught:
            ask(running, extra_body={"optscale": {"seconds": 0.2}})
        assert caught.value.status_code == 504
        # In a stream that has begun the error is an event.
        running.service.config = dataclasses.replace(running.service.config, heartbeat_seconds=0.05)
        with pytest.raises(openai.APIError, match="at the request's limit"):
            ask(running, stream=True, extra_body={"optscale": {"seconds": 0.2}})


# Limits -------------------------------------------------------------------------------------------


def test_at_a_deadline_the_best_answer_so_far_is_given_with_the_reason():
    # The first never comes; in launch order the policy would wait for it.
    def say(body, i):
        return sleeping(30) if i == 0 else box([0, 7, 7, 8][i])

    with gateway(Upstream(say)) as running:
        began = time.monotonic()
        found = ask(running, extra_body={"optscale": {"seconds": 2}})
        assert time.monotonic() - began < 15
    choice = found.choices[0]
    assert choice.message.content == "\\boxed{7}"
    assert choice.optscale["stop_reason"] == "seconds"
    assert (choice.optscale["samples"], found.usage.optscale["candidates"]) == (3, 4)


@pytest.mark.parametrize(
    ("limits", "reason", "samples"),
    [
        (LimitsConfig(tokens=25), "tokens", 3),
        (LimitsConfig(calls=2), "calls", 2),
        (LimitsConfig(money=0.034), "money", 2),
    ],
)
def test_caps_on_tokens_calls_and_money_end_a_request(limits, reason, samples):
    upstream = Upstream(lambda body, i: box(1, tokens=10))

    def make(url):
        prices = PricesConfig(prompt=1000.0, completion=1000.0)
        model = served(url, limits=limits, prices=prices, max_ahead=1)
        return ServeConfig(models=[model])

    with gateway(upstream, make_config=make) as running:
        found = ask(running)
    known = found.choices[0].optscale
    assert (known["stop_reason"], known["samples"]) == (reason, samples)
    assert found.usage.optscale["money"] == pytest.approx(0.017 * samples)


def test_without_its_verifier_an_answer_is_the_vote_of_what_there_is(tmp_path):
    pool = synthetic_pool(jax.random.key(0), num_problems=2, num_samples=8)
    pool.save(tmp_path / "pool.npz")

    class Failing(RecordedVerifier):
        async def score(self, problem, completions):
            if completions[0].index >= 3:
                raise KeyError("malformed")
            return await super().score(problem, completions)

    def make_model(config):
        model = Model(config)
        model.verifier = Failing(pool)
        return model

    model = served(
        "http://unused",
        policies=(PolicyConfig("best_of_n", n=8),),
        recorded=RecordedConfig(pool=str(tmp_path / "pool.npz")),
        verify=True,
    )
    service = Service(ServeConfig(models=[model]), make_model)

    async def main():
        body = {"messages": [{"role": "user", "content": str(pool.problem_ids[0])}]}
        return await service.answer(*service.read(body, "chat"))

    known = asyncio.run(main()).choices[0].known
    assert known["stop_reason"] == "verifier_failed"
    assert set(known["scores"]) <= set(map(float, pool.scores[0, :3]))
    asyncio.run(service.close())


def test_a_client_that_hangs_up_aborts_what_is_in_flight():
    upstream = Upstream(lambda body, i: sleeping(30))
    with gateway(upstream) as running:
        for stream in (False, True):
            with pytest.raises(openai.APITimeoutError), client(running, timeout=0.5) as asked:
                list(asked.chat.completions.create(model="m", messages=MESSAGES, stream=stream))
            until(lambda: running.service.room.in_flight == 0)

        async def connections():
            return sum(not t.done() for t in asyncio.all_tasks() if "_drawn" in repr(t.get_coro()))

        assert running.call(connections()) == 0


def until(condition, seconds=20.0):
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.01)


# Load ---------------------------------------------------------------------------------------------


def test_beyond_its_room_and_its_queue_the_gateway_says_when_to_come_back():
    gate = threading.Event()
    upstream = Upstream(lambda body, i: held(gate))

    def make(url):
        models = [served(url, policies=(PolicyConfig("self_consistency", n=1),))]
        return ServeConfig(models=models, max_concurrent=2, max_queued=2)

    with gateway(upstream, make_config=make) as running:
        body = {"model": "m", "messages": MESSAGES}
        refused, others = posted_until_refused(running, [body] * 8, 4, gate)
        assert [one.status_code for one in refused] == [429] * 4
        assert [one.status_code for one in others] == [200] * 4
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        assert running.service.room.in_flight == 0
        assert post(running, body).status_code == 200


def test_keys_are_needed_and_have_limits_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setenv("GATEWAY_KEY", "sk-one")
    (tmp_path / "key").write_text("sk-two\n")
    keys = [
        KeyConfig("one", env="GATEWAY_KEY", requests_per_minute=2),
        KeyConfig("two", file=str(tmp_path / "key"), max_concurrent=1),
    ]
    gate = threading.Event()
    gate.set()
    upstream = Upstream(lambda body, i: held(gate))
    body = {"model": "m", "messages": MESSAGES}

    def make(url):
        return ServeConfig(models=[served(url)], keys=keys)

    def with_key(running, key):
        return post(running, body, headers={"Authorization": f"Bearer {key}"}).status_code

    with gateway(upstream, make_config=make) as running:
        assert post(running, body).status_code == 401
        assert with_key(running, "sk-three") == 401
        assert httpx.get(f"{running.url}/v1/models").status_code == 401
        assert [with_key(running, "sk-one") for _ in range(3)] == [200, 200, 429]
        gate.clear()
        headers = {"Authorization": "Bearer sk-two"}
        refused, others = posted_until_refused(running, [body] * 2, 1, gate, headers=headers)
        assert [one.status_code for one in (*refused, *others)] == [429, 200]


def test_the_share_of_budgets_falls_with_load_and_comes_back():
    share = Share(Metrics())
    share.tokens_per_second = 100.0

    def run(requests_per_second, count, now):
        for _ in range(count):
            now += 1 / requests_per_second
            share.arrival(now)
            given = share.granted(now)
            share.answered(given, 50.0 * given)
        return given, now

    given, now = run(1.0, 50, 0.0)
    assert given == 1
    given, now = run(10.0, 200, now)
    # 10 requests a second share 100 tokens, and each would take 50.
    assert given == pytest.approx(0.2, abs=0.02)
    assert share.granted(now, waiting=30) == pytest.approx(0.1, abs=0.02)
    assert run(1.0, 20, now)[0] == 1


def test_under_load_an_answer_rests_on_fewer_samples_and_says_so():
    with gateway(Upstream(lambda body, i: box(4, tokens=10)), tokens_per_second=0.5) as running:
        known = [ask(running).choices[0].optscale for _ in range(12)]
    assert known[0]["samples"] == 4
    assert "budget_share" not in known[0]
    assert known[-1]["samples"] == 1
    assert known[-1]["budget_share"] <= 0.25


def test_a_drained_gateway_answers_with_what_there_is_and_takes_no_more():
    def say(body, i):
        return waiting if i == 0 else box(7)

    waiting = Endless(chunk("wait"))
    with gateway(Upstream(say), drain_seconds=0.3) as running, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, running)
        running.call(waiting.read(1))  # by then the others are answered
        running.call(running.service.drain())
        assert asked.result().choices[0].optscale["stop_reason"] == "shutdown"
        with pytest.raises(openai.InternalServerError) as caught:
            ask(running)
        assert caught.value.status_code == 503
        assert httpx.get(f"{running.url}/readyz").status_code == 503


# Models, metrics, configuration -------------------------------------------------------------------


def test_models_are_listed_and_metrics_add_up(plain):
    with client(plain) as asked:
        names = [one.id for one in asked.models.list()]
    assert names == ["m", "m@self_consistency", "m@adaptive_self_consistency"]
    assert httpx.get(f"{plain.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{plain.url}/readyz").json() == {"ready": True}

    def counted():
        lines = httpx.get(f"{plain.url}/metrics").text.splitlines()
        return {
            line.rpartition(" ")[0]: float(line.split()[-1]) for line in lines if line[0] != "#"
        }

    before = counted()
    ask(plain, extra_body={"optscale": {"max_samples": 3}})
    after = counted()
    by = 'model="m",policy="self_consistency"'
    for name, more in (
        (f"optscale_samples_total{{{by}}}", 3),
        (f"optscale_saved_samples_total{{{by}}}", 1),
        ('optscale_tokens_total{kind="completed",model="m"}', 30),
        ('optscale_requests_total{model="m",status="200"}', 1),
    ):
        assert after[name] - before.get(name, 0.0) == more, name


def test_a_reload_changes_models_and_drops_no_request():
    upstream = Upstream(lambda body, i: sleeping(0.5))
    with gateway(upstream) as running, ThreadPoolExecutor(1) as pool:
        service = running.service
        asked = pool.submit(ask, running)
        until(lambda: service.room.in_flight == 1)
        (old,) = service.config.models
        new = dataclasses.replace(old, policies=[PolicyConfig("self_consistency", n=2)])
        reloading = pool.submit(ask, running)  # after the first
        running.call(service.reload(dataclasses.replace(service.config, models=[new])))
        assert asked.result().choices[0].optscale["samples"] == 4
        reloading.result()
        assert ask(running).choices[0].optscale["samples"] == 2
        broken = dataclasses.replace(new, policies=[])
        with pytest.raises(InputError, match="policies is empty"):
            running.call(service.reload(dataclasses.replace(service.config, models=[broken])))
        assert ask(running).choices[0].optscale["samples"] == 2


# The command --------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(*arguments, seconds=60):
    """A process of the command, once it serves, and its URL."""
    command = [sys.executable, "-m", "eval.serve", *arguments, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            said, timer = [], threading.Timer(seconds, process.kill)
            timer.daemon = True
            timer.start()
            for line in process.stdout:
                said.append(line)
                if line.startswith("serving "):
                    timer.cancel()
                    yield process, line.split()[-1].removesuffix("/v1")
                    break
            else:
                raise AssertionError("".join(said))
        finally:
            process.kill()


def test_the_command_serves_the_documented_example_reloads_and_drains(tmp_path, capsys):
    config = tmp_path / "serve.yaml"
    config.write_text((ROOT / "configs/serve/recorded.yaml").read_text())
    text = (ROOT / "docs/gateway.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    with started("--config", str(config)) as (process, url):
        running = SimpleNamespace(url=url)
        exec(example.replace("http://127.0.0.1:8100", url), {})
        assert re.match(r"\\boxed\{-?\d+\}\n\d+ \w+ \{'candidates'", capsys.readouterr().out)
        config.write_text(config.read_text().replace("name: recorded", "name: again"))
        until(lambda: httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "again")
        slow = {"messages": [{"role": "user", "content": "arithmetic-5/7"}], "model": "again"}
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, running, **slow)
            at_work = "optscale_requests_in_flight 1.0"
            until(lambda: asked.done() or at_work in httpx.get(f"{url}/metrics").text)
            process.send_signal(signal.SIGTERM)
            assert asked.result().choices[0].message.content.startswith("\\boxed")
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ([], "models is empty"),
        ([{"name": "m"}], "policies is empty"),
        ([{"name": "a@b"}], "is no name"),
        ([{"name": "m", "policies": [{"name": "mr_thinking", "rounds": 3}]}], "by itself"),
        ([{"name": "m", "policies": [{"name": "self_consistency", "n": 4}]}], "sampler.model"),
        ([{"name": "m", "polices": []}], "did you mean policies"),
    ],
)
def test_a_configuration_that_cannot_work_stops_in_one_line(tmp_path, capsys, models, says):
    file = tmp_path / "serve.yaml"
    file.write_text(json.dumps({"models": models}))
    assert main(["--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_the_containers_are_a_gateway_and_the_server_that_it_asks():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    gate = services["gateway"]
    file, inside, _ = gate["volumes"][0].split(":")
    assert gate["command"] == ["--config", inside]
    config = parse(ServeConfig, ["--config", str(ROOT / file)])
    (model,) = config.models
    assert list(model.configured_policies()) == ["adaptive_self_consistency", "self_consistency"]
    (url,) = model.sampler.server.base_urls
    assert services[urlsplit(url).hostname]["command"][0] == model.sampler.model
    assert int(gate["stop_grace_period"].removesuffix("s")) > config.drain_seconds


@pytest.mark.vllm
@pytest.mark.slow
def test_two_engines_in_the_process_serve_the_small_models():
    with started("--config", "tiny", seconds=400) as (process, url):
        running = SimpleNamespace(url=url)
        question = {"role": "user", "content": "Compute 17 + 25 * 3 modulo 100."}
        found = ask(running, model="tiny", messages=[question])
        (choice,) = found.choices
        assert choice.message.content
        assert 4 <= choice.optscale["samples"] <= 32
        assert all(0 <= score <= 1 for score in choice.optscale["scores"])
        assert found.usage.optscale["verifier"] > 0
        given = {"model": "tiny@self_consistency", "messages": [question], "seed": 5}
        again = [ask(running, **given).choices[0].message.content for _ in range(2)]
        assert again[0] == again[1]
        one = {"model": "tiny@self_consistency", "messages": [question], "max_tokens": 20}
        schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
        schema["additionalProperties"] = False
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        found = ask(running, **one, response_format=form, logprobs=True, top_logprobs=2)
        # The small reasoner knows no JSON: it opens the object, and then puts off its name.
        assert found.choices[0].message.content.startswith("{")
        tokens = found.choices[0].logprobs.content
        assert "".join(token.token for token in tokens).startswith(found.choices[0].message.content)
        for token in tokens:
            assert token.logprob <= 1e-6
            assert len(token.top_logprobs) <= 2
            assert sorted(token.top_logprobs, key=lambda t: -t.logprob) == token.top_logprobs
        with client(running) as asked:
            prompt = {"prompt": "17 + 25 =", "max_tokens": 5, "logprobs": 1}
            text = asked.completions.create(model="tiny@self_consistency", **prompt).choices[0]
        assert "".join(text.logprobs.tokens).startswith(text.text)
        assert text.logprobs.text_offset[0] == 0
        wrong = {"type": "json_schema", "json_schema": {"name": "answer"}}
        for fields, says in (
            ({"tools": []}, "tools needs a model behind .* inside the gateway"),
            ({"response_format": wrong}, "response_format.json_schema.schema must be an object"),
            ({"logprobs": True, "top_logprobs": 50}, "it must be from 0 to 20"),
        ):
            with pytest.raises(openai.BadRequestError, match=says):
                ask(running, **one, **fields)
        with pytest.raises(openai.BadRequestError, match="leaves none for a completion"):
            ask(running, model="tiny", messages=[question | {"content": "1 + 1 " * 3000}])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
