"""Shows what a live run did: its problems, the most interesting first, or one problem's story.

    python -m eval.show RUN [PROBLEM] [--out PICTURE.svg]

Reads the directory of eval.solve or eval.sample alone, also of a run that is still at it. A
problem's story has its completions, their scores, what the policy believed after each (the law
fitted to the scores, N*, P(right)) and why it stopped.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from rich.console import Console
from rich.text import Text

from optscale_jax.cli import command, output_file, show
from optscale_jax.cli.live import config_of
from optscale_jax.errors import InputError, did_you_mean
from optscale_jax.live.config import ConfiguredPolicy
from optscale_jax.live.runs import PROBLEMS, read_run
from optscale_jax.live.story import Look, kind_of, recount
from optscale_jax.problems import read_problems
from optscale_jax.records import Decision, Problem, Sample
from optscale_jax.report.story import KINDS, problems_table, story_figure, story_table, why
from optscale_jax.study.priors import priors_of
from optscale_jax.study.registry import describe

__all__ = ["ShowRunConfig", "main"]

PICTURES = (".svg", ".png", ".pdf")


@dataclasses.dataclass(frozen=True)
class ShowRunConfig:
    """What to show.

    Attributes:
        run: A run's directory and, for its story, the id of one of its problems; they may stand
            alone. Needed.
        most: Problems of the table at most, at least 1.
        out: File for a picture of the problem: .svg, .png or .pdf. null: none.
    """

    run: list[str] = dataclasses.field(default_factory=list)
    most: int = 20
    out: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.run) <= 2:
            raise ValueError("run is the directory of a live run, and one of its problems' ids")
        if self.most < 1:
            raise ValueError(f"most is {self.most}; it must be at least 1")
        if self.out is not None and Path(self.out).suffix not in PICTURES:
            raise ValueError(f"out is {self.out}; a picture ends with {', '.join(PICTURES)}")
        if self.out is not None and len(self.run) < 2:
            raise ValueError("out: a picture is of one problem; name it after the directory")


def run(config: ShowRunConfig) -> None:
    """Shows the run, or the problem."""
    directory = Path(config.run[0])
    decisions, samples = read_run(directory)
    problems = {problem.id: problem for problem in _problems(directory)}
    names = list(problems) or list(dict.fromkeys([*decisions, *samples]))
    try:
        configured = config_of(directory).configured_policy()
    except InputError as error:  # a run that was opened in Python may have any configuration
        configured = None
        show(f"note: what its policy was is not known: {error}", style="dim")
    if len(config.run) == 1:
        _table(config, decisions, samples, names, configured)
        return
    name = config.run[1]
    if name not in names:
        raise InputError(f"{directory}: no problem {name}{did_you_mean(name, names)}")
    place = names.index(name)
    problem = problems.get(name, Problem(name, ""))
    decision, drawn = decisions.get(name), samples.get(name, [])
    looks: list[Look] = []
    if configured is not None:
        try:
            file = config_of(directory).priors_file
            prior = priors_of(file, configured.name, [name])[0].get(name)
            looks = recount(configured.policy, drawn, prior, place=place, count=len(names))
        except (InputError, ValueError) as error:
            show(f"note: what it believed after each is not known: {error}", style="dim")
    story = _Story(problem, decision, drawn, looks, configured)
    _tell(story)
    if config.out is not None and drawn:
        _picture(Path(config.out), story)
        print(f"picture: {config.out}")


def _problems(directory: Path) -> list[Problem]:
    return read_problems(directory / PROBLEMS) if (directory / PROBLEMS).exists() else []


def _table(
    config: ShowRunConfig,
    decisions: dict[str, Decision],
    samples: dict[str, list[Sample]],
    names: list[str],
    configured: ConfiguredPolicy | None,
) -> None:
    cap = None if configured is None else int(configured.policy.max_samples)
    found = []
    for name in names:
        decision, own = decisions.get(name), samples.get(name, [])
        found.append((name, kind_of(decision, own, cap), decision, own))
    found.sort(key=lambda each: (KINDS.index(each[1]), -len(each[3])))
    rows = found[: config.most]
    policy = "" if configured is None else f", {_policy(configured)}"
    show(problems_table(f"{len(decisions)} of {len(names)} problems decided{policy}", rows))
    if len(names) > config.most:
        print(f"and {len(names) - config.most} more: --most {len(names)}")
    if rows:
        print(f"one problem's story: optscale show {config.run[0]} {rows[0][0]}")


def _policy(configured: ConfiguredPolicy) -> str:
    return f"{configured.label}: {describe(configured.setting, configured.name)}"


class _Story(NamedTuple):
    """A problem's."""

    problem: Problem
    decision: Decision | None  # None where nothing is decided yet
    drawn: list[Sample]
    looks: list[Look]  # what the policy believed after each; none where that is not known
    configured: ConfiguredPolicy | None  # None where it is not known


def _tell(story: _Story) -> None:
    problem, decision, drawn, looks, configured = story
    gold = "" if problem.answer is None else f" (answer: {problem.answer})"
    text = " ".join(problem.text.split())
    show(Text(f"{problem.id}: {text[:300]}{'…' if len(text) > 300 else ''}{gold}"))
    if configured is not None:
        show(Text(_policy(configured), style="dim"))
    if drawn:
        console = Console()
        show(story_table(drawn, looks, decision, console.width if console.is_terminal else 120))
    cap = None if configured is None else int(configured.policy.max_samples)
    show(Text(why(decision, cap)))
    if decision is not None and decision.params:
        law = " ".join(f"{key} {value:.3g}" for key, value in decision.params.items())
        show(Text(f"The law of its scores then: {law}."))
    if decision is not None and not math.isnan(decision.ledger.total):
        spent = vars(decision.ledger)
        parts = ", ".join(f"{key} {value:,.0f}" for key, value in spent.items() if value)
        show(Text(f"Tokens: {parts or 'none'}."))


def _picture(out: Path, story: _Story) -> None:
    problem, decision, drawn, looks, configured = story
    law: Any = getattr(configured and configured.policy, "law", None)
    if law is not None:
        params = looks[-1].params if looks else {}
        found = {name: jnp.asarray(value) for name, value in params.items()}
        law = law.distribution(found) if found else None
    setting = {} if configured is None else configured.setting
    figure = story_figure(problem.id, drawn, looks, decision, setting, law)
    with output_file(out, binary=True) as file:
        figure.savefig(file, format=out.suffix[1:], dpi=200)


main = command(ShowRunConfig, run, __name__, positional="run")

if __name__ == "__main__":
    sys.exit(main())
