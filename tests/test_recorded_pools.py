"""ESC and ASC against an independent plain-Python reading of their papers, on whole pools.

Always on a synthetic pool; on recorded ones too where they are:

    OPTSCALE_POOLS=../pools python -m pytest tests/test_recorded_pools.py
"""

import os
from collections import Counter
from math import comb
from pathlib import Path

import jax
import numpy as np
import pytest

from optscale_jax import Pool, replay, synthetic_pool
from optscale_jax.policies import adaptive_self_consistency, early_stopping_self_consistency

FOLDER = os.environ.get("OPTSCALE_POOLS")
RECORDED = sorted(Path(FOLDER).glob("boinf_*.npz")) if FOLDER else []
WINDOW, THRESHOLD = 5, 0.95


def plain_majority(answers):
    """The most frequent answer, the one seen first among equals; -1 if there is none."""
    counts = Counter(a for a in answers if a != -1)
    return max(counts, key=counts.__getitem__, default=-1)


def plain_esc(answers):
    for start in range(0, len(answers), WINDOW):
        window = answers[start : start + WINDOW]
        if len(window) == WINDOW and window[0] != -1 and len(set(window)) == 1:
            return start + WINDOW
    return len(answers)


def plain_asc(answers):
    counts = Counter()
    for count, answer in enumerate(answers, start=1):
        if answer != -1:
            counts[answer] += 1
        leading = sorted(counts.values())[-2:]
        b, a = [0, 0, *leading][-2:]
        # P(p > 1/2) for p ~ Beta(a + 1, b + 1): at most a heads in a + b + 1 tosses. In integers.
        heads = sum(comb(a + b + 1, k) for k in range(a + 1))
        if heads * 100 >= round(100 * THRESHOLD) * 2 ** (a + b + 1):
            return count
    return len(answers)


def check(pool: Pool) -> None:
    # An empty completion does not vote, whatever was read off it.
    answers = np.where(pool.tokens == 0, -1, pool.answers).tolist()
    depth = pool.num_samples
    for policy, rule in (
        (early_stopping_self_consistency(WINDOW, depth), plain_esc),
        (adaptive_self_consistency(THRESHOLD, depth), plain_asc),
    ):
        result = replay(pool, policy, num_permutations=0)
        counts = [rule(row) for row in answers]
        np.testing.assert_array_equal(result.num_samples[0], counts)
        wanted = [plain_majority(row[:n]) for row, n in zip(answers, counts, strict=True)]
        column = result.selected_index[0]
        got = np.where(column < 0, -1, pool.answers[np.arange(len(column)), column])
        np.testing.assert_array_equal(got, wanted)


def test_synthetic_pool():
    check(synthetic_pool(jax.random.key(7), num_problems=60, num_samples=24))


@pytest.mark.skipif(not RECORDED, reason="OPTSCALE_POOLS names no folder with boinf_*.npz")
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_pool(path):
    check(Pool.load(path))


@pytest.mark.skipif(not FOLDER, reason="OPTSCALE_POOLS is not set")
def test_esc_on_last_letters_has_the_known_accuracy():
    """Window 5, 20 shuffles: .830 at 8.9 samples, where the majority of all 40 has .832."""
    pool = Pool.load(Path(str(FOLDER)) / "esc_last-letters_gpt-3.5.npz")
    policy = early_stopping_self_consistency(WINDOW, 40)
    result = replay(pool, policy, key=jax.random.key(0), num_permutations=20)
    assert result.correct is not None
    assert result.correct.mean() == pytest.approx(0.830, abs=0.003)
    assert result.num_samples.mean() == pytest.approx(8.9, abs=0.2)
    whole = replay(pool, early_stopping_self_consistency(40, 40), key=jax.random.key(0))
    assert whole.correct is not None
    assert whole.correct.mean() == pytest.approx(0.832, abs=0.003)
