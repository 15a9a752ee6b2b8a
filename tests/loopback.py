"""Servers of the tests' own, on the loopback, that say whatever a test wants said."""

import asyncio
import contextlib
import itertools
import json
import socket

import pytest

from optscale_jax.backends.config import PromptConfig, SamplerConfig, ServerConfig
from optscale_jax.backends.make import make_sampler
from optscale_jax.errors import BackendError
from optscale_jax.records import Problem

PLAIN = PromptConfig()
PROBLEM = Problem("p", "What is 2 + 2?")
MODELS = {"object": "list", "data": [{"id": "m", "max_model_len": 100}]}


def answer(status, body, *, headers=()):
    """Bytes of a whole HTTP answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def events(*items, done=True):
    """Bytes of a stream of server-sent events, without a length."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    lines = [
        b": keep alive\n\n",
        *(b"data: " + json.dumps(one).encode() + b"\n\n" for one in items),
    ]
    return head + b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


def chunk(text, *, finish=None, tokens=None):
    usage = None if tokens is None else {"completion_tokens": tokens, "prompt_tokens": 7}
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"choices": [choice], "usage": usage}


GOOD = events(chunk("a", tokens=1), chunk("b\n", tokens=4), chunk("c", finish="stop", tokens=5))


class Endless:
    """An answer that says these chunks, and then for ever that it is still there."""

    def __init__(self, *chunks):
        self.chunks = chunks
        self._read = 0

    async def __call__(self, writer):
        writer.write(events(*self.chunks, done=False))
        await writer.drain()
        for turn in itertools.count():
            await asyncio.sleep(0.02)
            writer.write(b": still here\n\n")
            await writer.drain()
            # By now the loop has gone round often enough for its reader to have read the chunks.
            self._read += turn == 10

    async def read(self, times):
        """Returns when so many answers like it have been read up to the last chunk."""
        async with asyncio.timeout(60):
            while self._read < times:
                await asyncio.sleep(0.01)


class Scripted:
    """A server that gives its answers one after another, and the last one for ever.

    An answer is bytes, or a coroutine function of the connection's writer.
    """

    def __init__(self, *answers, models=MODELS):
        self.answers = list(answers)
        self.models = models
        self.requests = []
        self.open = 0
        self.closed_early = 0

    async def handle(self, reader, writer):
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = [line for line in head.lower().split("\r\n") if "content-length" in line]
            body = await reader.readexactly(int(length[0].split(":")[1]) if length else 0)
            if head.startswith("GET"):
                models = self.models
                writer.write(models if isinstance(models, bytes) else answer(200, models))
            else:
                self.requests.append((head, json.loads(body)))
                say = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if isinstance(say, bytes):
                    writer.write(say)
                else:
                    await say(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed_early += 1
        finally:
            self.open -= 1
            writer.close()


@contextlib.asynccontextmanager
async def serving(*scripts):
    """The URLs of servers."""
    async with contextlib.AsyncExitStack() as stack:
        urls = []
        for script in scripts:
            server = await asyncio.start_server(script.handle, "127.0.0.1", 0)
            stack.callback(server.close)
            urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        yield urls


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def config(urls, *, prompt=PLAIN, logprobs=False, **server):
    quick = {"backoff": 0.01, "attempts": 3, "read_timeout": 5.0, **server}
    server_config = ServerConfig(base_urls=urls, **quick)
    return SamplerConfig(
        kind="server", model="m", prompt=prompt, server=server_config, logprobs=logprobs
    )


async def made(a_config):
    # The first look at the servers blocks, and they run on this loop.
    return await asyncio.to_thread(make_sampler, a_config, seed=3)


async def draw(a_config, n=1, *, abort=None):
    sampler = await made(a_config)
    try:
        drawn = sampler.sample(PROBLEM, n, 5, abort=abort or asyncio.Event())
        return [one async for one in drawn]
    finally:
        await sampler.close()


def run(*scripts, n=1, **options):
    async def main():
        async with serving(*scripts) as urls:
            return await draw(config(urls, **options), n)

    return asyncio.run(main())


def refused(*scripts, **options):
    with pytest.raises(BackendError) as caught:
        run(*scripts, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message
