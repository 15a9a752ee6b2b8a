"""The JSON objects of a server's answer, whichever way it sends them.

That is server-sent events as the WHATWG describes them, and what servers make of those in practice:
JSON lines, one JSON body in place of a stream, an error on a line of its own.

References:
    WHATWG, HTML Living Standard, section 9.2, Server-sent events.
"""

import json
import re
from typing import Any

__all__ = ["Events"]

# A completion of a million tokens is half of it; a line without end must not fill the memory.
_MOST_BYTES = 1 << 24
_FIELDS = {"data", "event", "id", "retry", "error"}


class Events:
    """Reads an answer piece by piece, in memory of at most one event.

    Attributes:
        done: Whether "[DONE]" has come.
        stray: What was no part of an answer.
    """

    def __init__(self) -> None:
        self.done = False
        self.stray = ""
        self._rest = bytearray()  # of a line whose end has not come
        self._data: list[str] = []  # lines of an event that is no JSON yet
        self._other: list[str] = []
        self._is_body = False  # these are the lines of one JSON text
        self._size = self._other_size = 0
        self._name = ""
        self._after_cr = False
        self._begun = False

    def feed(self, piece: bytes) -> list[dict[str, Any]]:
        """Takes in bytes, cut anywhere.

        Returns:
            The objects that they complete; an error, however it is sent, has the key "error".

        Raises:
            ValueError: If an event is no JSON object, or has no end: what the server did.
        """
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
            self._after_cr = False
        if not piece:
            return []
        # Not str.splitlines: U+2028 and its like stand unescaped in the JSON of completions.
        self._after_cr = piece.endswith(b"\r")
        *lines, last = re.split(rb"\r\n|\r|\n", piece)
        if lines:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        self._rest += last
        found = [value for line in lines for value in self._line(line)]
        self._size += len(piece)
        if lines and (found or not self._data):
            self._size = len(last) + self._other_size
        if self._size > _MOST_BYTES:
            raise ValueError(f"sends {_MOST_BYTES >> 20} MiB without the end of an event")
        return found

    def end(self) -> list[dict[str, Any]]:
        """Takes in that there is no more; otherwise as `feed`."""
        found = self._line(bytes(self._rest)) + self._dispatched()
        other = "\n".join(self._other)
        if self._is_body:
            return found + _objects(other)
        self.stray = self.stray or other
        return found

    def _line(self, line: bytes) -> list[dict[str, Any]]:
        if self.done:
            return []
        text = line.decode(errors="replace")
        if not self._begun:
            text = text.removeprefix("\ufeff")
            self._begun = bool(text)
        if not text:
            return self._dispatched()
        name, _, value = text.partition(":")
        if name in _FIELDS and not self._is_body:
            value = value.removeprefix(" ")
            if name == "event":
                self._name = value.strip()
            elif name == "error":
                return [{"error": _parsed(value, value)}]
            elif name == "data":
                return self._datum(value)
        elif text[0] == "{" and not self._is_body and (whole := _parsed(text)) is not None:
            return _objects(text, whole)
        elif text.strip() == "[DONE]":
            return self._datum(text)
        elif name:  # an empty one is a comment's
            self._is_body |= not self._other and text[0] in "{["
            self._other.append(text)
            self._other_size += len(line) + 64  # about what holding it takes
        return []

    def _datum(self, value: str) -> list[dict[str, Any]]:
        while value.startswith("data:"):  # some proxies say it twice
            value = value[5:].lstrip()
        if value.strip('" ').upper() == "[DONE]":
            found, self.done = self._dispatched(), True
            return found
        # Nearly always a whole object, and not all servers put a blank line after it.
        if not self._data and (whole := _parsed(value)) is not None:
            return self._named(_objects(value, whole))
        self._data.append(value)
        return []

    def _dispatched(self) -> list[dict[str, Any]]:
        text = "\n".join(self._data).strip()
        self._data = []
        found = self._named(_objects(text) if text and text != "null" else [])
        self._name = ""
        return found

    def _named(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._name.casefold() != "error":
            return found
        return [one if one.get("error") else {"error": one} for one in found]


def _parsed(text: str, otherwise: Any = None) -> Any:
    try:
        return json.loads(text)
    # A RecursionError is that of nesting without end.
    except (ValueError, RecursionError):
        return otherwise


def _objects(text: str, value: Any = None) -> list[dict[str, Any]]:
    if value is None and (value := _parsed(text)) is None:
        raise ValueError(f"answers with what is no JSON: {text}")
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in found):
        raise ValueError(f"answers with what is no JSON object: {text}")
    return found
