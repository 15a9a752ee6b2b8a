"""eval.demo's comparison of two runs."""

import csv
import json

import jax
import pytest

from eval import demo, sample, solve
from optscale_jax import Pool, synthetic_pool
from optscale_jax.errors import InputError


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

    # What the predictor reads is spent too, and what the verifier reads stands apart.
    names = Pool.load(pool).problem_ids.tolist()
    belief = {"loc": 0.8, "scale": 0.1, "loc_sd": 0.1, "scale_sd": 0.1, "tokens": 5000}
    priors = tmp_path / "priors.jsonl"
    priors.write_text("".join(json.dumps({"problem_id": n, **belief}) + "\n" for n in names))
    policy = ["--policy.name=optscale", "--policy.s_min=0.9", "--policy.alpha=0.9"]
    policy += ["--policy.max_samples=8", "--policy.min_samples=2", "--priors", str(priors)]
    assert solve.main([*recorded, *policy, "--out", str(tmp_path / "t")]) == 0
    (row,) = demo.comparison({"t": tmp_path / "t"}, "t").rows
    with open(tmp_path / "t" / "results.csv") as file:
        (means,) = csv.DictReader(file)
    drawn = float(means["mean_completed_tokens"]) + float(means["mean_aborted_tokens"])
    assert float(row[4].replace(",", "")) == pytest.approx(drawn + 5000, abs=0.5)

    few = tmp_path / "few"
    assert sample.main([*recorded, "--n=8", "--limit=9", "--out", str(few)]) == 0
    with pytest.raises(InputError, match="not the same problems"):
        demo.comparison({"first hit": live, "best-of-N": few}, "best-of-N")
