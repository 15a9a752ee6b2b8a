"""Records: the JSON objects of a file, one at a time, each knowing where it stands.

A file is either a JSON list of objects, walked by ijson, or JSON lines, parsed by orjson. Either
way only one record is in memory, so that the size of a file does not matter, and every complaint
about a record names the file, the record and the field.
"""

import json
import math
from collections.abc import Generator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from optscale_jax.errors import RecordError

try:
    from orjson import loads as _fast_loads
except ImportError:  # an optional extra; the standard library reads the same, more slowly
    _fast_loads = json.loads

__all__ = ["Record", "open_file", "read_records", "shown"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLOCK = 1 << 16
# What Python's json module writes for numbers that JSON does not have.
_NOT_NUMBERS = (b"NaN", b"Infinity")


class _Digits(float):
    """A number that prints as it was written: 1e16 and 0.10, not 1e+16 and 0.1."""

    text: str

    def __new__(cls, text: str) -> "_Digits":
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


class Record(NamedTuple):
    """One object of a file.

    A field is named by its path, `("score", "scores", 0)` for `score.scores[0]`.

    Attributes:
        source: The file.
        place: "record 3" of a list, counted from 0 as the indices of the fields are, or "line 4",
            counted from 1 as editors do.
        value: The object.
        line: What it was read from, for the digits of numbers; empty where it is not one line.
    """

    source: str
    place: str
    value: dict[str, Any]
    line: bytes = b""

    def error(self, *path: str | int, says: str) -> RecordError:
        """Makes the complaint about a field, to be raised.

        Args:
            path: The field; empty for the record itself.
            says: What is wrong and what to do, after the field's name.

        Returns:
            The error, whose message is one line.
        """
        # A value that is quoted may hold line ends; the message stays one line.
        says = " ".join(says.split())
        name = f" {_field_name(path)}" if path else ""
        return RecordError(f"{self.source}: {self.place}:{name} {says}")

    def get(self, *path: str | int) -> Any:
        """Gets a field.

        Args:
            path: The field.

        Returns:
            Its value.

        Raises:
            RecordError: If it, or a field on the way to it, is missing.
        """
        value: Any = self.value
        for depth, key in enumerate(path):
            holds = isinstance(value, list) if isinstance(key, int) else isinstance(value, dict)
            if not holds:
                wanted = "a list" if isinstance(key, int) else "an object"
                raise self.error(*path[:depth], says=f"is {shown(value)}; it must be {wanted}")
            if isinstance(key, int):
                if key >= len(value):
                    raise self.error(
                        *path[:depth], says=f"has {len(value)} entries; it needs {key + 1}"
                    )
            elif key not in value:
                has = ", ".join(value) or "none"
                raise self.error(says=f"no field {_field_name(path[: depth + 1])!r} (it has {has})")
            value = value[key]
        return value

    def items(self, *path: str | int) -> list[Any]:
        """Gets a field that is a list.

        Args:
            path: The field.

        Returns:
            Its value.

        Raises:
            RecordError: If it is missing or not a list.
        """
        value = self.get(*path)
        if not isinstance(value, list):
            raise self.error(*path, says=f"is {shown(value)}; it must be a list")
        return value

    def texts(self, *path: str | int) -> list[str]:
        """Gets a field that is a list of strings.

        Args:
            path: The field.

        Returns:
            Its value.

        Raises:
            RecordError: If it is missing, is not a list, or if an entry is not a string.
        """
        values = self.items(*path)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(*path, index, says=f"is {shown(value)}; it must be a string")
        return values

    def label(self, *path: str | int) -> str:
        """Gets a field that is an answer or a name: a number, or a string that is not blank.

        Args:
            path: The field.

        Returns:
            Its text; a number's as the file writes it.

        Raises:
            RecordError: If it is missing, null, blank, or neither a string nor a number.
        """
        value = self.get(*path)
        if isinstance(value, float) and self.line:
            written = json.loads(self.line, parse_float=_Digits, parse_int=_Digits)
            value = self._replace(value=written, line=b"").get(*path)
        if _is_number(value) or (isinstance(value, str) and value.strip()):
            return str(value)
        raise self.error(
            *path, says=f"is {shown(value)}; it must be a string that is not blank, or a number"
        )

    def scores(self, *path: str | int, clip: bool = False) -> Float64[np.ndarray, " completions"]:
        """Gets a field that is a list of scores.

        Args:
            path: The field.
            clip: Move scores outside [0, 1] to the nearer end instead of refusing them.

        Returns:
            [N] the scores.

        Raises:
            RecordError: If it is missing, is not a list, or if an entry is not a number, is NaN or
                infinite, or lies outside [0, 1].
        """
        values = self.items(*path)
        for index, value in enumerate(values):
            self._check_score(value, clip, *path, index)
        return np.clip(np.array(values, np.float64), 0.0, 1.0)

    def score(self, *path: str | int, clip: bool = False) -> float:
        """Gets a field that is one score; see `scores`.

        Args:
            path: The field.
            clip: Move a score outside [0, 1] to the nearer end instead of refusing it.

        Returns:
            The score.

        Raises:
            RecordError: As `scores`.
        """
        value = self.get(*path)
        self._check_score(value, clip, *path)
        return min(max(float(value), 0.0), 1.0)

    def lengths(self, *path: str | int) -> Int64[np.ndarray, " completions"]:
        """Gets a field that is a list of lengths in tokens.

        Args:
            path: The field.

        Returns:
            [N] the lengths, -1 = unknown.

        Raises:
            RecordError: If it is missing, is not a list, or if an entry is not a whole number of at
                least 0, nor -1.
        """
        values = self.items(*path)
        for index in range(len(values)):
            self.length(*path, index)
        return np.array(values, np.int64)

    def length(self, *path: str | int) -> int:
        """Gets a field that is one length in tokens; see `lengths`.

        Args:
            path: The field.

        Returns:
            The length, -1 = unknown.

        Raises:
            RecordError: As `lengths`.
        """
        value = self.get(*path)
        whole = _is_number(value) and math.isfinite(value) and value == int(value)
        if not whole or not -1 <= value <= np.iinfo(np.int32).max:
            raise self.error(
                *path, says=f"is {shown(value)}; give a number of tokens, or -1 for unknown"
            )
        return int(value)

    def same_length(self, reference: tuple[str | int, ...], *others: tuple[str | int, ...]) -> None:
        """Checks that lists have one entry a completion.

        Args:
            reference: The field that holds the completions.
            others: The fields that must be as long.

        Raises:
            RecordError: If one is not, or if there are no completions.
        """
        expected = len(self.items(*reference))
        if expected == 0:
            raise self.error(*reference, says="is empty; leave out a problem without completions")
        for other in others:
            found = len(self.items(*other))
            if found != expected:
                raise self.error(
                    *other,
                    says=f"has {found} entries but {_field_name(reference)} has {expected}; there "
                    "must be one a completion",
                )

    def _check_score(self, value: Any, clip: bool, *path: str | int) -> None:
        if not _is_number(value):
            raise self.error(*path, says=f"is {shown(value)}; a score must be a number")
        if not math.isfinite(value):
            raise self.error(
                *path, says=f"is {value}; score every completion with a number in [0, 1]"
            )
        # As float32, which is what a pool keeps: 1 + 1e-12 is a rounded 1, not an error.
        if not clip and not 0.0 <= np.float32(value) <= 1.0:
            raise self.error(
                *path,
                says=f"is {value}; scores are in [0, 1]; rescale them, or move them to the nearer "
                "end with clip=True",
            )


def open_file(path: Path) -> IO[bytes]:
    """Opens a file for reading, past its byte order mark if it has one.

    Args:
        path: The file.

    Returns:
        The open file; the caller closes it.

    Raises:
        RecordError: If it is missing, is a folder, or cannot be read.
    """
    if not path.exists():
        raise RecordError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise RecordError(f"{path}: a folder; give a file in it")
    try:
        file = open(path, "rb")  # noqa: SIM115 (the caller's with closes it)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    if not file.seekable():
        file.close()
        raise RecordError(f"{path}: a pipe, which cannot be read twice; give the path of a file")
    if file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
        file.seek(0)
    return file


def read_records(path: Path) -> Generator[Record, None, None]:
    """Reads the objects of a JSON list, or of JSON lines, one at a time.

    Args:
        path: The file.

    Yields:
        The records, in the file's order.

    Raises:
        RecordError: If the file cannot be read, is empty, is not JSON, is cut short, holds anything
            but objects, or is a list while ijson is not installed.
    """
    with open_file(path) as file:
        start = file.tell()
        head = file.read(_BLOCK).split(maxsplit=1)
        file.seek(start)
        if not head:
            raise RecordError(f"{path}: the file is empty; copy or make it again")
        if head[0].startswith(b"["):
            # yajl would build the path of "[[[[..." in the square of its depth.
            if b"".join(head)[:64].startswith(b"[["):
                raise RecordError(f"{path}: a list of lists; it must be a list of objects")
            records = _list_records(path, file)
        else:
            records = _line_records(path, file)
        yield from records


def _line_records(path: Path, file: IO[bytes]) -> Generator[Record, None, None]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = _loads(line)
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError):
                reason = f"{error.msg} at column {error.colno}"
            else:
                reason = str(error)
            # Only the last line can lack its end, and only if the file or its last write was cut.
            remedy = "write one object a line"
            if not line.endswith(b"\n"):
                remedy = "the file ends here, cut short: copy or make it again"
            raise RecordError(f"{path}: line {number}: not JSON ({reason}); {remedy}") from error
        if not isinstance(value, dict):
            raise RecordError(f"{path}: line {number}: {shown(value)}; it must be a JSON object")
        yield Record(str(path), f"line {number}", value, line)


def _loads(line: bytes) -> Any:
    try:
        return _fast_loads(line)
    except ValueError:
        # orjson keeps to the standard; Python's writer does not, so a line may hold NaN in a field
        # that nobody reads. Where it is read, the complaint names the field.
        return json.loads(line)


def _list_records(path: Path, file: IO[bytes]) -> Generator[Record, None, None]:
    try:
        import ijson
    except ImportError as error:
        raise RecordError(
            f"{path}: a JSON list is read with ijson, which is not installed; "
            "pip install 'optscale-jax[readers]'"
        ) from error
    blocks = _Blocks(file)
    number = 0
    try:
        # Not use_float, which refuses integers of more than 64 bits.
        for value in ijson.items(blocks, "item", buf_size=_BLOCK):
            if not isinstance(value, dict):
                raise RecordError(
                    f"{path}: record {number}: {shown(value)}; it must be a JSON object"
                )
            _keep_digits(value)
            yield Record(str(path), f"record {number}", value)
            number += 1
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise _broken(path, blocks.start) from error


def _keep_digits(record: dict[str, Any]) -> None:
    """Makes ijson's decimals numbers that print as they do."""
    held: list[Any] = [record]
    while held:  # not recursion: a file may nest as deep as it likes
        value = held.pop()
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(each, Decimal):
                value[key] = _Digits(str(each))
            elif isinstance(each, dict | list):
                held.append(each)


class _Blocks:
    """A file that remembers where the block that it gave last begins.

    Up to `slow_from` it gives what is asked for; from there on single bytes, so that a parser stops
    exactly where the text stops making sense.
    """

    def __init__(self, file: IO[bytes], slow_from: int | None = None):
        self.file = file
        self.start = self.end = file.tell()
        self.slow_from = slow_from
        self.ended = False

    def read(self, size: int = -1) -> bytes:
        if self.slow_from is not None:
            size = min(size, max(self.slow_from - self.end, 1))
        block = self.file.read(size)
        if block:
            self.start, self.end = self.end, self.end + len(block)
        # ijson asks for nothing first, to see whether the file holds bytes.
        self.ended |= not block and size != 0
        return block


def _broken(path: Path, start: int) -> RecordError:
    """Says where and why a list is not JSON, by walking it again up to the failing block."""
    import ijson

    # The place is a stack: a key in an object, the index of the last entry begun in a list.
    place: list[str | int] = []
    with open_file(path) as file:
        blocks = _Blocks(file, slow_from=start)
        try:
            for event, value in ijson.basic_parse(blocks, buf_size=_BLOCK):
                if event == "map_key":
                    place[-1] = value
                    continue
                if event in ("end_map", "end_array"):
                    place.pop()
                    continue
                if place and isinstance(place[-1], int):
                    place[-1] += 1
                if event in ("start_map", "start_array"):
                    place.append("" if event == "start_map" else -1)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            reason = error.args[0]
            # yajl's own words, as bytes where they quote what is not UTF-8.
            reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(error)
            reason = reason.partition("\n")[0]
        else:
            reason = "it changed while it was read"
        file.seek(max(blocks.start - 1, 0))
        near = file.read(40)

    if not place:
        return RecordError(f"{path}: after the list: not JSON ({reason}); remove what follows it")
    entry = place[-1]
    if isinstance(entry, int):
        place[-1] = entry + 1
    elif entry == "":
        place.pop()
    where = f"{path}: record {place[0]}"
    field = f": {_field_name(place[1:])}" if len(place) > 1 else ""
    # At the end yajl complains of whatever is unfinished: an escape, a number, a list.
    if blocks.ended:
        return RecordError(
            f"{where}{field}: the file ends here; it is cut short: copy or make it again"
        )
    for name in _NOT_NUMBERS:
        if name in near[: len(name) + 1]:
            return RecordError(
                f"{where}{field} is {name.decode()}, which is not JSON; score every completion "
                "with a number in [0, 1]"
            )
    shown = near.decode(errors="replace").split("\n")[0]
    return RecordError(f"{where}{field}: not JSON near {shown!r} ({reason})")


def _field_name(path: Sequence[str | int]) -> str:
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return name.removeprefix(".")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """Writes a value for a message: in JSON's words, and short.

    Args:
        value: What a JSON file holds.

    Returns:
        A few words.
    """
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
