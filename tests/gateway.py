"""The gateway in a thread of its own, in front of loopback servers."""

import asyncio
import contextlib
import threading

import uvicorn

from optscale_jax.backends.config import SamplerConfig, ServerConfig
from optscale_jax.gateway.app import make_app
from optscale_jax.gateway.config import ModelConfig, ServeConfig
from optscale_jax.gateway.service import Service
from optscale_jax.study.registry import PolicyConfig
from tests.loopback import Scripted, chunk, events, free_port, serving

VOTE = PolicyConfig("self_consistency", n=4)


class Upstream(Scripted):
    """A server whose completions a function makes of a request's body and its number.

    It gives the events of a stream, or bytes, or a coroutine function of the writer.
    """

    def __init__(self, say):
        super().__init__(self._answer)
        self._say = say

    async def _answer(self, writer):
        said = self._say(self.requests[-1][1], len(self.requests) - 1)
        if callable(said):
            await said(writer)
        else:
            writer.write(said if isinstance(said, bytes) else events(*said))


def box(answer, tokens=5):
    return [chunk(f"\\boxed{{{answer}}}"), chunk("", finish="stop", tokens=tokens)]


def served(url, *, name="m", policies=(VOTE,), **options):
    """A model behind a server."""
    quick = ServerConfig(base_urls=[url], backoff=0.01, attempts=2, read_timeout=30.0)
    sampler = options.pop("sampler", SamplerConfig(kind="server", model="m", server=quick))
    given = {"verify": False, "equal": "text", **options}
    return ModelConfig(name=name, sampler=sampler, policies=list(policies), **given)


class Running:
    """A gateway that runs: its URL, its service, its loop."""

    def __init__(self, make_config):
        self._make_config = make_config

    async def start(self, upstreams):
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with serving(*upstreams) as urls:
            config = self._make_config(*urls)
            # The first look at the servers blocks, and they run on this loop.
            self.service = await asyncio.to_thread(Service, config)
            port = free_port()
            self.url = f"http://127.0.0.1:{port}"
            settings = uvicorn.Config(
                make_app(self.service), port=port, log_level="error", timeout_graceful_shutdown=1
            )
            server = uvicorn.Server(settings)
            server.capture_signals = contextlib.nullcontext
            running = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.01)
            self.ready.set()
            await self._stop.wait()
            server.should_exit = True
            await running
            await self.service.close()

    def call(self, coroutine):
        """Runs a coroutine on the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    @contextlib.contextmanager
    def up(self, *upstreams):
        self.ready = threading.Event()
        failed = []

        def run():
            try:
                asyncio.run(self.start(upstreams))
            except BaseException as error:
                failed.append(error)
                self.ready.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.ready.wait(60)
        if failed:
            raise failed[0]
        try:
            yield self
        finally:
            self.loop.call_soon_threadsafe(self._stop.set)
            thread.join(60)
            assert not thread.is_alive(), "the gateway does not end"


def gateway(*upstreams, make_config=None, **options):
    """A running gateway over upstreams; of one model, unless a function of their URLs says."""
    make = make_config or (lambda *urls: ServeConfig(models=[served(urls[0])], **options))
    return Running(make).up(*upstreams)
