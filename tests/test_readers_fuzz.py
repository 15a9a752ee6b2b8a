"""Damaged files of every format are read or refused in one line, in bounded time and memory.

FUZZ=5000 python -m pytest tests/test_readers_fuzz.py -n 0
"""

import contextlib
import copy
import gzip
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import traceback
import warnings
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from optscale_jax.errors import InputError, PoolWarning
from optscale_jax.readers import detect_format, read_pool
from tests.test_readers import FORMS, Truth, inspect_sample

COUNT = int(os.environ.get("FUZZ", "40"))
SECONDS, BYTES = 20, 2 << 30
DEEP = json.loads("[" * 300 + "]" * 300)
ODD = [
    *(None, True, 0, -1, 7, 0.5, -2.5, 1e300, math.nan, math.inf, 2**31, 2**63, 2**64, 10**400),
    *("", " ", "6", "q", "C", "\ud800", "\x00\u2028", "9" * 5000, "\\boxed{" * 99, "x" * 9999),
    *([], {}, [[]], [{}], [None], ["6", 7], {"a": None}, [[0.5], [0.5]], DEEP),
]
BITS = [b'"', b"[", b"{", b"}", b",", b"null", b"-1", b"NaN", b"\0", b"\xff", b"\n", b"\\ud800"]
BITS += [b"9" * 400, b"[" * 9999, b'{"a":' * 999, b"1e999", b"PK\3\4", b"\x1f\x8b", b"PAR1"]

small = Truth(2, 2)
lines = [
    {"problem_id": "p", "index": n, "score": 0.5, "answer": "6", "tokens": 9, "gold": "6"}
    for n in range(2)
]
epochs = [inspect_sample(1), inspect_sample(2)]


def npy(values):
    np.save(held := io.BytesIO(), np.asarray(values))
    return held.getvalue()


def parquet(records):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), held := io.BytesIO())
    return held.getvalue()


# Of each: its format, its files and how they are packed. A file is bytes or records, one a line.
FILES = {name: (name, {"f": records}, "file") for name, records in FORMS.items()} | {
    "npz": (
        "npz",
        {
            "scores.npy": npy([[0.5, 0.25]]),
            "answers.npy": npy([[0, 1]]),
            "tokens.npy": npy([[3, 4]]),
            "gold.npy": npy([0]),
            "kind.npy": npy("parallel"),
            "problem_ids.npy": npy(["p"]),
        },
        "zip",
    ),
    "jsonl": ("jsonl", {"f": lines}, "file"),
    "gzip": ("jsonl", {"f": lines}, "gzip"),
    "parquet": ("jsonl", {"f": lines}, "parquet"),
    "optscale": ("optscale", {"f": small.optscale()}, "file"),
    "search_and_learn": ("search_and_learn", {"f": small.search_and_learn()}, "file"),
    "lm_eval": ("lm_eval", {"f": small.lm_eval()}, "file"),
    "lm_eval folder": (
        "lm_eval",
        {f"samples_{task}_2026-01-01T00-00-00.1.jsonl": small.lm_eval() for task in "ab"},
        "folder",
    ),
    "inspect json": ("inspect_ai", {"f": [{"version": 2, "eval": {}, "samples": epochs}]}, "file"),
    "inspect eval": (
        "inspect_ai",
        {"header.json": [{}]} | {f"samples/1_epoch_{e['epoch']}.json": [e] for e in epochs},
        "zip",
    ),
    "live": (
        "live",
        {"samples.jsonl": lines, "decisions.jsonl": [{"problem_id": "p", "num_samples": 2}]},
        "folder",
    ),
}


def change(value, dice):
    """Drops, renames, retypes, doubles, nests or swaps something within a JSON value."""
    places = []

    def walk(held):
        for key, each in list(held.items() if isinstance(held, dict) else enumerate(held)):
            places.append((held, key))
            if isinstance(each, dict | list):
                walk(each)

    walk(value)
    if not places:
        return
    held, key = dice.choice(places)
    how = dice.randrange(6)
    if how == 0:
        del held[key]
    elif how == 1 and isinstance(held, dict):
        held[dice.choice([key + "s", key.title(), "", "\ud800", "id", "answer"])] = held.pop(key)
    elif how == 2:
        held[key] = dice.choice([[held[key]], {"a": held[key]}, [held[key]] * 3])
    elif how == 3:
        other, name = dice.choice(places)
        with contextlib.suppress(LookupError):
            held[key] = copy.deepcopy(other[name])
    else:
        held[key] = copy.deepcopy(dice.choice(ODD))


def damage(data, dice):
    data = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        start = dice.randrange(len(data) + 1)
        how = dice.randrange(4)
        if how == 0 and start < len(data):
            data[start] ^= 1 << dice.randrange(8)
        elif how == 1:
            data[start : start + dice.randrange(8)] = dice.choice(BITS)
        elif how == 2:
            data[start:start] = data[dice.randrange(len(data) + 1) :][: dice.randrange(200)]
        elif dice.random() < 0.4:
            del data[start:]
    return bytes(data)


def written(files, pack, dice, path):
    files = copy.deepcopy(files)
    name = dice.choice(list(files))
    if isinstance(files[name], list):
        for _ in range(dice.randint(0, 3)):
            change(files[name], dice)
    records = files[name]
    if pack == "parquet":
        files[name] = parquet(lines)  # where the records are no table
        errors = (pyarrow.ArrowException, ValueError, TypeError, ArithmeticError, AttributeError)
        with contextlib.suppress(*errors):
            files[name] = parquet(records)
    whole = dice.random() < 0.2
    for each, records in files.items():
        if isinstance(records, list):
            if whole and len(records) > 1:
                files[each] = json.dumps(records, indent=1).encode()
            else:
                files[each] = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    if dice.random() < 0.5:
        files[name] = damage(files[name], dice)
    if pack == "folder":
        path.mkdir()
        for each, data in files.items():
            (path / each).write_bytes(data)
        return
    data = files[name]
    if pack == "zip":
        kind = dice.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        with zipfile.ZipFile(held := io.BytesIO(), "w", kind) as archive:
            for each, content in files.items():
                archive.writestr(each, content)
        data = held.getvalue()
    if pack == "gzip":
        data = gzip.compress(data)
    if pack in ("zip", "gzip") and dice.random() < 0.3:
        data = damage(data, dice)
    path.write_bytes(data)


class Hang(BaseException):
    """Not to be taken for an error of the file."""


def hang(*_):
    raise Hang


@contextlib.contextmanager
def limits():
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_read_or_refused_in_one_line(name, tmp_path):
    format, files, pack = FILES[name]
    options = {"metric": "match", "scores": "judge"} if format == "inspect_ai" else {}
    faults, counts = {}, {"read": 0, "refused": 0}
    with limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore", PoolWarning)
        for number in range(-1, COUNT):
            dice = random.Random(f"{name} {number}")
            path = tmp_path / "file"
            written(files, pack, dice, path)
            signal.alarm(SECONDS)
            try:
                if dice.random() < 0.3:
                    detect_format(path)
                read_pool(path, format=format, **options)
                counts["read"] += 1
            except InputError as error:
                counts["refused"] += 1
                if len(str(error).splitlines()) != 1:
                    faults.setdefault(f"lines: {str(error)[:300]!r}", number)
            except (Hang, Exception):
                faults.setdefault("".join(traceback.format_exc().splitlines(True)[-7:]), number)
            signal.alarm(0)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not faults, "\n".join(f"file {number}: {what}" for what, number in faults.items())
    print(counts)
    assert min(counts.values()) > COUNT // 50
