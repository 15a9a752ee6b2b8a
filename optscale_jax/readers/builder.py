"""The builder: gathers problems one at a time, whatever they were read from, into a pool."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from optscale_jax.answers import Equal, answers_equal, cluster_answers
from optscale_jax.derived_signals import SignalColumns, signal_arrays
from optscale_jax.errors import PoolError
from optscale_jax.pool import Pool, PoolKind, Rescale
from optscale_jax.readers.records import Record

__all__ = ["PoolBuilder"]


class PoolBuilder:
    """Keeps what a pool holds of each problem, and none of its text.

    Args:
        source: What error messages call the pool: its path, usually.
        kind: "parallel" or "sequential".
        equal: Whether two answers are the same.
        rescale: As for `Pool.from_arrays`.
    """

    def __init__(
        self,
        source: str,
        *,
        kind: str = "parallel",
        equal: Equal = answers_equal,
        rescale: Rescale | None = None,
    ):
        if kind not in get_args(PoolKind):
            raise PoolError(f"{source}: kind is {kind!r}; it must be 'parallel' or 'sequential'")
        self.source = source
        self.kind = kind
        self.equal = equal
        self.rescale: Rescale | None = rescale
        self._problems: dict[str, _Problem] = {}

    def __len__(self) -> int:
        return len(self._problems)

    def add(
        self,
        record: Record,
        problem_id: str,
        *,
        answers: Sequence[str | None],
        gold: str | Sequence[str] | None,
        again: bool = False,
        signals: Iterable[Mapping[str, float]] | None = None,
        **columns: Sequence[Any] | np.ndarray | None,
    ) -> None:
        """Adds a problem, or more completions of one.

        Args:
            record: Where it comes from, for error messages.
            problem_id: Its name.
            answers: [N] its completions' answers in launch order; None = no answer.
            gold: The right answer, or several that are each right; None = not known.
            again: Whether the problem may have been added before.
            signals: [N] its completions' signals by name, as far as they are known.
            **columns: [N] each, None = not known: `scores`; `tokens`, lengths, -1 = unknown;
                `correct`, which completions are correct, by default those whose answer is `gold`.

        Raises:
            RecordError: If the name was given before and may not be again, if it had another right
                answer then, or if other problems have a column that this one lacks.
        """
        golds = [] if gold is None else [gold] if isinstance(gold, str) else list(gold)
        problem = self._problems.get(problem_id)
        if problem is None:
            problem = self._problems[problem_id] = _Problem(record, golds)
        elif not again:
            raise record.error(
                says=f"problem {problem_id!r} was already given by {problem.record.place}; "
                "give each problem its own record and name"
            )
        elif golds != problem.golds:
            raise record.error(
                says=f"problem {problem_id!r} has the right answer {golds}, but "
                f"{problem.golds} in {problem.record.place}"
            )
        first = next(iter(self._problems.values()))
        for name in ("scores", "correct"):
            known, expected = columns.get(name) is not None, name in first.columns
            if first.answers and known != expected:
                without, other = (first.record, record) if known else (record, first.record)
                raise without.error(
                    says=f"no {name}, which {other.place} has; give them everywhere or nowhere"
                )
        # Equal texts are kept once.
        problem.answers += [
            None if each is None else problem.texts.setdefault(each, each) for each in answers
        ]
        for each in [{}] * len(answers) if signals is None else signals:
            problem.signals.add(each)
        columns.setdefault("tokens", None)
        for name, column in columns.items():
            if name == "tokens" and column is None:
                column = [-1] * len(answers)
            if column is not None:
                problem.columns.setdefault(name, []).append(np.asarray(column))

    def pool(self) -> Pool:
        """Makes the pool.

        Returns:
            The pool [P, N], N being the most completions that a problem has.

        Raises:
            PoolError: If no problem was added, or as `Pool.from_arrays`.
        """
        if not self._problems:
            raise PoolError(f"{self.source}: no records; a pool has one problem at least")
        problems = self._problems.values()
        counts = np.array([len(problem.answers) for problem in problems])
        mask = np.arange(counts.max()) < counts[:, None]
        clustered = [problem.cluster(self.equal) for problem in problems]
        columns = {
            name: [np.concatenate(each.columns[name]) for each in problems]
            for name in next(iter(problems)).columns
        }
        arrays: dict[str, Any] = {}
        for name, rows in (columns | {"answers": [ids for ids, _ in clustered]}).items():
            # Row by row, each one's completions first: the order that both sides have.
            flat = np.concatenate([np.asarray(row) for row in rows])
            arrays[name] = np.zeros(mask.shape, flat.dtype)
            arrays[name][mask] = flat
        return Pool.from_arrays(
            **arrays,
            gold=[gold for _, gold in clustered],
            problem_ids=list(self._problems),
            mask=mask,
            signals=signal_arrays([each.signals.columns() for each in problems], mask.shape),
            kind=self.kind,
            rescale=self.rescale,
            source=self.source,
        )


class _Problem:
    def __init__(self, record: Record, golds: list[str]):
        # Its place alone: the completions' texts are let go.
        self.record = record._replace(value={}, line=b"")
        self.golds = golds
        self.answers: list[str | None] = []
        self.texts: dict[str, str] = {}
        self.columns: dict[str, list[np.ndarray]] = {}
        self.signals = SignalColumns()

    def cluster(self, equal: Equal) -> tuple[list[int], int]:
        """The answers' ids and the gold one's; any right answer is the first of them."""
        gold, others = next(iter(self.golds), None), self.golds[1:]
        if others and gold is not None:
            same = functools.cache(lambda answer: any(equal(other, answer) for other in others))
            self.answers = [
                gold if each is not None and same(each) else each for each in self.answers
            ]
        return cluster_answers(self.answers, gold, equal=equal)
