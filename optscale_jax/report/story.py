"""What a live run did, to look at: its problems in a table, and one problem's story with a picture.

It is drawn of what `live.story` finds in the run's directory; no model is needed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text
from tensorflow_probability.substrates.jax.distributions import Distribution

from optscale_jax.live.story import Kind, Look
from optscale_jax.records import Decision, Sample

__all__ = ["problems_table", "story_figure", "story_table", "why"]

_BAR = 10  # cells of a score's bar in a terminal
_RIGHT = {True: "✓", False: "✗", None: "?"}
_WORDS: dict[Kind, str] = {
    "failed": "failed",
    "misled": "a right completion was drawn, and another returned",
    "stopped early": "wrong, and stopped before the cap",
    "never right": "no completion is right, and the cap was reached",
    "cap": "as many as the cap allows",
    "plain": "",
    "undecided": "not decided yet",
}
KINDS = tuple(_WORDS)


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None or math.isnan(value) else format(value, form)


def _stopped(decision: Decision | None) -> str:
    return "" if decision is None else decision.stop_reason.replace("_", " ")


def problems_table(
    title: str, found: Sequence[tuple[str, Kind, Decision | None, Sequence[Sample]]]
) -> Table:
    """A run's problems, in the order given: what is interesting, why it stopped, what it cost."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("problem", overflow="fold")
    for heading in ("drawn", "tokens", "score"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("right")
    table.add_column("stopped")
    table.add_column("what there is to see")
    for name, kind, decision, samples in found:
        chosen = _chosen(decision, samples)
        table.add_row(
            Text(name),
            str(len(samples)),
            f"{decision.tokens:,}" if decision and decision.tokens >= 0 else "–",
            _number(None if chosen is None else chosen.score),
            "?" if chosen is None else _RIGHT[chosen.correct],
            _stopped(decision),
            _WORDS[kind],
        )
    return table


def _chosen(decision: Decision | None, samples: Sequence[Sample]) -> Sample | None:
    at = -1 if decision is None else decision.selected_index
    return samples[at] if 0 <= at < len(samples) else None


def story_table(
    samples: Sequence[Sample], looks: Sequence[Look], decision: Decision | None, width: int
) -> Table:
    """A problem's completions in launch order, with what the policy believed after each.

    Args:
        samples: What the decision rests on.
        looks: As many, or none where the policy is not known.
        decision: None where there is none yet.
        width: Of the terminal, in characters: a narrow one gets no law and no bars.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = looks[-1].params if looks and width >= 90 else {}
    claims = any(not math.isnan(look.confidence) for look in looks)
    bounded = any(look.required >= 0 for look in looks)
    wanted = "N*" if any(look.params for look in looks) else "wanted"
    heads = ["", "score", *[""] * (width >= 80), "right", "answer"]
    heads += [*[wanted] * bounded, *["P(right)"] * claims, *names]
    for heading in heads:
        number = heading in ("score", wanted, "P(right)", *names)
        least = max(len(heading), 5) if number else len(heading)
        justify = "right" if number else "left"
        table.add_column(heading, justify=justify, no_wrap=True, min_width=least)
    table.add_column("completion", no_wrap=True, overflow="ellipsis", ratio=1)
    for place, sample in enumerate(samples):
        returned = decision is not None and decision.selected_index == place
        row = [f"{place + 1}{' →' if returned else ''}", _number(sample.score)]
        row += ["█" * round(_BAR * (sample.score or 0.0))] * (width >= 80)
        row += [_RIGHT[sample.correct], (sample.answer or "–")[:12]]
        if looks:
            look = looks[place]
            row += [str(look.required) if look.required >= 0 else "–"] * bounded
            row += [_number(look.confidence, ".2f")] * claims
            row += [_number(look.params[name], ".3g") for name in names]
        text = " ".join(sample.completion.text.split()) or sample.note or ""
        table.add_row(*map(Text, row), Text(text), style="bold" if returned else "")
    return table


def why(decision: Decision | None, cap: int | None) -> str:
    """Why a problem stopped where it did, in a sentence."""
    if decision is None:
        return "It is not decided yet."
    if decision.error is not None:
        return f"It failed: {decision.error}"
    drawn, required = decision.num_samples, decision.required
    reasons = {
        "fixed_count": "as many as were asked for beforehand",
        "bound_reached": f"{required} were enough by the bound, N*, and {drawn} were there",
        "score_reached": "a score reached the target",
        "max_samples": f"the cap of {cap or drawn} was reached before the rule was satisfied",
        "window_unanimous": "a whole window of completions gave one answer",
        "lead_certain": "the leading answer is the majority with the probability asked for",
        "doubt_small": "what is in doubt is not worth the price of another completion",
        "gain_small": "the next one is not expected to raise the best score enough",
        "budget_spent": "the run's budget was spent",
    }
    word = decision.stop_reason
    words = f"It stopped after {drawn}: {reasons.get(word, word.replace('_', ' '))}."
    if decision.confidence is not None and not math.isnan(decision.confidence):
        words += f" It claims its answer to be right with probability {decision.confidence:.2f}."
    return words


def story_figure(
    title: str,
    samples: Sequence[Sample],
    looks: Sequence[Look],
    decision: Decision | None,
    setting: Mapping[str, Any],
    law: Distribution | None,
) -> Any:
    """A picture of it: scores in launch order, N* after each, and the law fitted to the scores.

    Args:
        title: What stands above it.
        samples: What the decision rests on, at least one.
        looks: As many, or none.
        decision: None where there is none yet.
        setting: The policy's arguments, of which s_min is drawn.
        law: The law at the stop; None for policies that fit none.
    """
    # Matplotlib takes a second to import.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from optscale_jax.report.figures import COLOURS, PAGE_WIDTH, STYLE

    scores = np.array([math.nan if s.score is None else s.score for s in samples])
    at = np.arange(1, len(samples) + 1)
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE_WIDTH, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2, 1))
        parts = ((True, "right", COLOURS[2], "o"), (False, "wrong", COLOURS[1], "X"))
        for correct, name, colour, marker in (*parts, (None, "not known", "#7f7f7f", "s")):
            own = np.array([sample.correct is correct for sample in samples])
            if own.any():
                left.plot(at[own], scores[own], marker, color=colour, label=name, markersize=4.5)
        chosen = _chosen(decision, samples)
        if chosen is not None and chosen.score is not None:
            place = samples.index(chosen) + 1
            ring = {"markerfacecolor": "none", "markersize": 11, "color": "black"}
            left.plot([place], [chosen.score], "o", label="returned", **ring)
        s_min = setting.get("s_min")
        if isinstance(s_min, int | float):
            left.axhline(s_min, color="black", linewidth=0.8, linestyle="--", label="s_min")
        left.set_xlabel("completion, in launch order")
        left.set_ylabel("score")
        left.set_ylim(-0.02, 1.02)
        required = np.array([look.required for look in looks], float)
        if (required >= 0).any():
            other = left.twinx()
            required[required < 0] = np.nan
            other.step(at, required, where="mid", color=COLOURS[0], linewidth=1.2, label="N*")
            other.plot(at, at, color=COLOURS[0], linewidth=0.8, linestyle=":", label="drawn")
            other.set_ylabel("N*: wanted in all", color=COLOURS[0])
            other.set_ylim(bottom=0)
            other.spines["right"].set_visible(True)
        bins = np.linspace(0, 1, 21)
        known = scores[~np.isnan(scores)]
        share = np.histogram(known, bins)[0] / max(known.size, 1)
        right.stairs(share, bins, fill=True, color="#bdbdbd", label="scores")
        if law is not None:
            mass = np.diff(np.asarray(law.cdf(np.asarray(bins, np.float32))))
            right.stairs(mass, bins, color=COLOURS[0], linewidth=1.2, label="fitted law")
        right.set_xlabel("score")
        right.set_ylabel("share of the completions")
        handles, labels = [], []
        for axes in figure.axes:
            own = axes.get_legend_handles_labels()
            handles, labels = handles + own[0], labels + own[1]
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        figure.suptitle(title, fontsize=9)
    return figure
