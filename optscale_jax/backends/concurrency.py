"""Coroutines whose results are wanted as they end."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

__all__ = ["as_they_end", "cancel_when_set", "cancelled"]

T = TypeVar("T")


async def as_they_end(
    tasks: Sequence["asyncio.Task[T]"],
    *,
    unread: Callable[[T], object] = lambda result: None,
    stop: Callable[..., Awaitable[None]] | None = None,
) -> AsyncGenerator[T, None]:
    """Yields the results of tasks in the order in which they end.

    Whatever way the iteration is left, by the end, an error or the consumer, no task outlives it.

    Args:
        tasks: The tasks.
        unread: Called with each result that there is in the end and was not yielded.
        stop: Ends the tasks when the iteration is left; `cancelled` if None.

    Yields:
        Each task's result.

    Raises:
        Exception: The first that a task raises.
    """
    given: set[int] = set()
    try:
        for ended in asyncio.as_completed(tasks):
            result = await ended
            given.add(id(result))
            yield result
    finally:
        await (stop or cancelled)(*tasks)
        for task in tasks:
            if not task.cancelled() and task.exception() is None and id(task.result()) not in given:
                unread(task.result())


async def cancelled(*tasks: "asyncio.Task[Any]") -> None:
    """Cancels tasks and waits until they have ended, whatever they make of it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def cancel_when_set(abort: asyncio.Event, tasks: "Sequence[asyncio.Task[Any]]") -> None:
    """Cancels tasks, created before this one so that they have begun, once an event is set."""
    await abort.wait()
    for task in tasks:
        task.cancel()
