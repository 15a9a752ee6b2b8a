"""eval.demo's comparison of two runs."""

import jax
import pytest

from eval import demo, sample, solve
from eval.cli import BadInput
from optscale_jax import synthetic_pool


def test_two_runs_are_compared_problem_by_problem(tmp_path):
    pool = tmp_path / "pool.npz"
    synthetic_pool(jax.random.key(2), num_problems=50, num_samples=8).save(pool)
    recorded = ["--recorded.pool", str(pool)]
    live, fixed = tmp_path / "live", tmp_path / "fixed"
    policy = ["--policy.name=first_hit", "--policy.s_min=0.9", "--policy.max_samples=8"]
    assert solve.main([*recorded, *policy, "--out", str(live)]) == 0
    assert sample.main([*recorded, "--n=8", "--out", str(fixed)]) == 0

    table = demo.comparison({"first hit": live, "best-of-N": fixed}, "best-of-N")
    adaptive, baseline = table.rows
    assert len({len(table.columns), len(baseline), len(adaptive)}) == 1
    assert baseline[:2] == ["best-of-N", "n=8"]
    assert baseline[-2:] == ["", ""]
    assert baseline[3] == "8.0"
    assert float(adaptive[3]) < 8
    # What is saved is what the two columns say, to the rounding.
    spent = [float(row[4].replace(",", "")) for row in table.rows]
    assert float(adaptive[-1]) == pytest.approx(100 * (1 - spent[0] / spent[1]), abs=0.6)
    gap = float(adaptive[2]) - float(baseline[2])
    mean, low, high = adaptive[-2].replace("[", "").replace("]", "").replace(",", "").split()
    assert float(mean) == pytest.approx(gap, abs=0.11)
    assert float(low) <= float(mean) <= float(high)

    few = tmp_path / "few"
    assert sample.main([*recorded, "--n=8", "--limit=9", "--out", str(few)]) == 0
    with pytest.raises(BadInput, match="not the same problems"):
        demo.comparison({"first hit": live, "best-of-N": few}, "best-of-N")
