"""Coroutines whose results are wanted as they end."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

__all__ = ["as_they_end", "cancelled"]

T = TypeVar("T")


async def as_they_end(tasks: Sequence["asyncio.Task[T]"]) -> AsyncGenerator[T, None]:
    """Yields the results of tasks in the order in which they end.

    Whatever way the iteration is left, by the end, an error or the consumer, no task outlives it.

    Args:
        tasks: The tasks.

    Yields:
        Each task's result.

    Raises:
        Exception: The first that a task raises.
    """
    try:
        for ended in asyncio.as_completed(tasks):
            yield await ended
    finally:
        await cancelled(*tasks)


async def cancelled(*tasks: "asyncio.Task[Any]") -> None:
    """Cancels tasks and waits until they have ended, whatever they make of it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
