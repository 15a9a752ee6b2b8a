"""OpenAI-compatible servers: what their answers become, and what is done when there are none.

Of streams, and what may be wrong with each, `test_backends_streams.py` knows more.
"""

import asyncio
import contextlib
import dataclasses
import email.utils
import json
import logging
import re
import time
import traceback
from urllib.parse import quote

import pytest

from optscale_jax.backends import sample_seed, servers
from optscale_jax.backends.config import (
    JudgeConfig,
    PromptConfig,
    SamplerConfig,
    ServerConfig,
    VerifierConfig,
)
from optscale_jax.backends.generative import GenerativeVerifier
from optscale_jax.backends.make import make_sampler, make_verifier
from optscale_jax.errors import BackendError, InputError, ProblemError
from optscale_jax.records import Completion
from tests.loopback import (
    GOOD,
    PROBLEM,
    Endless,
    Scripted,
    answer,
    chunk,
    config,
    draw,
    events,
    free_port,
    made,
    refused,
    run,
    serving,
)

KEY = "sk-very-secret-0123456789"


def test_a_stream_becomes_a_completion():
    server = Scripted(GOOD)
    prompt = PromptConfig(template="Q: {problem} {x}", system="Be brief.")
    (only,) = run(server, prompt=prompt)
    assert only == Completion(5, "ab\nc", 5, "stop", 7)
    _, body = server.requests[0]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: What is 2 + 2? {x}"},
    ]
    assert body["seed"] == sample_seed(3, "p", 5)
    assert (body["model"], body["n"], body["temperature"], body["top_p"]) == ("m", 1, 0.7, 0.95)


def test_every_completion_is_a_request_with_its_own_seed():
    server = Scripted(GOOD)
    found = run(server, n=9)
    assert sorted(one.index for one in found) == list(range(5, 14))
    assert len({body["seed"] for _, body in server.requests}) == 9


def test_only_openais_fields_go_to_servers_that_are_not_vllms():
    server = Scripted(events(chunk("a"), chunk("bc"), chunk("", finish="length")), models={})
    (only,) = run(server, vllm=False)
    # Without a count, each piece is a token or more.
    assert only == Completion(5, "abc", 2, "length", 0)
    openai = {"model", "messages", "temperature", "top_p", "max_tokens", "n", "seed"}
    assert set(server.requests[0][1]) == openai | {"stream", "stream_options"}
    given = dataclasses.replace(config(["http://x"], vllm=False), top_k=5)
    with pytest.raises(BackendError, match="OpenAI's interface has no top_k"):
        make_sampler(given, seed=0)


def test_only_newlines_end_an_event():
    odd = "a\u2028b\x85c\x0bd\x1ce\r\nf"
    data = json.dumps(chunk(odd, finish="stop", tokens=9), ensure_ascii=False)
    (only,) = run(
        Scripted(events().replace(b"data: [DONE]", f"data: {data}\r\n\r\ndata: [DONE]".encode()))
    )
    assert only.text == odd


def test_thinking_that_a_server_parts_from_the_answer_is_put_back():
    thought = {"choices": [{"delta": {"reasoning_content": "hm"}, "finish_reason": None}]}
    (only,) = run(Scripted(events(thought, chunk("2", finish="stop"))))
    assert only.text == "<think>\nhm\n</think>\n2"


def test_base_models_are_asked_for_plain_text():
    said = {"choices": [{"text": "2", "finish_reason": "stop"}]}
    server = Scripted(events(said))
    (only,) = run(server, prompt=PromptConfig(template="Q: {problem}\nA:", chat=False))
    assert only.text == "2"
    head, body = server.requests[0]
    assert head.startswith("POST /v1/completions ")
    assert body["prompt"] == "Q: What is 2 + 2?\nA:"


@pytest.mark.parametrize(
    "bad",
    [
        answer(500, {"error": {"message": "out of luck"}}),
        answer(502, b"<html>bad gateway</html>"),
        answer(200, b"<html>welcome</html>"),
        b"garbage that is no HTTP\r\n\r\n",
        b"",
        events(chunk("lost", tokens=1), done=False),
        events(chunk("lost", tokens=1), {"error": {"message": "engine died"}}),
        events("not an object"),
    ],
    ids=["500", "502", "not events", "not HTTP", "nothing", "cut", "error event", "no object"],
)
def test_a_bad_answer_is_asked_for_again(bad):
    server = Scripted(bad, GOOD)
    (only,) = run(server)
    # What a broken answer had said is not in the completion.
    # But what it had cost is counted.
    redrawn = int(b"lost" in bad) if isinstance(bad, bytes) else 0
    assert only == Completion(5, "ab\nc", 5, "stop", 7, redrawn=redrawn)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (answer(500, {"error": {"message": "out of luck"}}), r"answers 500: out of luck; given up"),
        (answer(200, b"<html>welcome</html>"), r"answers with welcome.*given up after 3 tries"),
        (events("x"), r"answers with what is no JSON object: \"x\"; given up"),
        (b"", r"^no server answers: http://127\.0\.0\.1:\d+ cannot be reached"),
        (answer(404, {"detail": "Not Found"}), r"answers 404: Not Found; is server\.base_urls"),
        (answer(400, {"error": {"message": "no field\nxyz"}}), r"answers 400: no field xyz$"),
    ],
    ids=["500", "not events", "no object", "nothing", "404", "400"],
)
def test_what_stays_bad_is_one_clear_line(bad, said):
    assert re.search(said, refused(Scripted(bad)))


def test_tries_end_where_the_configuration_says():
    # After the last one, or the first that is refused, something simple is asked, as often.
    for bad, tries in ((answer(500, {}), 4), (answer(400, {}), 1)):
        server = Scripted(bad)
        refused(server, attempts=4)
        asked = [body["messages"][0]["content"] for _, body in server.requests]
        assert asked == [PROBLEM.text] * tries + ["What is 1 + 1?"] * tries


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form):
    wait = 0.4 if form == "seconds" else 2.0
    given = (
        str(wait) if form == "seconds" else email.utils.formatdate(time.time() + wait, usegmt=True)
    )
    server = Scripted(answer(429, {}, headers=[f"Retry-After: {given}"]), GOOD)
    begun = time.monotonic()
    run(server)
    # A date has whole seconds, so up to one of them is lost.
    assert time.monotonic() - begun >= wait - (1.0 if form == "date" else 0.0)
    assert len(server.requests) == 2


def test_a_busy_server_is_spared_while_another_is_free():
    busy = Scripted(answer(429, {}, headers=["Retry-After: 30"]))
    free = Scripted(GOOD)
    begun = time.monotonic()
    assert len(run(busy, free, n=10)) == 10
    assert time.monotonic() - begun < 10
    assert len(free.requests) == 10
    assert len(busy.requests) <= 5


def test_silence_ends_at_the_time_out():
    async def nothing(writer):
        await asyncio.sleep(10)

    server = Scripted(nothing)
    message = refused(server, read_timeout=0.1, attempts=2)
    assert message.endswith("says nothing for 0.1 s; given up after 2 tries")


def test_the_key_is_sent_and_never_shown(monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    server = Scripted(GOOD)
    run(server, api_key_env="MY_KEY")
    assert f"authorization: bearer {KEY}" in server.requests[0][0].lower()
    run(server, api_key_env="MY_KEY", auth_header="api-key")
    azure = server.requests[-1][0].lower()
    assert f"\r\napi-key: {KEY}\r\n" in azure
    assert "authorization" not in azure
    with pytest.raises(ValueError, match="auth_header must be the name of a header") as caught:
        ServerConfig(auth_header=f"api-key: {KEY}")
    assert KEY not in str(caught.value)
    wrong = answer(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    shown = refused(Scripted(wrong), api_key_env="MY_KEY")
    assert "the key in $MY_KEY is refused" in shown
    echo = answer(500, {"error": {"message": f"cannot log {KEY}"}})
    shown += refused(Scripted(echo), api_key_env="MY_KEY")
    assert KEY not in shown + caplog.text
    assert "set server.api_key_env" in refused(Scripted(wrong))
    monkeypatch.delenv("MY_KEY")
    assert "$MY_KEY is not set" in refused(Scripted(GOOD), api_key_env="MY_KEY")
    # Somebody who puts the key itself there does not get to read it in an error.
    with pytest.raises(ValueError, match="environment variable") as caught:
        ServerConfig(api_key_env=KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret99@host:1/v1",
        "https://secret99@host",
        "me:secret99@host:1",
        "http://host/v1?key=secret99",
        "http://host/v1?api_key=secret99",
    ],
)
def test_passwords_in_addresses_are_refused_and_not_shown(url):
    with pytest.raises(InputError) as caught:
        ServerConfig(base_urls=[url])
    assert "secret99" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["sk-\nfoo", "sk-foo\r\nX: y", "sk-\u00e9", "sk-\x00f", "sk\u200b-foo"]
)
def test_a_key_that_no_header_can_hold_is_refused_at_the_start(key, monkeypatch):
    # Not all of these can be in an environment of the system's.
    monkeypatch.setattr("os.environ", {"MY_KEY": key})
    given = config(["http://127.0.0.1:1"], api_key_env="MY_KEY")
    with pytest.raises(BackendError, match=r"^server\.api_key_env: \$MY_KEY holds") as caught:
        make_sampler(given, seed=0)
    assert "foo" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        answer(500, {"error": {"message": "x" * 150 + KEY}}),
        answer(403, {"error": f"denied Bearer {KEY}"}),
        answer(404, f"<p>no {KEY}</p>".encode()),
        answer(308, b"", headers=[f"Location: /{KEY}"]),
        answer(200, f"oops Bearer {KEY}".encode()),
        answer(200, {"error": {"message": f"denied Bearer {KEY}"}}),
        answer(200, {"msg": KEY, "success": False}),
        answer(200, {"choices": KEY}),
        answer(200, {"choices": [KEY]}),
        answer(200, {"choices": [{"delta": {"content": {"text": 5, "k": KEY}}}]}),
        events({"error": {"message": f"denied Bearer {KEY}"}}),
        events(f"Bearer {KEY}"),
        events(chunk("x", finish=KEY)),
        events(chunk(f"my key is {KEY[:9]}"), chunk(f"{KEY[9:]} \\boxed{{2}}", finish="stop")),
        b"HTTP/1.1 200 OK\r\n" + KEY.encode() + b"\r\n\r\n",
        KEY.encode() + b"\r\n\r\n",
        answer(400, {"error": {"message": KEY.upper()}}),
        answer(400, {"error": {"message": f"maximum context length {KEY}"}}),
    ],
)
def test_whatever_a_server_echoes_the_key_is_not_in_it(bad, monkeypatch, caplog, capfd):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.INFO)
    try:
        said = repr(run(Scripted(bad), api_key_env="MY_KEY", attempts=2))
    except BackendError as error:
        said = "".join(traceback.format_exception(error))
    out = said + caplog.text + "".join(capfd.readouterr())
    assert KEY[5:].casefold() not in out.casefold()


def test_a_server_may_echo_a_key_in_other_spellings(monkeypatch):
    key = 'sk-a/b+c="d"\\e'
    monkeypatch.setenv("MY_KEY", key)
    for spelt in (
        key,
        quote(key),
        quote(key, safe=""),
        json.dumps(key),
        json.dumps(key).replace("/", "\\/"),
    ):
        said = refused(Scripted(answer(500, f"no {spelt} {{".encode())), api_key_env="MY_KEY")
        assert "no …" in said.replace('"', "")


def test_a_model_that_is_not_served_is_known_at_once():
    message = refused(Scripted(GOOD, models={"data": [{"id": "other"}, {"id": "third"}]}))
    assert message.endswith("does not serve m; it has other, third")


def test_a_prompt_beyond_the_context_is_its_problems_error():
    said = "This model's maximum context length is 100 tokens. However, you requested 120."
    with pytest.raises(ProblemError, match=r"^problem p: .* maximum context length is 100"):
        run(Scripted(answer(400, {"error": {"message": said}})))


def test_when_a_server_dies_its_requests_begin_again_on_the_other():
    async def main():
        async def die(writer):
            writer.write(events(chunk("half", tokens=1), done=False))
            await writer.drain()
            # All of its requests are under way when it goes.
            async with asyncio.timeout(60):
                while len(dying.requests) < 10:
                    await asyncio.sleep(0.01)
            server.close()
            writer.transport.abort()

        dying, other = Scripted(die), Scripted(GOOD)
        server = await asyncio.start_server(dying.handle, "127.0.0.1", 0)
        first = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with serving(other) as urls:
            found = await draw(config([first, *urls]), 20)
        return found, dying, other

    found, dying, other = asyncio.run(main())
    assert sorted(one.index for one in found) == list(range(5, 25))
    assert {one.text for one in found} == {"ab\nc"}
    assert len(dying.requests) == 10
    # The same seeds, so that the completions are what they would have been.
    assert len({body["seed"] for _, body in other.requests}) == 20


def test_with_all_servers_dead_it_says_so_and_leaves_nothing_behind():
    async def main():
        async with serving(Scripted(GOOD)) as urls:
            sampler = await made(config([*urls, f"http://127.0.0.1:{free_port()}"]))
        with pytest.raises(BackendError) as caught:
            async for _ in sampler.sample(PROBLEM, 50, 0, abort=asyncio.Event()):
                pass
        await sampler.close()
        return str(caught.value), asyncio.all_tasks() - {asyncio.current_task()}

    message, left = asyncio.run(main())
    assert message.count("cannot be reached") == 2
    assert not left


def test_no_server_gets_more_than_its_share():
    seen = []

    async def main():
        async def slow(writer):
            seen.append([one.open for one in scripts])
            await asyncio.sleep(0.02)
            writer.write(GOOD)

        scripts = [Scripted(slow), Scripted(slow)]
        async with serving(*scripts) as urls:
            found = await draw(config(urls, concurrency=3), 24)
        assert [len(one.requests) for one in scripts] == [12, 12]
        return found

    assert len(asyncio.run(main())) == 24
    assert max(max(counts) for counts in seen) == 3


@pytest.mark.parametrize(("idle_seconds", "connections"), [(60.0, 1), (-1.0, 4)])
def test_a_connection_is_used_again_until_it_was_idle_for_long(
    monkeypatch, idle_seconds, connections
):
    monkeypatch.setattr(servers, "_IDLE_SECONDS", idle_seconds)
    asked, closed = [], asyncio.Event()

    async def handle(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = re.search(r"content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith("post"):
                    asked.append(writer)
                whole = {"choices": [{"text": "a", "finish_reason": "stop"}]}
                said = answer(200, whole if head.startswith("post") else {})
                writer.write(said.replace(b"Connection: close\r\n", b""))
        writer.close()
        if len(asked) == 4:
            closed.set()

    async def main():
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert len(await draw(config([url], concurrency=1), 4)) == 4
        await asyncio.wait_for(closed.wait(), 10)
        server.close()

    asyncio.run(main())
    assert len(asked) == 4
    assert len(set(asked)) == connections


def test_an_abort_closes_the_connections_and_counts_what_was_read():
    async def main():
        endless = Endless(chunk("some ", tokens=16), chunk("text", tokens=32))
        server = Scripted(GOOD, endless)

        async def abort_once_read(abort):
            await endless.read(5)
            abort.set()

        async with serving(server) as urls:
            sampler = await made(config(urls))
            abort = asyncio.Event()
            aborting = asyncio.create_task(abort_once_read(abort))
            found = [one async for one in sampler.sample(PROBLEM, 6, 0, abort=abort)]
            await aborting
            # Drawn after the abort: nothing is asked for.
            late = [one async for one in sampler.sample(PROBLEM, 2, 6, abort=abort)]
            await sampler.close()
            async with asyncio.timeout(60):
                while server.open:
                    await asyncio.sleep(0.01)
            return found, late, server

    found, late, server = asyncio.run(main())
    assert [one.finish_reason for one in found] == ["stop"] + ["abort"] * 5
    assert {(one.text, one.tokens, one.prompt_tokens) for one in found[1:]} == {
        ("some text", 32, 7)
    }
    assert [(one.finish_reason, one.tokens) for one in late] == [("abort", 0)] * 2
    assert len(server.requests) == 6


# The judge ----------------------------------------------------------------------------------------


class Verdicts:
    """A sampler of fixed texts."""

    def __init__(self, *texts, error=None):
        self.texts = texts
        self.error = error
        self.asked = []

    async def sample(self, problem, n, first_index, *, abort):
        self.asked.append(problem)
        if self.error:
            raise self.error
        for index in range(n):
            yield Completion(index, self.texts[index % len(self.texts)], 10, "stop", 100)

    async def close(self):
        pass


def judged(sampler, text="It is 2.", *, finish_reason="stop", **options):
    verifier = GenerativeVerifier(JudgeConfig(samples=4, **options), sampler)
    completion = Completion(2, text, 9, finish_reason)
    return asyncio.run(verifier.score(PROBLEM, [completion]))[0]


@pytest.mark.parametrize(
    ("texts", "value", "note"),
    [
        (["Verdict: correct"], 1.0, "counted"),
        (["hm\n**Verdict:** Incorrect."], 0.0, "counted"),
        (["Verdict: correct", "Verdict: incorrect"], 0.5, "counted"),
        (["verdict: incorrect. No, wait.\nVERDICT: CORRECT"], 1.0, "counted"),
        (["Verdict: correct", "I cannot say"], 0.5, "counted"),
        (["I cannot say that it is correct"], 0.0, "no verdict"),
    ],
)
def test_verdicts_without_probabilities_are_counted(texts, value, note):
    sampler = Verdicts(*texts)
    score = judged(sampler)
    assert (score.value, score.note, score.steps) == (value, note, ())
    # One reading of the question, four verdicts.
    assert score.tokens == 100 + 4 * 10
    sampler.max_len, sampler.most_tokens = 100, 10
    assert GenerativeVerifier(JudgeConfig(samples=4), sampler).most_tokens == score.tokens


def test_the_judge_is_asked_what_the_template_says():
    sampler = Verdicts("Verdict: correct")
    text = "See {problem} and {completion} and \\frac{1}{2}."
    judged(sampler, text, template="P: {problem} S: {completion} {x}")
    assert sampler.asked[0].text == f"P: {PROBLEM.text} S: {text} {{x}}"
    assert sampler.asked[0].answer is None
    assert sampler.asked[0].id == "p#2"


def test_what_a_judge_cannot_read_scores_zero_and_is_marked():
    error = ProblemError("problem p#0: 512 tokens", too_long=True)
    score = judged(Verdicts(error=error), finish_reason="length")
    assert (score.value, score.note) == (0.0, "too long; unfinished")
    score = judged(Verdicts(error=ProblemError("problem p#0: answers 403: no")))
    assert (score.value, score.note) == (0.0, "not judged (problem p#0: answers 403: no)")
    with pytest.raises(BackendError, match="gone"):
        judged(Verdicts(error=BackendError("gone")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ServerConfig(base_urls=["localhost:1"]), "must begin with http"),
        (lambda: ServerConfig(attempts=0), "attempts is 0; it must be at least 1"),
        (lambda: ServerConfig(read_timeout=0.0), r"read_timeout is 0.0; it must be above 0"),
        (lambda: ServerConfig(backoff=float("nan")), "backoff is nan; it must be at least 0"),
        (lambda: PromptConfig(template="x"), r"\{problem\} must stand in it"),
        (lambda: JudgeConfig(template="{problem}"), r"template has no \{completion\}"),
        (lambda: SamplerConfig(top_p=0.0), r"top_p is 0.0; it must be in \(0, 1\]"),
        (lambda: SamplerConfig(max_tokens=0), "max_tokens is 0; it must be at least 1"),
    ],
)
def test_configurations_refuse_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (SamplerConfig(kind="server", model="m"), "server.base_urls is empty"),
        (
            SamplerConfig(kind="server", server=ServerConfig(base_urls=["http://x"])),
            "model is empty",
        ),
        (
            VerifierConfig(kind="generative", backend="server", model="m"),
            "server.base_urls is empty",
        ),
    ],
)
def test_what_is_missing_is_named(given, message):
    make = make_sampler if isinstance(given, SamplerConfig) else make_verifier
    with pytest.raises(BackendError, match=message):
        make(given, seed=0)
