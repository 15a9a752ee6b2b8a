"""Records: the JSON objects of a file, one at a time, each knowing where it stands.

A file is a JSON list of objects, JSON lines, one object over many lines, or a Parquet table; any of
the texts may be packed by gzip. A path is a file, a folder with the parts of one data set, or
`hf://OWNER/NAME` for one on the hub. Only one record is in memory, so that the size of a file does
not matter, and every complaint about a record names the file, the record and the field.

What would take time or memory out of proportion is refused before it is parsed: text nested
deeper than `_DEEPEST`, a record larger than `_LARGEST`, a file that unpacks out of proportion. Half
of a surrogate pair, which stands for no character, is read as U+FFFD.
"""

import contextlib
import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Float64, Int64

from optscale_jax.derived_signals import LARGEST
from optscale_jax.errors import RecordError
from optscale_jax.files import refuse_bomb
from optscale_jax.hub import POOL_FILE, is_name, local

try:
    from orjson import loads as _fast_loads
except ImportError:  # an optional extra; the standard library reads the same, more slowly
    _fast_loads = json.loads

__all__ = [
    "Record",
    "are_numbers",
    "data_files",
    "data_path",
    "open_file",
    "parse_record",
    "read_records",
    "shown",
]

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLOCK = 1 << 16
_DEEPEST = 256
_LARGEST = 1 << 29
_DATA = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
_PART = re.compile(r"[-_](\d{5}-of-\d{5}|rs\d+|chunk_?\d+)|(\.(jsonl|json|parquet|gz))+$")


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
        line: What it was read from, for the digits of numbers; empty for a row of a table.
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
            with contextlib.suppress(ValueError):  # an integer with too many digits for Python
                return str(value)
        raise self.error(
            *path, says=f"is {shown(value)}; it must be a string that is not blank, or a number"
        )

    def scores(
        self, *path: str | int, clip: bool | None = False
    ) -> Float64[np.ndarray, " completions"]:
        """Gets a field that is a list of scores.

        Args:
            path: The field.
            clip: Move scores outside [0, 1] to the nearer end instead of refusing them; None: leave
                them as they are.

        Returns:
            [N] the scores.

        Raises:
            RecordError: If it is missing, is not a list, or if an entry is not a number, is NaN or
                infinite, or lies outside [0, 1].
        """
        count = len(self.items(*path))
        return np.array([self.score(*path, i, clip=clip) for i in range(count)], np.float64)

    def score(self, *path: str | int, clip: bool | None = False) -> float:
        """Gets a field that is one score; see `scores`.

        Args:
            path: The field.
            clip: As for `scores`.

        Returns:
            The score.

        Raises:
            RecordError: As `scores`.
        """
        value = self.get(*path)
        if not _is_number(value):
            raise self.error(*path, says=f"is {shown(value)}; a score must be a number")
        number = _float(value)
        if not math.isfinite(number):
            remedy = "score every completion with a number in [0, 1]"
            raise self.error(*path, says=f"is {shown(value)}; {remedy}")
        if clip is None:
            return number
        # As float32, which is what a pool keeps: 1 + 1e-12 is a rounded 1, not an error.
        with np.errstate(over="ignore"):
            inside = 0.0 <= np.float32(number) <= 1.0
        if not clip and not inside:
            raise self.error(
                *path,
                says=f"is {shown(value)}; scores are in [0, 1]; rescale them (--rescale rank), or "
                "move them to the nearer end (--clip true)",
            )
        return min(max(number, 0.0), 1.0)

    def signals(self, *path: str | int) -> dict[str, float]:
        """Gets a field that is an object of signals by name.

        Args:
            path: The field.

        Returns:
            Them, NaN for null.

        Raises:
            RecordError: If it is missing, or one is neither null nor a number that float32 holds.
        """
        held = self.get(*path)
        if not isinstance(held, dict):
            raise self.error(*path, says=f"is {shown(held)}; it must be an object")
        for name, value in held.items():
            if value is not None and not (_is_number(value) and abs(value) <= LARGEST):
                says = f"is {shown(value)}; a signal is a finite number, or null for not known"
                raise self.error(*path, name, says=says)
        return {name: math.nan if value is None else float(value) for name, value in held.items()}

    def whole(self, *path: str | int, least: int, says: str) -> int:
        """Gets a field that is an integer, of at most 31 bits.

        Args:
            path: The field.
            least: The least that it may be.
            says: What it has to be, for the complaint.

        Returns:
            The integer.

        Raises:
            RecordError: If it is missing or is not such a number.
        """
        value = self.get(*path)
        number = _float(value) if _is_number(value) else math.nan
        if not (math.isfinite(number) and number == int(number)):
            raise self.error(*path, says=f"is {shown(value)}; {says}")
        if not least <= number <= np.iinfo(np.int32).max:
            wanted = f"at least {least}" if number < least else f"at most {np.iinfo(np.int32).max}"
            raise self.error(*path, says=f"is {shown(value)}; it must be {wanted}; {says}")
        return int(value)

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
        return self.whole(*path, least=-1, says="give a number of tokens, or -1 for unknown")

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


def data_path(path: str | os.PathLike[str]) -> Path:
    """Finds the file or folder that a path names, downloading a data set of the Hugging Face hub.

    Args:
        path: A path; `package:NAME/PATH`; or `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION/FILES`.

    Returns:
        The path; of a data set, the folder where the hub's library keeps it, or the pool in it that
        `optscale push` put there.

    Raises:
        InputError: If the data set cannot be had.
    """
    found = local(path, kind="dataset", files=[POOL_FILE, *(f"*{end}" for end in _DATA)])
    pushed = is_name(path) and (found / POOL_FILE).is_file()
    return found / POOL_FILE if pushed else found


def data_files(path: Path) -> list[Path]:
    """Lists the files that a path stands for.

    Args:
        path: A file, a folder, or a pattern such as `data/test-*`.

    Returns:
        The file; or those of the folder, if they are the parts of one whole: `-00001-of-00004` as
        on the hub, `-rs1` as NeMo-Skills names its seeds.

    Raises:
        RecordError: If there is none, or more than one whole.
    """
    if "*" in path.name and not path.exists():
        found = list(path.parent.glob(path.name))
    elif path.is_dir():
        found = list(path.rglob("*"))
    else:
        return [path]
    wholes: dict[str, list[Path]] = {}
    for file in found:
        inside = file.relative_to(path if path.is_dir() else path.parent)
        if file.name.endswith(_DATA) and not inside.name.startswith((".", "dataset_info", "state")):
            wholes.setdefault(_PART.sub("", str(inside)), []).append(file)
    if not wholes:
        raise RecordError(f"{path}: a folder without a file that ends in {', '.join(_DATA)}")
    if len(wholes) > 1:
        names = ", ".join(sorted(wholes)[:20])
        raise RecordError(f"{path}: a folder with several data sets ({names}); give one's path")
    (files,) = wholes.values()
    # Part 10 comes after part 9.
    return sorted(files, key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)])


def open_file(path: Path) -> io.BufferedIOBase:
    """Opens a file for reading, unpacked if it is gzip's, past its byte order mark if it has one.

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
        file: io.BufferedIOBase = open(path, "rb")  # noqa: SIM115 (the caller's with closes it)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    if not file.seekable():
        file.close()
        raise RecordError(f"{path}: a pipe, which cannot be read twice; give the path of a file")
    if file.read(2) == _GZIP:
        file.close()
        file = _Gzip(path)
    file.seek(0)
    with _reading(path):
        mark = file.read(len(_BYTE_ORDER_MARK))
        if mark[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise RecordError(f"{path}: UTF-16; save it as UTF-8")
        if mark != _BYTE_ORDER_MARK:
            file.seek(0)
    return file


class _Gzip(gzip.GzipFile):
    """A gzip file that ends, with a complaint, where it unpacks out of proportion."""

    def __init__(self, path: Path):
        super().__init__(path, "rb")
        self.path, self.packed = path, path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        return self._seen(super().read(size))

    def readline(self, size: int | None = -1) -> bytes:
        return self._seen(super().readline(-1 if size is None else size))

    def _seen(self, data: bytes) -> bytes:
        refuse_bomb(str(self.path), self.tell(), self.packed)
        return data


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise RecordError(
            f"{path}: cannot be read ({error}); it is damaged or cut short: copy or make it again"
        ) from error


def read_records(path: str | os.PathLike[str]) -> Generator[Record, None, None]:
    """Reads the objects of a file, of a folder's files, or of a data set, one at a time.

    Args:
        path: As for `data_path` and `data_files`.

    Yields:
        The records, in the file's order.

    Raises:
        RecordError: If a file cannot be read, is empty, is not JSON, is cut short, holds anything
            but objects, or is out of proportion.
    """
    for file in data_files(data_path(path)):
        yield from _file_records(file)


def _file_records(path: Path) -> Iterator[Record]:
    with open_file(path) as file, _reading(path):
        start = file.tell()
        head = file.read(_BLOCK).lstrip()
        file.seek(start)
        if not head:
            raise RecordError(f"{path}: the file is empty; copy or make it again")
        if head.startswith(_PARQUET):
            yield from _rows(path)
        elif head.startswith(b"["):
            yield from _split(path, file, 1)
        elif head.partition(b"\n")[0].rstrip()[-1:] in b"{[,":
            yield from _split(path, file, 0)
        else:
            yield from _lines(path, file)


def _lines(path: Path, file: io.BufferedIOBase) -> Iterator[Record]:
    for number, line in enumerate(iter(lambda: file.readline(_LARGEST + 1), b""), 1):
        if len(line) > _LARGEST:
            raise RecordError(f"{path}: line {number}: more than {_LARGEST} bytes; split it")
        if line.strip():
            # Only the last line can lack its end, and only if the file or its last write was cut.
            yield parse_record(path, f"line {number}", line, cut=not line.endswith(b"\n"))


# What decides where an object ends: quotes, and brackets with how they change the depth.
_QUOTE = ord('"')
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"{[")], _STEPS[list(b"}]")] = 1, -1
_MARKS = _STEPS != 0
_MARKS[_QUOTE] = True


def _split(path: Path, file: io.BufferedIOBase, base: int) -> Iterator[Record]:
    """Reads what a list holds (`base` 1), or objects one after the other (0), as records."""
    held, depth, quoted, number = bytearray(), 0, 0, 0
    while block := file.read(_BLOCK):
        while block.endswith(b"\\") and (more := file.read(1)):  # never between it and its letter
            block += more
        text = np.frombuffer(block.replace(b"\\\\", b"__").replace(b'\\"', b"__"), np.uint8)
        at = np.flatnonzero(_MARKS[text])
        quote = text[at] == _QUOTE
        quotes = np.cumsum(quote) + quoted
        steps = np.where(quotes % 2, 0, _STEPS[text[at]])
        depths = depth + np.cumsum(steps)
        offset, cut = len(held), 0
        held += block
        for end in at[(steps < 0) & (depths == base)].tolist():
            piece = bytes(held[cut : offset + end + 1]).strip()
            cut = offset + end + 1
            lead = b"" if base == 0 else b"," if number else b"["
            yield parse_record(path, f"record {number}", piece.removeprefix(lead).lstrip())
            number += 1
        del held[:cut]
        if depths.max(initial=0) > _DEEPEST or len(held) > _LARGEST:
            what = (
                f"nested deeper than {_DEEPEST}" if len(held) <= _LARGEST else "too large to read"
            )
            raise RecordError(f"{path}: record {number}: {what}; no completions are")
        if len(at):
            depth, quoted = int(depths[-1]), int(quotes[-1]) % 2
    rest = bytes(held).strip()
    if depth > 0 or quoted:
        if number or base:
            rest = rest.removeprefix(b"," if number else b"[").lstrip()
        parse_record(path, f"record {number}", rest, cut=True)
    elif base and not number and rest.startswith(b"[") and rest.endswith(b"]"):
        if rest[1:-1].strip():
            parse_record(path, "record 0", rest[1:-1].partition(b",")[0])
    elif rest != b"]" * base:
        near = rest[base:][:40].decode(errors="replace")
        raise RecordError(
            f"{path}: after the {'list' if base else 'last object'}: not JSON near {near!r}; "
            "remove what follows it"
        )


def _rows(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RecordError(f"{path}: pip install 'optscale-jax[readers]' to read Parquet") from error
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                yield Record(str(path), f"row {number}", row)
                number += 1
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecordError(
            f"{path}: row {number}: not Parquet ({reason}); copy or make it again"
        ) from error


def parse_record(path: Path, place: str, raw: bytes, *, cut: bool = False) -> Record:
    """Parses one object.

    Args:
        path: The file.
        place: Where in it.
        raw: The text.
        cut: Whether the file ends with it, which then explains a failure.

    Returns:
        The record.

    Raises:
        RecordError: If it is not JSON, or no object.
    """
    try:
        value = _loads(raw)
    except (ValueError, RecursionError) as error:
        if isinstance(error, RecursionError) or "ecursion" in str(error):
            raise RecordError(f"{path}: {place}: nested too deep; no completions are") from error
        text = raw.decode(errors="replace")
        stop, reason = len(text), str(error)
        if isinstance(error, json.JSONDecodeError):
            stop, reason = error.pos, error.msg
        elif isinstance(error, UnicodeDecodeError):
            stop, reason = len(raw[: error.start].decode(errors="replace")), "it is not UTF-8"
        field = _field_name(_path_at(text if cut else text[:stop]))
        where = f"{path}: {place}: {field}".rstrip(": ")
        if cut:
            raise RecordError(
                f"{where}: the file ends here; it is cut short: copy or make it again"
            ) from error
        near = text[max(stop - 1, 0) : stop + 40].split("\n")[0]
        raise RecordError(
            f"{where}: not JSON near {near!r} ({reason}); write one object a line, "
            "or a list of them"
        ) from error
    if not isinstance(value, dict):
        raise RecordError(f"{path}: {place}: {shown(value)}; it must be a JSON object")
    return Record(str(path), place, value, raw)


# A pair of escapes is one character; a half that stands alone is none, and cannot be written again.
_SURROGATES = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def _loads(raw: bytes) -> Any:
    try:
        return _fast_loads(raw)
    except ValueError:
        # orjson keeps to the standard; Python's writer does not, so a line may hold NaN in a field
        # that nobody reads. Where it is read, the complaint names the field.
        text = _SURROGATES.sub(lambda m: "\\ufffd" if m["half"] else m[0], raw.decode())
        return json.loads(text)


_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]')


def _path_at(text: str) -> list[str | int]:
    """The field in which the beginning of an object ends."""
    path: list[str | int] = []
    last = ""
    for match in _TOKENS.finditer(text):
        token = match[0]
        if token in "{[":
            path.append("" if token == "{" else 0)
        elif not path:
            continue
        elif token in "}]":
            path.pop()
        elif token == ",":
            path[-1] = path[-1] + 1 if isinstance(path[-1], int) else ""
        elif token == ":" and isinstance(path[-1], str):
            path[-1] = last
        elif token.startswith('"'):
            last = token[1:-1]
    return path[: path.index("")] if "" in path else path


def _field_name(path: Sequence[str | int]) -> str:
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return name.removeprefix(".")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def are_numbers(value: Any) -> TypeGuard[list[float | int]]:
    """Whether it is a list of numbers."""
    return isinstance(value, list) and all(map(_is_number, value))


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
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return str(value).lower() if isinstance(value, bool) else str(value)[:60]
