"""Learns from other problems what a rule knows of one: above all a `Calibration`, from labels.

First g, the log-odds that a completion is right, from its score and, where it pays, from more
signals; then the weights of the vote, from what answers looked like after a few completions and
after many.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import optimize, special

from optscale_jax.calibration import (
    DEFAULT_WEIGHTS,
    SCORE,
    Calibration,
    Evidence,
    Labels,
    Reliability,
    Table,
    log_odds,
    reliability,
)
from optscale_jax.derived_signals import VERIFIER_TOKENS
from optscale_jax.errors import InputError, bad_input
from optscale_jax.normal_inverse_gamma import NormalInverseGamma
from optscale_jax.policies import Policy
from optscale_jax.policies.calibrated_vote import CalibratedVote
from optscale_jax.policies.hit_or_gain import HitOrGain
from optscale_jax.pool import Pool
from optscale_jax.pool_directory import AnyPool
from optscale_jax.study.blocks import sample_of
from optscale_jax.study.tuning import folds

__all__ = [
    "FEW_PROBLEMS",
    "cross_fitted",
    "learn_calibration",
    "learns",
    "learnt_on_the_others",
    "signs_of_quality",
]

FEW_PROBLEMS = 20
"""Fewer than these teach little; whoever learns from them is told so."""

_BINS = 24  # of scores, each with as many completions
_PREFIXES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_ORDERS = 4  # in which each problem's completions are looked at
# In mean completions, from one to so many that the default, 32, is in the middle of the logarithms.
_BUDGETS = 1.0, 1024.0
# What the defaults weigh against the problems: as much as three of them would.
_RIDGE = 3.0
_RIDGE_SLOPES = 0.1


def signs_of_quality(pool: AnyPool) -> tuple[str, ...]:
    """Names of the signals that a calibration may learn from: all that are no cost."""
    return tuple(name for name in pool.signal_names if name != VERIFIER_TOKENS)


def learn_calibration(
    pool: AnyPool,
    *,
    labels: Labels = "pool",
    signals: Sequence[str] | None = None,
    num_folds: int = 5,
    seed: int = 0,
    where: str = "pool",
) -> Calibration:
    """Learns what scores, and signals beside them, are worth.

    g(s) is the mean, in log-odds, of an isotonic table over bins of as many completions each, which
    bends as the data do, and of beta calibration, a log s - b log(1 - s) + c with a, b >= 0, which
    holds where there are few. More signals enter by such tables of their ranks, weighed by a
    penalised logistic regression, if that predicts completions of problems left out better by more
    than a standard error. The weights are a conditional logit over the answers seen so far and
    "none of them", at 1, 2, 3, 4, 6, 8, ... completions, as often as the vote gets there,
    penalised towards `DEFAULT_WEIGHTS`.

    Args:
      pool: P >= num_folds problems with scores, answers, and correctness or golds; of more than
        `BLOCK` so many, drawn at random, teach.
      labels: what is taken for the truth. "none": the answer that leads a vote over all completions
        with the default weights, scores taken for probabilities.
      signals: which of the pool's signals to try; default all of them but
        the verifier's tokens.
      num_folds: for the reliability and for what pays.
      seed: of folds and orders.
      where: what messages call the pool.

    Raises:
      InputError: the pool has no scores, answers or correctness, one class only, scores that are
        all equal, or fewer problems than folds.
    """
    pool = sample_of(pool, seed)
    data = _Data.of_pool(pool, labels, signals, where)
    if data.num_problems < num_folds:
        raise InputError(
            f"{where}: it has {data.num_problems} problems, fewer than the {num_folds} folds that "
            "a calibration is checked with; give more problems"
        )
    fold = folds(data.num_problems, num_folds, seed=seed)
    data = data.with_signals(_that_pay(data, fold))
    tables, weights = _learn(data, seed)
    return Calibration(
        dict(zip((SCORE, *data.signals), tables, strict=True)),
        weights,
        data.tokens,
        pool.origin,
        data.num_problems,
        labels,
        _checked(data, fold, seed),
    )


@functools.singledispatch
def learnt_on_the_others(
    policy: Policy, pool: Pool, *, num_folds: int = 5, seed: int = 0, where: str = "pool"
) -> Any:
    """What a rule without a prior learns for each problem, on the problems of other folds.

    A rule of one's own that learns is registered: `@learnt_on_the_others.register(MyRule)`. Of a
    pool of more than `BLOCK` problems it sees half as many, and what it learns for one problem of a
    fold stands for all of that fold.

    Args:
      policy: the rule; one of its settings stands for all.
      pool: P problems.
      num_folds: folds over problems, at most P.
      seed: of the folds, which are those of `tuning.folds`, and of what is random in learning.
      where: what messages call the pool.

    Returns:
      A prior with an axis [P] in front; None for a rule that learns nothing.
    """
    del policy, pool, num_folds, seed, where
    return None


def learns(policy: Policy) -> bool:
    """Whether a rule learns something by `learnt_on_the_others`."""
    plain = learnt_on_the_others.dispatch(object)
    return learnt_on_the_others.dispatch(type(policy)) is not plain


def _folds(pool: Pool, num_folds: int, seed: int, where: str) -> np.ndarray:
    if pool.num_problems < num_folds:
        raise InputError(
            f"{where}: it has {pool.num_problems} problems, fewer than the {num_folds} folds that "
            "rules learn in; give more problems, or what it is to know of them"
        )
    return folds(pool.num_problems, num_folds, seed=seed)


@learnt_on_the_others.register(CalibratedVote)
def _(
    policy: CalibratedVote, pool: Pool, *, num_folds: int = 5, seed: int = 0, where: str = "pool"
) -> Evidence:
    fold = _folds(pool, num_folds, seed, where)
    return cross_fitted(pool, fold, signals=policy.signals, seed=seed, where=where)


@learnt_on_the_others.register(HitOrGain)
def _(
    policy: HitOrGain, pool: Pool, *, num_folds: int = 5, seed: int = 0, where: str = "pool"
) -> NormalInverseGamma | None:
    del policy
    if pool.scores is None:
        return None  # which replay refuses
    fold = _folds(pool, num_folds, seed, where)
    with bad_input(where, (ValueError,)):
        learnt = [
            NormalInverseGamma.pooled(pool.scores[fold != f], pool.mask[fold != f])
            for f in range(num_folds)
        ]
    return jax.tree.map(lambda *parts: np.stack(parts)[fold], *learnt)


def cross_fitted(
    pool: Pool,
    fold: np.ndarray,
    *,
    signals: Sequence[str] = (),
    labels: Labels = "pool",
    seed: int = 0,
    where: str = "pool",
) -> Evidence:
    """What is learnt for each problem on the problems of other folds; see `learn_calibration`.

    Args:
      pool: P problems.
      fold: [P], as `tuning.folds` gives.
      signals: the pool's signals to read, all of them whether it pays or not.
      labels: as for `learn_calibration`, and so are the others.
      seed: likewise.
      where: likewise.

    Returns:
      Evidence with an axis [P] in front; a completion's mean length, which no label enters, is that
      of all problems.
    """
    data = _Data.of_pool(pool, labels, signals, where)
    found = []
    for f in range(fold.max() + 1):
        tables, weights = _learn(data.of(fold != f), seed)
        named = dict(zip((SCORE, *data.signals), tables, strict=True))
        found.append(Calibration(named, weights, data.tokens).evidence)
    return jax.tree.map(lambda *parts: np.stack(parts)[fold], *found)


# The data -----------------------------------------------------------------------------------------


class _Data(NamedTuple):
    """What is learnt from, P problems of up to N completions."""

    signals: tuple[str, ...]  # J - 1 names
    x: np.ndarray  # [J, P, N], scores and signals; NaN = not known
    answers: np.ndarray  # int [P, N], 0, 1, ... within a problem; -1 = not eligible
    mask: np.ndarray  # bool [P, N]
    right: np.ndarray  # int [P], the right answer among these; -1 = none of them
    tokens: float  # mean length of a completion; 0 if lengths are not known

    @property
    def num_problems(self) -> int:
        return len(self.right)

    @property
    def correct(self) -> np.ndarray:
        return (self.answers == self.right[:, None]) & (self.answers >= 0)

    def of(self, problems: np.ndarray) -> "_Data":
        kept = (self.answers[problems], self.mask[problems], self.right[problems])
        return _Data(self.signals, self.x[:, problems], *kept, self.tokens)

    def with_signals(self, names: Sequence[str]) -> "_Data":
        places = [0, *(1 + self.signals.index(name) for name in names)]
        return self._replace(signals=tuple(names), x=self.x[places])

    @classmethod
    def of_pool(
        cls, pool: Pool, labels: Labels, signals: Sequence[str] | None, where: str
    ) -> "_Data":
        if pool.scores is None or pool.answers is None:
            lacks = "scores" if pool.scores is None else "answers to compare"
            raise InputError(f"{where}: it has no {lacks}, and a calibration is learnt from them")
        eligible = pool.eligible
        scores = pool.scores[eligible]
        if not scores.size or scores.min() == scores.max():
            raise InputError(f"{where}: all scores are equal, so they say nothing of what is right")
        if labels == "pool" and pool.correct is None:
            raise InputError(
                f"{where}: it does not say which completions are right; give golds, or learn "
                "without (--labels none)"
            )
        answers = _dense(np.where(eligible, pool.answers, -1))
        names = signs_of_quality(pool) if signals is None else tuple(signals)
        for name in names:
            if name not in pool.signals:
                has = ", ".join(pool.signals) or "none"
                raise InputError(f"{where}: it has no signal {name!r}; it has {has}")
        data = cls(
            names,
            np.stack([pool.scores, *(pool.signals[name] for name in names)]).astype(float),
            answers,
            pool.mask,
            np.full(len(answers), -1),
            float(pool.tokens[pool.mask].mean()) if pool.has_tokens else 0.0,
        )
        if labels == "none":
            guess = Calibration.default(verifier_is_calibrated=True)
            stored = np.broadcast_to(np.arange(pool.num_samples), answers.shape)
            *_, last = _prefixes(data, _g(data.x, [*guess.tables.values()]), stored)
            lead, _ = last.leader(guess.weights)
            data = data._replace(right=lead)
        else:
            assert pool.correct is not None
            # Where several answers of a problem count as right, the most frequent one stands.
            each = np.arange(answers.max() + 1)
            votes = ((answers[:, :, None] == each) & pool.correct[:, :, None]).sum(1)
            data = data._replace(right=np.where(votes.any(1), votes.argmax(1), -1))
        correct = data.correct[eligible]
        if correct.all() or not correct.any():
            says = "right" if correct.all() else "wrong"
            raise InputError(
                f"{where}: every completion is {says}, so scores cannot tell them apart"
            )
        return data


def _dense(answers: np.ndarray) -> np.ndarray:
    """Answers numbered 0, 1, ... within each problem, in the order of their ids; -1 stays."""
    order = np.argsort(answers, axis=1, kind="stable")
    ranked = np.take_along_axis(answers, order, axis=1)
    new = np.diff(ranked, axis=1, prepend=-1) > 0
    dense = np.empty_like(answers)
    np.put_along_axis(dense, order, np.cumsum(new, axis=1) - 1, axis=1)
    return dense


class _Prefix(NamedTuple):
    """The answers after some completions: [R, A] for R orders of problems, A slots of answers."""

    count: int  # of completions
    votes: np.ndarray
    best: np.ndarray  # highest g of an answer's completions; 0 where it is not seen
    mean: np.ndarray  # their mean

    def features(self) -> np.ndarray:
        """[R, A + 1, 4] whose product with the weights is u; the last answer is "none of them"."""
        repeats = np.log(np.maximum(self.votes, 1))
        rows = np.stack([self.best, repeats, self.mean * repeats, np.zeros_like(repeats)], -1)
        none = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (len(rows), 1, 4))
        return np.concatenate([rows, none], axis=1)

    def probabilities(self, weights: Sequence[float]) -> np.ndarray:
        """[R, A + 1] of being right; 0 for what is not seen."""
        u = self.features() @ np.asarray(weights)
        u[:, :-1][self.votes == 0] = -np.inf
        return special.softmax(u, axis=1)

    def leader(self, weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """[R] the leading answer, -1 = none is seen; and P(it is right)."""
        each = self.probabilities(weights)[:, :-1]
        seen = self.votes.any(1)
        return np.where(seen, each.argmax(1), -1), np.where(seen, each.max(1), 0.0)


def _prefixes(data: _Data, g: np.ndarray, orders: np.ndarray) -> Iterator[_Prefix]:
    """The answers after 1, 2, 3, 4, 6, 8, ... completions and after all, in given orders [P, N]."""
    answers, g = (np.take_along_axis(values, orders, axis=1) for values in (data.answers, g))
    shape = len(answers), answers.max() + 1
    votes, total, best = np.zeros(shape, int), np.zeros(shape), np.full(shape, -np.inf)
    for count in range(1, answers.shape[1] + 1):
        voters = np.flatnonzero(answers[:, count - 1] >= 0)
        at = voters, answers[voters, count - 1]
        value = g[voters, count - 1]
        votes[at] += 1
        total[at] += value
        best[at] = np.maximum(best[at], value)
        if count in _PREFIXES or count == answers.shape[1]:
            mean = total / np.maximum(votes, 1)
            yield _Prefix(count, votes.copy(), np.where(votes > 0, best, 0.0), mean)


def _prefixes_of_orders(data: _Data, g: np.ndarray, seed: int) -> Iterator[_Prefix]:
    """As `_prefixes`, for each problem in several random orders, [_ORDERS * P] rows."""
    key = np.random.default_rng(seed).random((_ORDERS * data.num_problems, data.mask.shape[1]))
    rows = np.tile(np.arange(data.num_problems), _ORDERS)
    # What is no completion comes last.
    orders = np.argsort(np.where(data.mask[rows], key, 2.0), axis=1)
    yield from _prefixes(data.of(rows), g[rows], orders)


# Learning -----------------------------------------------------------------------------------------


def _learn(data: _Data, seed: int) -> tuple[list[Table], tuple[float, ...]]:
    tables = _tables(data)
    return tables, _weights(data, _g(data.x, tables), seed)


def _g(x: np.ndarray, tables: Sequence[Table]) -> np.ndarray:
    """Log-odds of being right, of signals x [J, ...]."""
    each = (np.interp(values, *table) for values, table in zip(x, tables, strict=True))
    return np.sum([np.nan_to_num(value) for value in each], axis=0)


def _tables(data: _Data) -> list[Table]:
    """A table for each signal; their sum is the log-odds that a completion is right."""
    eligible = data.answers >= 0
    x, right = data.x[:, eligible], data.correct[eligible]
    tables = [_score_table(x[0], right, data.num_problems)]
    if len(x) == 1:
        return tables
    for values in x[1:]:
        known = ~np.isnan(values)
        table = _signal_table(values[known], right[known], data.num_problems)
        tables.append(table)
    each = [np.nan_to_num(np.interp(v, *t)) for v, t in zip(x, tables, strict=True)]
    slopes = _logistic(
        np.stack([*each, np.ones(x.shape[1])], axis=1),
        right,
        # One unit of the score's own table, nothing of the others.
        towards=np.eye(len(x) + 1)[0],
        weight=data.num_problems,
    )
    tables = [Table(t.knots, slope * t.log_odds) for t, slope in zip(tables, slopes, strict=False)]
    tables[0] = tables[0]._replace(log_odds=tables[0].log_odds + slopes[-1])
    return tables


def _signal_table(values: np.ndarray, right: np.ndarray, num_problems: int) -> Table:
    """As `_score_table`, of the share of values that are lower; 0 on average, as an unknown is."""
    if values.size == 0 or values.min() == values.max():
        return Table(np.zeros(1), np.zeros(1))
    ranked, size = np.unique(values, return_counts=True)
    share = (np.cumsum(size) - size / 2) / len(values)
    rises = np.cov(values, right)[0, 1] >= 0
    ranks = np.interp(values, ranked, share if rises else 1 - share)
    table = _score_table(ranks, right, num_problems)
    # From shares back to values, each value once and rising.
    knots = np.interp(table.knots if rises else 1 - table.knots[::-1], share, ranked)
    knots, first = np.unique(knots, return_index=True)
    found = table.log_odds if rises else table.log_odds[::-1]
    return Table(knots, found[first] - np.interp(ranks, *table).mean())


def _score_table(scores: np.ndarray, right: np.ndarray, num_problems: int) -> Table:
    """The mean, in log-odds, of an isotonic table and of beta calibration."""
    isotonic = _isotonic(scores, right)

    def features(s: np.ndarray) -> np.ndarray:
        s = special.expit(log_odds(s))
        return np.stack([np.log(s), -np.log1p(-s), np.ones_like(s)], axis=1)

    # A score that is the probability of being right has slopes 1, 1 and no constant.
    slopes = _logistic(
        features(scores), right, np.array([1.0, 1.0, 0.0]), num_problems, least=(0.0, 0.0, -np.inf)
    )
    knots = np.union1d(isotonic.knots, [0.0, 1.0])
    beta = features(knots) @ slopes
    return Table(knots, (np.interp(knots, *isotonic) + beta) / 2)


def _isotonic(values: np.ndarray, right: np.ndarray) -> Table:
    """Log-odds that rise, or that fall, with a signal, from bins of as many values each."""
    inner = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
    place = np.searchsorted(inner, values, side="right")
    size = np.bincount(place, minlength=len(inner) + 1)
    total, hits = (np.bincount(place, v, len(inner) + 1)[size > 0] for v in (values, right))
    size = size[size > 0]
    rises = np.cov(values, right)[0, 1] >= 0
    # Half a hit and half a miss more in each bin: none is certain.
    share = (hits + 0.5) / (size + 1)
    fitted = optimize.isotonic_regression(share, weights=size.astype(float), increasing=rises)
    return Table(total / size, special.logit(fitted.x))


def _logistic(
    features: np.ndarray,
    right: np.ndarray,
    towards: np.ndarray,
    weight: int,
    least: Sequence[float] | None = None,
) -> np.ndarray:
    """Slopes of a logistic regression, penalised towards some.

    The mean loss of a completion counts as often as there are problems, whose completions are no
    independent evidence.
    """
    sign = np.where(right, 1.0, -1.0)

    def loss(slopes: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (features @ slopes)
        off = slopes - towards
        gradient = -(sign * special.expit(-margin)) @ features / len(sign)
        value = weight * np.logaddexp(0, -margin).mean() + _RIDGE_SLOPES * off @ off
        return value, weight * gradient + 2 * _RIDGE_SLOPES * off

    bounds = None if least is None else [(low, np.inf) for low in least]
    return optimize.minimize(loss, towards, jac=True, method="L-BFGS-B", bounds=bounds).x


def _weights(data: _Data, g: np.ndarray, seed: int) -> tuple[float, ...]:
    """Weights of the vote: a conditional logit of the right answer among those seen, or none.

    The rule decides at each n that it reaches, and what is at stake, its gain (1 - p) / spent,
    falls as 1 / n. So the log loss at n counts by P(the rule reaches n) / n. Prefixes are about
    even in log n, in which 1 / n is contained. What is reached depends on the weights: it is told
    by the default ones first, then by those that this gives.
    """
    prefixes = list(_prefixes_of_orders(data, g, seed))
    count = np.array([[prefix.count] for prefix in prefixes])
    there = np.tile(data.mask.sum(1), _ORDERS) >= count
    right = np.tile(data.right, _ORDERS)
    seen = np.stack([prefix.votes > 0 for prefix in prefixes])
    is_right = seen & (np.arange(seen.shape[2]) == right[:, None])
    # "None of them" comes last, is always there, and is right if no other is.
    seen = np.concatenate([seen, np.ones_like(seen[..., :1])], axis=2)
    is_right = np.concatenate([is_right, ~is_right.any(2, keepdims=True)], axis=2)
    features = np.stack([prefix.features() for prefix in prefixes])[there]
    weights = DEFAULT_WEIGHTS
    for _ in range(2):
        doubt = np.stack([1 - prefix.leader(weights)[1] for prefix in prefixes])
        share = _reached(count, doubt, there)[there] / _ORDERS
        weights = _conditional_logit(features, seen[there], is_right[there], share)
    return weights


def _reached(count: np.ndarray, doubt: np.ndarray, there: np.ndarray) -> np.ndarray:
    """How often a problem's vote gets to each of S prefixes, as shares [S, R] of its whole.

    A vote stops at n = budget * doubt, and budgets are even in their logarithm, in `_BUDGETS`.

    Args:
      count: [S, 1] completions.
      doubt: [S, R] P(the leader is wrong).
      there: [S, R] whether the problem has as many completions.
    """
    least, most = _BUDGETS
    enough = np.maximum.accumulate(count / np.maximum(doubt, 1 / most), axis=0)
    before = np.concatenate([np.full_like(enough[:1], least), enough[:-1]])
    reached = np.where(there, np.maximum(np.log(most / before), 0), 0)
    return reached / np.maximum(reached.sum(0), np.finfo(float).tiny)


def _conditional_logit(
    features: np.ndarray, seen: np.ndarray, is_right: np.ndarray, share: np.ndarray
) -> tuple[float, ...]:
    """Weights for features [M, A, 4] of which one answer is right, penalised towards the default.

    Args:
      features: of each of A answers.
      seen: [M, A] whether it is one of those.
      is_right: [M, A].
      share: [M] how much each of M choices counts, in problems.
    """
    towards = np.array(DEFAULT_WEIGHTS)
    picked = features[is_right]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        u = np.where(seen, features @ weights, -np.inf)
        log_p = special.log_softmax(u, axis=1)
        expected = np.einsum("ra,rai->ri", np.exp(log_p), features)
        off = weights - towards
        value = -share @ log_p[is_right] + _RIDGE * off @ off
        return value, -share @ (picked - expected) + 2 * _RIDGE * off

    return tuple(optimize.minimize(loss, towards, jac=True, method="BFGS").x.tolist())


# Checking -----------------------------------------------------------------------------------------


def _that_pay(data: _Data, fold: np.ndarray) -> tuple[str, ...]:
    """All signals, if they predict completions of problems left out better than the score alone."""
    if not data.signals:
        return ()
    gained = np.full(data.num_problems, np.nan)
    for f in range(fold.max() + 1):
        losses = []
        for part in (data.with_signals(()), data):
            left_out = part.of(fold == f)
            g = _g(left_out.x, _tables(part.of(fold != f)))
            loss = np.logaddexp(0, np.where(left_out.correct, -g, g))
            eligible = left_out.answers >= 0
            losses.append(np.where(eligible, loss, 0).sum(1) / np.maximum(eligible.sum(1), 1))
        gained[fold == f] = losses[0] - losses[1]
    pays = gained.mean() > gained.std(ddof=1) / np.sqrt(len(gained))
    return data.signals if pays else ()


def _checked(data: _Data, fold: np.ndarray, seed: int) -> Reliability:
    """P(the leader is right) as claimed on problems left out, after few completions and many."""
    claimed, true = [], []
    for f in range(fold.max() + 1):
        tables, weights = _learn(data.of(fold != f), seed)
        left_out = data.of(fold == f)
        for prefix in _prefixes_of_orders(left_out, _g(left_out.x, tables), seed):
            lead, claim = prefix.leader(weights)
            right = np.tile(left_out.right, _ORDERS)
            claimed.append(claim)
            true.append((lead == right) & (lead >= 0))
    return reliability(np.concatenate(claimed), np.concatenate(true))
