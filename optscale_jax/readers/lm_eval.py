"""Sample logs of EleutherAI's lm-evaluation-harness (`lm-eval run --log_samples`) and lmms-eval."""

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from optscale_jax.answers import Equal, Extract, answers_equal, extract_answer
from optscale_jax.errors import PoolError, PoolWarning
from optscale_jax.pool import Pool
from optscale_jax.readers.builder import PoolBuilder
from optscale_jax.readers.layouts import ANSWERS, golds
from optscale_jax.readers.records import Record, read_records, shown

__all__ = ["read_lm_eval", "sample_logs"]

# What the harness's regular-expression filters put where nothing matches.
_NO_MATCH = "[invalid]"
_LOG = re.compile(
    r"samples_(?P<task>.+?)(?:_(?P<date>\d{4}-\d\d-\d\dT[\d:.-]+?))?\.jsonl?(?:\.gz)?"
)


def sample_logs(path: Path) -> dict[str, Path]:
    """The newest log of each task in a folder that the harness wrote, by task.

    Raises:
        PoolError: If runs of several models are there.
    """
    found: dict[str, Path] = {}
    dates: dict[str, str] = {}
    for file in sorted(path.rglob("samples_*")):
        log = _LOG.fullmatch(file.name)
        if log is None:
            continue
        task, date = log["task"], log["date"] or ""
        if task in found and found[task].parent != file.parent:
            raise PoolError(
                f"{path}: task {task} is in {found[task].parent.name} and {file.parent.name}; give "
                "the folder of one model"
            )
        if date >= dates.get(task, ""):
            found[task], dates[task] = file, date
    return found


def read_lm_eval(
    path: str | os.PathLike[str],
    *,
    task: str | None = None,
    filter: str | None = None,
    metric: str | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
) -> Pool:
    """Reads the samples of a task that generates text, or of several.

    A file has one line a document and filter; of each the reader takes `doc_id` (the problem's
    name), `target` (the right answer, bare or at the end of a worked solution; or a list, each of
    which is right) and `resps[0]`, the text of each of the task's `repeats`, which are the
    completions (`resps` itself in logs of lmms-eval). The harness keeps neither verifier scores nor
    lengths in tokens, so the pool has none.

    Args:
        path: The file; or the folder, of which the newest log of each task is read.
        task: The only task of a folder to read; None: all of them that generate text, the problems
            named TASK/DOCUMENT if there are several.
        filter: Take the answers from this filter's `filtered_resps[0]`, which must hold one a
            completion (a filter that ends in `take_first` or `majority_vote` does not). If None,
            `extract` reads them from the completions, and the lines of further filters, which
            repeat the same completions, are passed over. Logs of before November 2024 name none.
        metric: Take which completions are correct from this field, such as `exact_match` or `acc`:
            0 or 1, a list of them where there are several completions. If None, those are correct
            whose answer equals the target.
        extract: From a completion's text to its answer.
        equal: Whether two answers are the same.

    Returns:
        The pool; `scores` is None and all `tokens` are unknown.

    Raises:
        InputError: If a file cannot be read, is not JSON or is cut short; if a field is missing
            or has the wrong type; if the task does not generate text; if a document comes twice; or
            if the filter or the metric does not give one value a completion.

    References:
        https://github.com/EleutherAI/lm-evaluation-harness: `lm_eval/evaluator.py` and
        `lm_eval/loggers/evaluation_tracker.py`.
    """
    path = Path(path)
    logs = sample_logs(path) if path.is_dir() else {task or "": path}
    if task is not None and task not in logs:
        raise PoolError(f"{path}: no task {task!r} (it has {', '.join(logs)})")
    if task is None and len(logs) > 1:
        choices = [name for name, log in logs.items() if _of_choices(log)]
        if 0 < len(choices) < len(logs):
            told = f"{path}: left out as their tasks generate no text: {', '.join(choices)}"
            warnings.warn(told, PoolWarning, stacklevel=2)
            logs = {name: log for name, log in logs.items() if name not in choices}
    builder = PoolBuilder(str(path), equal=equal)
    for name in logs if task is None else (task,):
        prefix = f"{name}/" if task is None and len(logs) > 1 else ""
        for record in _of_filter(logs[name], filter):
            completions, place = _completions(record)
            if filter is None:
                answers = [extract(completion) for completion in completions]
            else:
                answers = _filtered(record, len(completions), len(place) == 1)
            correct = None
            if metric not in (None, ANSWERS):
                correct = _measured(record, metric, len(completions))
            builder.add(
                record,
                prefix + record.label("doc_id"),
                answers=answers,
                gold=golds(record, "target"),
                correct=correct,
            )
    return builder.pool()


def _of_filter(path: Path, filter: str | None) -> Iterator[Record]:
    """One record a document: those of a filter, or of the first."""
    filters: dict[str, None] = {}
    # Without names, a document's further filters are known by its completions.
    unnamed: dict[str, tuple[int, str]] = {}
    for record in read_records(path):
        if "filter" not in record.value:
            if filter is not None:
                raise record.error(says="no field 'filter', as in old logs; leave the filter out")
            completions = hash(str(record.get("resps")))
            first = unnamed.setdefault(record.label("doc_id"), (completions, record.place))
            if first[1] == record.place or first[0] != completions:
                yield record
            continue
        name = str(record.value["filter"])
        filters.setdefault(name)
        if name == (next(iter(filters)) if filter is None else filter):
            yield record
    if filters and filter is not None and filter not in filters:
        raise PoolError(f"{path}: no filter {filter!r} (it has {', '.join(filters)})")


def _of_choices(path: Path) -> bool:
    """Whether the log is of a task that compares given texts, several requests a document."""
    first = next(read_records(path), None)
    requests = None if first is None else first.value.get("resps")
    return isinstance(requests, list) and len(requests) > 1 and isinstance(requests[0], list)


def _completions(record: Record) -> tuple[list[str], tuple[str | int, ...]]:
    requests = record.items("resps")
    place = ("resps",) if requests and isinstance(requests[0], str) else ("resps", 0)
    if len(place) == 2 and len(requests) != 1:
        raise record.error(
            "resps",
            says=f"has {len(requests)} requests; only tasks that generate text, with one "
            "request a document, have completions",
        )
    record.same_length(place)
    return record.texts(*place), place


def _filtered(record: Record, num_completions: int, flat: bool) -> list[str | None]:
    place = ("filtered_resps",) if flat else ("filtered_resps", 0)
    held = record.get(*place)
    if num_completions == 1 and isinstance(held, str):
        answers = [held]
    elif isinstance(held, list) and len(held) == num_completions:
        answers = record.texts(*place)
    else:
        raise record.error(
            *place,
            says=f"does not hold one answer for each of {num_completions} completions; choose a "
            "filter that keeps all of them, or none",
        )
    return [None if answer in ("", _NO_MATCH) else answer for answer in answers]


def _measured(record: Record, metric: str, num_completions: int) -> list[bool]:
    held = record.get(metric)
    values = held if isinstance(held, list) else [held]
    if len(values) != num_completions:
        raise record.error(
            metric,
            says=f"has {len(values)} values for {num_completions} completions; leave out the "
            "metric, to compare the answers with the target",
        )
    for value in values:
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise record.error(metric, says=f"is {shown(value)}; a metric of correctness is 0 or 1")
    return [bool(value) for value in values]
