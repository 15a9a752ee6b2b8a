"""Completion datasets of Hugging Face's search-and-learn, exported as JSON lines."""

import os
from pathlib import Path

from optscale_jax.answers import Equal, Extract, answers_equal, extract_answer, extract_gold
from optscale_jax.derived_signals import derived_signals
from optscale_jax.pool import Pool, Rescale
from optscale_jax.readers.builder import PoolBuilder
from optscale_jax.readers.layouts import aggregator
from optscale_jax.readers.records import read_records

__all__ = ["read_search_and_learn"]


def read_search_and_learn(
    path: str | os.PathLike[str],
    *,
    aggregation: str = "last",
    clip: bool = False,
    rescale: Rescale | None = None,
    extract: Extract = extract_answer,
    equal: Equal = answers_equal,
) -> Pool:
    """Reads a completion dataset of search-and-learn.

    The file has one object a problem, as JSON lines (what its `test_time_compute.py` writes, and
    what `Dataset.to_json` gives of a dataset on the hub) or as a JSON list. Of each the reader
    takes `answer`, `completions` (N texts), `scores` (N lists of step scores) and
    `completion_tokens` (N lengths, or -1 where the search did not count them); `unique_id` names
    the problem, or else its position. What the file derives from these (`agg_scores`, `pred`,
    `pred_weighted@n`, ...) is left alone.

    Args:
        path: The file.
        aggregation: How step scores become a score: "last" (the default there too), "mean" (what
            OptScale uses), "min" or "prod". A completion without steps scores 0, as in the
            published OptScale code.
        clip: Move step scores outside [0, 1] to the nearer end instead of refusing them.
        rescale: How to bring scores of any range into [0, 1], one of `Rescale`.
        extract: From a completion's text to its answer.
        equal: Whether two answers are the same.

    Returns:
        The pool; all its arrays are known, except lengths that were not counted.

    Raises:
        InputError: If the file cannot be read, is not JSON or is cut short; if a field is missing,
            has the wrong type or a value outside its domain; or if the lists of a problem differ in
            length.

    References:
        https://github.com/huggingface/search-and-learn: `src/sal/config.py` and `src/sal/search`.
    """
    path = Path(path)
    aggregate = aggregator(aggregation, str(path))
    builder = PoolBuilder(str(path), equal=equal, rescale=rescale)
    kept = None if rescale else clip
    for index, record in enumerate(read_records(path)):
        completions = record.texts("completions")
        # Tree search writes one -1 in place of the list.
        counted = record.get("completion_tokens") != -1
        lists = [("scores",), ("completion_tokens",)] if counted else [("scores",)]
        record.same_length(("completions",), *lists)
        steps = [record.scores("scores", n, clip=kept).tolist() for n in range(len(completions))]
        builder.add(
            record,
            str(index) if record.value.get("unique_id") is None else record.label("unique_id"),
            answers=[extract(completion) for completion in completions],
            gold=extract_gold(record.label("answer")),
            scores=[aggregate(scores) if scores else 0.0 for scores in steps],
            tokens=record.lengths("completion_tokens") if counted else None,
            signals=[derived_signals(steps=each) for each in steps],
        )
    return builder.pool()
