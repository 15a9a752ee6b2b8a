"""Sample logs of EleutherAI's lm-evaluation-harness (`lm-eval run --log_samples`)."""

import os
from pathlib import Path

from optscale_jax.answers import Equal, Extract, answers_equal, extract_answer, extract_gold
from optscale_jax.errors import PoolError
from optscale_jax.pool import Pool
from optscale_jax.readers.builder import PoolBuilder
from optscale_jax.readers.records import Record, read_records, shown

__all__ = ["read_lm_eval"]

_COMPLETIONS = ("resps", 0)
# What the harness's regular-expression filters put where nothing matches.
_NO_MATCH = "[invalid]"


def read_lm_eval(
    path: str | os.PathLike[str],
    *,
    filter: str | None = None,
    metric: str | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
) -> Pool:
    """Reads a `samples_*.jsonl` file of the harness, of a task that generates text.

    The file has one line a document and filter; of each the reader takes `doc_id` (the problem's
    name), `target` (the gold answer, bare or at the end of a worked solution) and `resps[0]`, the
    text of each of the task's `repeats`, which are the completions. The harness keeps neither
    verifier scores nor lengths in tokens, so the pool has none.

    Args:
        path: The file.
        filter: Take the answers from this filter's `filtered_resps[0]`, which must hold one a
            completion (a filter that ends in `take_first` or `majority_vote` does not). If None,
            `extract` reads them from the completions, and the lines of further filters, which
            repeat the same completions, are passed over.
        metric: Take which completions are correct from this field, such as `exact_match` or `acc`:
            0 or 1, a list of them where there are several completions. If None, those are correct
            whose answer equals the target.
        extract: From a completion's text to its answer.
        equal: Whether two answers are the same.

    Returns:
        The pool; `scores` is None and all `tokens` are unknown.

    Raises:
        InputError: If the file cannot be read, is not JSON or is cut short; if a field is missing
            or has the wrong type; if the task does not generate text; if a document comes twice; or
            if the filter or the metric does not give one value a completion.

    References:
        https://github.com/EleutherAI/lm-evaluation-harness: `lm_eval/evaluator.py` and
        `lm_eval/loggers/evaluation_tracker.py`.
    """
    path = Path(path)
    builder = PoolBuilder(str(path), equal=equal)
    filters: dict[str, None] = {}
    for record in read_records(path):
        # Older versions of the harness logged one filter and did not name it.
        name = str(record.value.get("filter", "none"))
        filters.setdefault(name)
        if name != (next(iter(filters)) if filter is None else filter):
            continue
        requests = record.items("resps")
        if len(requests) != 1:
            raise record.error(
                "resps",
                says=f"has {len(requests)} requests; only tasks that generate text, with one "
                "request a document, have completions",
            )
        completions = record.texts(*_COMPLETIONS)
        record.same_length(_COMPLETIONS)
        if filter is None:
            answers = [extract(completion) for completion in completions]
        else:
            answers = _filtered(record, len(completions))
        builder.add(
            record,
            record.label("doc_id"),
            answers=answers,
            gold=extract_gold(record.label("target")),
            correct=None if metric is None else _measured(record, metric, len(completions)),
        )
    if filters and filter is not None and filter not in filters:
        raise PoolError(f"{path}: no filter {filter!r} (it has {', '.join(filters)})")
    return builder.pool()


def _filtered(record: Record, num_completions: int) -> list[str | None]:
    held = record.get("filtered_resps", 0)
    if num_completions == 1 and isinstance(held, str):
        answers = [held]
    elif isinstance(held, list) and len(held) == num_completions:
        answers = record.texts("filtered_resps", 0)
    else:
        raise record.error(
            "filtered_resps",
            0,
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
