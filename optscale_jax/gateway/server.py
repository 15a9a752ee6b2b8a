"""Runs the gateway: SIGTERM drains it, SIGHUP or a changed file has its configuration reloaded."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvicorn

from optscale_jax.backends.cores import leave_workers_their_cores
from optscale_jax.errors import InputError
from optscale_jax.gateway.app import Keys, make_app
from optscale_jax.gateway.config import ServeConfig
from optscale_jax.gateway.service import Service
from optscale_jax.heap import freeze_heap
from optscale_jax.live.decider import decide_on_the_cpu

__all__ = ["serve"]

log = logging.getLogger("optscale.serve")
_LOOK_SECONDS = 1.0
# After the limit on draining every answer is there; this is for writing it.
_LAST_SECONDS = 5


class _Server(uvicorn.Server):
    """Leaves signals to `serve`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    config: ServeConfig, again: Callable[[], ServeConfig], files: Sequence[Path] = ()
) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        config: What is served.
        again: Reads the configuration again.
        files: Its files; when one changes it is read again, as at SIGHUP.

    Raises:
        InputError: It cannot work, or the port is taken.
    """
    decide_on_the_cpu()
    leave_workers_their_cores()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    keys = Keys(config.keys)
    service = Service(config)
    freeze_heap()
    settings = uvicorn.Config(
        make_app(service, keys),
        host=config.host,
        port=config.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    with asyncio.Runner(loop_factory=settings.get_loop_factory()) as runner:
        runner.run(_serving(service, settings, again, files))


async def _serving(
    service: Service,
    settings: uvicorn.Config,
    again: Callable[[], ServeConfig],
    files: Sequence[Path],
) -> None:
    app, server = settings.app, _Server(settings)
    stopping, reloading = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for one, event in (
        (signal.SIGTERM, stopping),
        (signal.SIGINT, stopping),
        (signal.SIGHUP, reloading),
    ):
        loop.add_signal_handler(one, event.set)
    sockets = _bound(server)
    url = "http://{}:{}".format(*sockets[0].getsockname()[:2])
    print(f"serving {', '.join(service.models)} at {url}/v1", flush=True)
    background = [
        asyncio.create_task(_reload(service, app, again, reloading)),
        asyncio.create_task(_watch(files, reloading)),
    ]
    running = asyncio.create_task(server.serve(sockets))
    try:
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait([stop, running], return_when=asyncio.FIRST_COMPLETED)
        await service.drain()
        server.should_exit = True
        await running
    finally:
        for task in background:
            task.cancel()
        await service.close()


def _bound(server: uvicorn.Server) -> list:
    """The socket that it listens on; uvicorn itself would end the process where it is taken."""
    import socket

    config = server.config
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # Without its protocol asyncio would leave Nagle's algorithm on, which holds answers for 40 ms.
    one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind((config.host, config.port))
        one.listen(config.backlog)
    except OSError as error:
        one.close()
        message = f"{config.host}:{config.port}: {error.strerror}; choose another --port or --host"
        raise InputError(message) from error
    return [one]


async def _reload(
    service: Service, app, again: Callable[[], ServeConfig], reloading: asyncio.Event
) -> None:
    while True:
        await reloading.wait()
        reloading.clear()
        try:
            config = again()
            keys = Keys(config.keys)
            await service.reload(config)
        except InputError as error:
            log.error("the configuration stays as it was: %s", error)
        else:
            app.state.keys = keys
            log.info("the configuration has been read again")


async def _watch(files: Sequence[Path], reloading: asyncio.Event) -> None:
    def times() -> list[float]:
        return [file.stat().st_mtime if file.exists() else 0.0 for file in files]

    before = times()
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if (now := times()) != before:
            before = now
            reloading.set()
