"""The builder: gathers problems one at a time, whatever they were read from, into a pool."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from optscale_jax.answers import Equal, answers_equal, cluster_answers
from optscale_jax.errors import PoolError
from optscale_jax.pool import Pool, PoolKind
from optscale_jax.readers.records import Record

__all__ = ["PoolBuilder"]


class PoolBuilder:
    """Keeps what a pool holds of each problem, and none of its text.

    Args:
        source: What error messages call the pool: its path, usually.
        kind: "parallel" or "sequential".
        equal: Whether two answers are the same.
    """

    def __init__(self, source: str, *, kind: str = "parallel", equal: Equal = answers_equal):
        if kind not in get_args(PoolKind):
            raise PoolError(f"{source}: kind is {kind!r}; it must be 'parallel' or 'sequential'")
        self.source = source
        self.kind = kind
        self.equal = equal
        self._places: dict[str, str] = {}
        self._rows: dict[str, list[np.ndarray | None]] = {
            name: [] for name in ("scores", "correct", "tokens", "answers")
        }
        self._golds: list[int] = []

    def __len__(self) -> int:
        return len(self._places)

    def add(
        self,
        record: Record,
        problem_id: str,
        *,
        answers: Sequence[str | None],
        gold: str | None,
        scores: Sequence[float] | np.ndarray | None = None,
        tokens: Sequence[int] | np.ndarray | None = None,
        correct: Sequence[bool] | np.ndarray | None = None,
    ) -> None:
        """Adds a problem.

        Args:
            record: Where it comes from, for error messages.
            problem_id: Its name.
            answers: [N] its completions' answers in launch order; None = no answer.
            gold: The right answer; None = not known.
            scores: [N] in [0, 1]; None = no verifier.
            tokens: [N] lengths in tokens, -1 = unknown; None = all unknown.
            correct: [N] which completions are correct; None = those whose answer equals `gold`.

        Raises:
            RecordError: If the name was given before.
        """
        if problem_id in self._places:
            raise record.error(
                says=f"problem {problem_id!r} was already given by {self._places[problem_id]}; "
                "give each problem its own record and name"
            )
        self._places[problem_id] = record.place
        ids, gold_id = cluster_answers(answers, gold, equal=self.equal)
        self._golds.append(gold_id)
        lengths = np.full(len(ids), -1) if tokens is None else tokens
        rows = {"scores": scores, "correct": correct, "tokens": lengths, "answers": ids}
        for name, row in rows.items():
            self._rows[name].append(None if row is None else np.asarray(row))

    def pool(self) -> Pool:
        """Makes the pool.

        Returns:
            The pool [P, N], N being the most completions that a problem has.

        Raises:
            PoolError: If no problem was added, or as `Pool.from_arrays`.
        """
        if not self._places:
            raise PoolError(f"{self.source}: no records; a pool has one problem at least")
        counts = np.array([len(row) for row in self._rows["answers"] if row is not None])
        mask = np.arange(counts.max()) < counts[:, None]
        arrays: dict[str, Any] = {}
        for name, rows in self._rows.items():
            known = [row for row in rows if row is not None]
            if len(known) == len(rows):
                arrays[name] = np.zeros(mask.shape, np.result_type(*known))
                # Row by row, each one's completions first: the order that both sides have.
                arrays[name][mask] = np.concatenate(known)
        return Pool.from_arrays(
            **arrays,
            gold=self._golds,
            problem_ids=list(self._places),
            mask=mask,
            kind=self.kind,
            source=self.source,
        )
