"""What servers send, of all that they have been seen to send, and what becomes of it.

Each case is a form that some server uses; whether a completion counts depends on the server having
said that it is finished, and on nothing else.
"""

import asyncio
import contextlib
import functools
import gzip
import json
import math
import random
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optscale_jax import policies
from optscale_jax.backends.config import PromptConfig
from optscale_jax.backends.events import Events
from optscale_jax.backends.pacing import Pace
from optscale_jax.errors import BackendError, ProblemError
from optscale_jax.live.engine import solve_async
from optscale_jax.live.runs import Run
from optscale_jax.records import Completion, Problem, Score, finish_reason
from tests.loopback import (
    GOOD,
    PROBLEM,
    Scripted,
    answer,
    chunk,
    config,
    draw,
    events,
    made,
    refused,
    run,
    serving,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
HEL = json.dumps({"choices": [{"index": 0, "delta": {"content": "Hel"}}]}).encode()
LO = json.dumps(
    {
        "choices": [{"index": 0, "delta": {"content": "lo"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }
).encode()
WHOLE = {
    "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}


def only(*scripts, **options):
    (completion,) = run(*scripts, **{"vllm": False, **options})
    return completion


def said(*choices, **fields):
    """A stream of choices, each a dict, that ends with "stop"."""
    return events(
        *({"choices": [choice]} for choice in choices),
        {"choices": [{"delta": {}, "finish_reason": "stop"}], **fields},
    )


# The form of a stream -----------------------------------------------------------------------------

STREAMS = {
    "LF": b"data: %s\n\ndata: %s\n\ndata: [DONE]\n\n",
    "CRLF": b"data: %s\r\n\r\ndata: %s\r\n\r\ndata: [DONE]\r\n\r\n",
    "CR": b"data: %s\r\rdata: %s\r\rdata: [DONE]\r\r",
    "mixed ends": b"data: %s\r\n\ndata: %s\n\r\ndata: [DONE]\n\n",
    "byte order mark": b"\xef\xbb\xbfdata: %s\n\ndata: %s\n\ndata: [DONE]\n\n",
    "no space": b"data:%s\n\ndata:%s\n\ndata:[DONE]\n\n",
    "comments": b": hi\n\ndata: %s\n:\n: OPENROUTER PROCESSING\n\ndata: %s\n\ndata: [DONE]\n\n",
    "names and ids": b"event: x\nid: 1\nretry: 10\ndata: %s\n\nid\ndata: %s\n\ndata: [DONE]\n\n",
    "empty data": b"data:\n\ndata: %s\n\ndata\n\ndata: \n\ndata: %s\n\ndata: [DONE]\n\n",
    "null": b"data: null\n\ndata: %s\n\ndata: %s\n\ndata: [DONE]\n\n",
    "unknown fields": b"foo: bar\ndata: %s\nbaz\n\ndata: %s\n\ndata: [DONE]\n\n",
    "no blank lines": b"data: %s\ndata: %s\ndata: [DONE]\n",
    "no last line end": b"data: %s\n\ndata: %s\n\ndata: [DONE]",
    "no [DONE]": b"data: %s\n\ndata: %s\n\n",
    "no [DONE], no line end": b"data: %s\n\ndata: %s",
    "[done]": b'data: %s\n\ndata: %s\n\ndata: "[done]" \n\n',
    "data twice": b"data: data: %s\n\ndata: data: %s\n\ndata: data: [DONE]\n\n",
    "JSON lines": b"%s\n%s\n",
    "JSON lines, CRLF": b"%s\r\n%s\r\n[DONE]\r\n",
    "a list": b"[%s, %s]",
    "a list on lines": b"[%s\n,\n%s\n]\n",
    "text after [DONE]": b'data: %s\n\ndata: %s\n\ndata: [DONE]\n\ndata: {"error": "x"}\n\n<html>',
    "no event of an answer": b'data: %s\n\ndata: {"id": 1}\n\ndata: %s\n\ndata: [DONE]\n\n',
}


@pytest.mark.parametrize("form", STREAMS)
def test_a_stream_of_any_form_is_read(form):
    body = STREAMS[form] % (HEL, LO)
    found = only(Scripted(HEAD + body))
    assert (found.text, found.tokens, found.finish_reason) == ("Hello", 2, "stop")
    # However the network cuts it.
    assert read(bytes([one]) for one in body) == read([body])


def read(pieces):
    parser = Events()
    found = [one for piece in pieces for one in parser.feed(piece)]
    return [*found, *parser.end()]


def test_data_on_several_lines_is_one_event():
    lines = json.dumps(json.loads(LO), indent=1).encode().split(b"\n")
    body = b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"
    assert read([body]) == [json.loads(LO)]


@settings(max_examples=100)
@given(
    st.lists(st.dictionaries(st.text(), st.text() | st.none() | st.integers()), max_size=5),
    st.sampled_from(["\n", "\r", "\r\n"]),
    st.lists(st.integers(1, 40)),
)
def test_events_come_back_as_they_were_sent_wherever_they_are_cut(values, end, cuts):
    values = [{"v": value} for value in values]
    sent = "".join(f"data: {json.dumps(one, ensure_ascii=False)}{end * 2}" for one in values)
    raw, pieces = sent.encode(errors="replace"), []
    for cut in cuts:
        pieces.append(raw[:cut])
        raw = raw[cut:]
    expected = json.loads(json.dumps(values, ensure_ascii=False).encode(errors="replace"))
    assert read([*pieces, raw]) == expected


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_body_in_place_of_a_stream_is_a_completion(indent):
    body = json.dumps(WHOLE, indent=indent).encode()
    for ending in (b"", b"\n", b"\r\n"):
        found = only(Scripted(answer(200, body + ending)))
        assert (found.text, found.tokens, found.finish_reason) == ("Hello", 2, "stop")


def test_a_body_without_usage_has_an_unknown_number_of_tokens():
    assert only(Scripted(answer(200, {"choices": WHOLE["choices"]}))).tokens == -1
    text = {"choices": [{"text": "Hello there", "finish_reason": "length"}]}
    found = only(Scripted(answer(200, text)))
    assert (found.text, found.tokens, found.finish_reason) == ("Hello there", -1, "length")


def test_a_compressed_stream_is_read():
    body = gzip.compress(STREAMS["LF"] % (HEL, LO))
    head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    assert only(Scripted(head + body)).text == "Hello"
    # One that is cut says what it said, which was not the end.
    with pytest.raises(BackendError):
        only(Scripted(head + body[:40]))


def held(body, *, pings=True):
    async def say(writer):
        writer.write(HEAD + body)
        while True:
            await writer.drain()
            await asyncio.sleep(0.05)
            if pings:
                writer.write(b": still here\n\n")

    return Scripted(say)


@pytest.mark.parametrize("form", ["LF", "no [DONE]"])
@pytest.mark.parametrize("pings", [True, False])
def test_a_whole_answer_ends_whatever_the_connection_does(form, pings):
    server = held(STREAMS[form] % (HEL, LO), pings=pings)
    found = only(server, read_timeout=30.0, total_timeout=30.0, attempts=1)
    assert (found.text, found.finish_reason) == ("Hello", "stop")


def test_a_server_that_only_says_that_it_is_there_meets_the_limit_on_the_whole_time():
    for body in (b"", b"data: %s\n\n" % HEL):
        message = refused(held(body), vllm=False, total_timeout=0.3, attempts=2)
        assert message.endswith("is not done after 0.3 s; given up after 2 tries")


# What a choice says -------------------------------------------------------------------------------

TEXT = {"type": "text", "text": "2"}
HM = "<think>\nhm\n</think>\n2"


@pytest.mark.parametrize(
    ("deltas", "text"),
    [
        ([{"content": "2"}], "2"),
        ([{"role": "assistant", "content": ""}, {"content": None}, {"content": "2"}], "2"),
        ([{"content": [TEXT]}], "2"),
        ([{"content": ["2"]}], "2"),
        ([{"content": TEXT}], "2"),
        ([{"content": [{"type": "text", "text": {"value": "2"}}]}], "2"),
        ([{"content": [{"type": "image_url", "image_url": {}}, TEXT]}], "2"),
        ([{"content": [{"type": "thinking", "thinking": "hm"}, TEXT]}], HM),
        ([{"content": [{"type": "thinking", "thinking": [{"text": "hm"}]}, TEXT]}], HM),
        ([{"content": [{"type": "reasoning", "text": "hm"}, TEXT]}], HM),
        ([{"reasoning": "hm"}, {"content": "2"}], HM),
        ([{"reasoning_content": "hm", "content": None}, {"content": "2"}], HM),
        ([{"reasoning": "hm", "reasoning_content": "hm"}, {"content": "2"}], HM),
        ([{"reasoning": {"content": "hm"}}, {"content": "2"}], HM),
        (
            [{"reasoning": {"summary": [{"type": "summary_text", "text": "hm"}]}, "content": "2"}],
            HM,
        ),
        ([{"reasoning_details": [{"type": "reasoning.text", "text": "hm"}], "content": "2"}], HM),
        ([{"reasoning": "hm", "reasoning_details": [{"text": "hm"}], "content": "2"}], HM),
        ([{"reasoning_details": [{"type": "reasoning.encrypted", "data": "xx"}]}, TEXT], "2"),
        ([{"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}], ""),
        ([{"content": None, "refusal": "I cannot."}], "I cannot."),
        ([{"content": "\ud83d"}, {"content": "\ude00"}], "\U0001f600"),
        ([{"content": "a\ud83d"}, {"content": "b"}], "a\ufffdb"),
        ([{"content": "\ude00\ud83d"}], "\ufffd\ufffd"),
        (["2"], "2"),
    ],
)
def test_text_is_read_in_every_form_that_servers_give_it(deltas, text):
    assert only(Scripted(said(*({"delta": one} for one in deltas)))).text == text


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"content": 5}},
        {"delta": {"content": ["a", 5]}},
        {"text": 5},
        {"delta": 5},
    ],
)
def test_what_is_no_text_is_not_read_over(choice):
    good = said({"delta": {"content": "2"}})
    assert only(Scripted(said({"delta": {"content": "1"}}, choice), good)).text == "2"
    assert "in the place of a text" in refused(Scripted(said(choice)), vllm=False)


@pytest.mark.parametrize("choices", ["abc", [5], {}, {"a": 1}, [[]], 7, True, [None]])
def test_choices_that_are_none_are_asked_for_again(choices):
    server = Scripted(events({"choices": choices}), GOOD)
    assert only(server).text == "ab\nc"
    assert len(server.requests) == 2


def test_of_several_choices_the_first_is_the_completion():
    choices = [{"index": i, "delta": {"content": str(i)}, "finish_reason": "stop"} for i in (1, 0)]
    found = only(Scripted(events({"choices": choices}, {"choices": None}, {"choices": []})))
    assert found.text == "0"


def test_a_message_after_its_own_pieces_is_not_read_twice():
    pieces = [{"delta": {"content": "1"}}, {"delta": {"content": "2"}}]
    again = {"delta": {}, "message": {"content": "12"}}
    assert only(Scripted(said(*pieces, again))).text == "12"


# Tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 7, "total_tokens": 9},
        {"completion_tokens": 0, "prompt_tokens": 0},
        {"completion_tokens": None},
        {"completion_tokens": -5},
        {"completion_tokens": "n/a"},
        {"completion_tokens": True},
        {"completion_tokens": []},
        {"completion_tokens": 10**310},
        {"completion_tokens": 2**31},
        {"completion_tokens": float("nan")},
        {"completion_tokens": float("inf")},
        "none",
        [1],
        3,
    ],
)
def test_usage_that_says_nothing_leaves_what_was_counted(usage):
    pieces = [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}, {"delta": {"content": "c"}}]
    assert only(Scripted(said(*pieces, usage=usage))).tokens == 3


@pytest.mark.parametrize("count", [9, "9", 9.0])
def test_usage_counts_wherever_it_stands(count):
    piece = {"delta": {"content": "a"}}
    usage = {"completion_tokens": count, "prompt_tokens": "7"}
    last = {"choices": [], "usage": {"completion_tokens": 0}}
    for stream in (
        said(piece, usage=usage),
        said({**piece, "usage": usage}),
        events(
            chunk("a", tokens=3), chunk("b", finish="stop"), {"choices": [], "usage": usage}, last
        ),
    ):
        found = only(Scripted(stream))
        assert (found.tokens, found.prompt_tokens) == (9, 7)


# Why it ended -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        *[(word, "stop") for word in ("stop", "STOP", "eos_token", "end_turn", "stop_sequence")],
        *[(word, "stop") for word in ("FinishReason.STOP", "FINISH_REASON_STOP", {"type": "stop"})],
        *[(word, "length") for word in ("length", "max_tokens", "MAX_TOKENS", "model_length")],
        *[(word, "length") for word in ("max_output_tokens", {"type": "length", "length": 4})],
        *[(word, "error") for word in ("content_filter", "SAFETY", "RECITATION", "sensitive")],
        *[(word, "error") for word in ("error", "abort", "timeout", "cancelled", "network_error")],
        *[(word, "error") for word in ("insufficient_system_resource", "something new", 7, ["x"])],
    ],
)
def test_only_what_says_that_it_is_finished_is(word, reason):
    found = only(Scripted(events(chunk("\\boxed{2}"), chunk("", finish=word))))
    assert (found.text, found.finish_reason) == ("\\boxed{2}", reason)
    assert bool(found.error) == (reason == "error")


def test_an_engines_reasons_are_read_by_the_same_map():
    assert [finish_reason(word) for word in ("stop", "length", "repetition", None)] == [
        *("stop", "length", "error", "error")
    ]


@pytest.mark.parametrize("word", [None, "", "null", "error", "insufficient_system_resource"])
def test_an_end_that_passes_is_asked_for_again_and_then_the_completions_own(word):
    odd = events(chunk("a", tokens=4), chunk("", finish=word))
    server = Scripted(odd, odd, GOOD)
    assert only(server).finish_reason == "stop"
    assert len(server.requests) == 3
    server = Scripted(odd)
    found = only(server, attempts=4)
    assert (found.text, found.tokens, found.finish_reason) == ("a", 4, "error")
    assert len(server.requests) == 4


def test_a_reason_with_every_piece_ends_nothing_early():
    async def slow(writer):
        writer.write(HEAD)
        for letter in "abcd":
            writer.write(b"data: " + json.dumps(chunk(letter, finish="stop")).encode() + b"\n\n")
            await writer.drain()
            await asyncio.sleep(0.4)

    assert only(Scripted(slow)).text == "abcd"


# Errors within an answer --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        events(chunk("a"), {"error": None}, chunk("b", finish="stop")),
        events({**chunk("ab", finish="stop"), "error": None}),
        events({**chunk("ab", finish="stop"), "error": {}}),
        events({**chunk("ab", finish="stop"), "error": ""}),
        events({**chunk("ab", finish="stop"), "error": {"code": 0, "message": ""}}),
    ],
)
def test_no_error_is_no_error(stream):
    server = Scripted(stream)
    assert only(server).text == "ab"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "bad",
    [
        events(chunk("lost"), {"error": "out of luck"}),
        events({"error": {"message": "out of luck", "code": 502}}),
        events({"error": {"message": "out of luck", "code": "server_error"}}),
        events({"object": "error", "message": "out of luck", "code": 500}),
        HEAD + b'event: error\ndata: {"message": "out of luck"}\n\n',
        HEAD + b'event: error\ndata: {"error": {"message": "out of luck"}}\n\n',
        HEAD + b'error: {"code": 500, "message": "out of luck"}\n\n',
        HEAD + b"error: out of luck\n\n",
        answer(200, {"error": {"message": "out of luck"}}),
        answer(200, [{"error": {"message": "out of luck"}}]),
        answer(200, b"<html><body>out <b>of</b> luck</body></html>"),
        answer(200, {"code": 500, "msg": "out of luck", "success": False}),
        answer(200, b'{"choices": [{"message": {"content": "out of luck'),
        HEAD + b'data: {"choices": [out of luck\n\ndata: [DONE]\n\n',
        *[answer(status, {"message": "out of luck"}) for status in (408, 409, 425, 500, 502, 503)],
        *[answer(status, b"out of luck") for status in (504, 520, 522, 524, 525, 529, 530, 599)],
        answer(500, [{"error": {"message": "out of luck"}}]),
        answer(500, {"detail": [{"msg": "out of luck"}]}),
        answer(429, {"error": {"message": "out of luck"}}),
    ],
)
def test_what_may_pass_is_asked_for_again_and_quoted_in_the_end(bad):
    server = Scripted(bad, GOOD)
    assert only(server).text == "ab\nc"
    assert len(server.requests) == 2
    assert "out of luck" in refused(Scripted(bad), vllm=False)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 410, 418, 422, 451, 501])
def test_what_does_not_pass_is_said_at_once_with_the_servers_reason(status):
    server = Scripted(answer(status, {"error": {"message": "flagged by moderation"}}))
    assert f"answers {status}: flagged by moderation" in refused(server, vllm=False)
    assert len(server.requests) <= 2


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 100 tokens. However, you requested 120 tokens.",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
        "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        "Range of input length should be [1, 30720]",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "Requested token count exceeds the model's maximum context length of 4096 tokens.",
        "the request exceeds the available context size. try increasing the context size",
        "request (9000 tokens) exceeds the available context size (8192 tokens)",
        "input length exceeds maximum context length",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
        "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
        "Please reduce the length of the messages or completion.",
        "Invalid request: Your request exceeded model token limit: 8192",
        "invalid params, context window exceeds limit",
        "Input is too long for requested model.",
        "Prompt length (5000) exceeds maximum input length (4096).",
        "too many tokens: total number of tokens in the prompt cannot exceed 4081",
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        "prompt token count of 100000 exceeds the limit of 64000",
        "输入内容过长",
        "Prompt 超长",
    ],
)
def test_a_problem_beyond_the_context_is_its_own_fault_in_every_servers_words(words):
    for bad in (
        answer(400, {"error": {"message": words}}),
        answer(422, {"error": words, "error_type": "validation"}),
        events({"error": {"message": words, "code": 400}}),
    ):
        server = Scripted(bad)
        with pytest.raises(ProblemError, match=r"^problem p: "):
            run(server, vllm=False)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
        "Unknown field: min_p",
        "temperature must be in [0, 2]",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]",
    ],
)
def test_a_configuration_that_is_wrong_ends_the_run(words):
    with pytest.raises(BackendError) as caught:
        run(Scripted(answer(400, {"error": {"message": words}})), vllm=False)
    assert not isinstance(caught.value, ProblemError)


@pytest.mark.parametrize(
    "bad",
    [
        answer(400, {"error": "odd words that nobody knows"}),
        answer(403, {"error": "flagged by moderation"}),
        answer(422, {}),
    ],
)
def test_a_refusal_of_one_problem_is_not_the_others(bad):
    # The simple question after it is answered.
    with pytest.raises(ProblemError, match=r"^problem p: "):
        run(Scripted(bad, GOOD), vllm=False)


@pytest.mark.parametrize(
    "bad", [answer(500, {}), b"", events(chunk("half"), done=False), answer(404, {})]
)
def test_a_request_that_keeps_failing_is_one_completions_fault_where_others_do_not(bad):
    tries = 1 if bad == answer(404, {}) else 3
    found = only(Scripted(*[bad] * tries, GOOD))
    assert found.finish_reason == "error"
    assert found.error
    assert found.text in ("", "half")


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece",
    [
        b"x" * 65536,
        b"data: " + b"x" * 65530,
        b'{"a": "' + b"x" * 65529,
        b"data: xxxxxxxxxxxxxxxxxxxxxxxxx\n" * 2048,
        b"yz\n" * 20000,
    ],
    ids=["no line end", "no data end", "no JSON end", "no event end", "no event"],
)
def test_an_event_without_end_is_refused_in_bounded_memory(piece, monkeypatch):
    monkeypatch.setattr("optscale_jax.backends.events._MOST_BYTES", 1 << 20)
    parser, fed = Events(), 0
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            for _ in range(10_000):
                parser.feed(piece)
                fed += len(piece)
        with pytest.raises(ValueError, match="sends 1 MiB without the end of an event"):
            parser.feed(piece)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert fed < 2 << 20


def test_a_stream_of_any_length_is_read_in_the_memory_of_an_event():
    parser = Events()
    piece = (b": " + b"nothing" * 100 + b"\n\n") * 1000 + b"data: %s\n\n" % HEL
    tracemalloc.start()
    try:
        for _ in range(10):
            assert len(parser.feed(piece)) == 1
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b"data: " + b"[" * 200_000 + b"\n\n",
        b'data: {"choices": [{"delta": {"content": ' + b"[" * 900 + b"]" * 900 + b"}}]}\n\n",
        b'data: {"usage": {"completion_tokens": ' + b"9" * 5000 + b"}}\n\n",
        b'{"x":' * 100_000,
    ],
    ids=["nested", "nested text", "digits", "nested body"],
)
def test_json_that_is_too_deep_or_too_long_is_a_failed_try(body):
    server = Scripted(HEAD + body, GOOD)
    assert only(server).text == "ab\nc"
    assert len(server.requests) == 2


# Addresses and fields -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1//", "/v1/chat/completions"),
        ("/api/v1", "/api/v1/chat/completions"),
        ("/v1beta/openai", "/v1beta/openai/chat/completions"),
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"),
        ("/api/paas/v4", "/api/paas/v4/chat/completions"),
        ("/compatible-mode/v1", "/compatible-mode/v1/chat/completions"),
        (
            "/openai/deployments/x?api-version=2",
            "/openai/deployments/x/chat/completions?api-version=2",
        ),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1#part", "/v1/chat/completions"),
    ],
)
def test_a_base_url_with_a_path_is_taken_as_it_is(base, path):
    server = Scripted(GOOD)

    async def main():
        async with serving(server) as (url,):
            await draw(config([url + base], vllm=False))

    asyncio.run(main())
    assert server.requests[0][0].split()[1] == path


def test_a_field_that_is_null_is_left_out_and_seeds_fit_31_bits():
    server = Scripted(GOOD)

    async def main():
        async with serving(server) as urls:
            plain = config(urls, vllm=False)
            await draw(plain, 8)
            extra = {"seed": None, "max_tokens": None, "max_completion_tokens": 9}
            await draw(type(plain)(**{**vars(plain), "extra": extra}))

    asyncio.run(main())
    *seeded, last = [body for _, body in server.requests]
    seeds = {body["seed"] for body in seeded}
    assert len(seeds) == 8
    assert max(seeds) < 2**31
    assert {"seed", "max_tokens"}.isdisjoint(last)
    assert last["max_completion_tokens"] == 9


# Lists of models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vllm", [True, False])
@pytest.mark.parametrize(
    "listed",
    [
        *({"data": None}, {"data": []}, {"data": "x"}, {}, [], None, 7, {"object": "list"}),
        *({"models": [{"name": "m", "model": "m"}]}, [{"id": "m"}], {"data": [None, {"id": "m"}]}),
        *(
            answer(404, {}),
            answer(405, b"no"),
            answer(403, b"no"),
            answer(500, b"no"),
            answer(501, b""),
        ),
        *(
            answer(200, b"<html>"),
            answer(200, b"[" * 100_000),
            answer(302, b"", headers=["Location: /"]),
        ),
    ],
)
def test_a_server_without_a_list_of_models_can_be_asked(listed, vllm):
    assert run(Scripted(GOOD, models=listed), vllm=vllm)[0].text == "ab\nc"


def test_a_server_that_is_busy_at_the_start_is_asked_again():
    loading = answer(503, {"error": {"message": "Loading model"}})

    class Loading(Scripted):
        asked = 0

        async def handle(self, reader, writer):
            self.asked += 1
            self.models = loading if self.asked < 3 else {"data": [{"id": "m"}]}
            await super().handle(reader, writer)

    assert only(Loading(GOOD)).text == "ab\nc"
    message = refused(Scripted(GOOD, models=loading))
    assert message.endswith("answers 503: Loading model; given up after 3 tries")


# The rate -----------------------------------------------------------------------------------------


class Limited(Scripted):
    """Answers so many requests a second, and refuses the others."""

    def __init__(self, *answers, rate, headers=()):
        super().__init__(*answers)
        self.rate = rate
        self.refusal = answer(429, {"error": {"message": "slow down"}}, headers=headers)
        self.times = []
        self.refused = 0

    async def handle(self, reader, writer):
        now = asyncio.get_running_loop().time()
        self.times = [time for time in self.times if now - time < 1]
        if len(self.times) < self.rate:
            self.times.append(now)
            await super().handle(reader, writer)
            return
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.refused += 1
            writer.write(self.refusal)
            await writer.drain()
        writer.close()


def test_a_server_that_answers_so_many_a_second_answers_all():
    # Three servers at a time, each with a client of its own: most of it is waiting.
    headers = [["Retry-After: 1"], ["retry-after-ms: 300"], []]
    servers = [Limited(GOOD, rate=40, headers=said) for said in headers]
    asked = functools.partial(run, n=200, vllm=False, attempts=6, backoff=0.1)
    with ThreadPoolExecutor() as pool:
        answered = list(pool.map(asked, servers))
    for server, found in zip(servers, answered, strict=True):
        assert sorted(one.index for one in found) == list(range(5, 205))
        assert {one.finish_reason for one in found} == {"stop"}
        assert len(server.requests) == 200
        # The first burst is refused, and little once the rate is known: 125 to 155, where 345 to
        # 1,080 are if the rate is never cut.
        assert server.refused < 240, server.refusal


def test_a_server_that_never_lets_anything_through_is_given_up():
    begun = [answer(429, {"error": {"message": "quota"}}, headers=["Retry-After: 0.01"])]
    assert "answers 429: quota" in refused(Scripted(*begun), attempts=2, backoff=0.01)
    for words in ("insufficient_quota", "Insufficient balance", "您的账户余额不足"):
        server = Scripted(answer(429, {"error": {"message": "no", "code": words}}))
        refused(server)
        assert len(server.requests) == 2  # itself, and the simple question


def test_the_rate_is_halved_once_then_cut_by_the_share_that_is_refused_and_doubles_in_five_seconds(
    monkeypatch,
):
    now, pace = 100.0, Pace()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    async def main():
        nonlocal now
        sent = [await pace.turn() for _ in range(64)]
        for one in sent:
            assert not pace.refused()
            pace.rest(one, 1.0, slower=True)
        assert (pace.rate, pace.failures) == (32.0, 1)
        now += 1 + 5
        pace.rest(await pace.turn(), 1.0, slower=True)
        assert pace.rate == 64 / 2  # nothing was accepted
        for _ in range(1000):
            pace.accepted()
        before = pace.rate
        assert pace.refused()  # a stray
        assert 0.99 * before < pace.rate < before
        pace.answered()
        assert pace.failures == 0

    asyncio.run(main())


def test_a_server_that_refuses_one_in_twenty_is_asked_as_often_as_before():
    pace = Pace()

    async def main():
        for i in range(1000):
            await pace.turn()
            assert pace.refused() if i % 20 == 19 else not pace.accepted()

    asyncio.run(main())
    assert (pace.rate, pace.rests_until) == (math.inf, 0.0)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("Retry-After: -5", 0, 1),
        ("Retry-After: x", 0, 1),
        ("Retry-After: nan", 0, 1),
        ("Retry-After: 0.3", 0.3, 1.3),
    ],
)
def test_what_retry_after_says_is_believed_if_it_can_be(header, least, most):
    times = []

    class Timed(Scripted):
        async def handle(self, reader, writer):
            times.append(asyncio.get_running_loop().time())
            await super().handle(reader, writer)

    only(Timed(answer(503, {}, headers=[header]), GOOD))
    assert least <= times[2] - times[1]
    assert len(times) == 3


# Everything at once -------------------------------------------------------------------------------

ODD = [
    *(answer(status, b"odd") for status in (500, 502, 503, 520, 408)),
    b"garbage\r\n\r\n",
    b"",
    events(chunk("half"), done=False),
    events(chunk("cut", finish="content_filter")),
    events(chunk("no end")),
    events({"error": {"message": "odd"}}),
    events({"choices": [5]}),
    HEAD + b"data: [[[[\n\n",
    answer(200, WHOLE),
    *(HEAD + form % (HEL, LO) for form in STREAMS.values()),
]


class Mixed(Limited):
    """Answers each completion oddly so many times, by its seed, and then well; some never well."""

    def __init__(self, *, rate, share=0.3, never=0.03):
        super().__init__(GOOD, rate=rate, headers=["Retry-After: 0.1"])
        self.tries, self.share, self.never = {}, share, never
        self.answers = [self.say]

    async def say(self, writer):
        body = self.requests[-1][1]
        key = (body["messages"][0]["content"], body["seed"])
        draw = random.Random(repr(key))
        self.tries[key] = self.tries.get(key, 0) + 1
        fate = draw.random()
        odd = fate < self.never or (fate < self.share and self.tries[key] <= draw.choice((1, 2)))
        bad = draw.choice(ODD[:13])
        writer.write(bad if odd else draw.choice([GOOD, *ODD[13:]]))


class Longest:
    """A verifier: what is longer is better."""

    async def score(self, problem, completions):
        return [Score(min(len(one.text) / 10, 1.0)) for one in completions]

    async def close(self):
        pass


async def mixed_run(path, *, problems, n, rate):
    """What came of problems with n completions each, and the server."""
    server = Mixed(rate=rate)
    asked = [Problem(str(i), f"Problem {i}") for i in range(problems)]
    async with serving(server) as urls:
        sampler = await made(config(urls, vllm=False, attempts=6, backoff=0.01))
        with Run(path, config="", problems=asked) as kept:
            policy = policies.best_of_n(n)
            solutions = await solve_async(asked, sampler, Longest(), policy, run=kept)
            kept.finish()
        await sampler.close()
    return solutions, server


def test_a_server_with_every_oddity_ends_no_run_and_loses_nothing(tmp_path):
    solutions, _ = asyncio.run(mixed_run(tmp_path, problems=15, n=10, rate=200))
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    keys = [(line["problem_id"], line["index"]) for line in lines]
    assert sorted(keys) == sorted((str(i), j) for i in range(15) for j in range(10))
    assert {s.decision.stop_reason for s in solutions}.isdisjoint({"failed"})
    failed = [line for line in lines if line["finish_reason"] == "error"]
    assert failed
    for line in lines:
        if line["finish_reason"] == "error":
            assert line["note"]
            assert (line["score"], line["answer"], line["answer_id"]) == (0.0, None, -1)
        else:
            assert line["completion"] in ("Hello", "ab\nc")
            assert "note" not in line


def test_a_completion_that_failed_does_not_vote():
    odd = events(chunk("\\boxed{3}", finish="content_filter"))
    good = events(chunk("\\boxed{4}", finish="stop"))

    async def main():
        async with serving(Scripted(odd, odd, good)) as urls:
            sampler = await made(config(urls, vllm=False, concurrency=1))
            policy = policies.best_of_n(3, selection="majority")
            (solution,) = await solve_async([PROBLEM], sampler, None, policy)
            await sampler.close()
            return solution

    solution = asyncio.run(main())
    assert solution.answer == "4"
    assert [one.answer for one in solution.samples].count(None) == 2


# Mutations ----------------------------------------------------------------------------------------


def mutated(draw):
    """The bytes of a whole HTTP answer after a few random changes."""
    form = draw.choice([*STREAMS.values()])
    raw = bytearray(
        draw.choice([HEAD + form % (HEL, LO), GOOD, answer(200, WHOLE), draw.choice(ODD)])
    )
    for _ in range(draw.randint(1, 6)):
        at = draw.randint(0, len(raw))
        to = min(len(raw), at + draw.choice((1, 1, 2, 8, 60)))
        kind = draw.randrange(5)
        if kind == 0:
            del raw[at:to]
        elif kind == 1:
            raw[at:at] = draw.randbytes(draw.choice((1, 3, 40)))
        elif kind == 2:
            raw[at:at] = draw.choice(
                (
                    b"\n",
                    b"\r\n\r\n",
                    b"null",
                    b"[" * 2000,
                    b'"',
                    b"\xf0\x9f",
                    b"\\ud83d",
                    b"9" * 400,
                    b"{}",
                    b"data: ",
                    b"[DONE]",
                )
            )
        elif kind == 3:
            raw[at:at] = raw[at:to] * draw.choice((1, 2, 50))
        else:
            del raw[at:]
    return bytes(raw)


async def fuzz(first, count):
    """What became of mutated answers: finish reasons, and the errors' types, counted."""
    found = {}

    async def say(writer):
        writer.write(mutated(random.Random(first + len(server.requests))))

    server = Scripted(say)
    async with serving(server) as urls:
        quick = config(urls, vllm=False, attempts=1, backoff=0.0, read_timeout=2.0)
        sampler = await made(quick)
        for index in range(count):
            try:
                async with asyncio.timeout(20):
                    drawn = sampler.sample(PROBLEM, 1, index, abort=asyncio.Event())
                    (one,) = [one async for one in drawn]
                what = one.finish_reason
                json.dumps(one.text).encode()
                one.text.encode()
                assert -1 <= one.tokens < 2**31
            except BackendError as error:
                what = type(error).__name__ if "\n" not in str(error) else "several lines"
            found[what] = found.get(what, 0) + 1
        await sampler.close()
    return found


def test_mutated_streams_end_as_completions_or_in_one_line():
    found = asyncio.run(fuzz(0, 150))
    assert sum(found.values()) == 150
    assert set(found) <= {
        "stop",
        "length",
        "error",
        "BackendError",
        "ProblemError",
        "BadRequestError",
    }
    assert len(found) > 2


@pytest.mark.parametrize("chat", [True, False])
def test_log_probabilities_are_asked_for_and_their_mean_kept(chat):
    def piece(text, *values):
        tokens = [{"token": "x", "logprob": value, "top_logprobs": []} for value in values]
        beside = {"tokens": ["x"] * len(values), "token_logprobs": [*values], "top_logprobs": []}
        said = {"delta": {"content": text}} if chat else {"text": text}
        logs = {"content": tokens} if chat else beside
        return {"choices": [{"index": 0, **said, "logprobs": logs, "finish_reason": None}]}

    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    whole = events(piece("a", -1, -0.25), piece("b", -0.5), piece("c", None), piece("d"), end)
    prompt = PromptConfig(chat=chat)
    server = Scripted(whole)
    (one,) = run(server, prompt=prompt, logprobs=True)
    assert type(one) is Completion
    assert (one.text, one.mean_logprob) == ("abcd", pytest.approx(-1.75 / 3))
    asked = server.requests[0][1]["logprobs"]
    assert asked is True if chat else asked == 0
    server = Scripted(GOOD)
    (one,) = run(server, prompt=prompt)
    assert one.mean_logprob is None
    assert "logprobs" not in server.requests[0][1]
