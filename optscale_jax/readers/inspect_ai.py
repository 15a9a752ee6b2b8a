"""Logs of inspect_ai, `.eval` archives and `.json` files; inspect_ai itself is not needed."""

import importlib
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optscale_jax.answers import Equal, Extract, answers_equal, extract_answer
from optscale_jax.derived_signals import derived_signals
from optscale_jax.errors import InputError, RecordError
from optscale_jax.files import refuse_bomb
from optscale_jax.pool import Pool, Rescale
from optscale_jax.readers.layouts import (
    ANSWERS,
    Row,
    choice_logprob,
    golds,
    parts_text,
    pool_of_rows,
)
from optscale_jax.readers.records import Record, parse_record, read_records, shown
from optscale_jax.records import finish_reason

__all__ = ["GRADES", "read_inspect"]

GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""The numbers that inspect_ai's own metrics take its grades for."""
_ZSTANDARD = 93


def read_inspect(
    path: str | os.PathLike[str],
    *,
    metric: str | None = None,
    scores: str | None = None,
    clip: bool = False,
    rescale: Rescale | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
) -> Pool:
    """Reads the samples of a log: one problem a sample, one completion an epoch.

    Args:
        path: The log. A `.json` log is in memory as a whole, an archive one sample at a time.
        metric: The scorer whose grades say what is correct: C is; I, N and P, which is half right,
            are not; 1 and true are, 0 and false are not. None: the only scorer with such grades;
            "answers": compare answers with the target.
        scores: The scorer whose values are the verifier's scores, or "logprob" for exp of the mean
            log-probability. None: no scores.
        clip: Move scores outside [0, 1] to the nearer end instead of refusing them.
        rescale: How to bring scores of any range into [0, 1], one of `Rescale`.
        extract: From a completion's text to its answer, where the scorer has not said it.
        equal: Whether two answers are the same.

    Returns:
        The pool. A sample that ended in an error or was not scored is left out, with a warning.

    Raises:
        InputError: If the log cannot be read, or several scorers could be meant.

    References:
        https://inspect.aisi.org.uk/eval-logs.html
    """
    path = Path(path)
    kept = None if rescale else clip
    rows = (_row(record, metric, scores, kept) for record in _samples(path))
    return pool_of_rows(rows, source=str(path), rescale=rescale, extract=extract, equal=equal)


def _samples(path: Path) -> Iterator[Record]:
    """The samples, those of the first epoch first."""
    if not zipfile.is_zipfile(path):
        for log in read_records(path):
            found = [
                Record(log.source, f"samples[{index}]", record)
                for index, record in enumerate(log.items("samples"))
                if isinstance(record, dict) or log.error("samples", index, says="is no object")
            ]
            yield from sorted(found, key=_epoch)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            # A sample that was written twice counts as it was written last.
            members = {info.filename: info for info in archive.infolist()}
            names = [name for name in members if re.fullmatch(r"samples/.*\.json", name)]
            for name in sorted(names, key=_epoch_of_name):
                yield parse_record(path, name, _read(archive, members[name], path))
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise RecordError(f"{path}: a damaged archive ({error}); copy or make it again") from error


def _epoch(record: Record) -> int:
    return record.whole("epoch", least=1, says="give the sample's epoch")


def _epoch_of_name(name: str) -> int:
    found = re.search(r"_epoch_(\d{1,9})\.json$", name)
    return int(found[1]) if found else 1


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> bytes:
    refuse_bomb(f"{path}: {member.filename}", member.file_size, member.compress_size)
    try:
        if member.compress_type == _ZSTANDARD and not hasattr(zipfile, "ZIP_ZSTANDARD"):
            importlib.import_module("zipfile_zstd")  # has zipfile read it
        return archive.read(member)
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise RecordError(
            f"{path}: {member.filename} is packed in a way that cannot be read here ({error}); pip "
            "install 'optscale-jax[readers]', or inspect log convert"
        ) from error


def _row(record: Record, metric: str | None, scores: str | None, clip: bool | None) -> Row | str:
    name = record.label("id")
    if record.value.get("error"):
        return f"sample {name!r}, epoch {_epoch(record)}, ended in an error"
    first = ("output", "choices", 0)
    if not record.items("output", "choices"):
        return f"sample {name!r}, epoch {_epoch(record)}, has no output"
    text = parts_text(record, *first, "message", "content")
    given = record.value.get("scores") or {}
    if not isinstance(given, dict):
        raise record.error("scores", says=f"is {shown(given)}; it must be an object")
    grades = {scorer: _grade(record, scorer) for scorer in given if scorer != scores}
    graded = [metric] if metric else [s for s, g in grades.items() if g in (0.0, 0.5, 1.0)]
    if metric not in (None, ANSWERS):
        record.get("scores", metric)
    elif len(graded) > 1:
        raise record.error(
            "scores", says=f"has several scorers ({', '.join(graded)}); name one as metric"
        )
    columns: dict[str, Any] = {}
    answers: list[str | None] | None = None
    if graded and metric != ANSWERS:
        grade = grades.get(graded[0], math.nan)
        if math.isnan(grade):
            return f"sample {name!r}, epoch {_epoch(record)}, was not graded by {graded[0]}"
        if grade not in (0.0, 0.5, 1.0):
            raise record.error(
                "scores", graded[0], "value", says=f"is {grade}; a grade is C, I, P, N, 1 or 0"
            )
        columns["correct"] = [grade == 1.0]
        said = given[graded[0]].get("answer")
        # A judge quotes the completion in the place of an answer.
        if isinstance(said, str) and said.strip() and said != text:
            answers = [said]
    mean, ended = choice_logprob(record.get(*first)), record.get(*first).get("stop_reason")
    finished = finish_reason(ended) == "stop" if ended is not None else None
    columns["signals"] = [derived_signals(mean_logprob=mean, finished=finished)]
    if scores == "logprob":
        if mean is None:
            raise record.error(*first, says="has no log-probabilities; leave out scores=logprob")
        columns["scores"] = [math.exp(mean)]
    elif scores is not None:
        columns["scores"] = [record.score("scores", scores, "value", clip=clip)]
    usage = record.get("output").get("usage")
    if isinstance(usage, dict) and usage.get("output_tokens") is not None:
        columns["tokens"] = [record.length("output", "usage", "output_tokens")]
    target = golds(record, "target") if record.value.get("target") not in (None, "", []) else []
    return Row(
        record, name, None, target, [text], answers, [finish_reason(ended) != "error"], columns
    )


def _grade(record: Record, scorer: str) -> float:
    """A scorer's value as inspect_ai's own metrics take it; NaN where it is no grade."""
    value = record.get("scores", scorer, "value")
    if isinstance(value, str):
        return GRADES.get(value.upper() if len(value) == 1 else value, math.nan)
    return record.score("scores", scorer, "value", clip=None) if _finite(value) else math.nan


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e308
