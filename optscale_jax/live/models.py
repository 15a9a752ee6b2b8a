"""The sampler and the verifier that a live run's configuration stands for."""

import asyncio
import contextlib
from collections.abc import Callable

from optscale_jax.backends.base import Sampler, Verifier
from optscale_jax.backends.make import make_sampler, make_verifier
from optscale_jax.backends.recorded import RecordedSampler, RecordedVerifier
from optscale_jax.errors import InputError
from optscale_jax.live.config import LiveConfig
from optscale_jax.pool import Pool
from optscale_jax.study.pools import PoolSource

__all__ = ["recorded_pool", "start_models"]


def recorded_pool(config: LiveConfig) -> Pool | None:
    """The recorded pool that takes the models' place; None: they are asked."""
    recorded = config.recorded
    return None if recorded.pool is None else PoolSource(recorded.pool, recorded.read).load()


def start_models(
    config: LiveConfig,
    pool: Pool | None,
    starting: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> tuple[Sampler, Verifier | None]:
    """Starts both, which takes a while; no event loop may run in this thread.

    Args:
        config: The configuration.
        pool: Its `recorded_pool`.
        starting: Is open while a model starts, of which it is told.

    Raises:
        BackendError: One cannot be started.
        InputError: A model is not given.
        PoolError: The pool lacks what a model would give.
    """
    if pool is not None:
        sampler = RecordedSampler(pool, **config.recorded.pace)
        return sampler, RecordedVerifier(pool) if config.verify else None
    for name in ("sampler", *["verifier"] * config.verify):
        if not getattr(config, name).model:
            raise InputError(f"{name}.model is not given; name a folder, or a model of the hub")
    with starting("the sampler"):
        sampler = make_sampler(config.sampler, seed=config.seed)
    if not config.verify:
        return sampler, None
    try:
        with starting("the verifier"):
            return sampler, make_verifier(config.verifier, seed=config.seed)
    except BaseException:
        asyncio.run(sampler.close())
        raise
