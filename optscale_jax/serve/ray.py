"""The gateway as a deployment of Ray Serve, which has its replicas and their number.

    serve run optscale_jax.serve.ray:app config=recorded num_replicas=2

docs/gateway.md has what else `serve` takes. A replica reads the configuration, and with it files of
pools, keys and rules, on its own machine.
"""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from optscale_jax.backends.cores import leave_workers_their_cores
from optscale_jax.cli import parse
from optscale_jax.gateway.app import make_app
from optscale_jax.gateway.config import ServeConfig
from optscale_jax.gateway.service import Service
from optscale_jax.live.decider import decide_on_the_cpu

__all__ = ["Gateway", "app"]

# After the limit on draining every answer is there; this is for writing it.
_LAST_SECONDS = 5


@serve.deployment
@serve.ingress()
class Gateway:
    """A replica.

    Args:
        words: The configuration, as arguments of `optscale serve`.
    """

    def __init__(self, words: list[str]):
        decide_on_the_cpu()
        leave_workers_their_cores()
        self._service = Service(parse(ServeConfig, words, configs="serve"))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, once its models are ready."""
        return make_app(self._service)

    async def __del__(self) -> None:
        await self._service.drain()
        await self._service.close()


def app(arguments: dict[str, Any]) -> Application:
    """The application that `serve run` deploys.

    Args:
        arguments: `num_replicas`, a number or auto, the default; all others are those of `optscale
            serve`, above all `config`. Host and port are Ray's.

    Raises:
        InputError: The configuration cannot be read.
    """
    given = dict(arguments)
    replicas = given.pop("num_replicas", "auto")
    if Path(str(given.get("config"))).is_file():
        given["config"] = Path(given["config"]).resolve()
    words = [f"--{name}={value}" for name, value in given.items()]
    config = parse(ServeConfig, words, configs="serve")
    options: dict[str, Any] = {"num_replicas": replicas if replicas == "auto" else int(replicas)}
    if replicas == "auto":
        options["autoscaling_config"] = {"target_ongoing_requests": config.max_concurrent / 2}
    return Gateway.options(
        # What is beyond a replica's room waits, or is refused, in the replica.
        max_ongoing_requests=2 * (config.max_concurrent + config.max_queued),
        graceful_shutdown_timeout_s=config.drain_seconds + _LAST_SECONDS,
        **options,
    ).bind(words)
