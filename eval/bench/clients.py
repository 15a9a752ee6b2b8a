"""Clients of an OpenAI-compatible address, in a process of their own.

    python -m eval.bench.clients < WHAT > RESULTS

WHAT is the JSON of a `Load`; RESULTS are lines of JSON, one a request, in the order of their ends.
Speaks HTTP by hand: a client library would take longer than what is measured.
"""

import asyncio
import contextlib
import dataclasses
import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Load", "ended"]


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked, and how often.

    Attributes:
        url: The address, with /v1.
        names: What requests say, in turn and over again.
        count: Requests in all; 0 = no limit.
        seconds: After so many no request begins; 0 = no limit.
        clients: Each asks again when it is answered.
        rate: Requests a second, at moments that are drawn, in the place of clients; 0 = clients.
        hang_up: Share of requests whose client goes within a second.
        fields: Further fields of every request.
    """

    url: str
    names: list[str]
    count: int = 0
    seconds: float = 0.0
    clients: int = 1
    rate: float = 0.0
    hang_up: float = 0.0
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


class _Client:
    """Asks over one connection, which is made anew where it has gone."""

    def __init__(self, load: Load):
        self._load = load
        self._to: Any = None

    async def ask(self, name: str) -> dict[str, Any]:
        """What became of a request: when it began and ended, its status and its answer."""
        body = {"model": "m", "messages": [{"role": "user", "content": name}], **self._load.fields}
        began, stay = time.monotonic(), 1 - self._load.hang_up
        leaves = None if random.random() < stay else random.uniform(0, 1)
        status: int | str = "hung up"
        answer: Any = {}
        try:
            async with asyncio.timeout(leaves):
                status, answer = await self._posted(json.dumps(body).encode())
        except TimeoutError:
            self.close()
        except (OSError, EOFError, ValueError) as error:
            status = type(error).__name__
            self.close()
        return {"name": name, "began": began, "ended": time.monotonic(), "status": status} | (
            _read(answer) if status == 200 else {}
        )

    async def _posted(self, content: bytes) -> tuple[int, Any]:
        parts = urlsplit(self._load.url)
        if self._to is None:
            self._to = await asyncio.open_connection(parts.hostname, parts.port)
        reader, writer = self._to
        head = f"POST {parts.path}/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        raw = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(first.split()[1]), json.loads(raw)

    def close(self) -> None:
        if self._to is not None:
            self._to[1].close()
            self._to = None


def _read(answer: dict[str, Any]) -> dict[str, Any]:
    (choice,), usage = answer["choices"], answer["usage"]["optscale"]
    return {
        "text": choice["message"]["content"],
        "id": answer["id"],
        "candidates": usage["candidates"],
        "tokens": usage["completed"] + usage["aborted"],
        "samples": choice["optscale"]["samples"],
        "reason": choice["optscale"]["stop_reason"],
        "share": choice["optscale"].get("budget_share", 1.0),
    }


async def _run(load: Load) -> None:
    last = time.monotonic() + (load.seconds or float("inf"))
    idle: list[_Client] = []

    def names() -> Iterator[str]:
        turn = 0
        while (not load.count or turn < load.count) and time.monotonic() < last:
            # A name of its own for each request, where requests are to be told apart.
            yield load.names[turn % len(load.names)] if load.names else str(turn)
            turn += 1

    async def one(name: str) -> None:
        client = idle.pop() if idle else _Client(load)
        print(json.dumps(await client.ask(name)), flush=False)
        idle.append(client)

    async def work(todo: Iterator[str]) -> None:
        for name in todo:
            await one(name)

    async with asyncio.TaskGroup() as tasks:
        todo = names()
        if not load.rate:
            for _ in range(load.clients):
                tasks.create_task(work(todo))
        else:
            due = time.monotonic()
            for name in todo:
                tasks.create_task(one(name))
                due += random.expovariate(load.rate)
                await asyncio.sleep(max(due - time.monotonic(), 0))
    for client in idle:
        client.close()


async def ended(load: Load) -> list[dict[str, Any]]:
    """What became of all requests, asked by a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate(json.dumps(dataclasses.asdict(load)).encode())
    assert process.returncode == 0
    return [json.loads(line) for line in said.splitlines()]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        asyncio.run(_run(Load(**json.load(sys.stdin))))
