"""Files of priors, one for each problem: a predictor makes them, live runs and replays read them.

JSON lines, each with `problem_id`, `loc`, `scale`, `loc_sd`, `scale_sd` and, for the token ledger,
`tokens`, what the predictor read; other fields are left alone.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optscale_jax.errors import InputError, PoolError, bad_input
from optscale_jax.estimation import Prior
from optscale_jax.pool_directory import AnyPool
from optscale_jax.readers.records import read_records
from optscale_jax.study.registry import Entry, PriorConfig, find_rule, prior_of

__all__ = ["priors_of", "priors_of_entries"]

_FIELDS = ("loc", "scale", "loc_sd", "scale_sd")


def priors_of(
    path: str | None, name: str, problem_ids: Sequence[str]
) -> tuple[dict[str, Prior], dict[str, int]]:
    """Reads a file of priors.

    Args:
        path: JSON lines, as eval.predict writes them; None = no priors.
        name: The policy's factory.
        problem_ids: The problems, each of which must have one.

    Returns:
        The priors, and the tokens that predicting each took, by problem.

    Raises:
        InputError: If the policy takes none, a line cannot be used, or a problem has no prior.
    """
    if path is None:
        return {}, {}
    if prior_of(find_rule(name)) is not Prior:
        raise InputError(f"priors: {name} takes no such prior; use optscale, or leave priors out")
    priors, tokens = {}, {}
    with bad_input("priors", (PoolError,)):
        for record in read_records(Path(path)):
            numbers = {field: record.get(field) for field in _FIELDS}
            for field, value in numbers.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise record.error(field, says=f"is {value!r}; it must be a number")
            problem_id = record.label("problem_id")
            try:
                loc, scale, loc_sd, scale_sd = map(float, numbers.values())
                prior = PriorConfig(loc, scale, loc_sd, scale_sd).build()
            except ValueError as error:
                raise record.error(says=str(error)) from error
            assert prior is not None  # loc and scale are numbers
            priors[problem_id] = prior
            tokens[problem_id] = max(record.length("tokens"), 0) if "tokens" in record.value else 0
    missing = next((each for each in problem_ids if each not in priors), None)
    if missing is not None:
        raise InputError(
            f"{path}: no prior for problem {missing!r}; predict them for these problems (python -m "
            "eval.predict)"
        )
    return priors, tokens


def priors_of_entries(
    entries: Sequence[Entry], pool: AnyPool
) -> tuple[dict[str, Prior], dict[str, np.ndarray]]:
    """Reads the priors of the entries that have a file of them, as `priors_of` does.

    Returns:
        Label of an entry to its priors, fields [P] in the pool's order, and to the tokens that
        predicting them took, [P].
    """
    priors, tokens = {}, {}
    for entry in entries:
        config = entry.settings[0].get("prior")
        if not isinstance(config, PriorConfig) or config.file is None:
            continue
        ids = [str(each) for each in pool.problem_ids]
        with bad_input(entry.where, (InputError,)):
            found, spent = priors_of(config.file, entry.name, ids)
        priors[entry.label] = Prior(
            *(np.array([getattr(found[each], field) for each in ids]) for field in _FIELDS)
        )
        tokens[entry.label] = np.array([spent[each] for each in ids])
    return priors, tokens
