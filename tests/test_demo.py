"""eval.demo's comparison of two runs."""

import csv
import importlib.util
import json
import re
import shutil

import jax
import pytest

from eval import demo, sample, solve
from optscale_jax import Pool, synthetic_pool
from optscale_jax.errors import InputError
from optscale_jax.shipped import shipped_config
from optscale_jax.tiny import labels_path


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


@pytest.mark.slow
# Those of torch and transformers, when they are imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_without_vllm_the_demonstration_runs_on_recorded_completions(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "vllm" else found(name, *rest),
    )
    # The demonstration as shipped, but for a short training and a comparison of one policy.
    labels = tmp_path / "labels.jsonl"
    lines = labels_path().read_text(encoding="utf-8").splitlines(keepends=True)
    labels.write_text("".join(lines[:300]), encoding="utf-8")
    shipped = shipped_config(demo.DemoConfig().predictor, "predictor")
    brief = tmp_path / "predictor.yaml"
    with open(shipped, encoding="utf-8") as file:
        text = file.read()
    assert "  epochs: 10\n" in text
    brief.write_text(text.replace("  epochs: 10\n", "  epochs: 1\n"), encoding="utf-8")
    replayed = tmp_path / "replay.yaml"
    replayed.write_text(
        "policy: {name: optscale, s_min: [0.7, 0.8], alpha: 0.95, max_samples: [8, 16]}\n"
    )
    out = tmp_path / "demo"
    given = [f"--predictor={brief}", f"--labels={labels}", f"--comparison={replayed}"]

    assert demo.main([*given, "--permutations=1", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "vLLM is not installed" in said
    assert "60 problems, on recorded completions" in said
    assert re.search(r"recorded@optscale answers .+ on \d+ completions of \d+ begun", said)
    assert (out / "report" / "index.html").is_file()
    # What to try next is a command that a shell finds as it is printed.
    last = said.splitlines()[-1]
    assert shutil.which(last.split()[1])
    assert last.startswith("next: ")
    # The same completions of the same problems, so that only the number drawn differs.
    pool = Pool.load(demo.DemoConfig().pool)
    for run in ("optscale_0", "optscale_t", "calibrated_vote", "best_of_n"):
        drawn = Pool.load(out / run / "pool.npz")
        assert drawn.problem_ids.tolist() == pool.problem_ids[:60].tolist()
        for row, held in enumerate(drawn.samples_per_problem):
            assert drawn.tokens[row, :held].tolist() == pool.tokens[row, :held].tolist()
    assert "live_priors.jsonl" not in {path.name for path in out.iterdir()}
