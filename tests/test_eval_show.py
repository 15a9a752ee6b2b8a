"""eval.show: what a run's directory alone tells, of any policy, in any terminal."""

import io
import json
import re

import jax
import numpy as np
import pytest
from rich.console import Console

from eval import show, solve
from optscale_jax import synthetic_pool
from optscale_jax.live.runs import read_run
from optscale_jax.live.story import kind_of, recount
from optscale_jax.report.story import KINDS, story_table

RULES = {
    "optscale": ["s_min=0.9", "alpha=0.9", "max_samples=8", "min_samples=2", "law=beta"],
    "self_consistency": ["n=4"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    synthetic_pool(jax.random.key(1), num_problems=6, num_samples=8).save(folder / "pool.npz")
    for name, arguments in RULES.items():
        command = ["--recorded.pool", str(folder / "pool.npz"), f"--policy.name={name}"]
        command += [f"--policy.{argument}" for argument in arguments]
        assert solve.main([*command, "--out", str(folder / name)]) == 0
    return folder


@pytest.mark.parametrize("rule", RULES)
def test_a_run_shows_its_problems_the_most_interesting_first(runs, rule, capsys):
    assert show.main([str(runs / rule), "--most", "5"]) == 0
    text = capsys.readouterr().out
    decisions, samples = read_run(runs / rule)
    cap = 8 if rule == "optscale" else 4
    kinds = {name: kind_of(decisions[name], samples[name], cap) for name in decisions}
    shown = [name for line in text.splitlines() for name in kinds if line.startswith(f" {name} ")]
    ranks = [KINDS.index(kinds[name]) for name in shown]
    assert len(ranks) == 5
    assert ranks == sorted(ranks)
    assert "and 1 more" in text


def test_a_story_has_the_law_and_n_star_after_each_completion(runs, capsys, tmp_path):
    decisions, samples = read_run(runs / "optscale")
    name = max(decisions, key=lambda each: decisions[each].num_samples)
    picture = tmp_path / "story.svg"
    assert show.main([str(runs / "optscale"), name, "--out", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "<svg" in picture.read_text()
    assert re.search(r"score .* right .* N\* .* completion", text)
    assert f"It stopped after {decisions[name].num_samples}: " in text
    # The last look is what was decided on.
    (config,) = [show.config_of(runs / "optscale").configured_policy()]
    looks = recount(config.policy, samples[name])
    assert looks[-1].required == decisions[name].required
    assert looks[-1].params == pytest.approx(decisions[name].params)
    assert all(look.required > count for count, look in enumerate(looks[:-1], 1))
    for width in (60, 120):
        file = io.StringIO()
        table = story_table(samples[name], looks, decisions[name], width)
        Console(file=file, width=width).print(table)
        lines = file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert sum(str(looks[0].required) in line for line in lines) >= 1


def test_a_rule_without_a_law_and_a_run_without_its_configuration_tell_what_they_know(
    runs, tmp_path, capsys
):
    assert show.main([str(runs / "self_consistency"), "synthetic/0"]) == 0
    text = capsys.readouterr().out
    assert "as many as were asked for beforehand" in text
    assert "N*" not in text
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("decisions.jsonl", "samples.jsonl"):
        data = (runs / "optscale" / name).read_bytes()
        (bare / name).write_bytes(data + b'{"torn')
    assert show.main([str(bare), "synthetic/0"]) == 0
    text = capsys.readouterr().out
    assert "note: what its policy was is not known" in text
    assert "It stopped after" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "run is the directory"),
        (["nowhere"], "nowhere/decisions.jsonl: No such file"),
        (["{run}", "O"], "no problem O"),
        (["{run}", "synthetic/0", "--out", "a.jpg"], "a picture ends with .svg, .png, .pdf"),
        (["{run}", "--out", "a.svg"], "name it after the directory"),
        (["{bad}"], "samples.jsonl: line 2: not a record of a run"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(runs, tmp_path, capsys, arguments, says):
    bad = tmp_path / "bad"
    bad.mkdir()
    lines = (runs / "optscale" / "samples.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"score": 7.5})
    (bad / "samples.jsonl").write_text("\n".join(lines) + "\n")
    (bad / "decisions.jsonl").write_text("")
    given = [each.format(run=runs / "optscale", bad=bad) for each in arguments]
    assert show.main(given) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_what_is_interesting_follows_from_what_was_right(runs):
    decisions, samples = read_run(runs / "optscale")
    for name, decision in decisions.items():
        own = samples[name]
        right = np.array([each.correct for each in own])
        kind = kind_of(decision, own, 8)
        assert (kind == "misled") == (right.any() and not right[decision.selected_index])
        assert (kind in ("cap", "never right")) <= (decision.num_samples == 8)
