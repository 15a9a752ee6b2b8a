"""What a report says first of a pool: the rule to use, whether to trust it, and what to do next."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from optscale_jax.report.tables import UNITS
from optscale_jax.study.findings import Findings

__all__ = ["Fact", "Headline", "Step", "headline", "recommendation"]

# Probability that a right completion is scored above a wrong one of the same problem.
AUC_GOOD, AUC_FAIR = 0.8, 0.6
FEW_PROBLEMS = 20  # with fewer, an interval over problems says little


class Fact(NamedTuple):
    """One of the few figures to look at first."""

    heading: str
    text: str  # a number, or a word or two
    note: str
    tone: Literal["good", "fair", "poor"]


class Step(NamedTuple):
    """Something to do next, and the command that does it; none where it is not one command."""

    words: str
    command: str = ""


class Headline(NamedTuple):
    """The first screen of a pool's section."""

    sentences: Sequence[str]
    facts: Sequence[Fact]
    steps: Sequence[Step]


def headline(found: Findings) -> Headline:
    """What a report says first of a pool."""
    words = recommendation(found)
    if not words:
        words = [
            "No rule can be recommended: nothing that was compared always draws the same number, "
            "as best-of-N and self-consistency do, so there is nothing to save against."
        ]
    return Headline(words, list(_facts(found)), list(_steps(found)))


def recommendation(found: Findings) -> list[str]:
    """The rule to use, what it saves at which risk, and what the pool or the search cannot tell."""
    if (best := found.recommendation) is None:
        return []
    unit, cost = UNITS[found.outcomes.value_kind], found.outcomes.cost_kind
    fixed = f"{best.baseline} ({best.fixed.setting})"
    point, doubts, count = best.point, [], found.outcomes.num_problems
    few = f"{count} problems are too few to go by; take tens, better hundreds. "
    if best.label == best.baseline:
        words = f"Use {fixed}: no rule is as good as this, the best fixed n, for fewer {cost}."
    else:
        low, high = (f"{100 * part:.0f}" for part in point.saved[1:])
        words = (
            f"Use {best.label} ({point.setting}), the cheapest that is as good as the best fixed "
            f"n: {unit.value(point.value.mean)} for {point.cost.mean:,.0f} {cost} a problem, "
            f"{point.saved.mean:.0%} ({low} to {high}) fewer than the {best.fixed.cost.mean:,.0f} "
            f"of {fixed}, with a difference of {unit.ends(point.difference)} {unit.difference}."
        )
        doubts += [] if best.saves else ["that it saves at all"]
        if not best.keeps:
            doubts.append(f"that it loses at most {unit.difference_of(best.loss).lstrip('+')}")
    if best.rivals:
        doubts.append(f"that it is better than {' or '.join(best.rivals)}")
    if doubts:
        words += f" The pool is too small to tell {'; nor '.join(doubts)}."
    if best.at_ends:
        ends = ", ".join(f"{label} ({' '.join(at)})" for label, at in best.at_ends.items())
        words += f" Tuned to an end of what was tried, and perhaps better beyond it: {ends}."
    return [few * (count < FEW_PROBLEMS) + words]


def _facts(found: Findings) -> Iterator[Fact]:
    unit, cost = UNITS[found.outcomes.value_kind], found.outcomes.cost_kind
    if (best := found.recommendation) is not None:
        saved, more = best.point.saved, best.point.difference
        yield Fact(
            f"{cost} saved",
            f"{saved.mean:.0%}",
            f"{100 * saved.low:.0f} to {100 * saved.high:.0f}%, beside {best.baseline} "
            f"({best.fixed.setting})",
            "good" if best.saves else "fair",
        )
        low, high = (f"{unit.scale * end:+.{unit.digits}f}" for end in more[1:])
        yield Fact(
            f"{found.outcomes.value_kind} for it",
            unit.difference_of(more.mean),
            f"{low} to {high}, in all {unit.value(best.point.value.mean)}",
            "good" if best.keeps else "fair",
        )
    if found.fit is not None:
        law, ratio = found.fit.verdict, found.fit.calibration.ks_ratio
        yield Fact(
            "law of scores",
            "fits" if law.trusted else "does not fit",
            f"scores {ratio:.1f} times as far from it as draws of its own; 1 is a perfect fit",
            "good" if law.trusted else "poor",
        )
    if found.roc is not None:
        auc = found.roc.auc_within
        yield Fact(
            "verifier",
            f"{auc.mean:.0%} of pairs right",
            f"{100 * auc.low:.0f} to {100 * auc.high:.0f}%, of a right and a wrong completion of "
            "one problem; 50% is chance",
            "good" if auc.low >= AUC_GOOD else "fair" if auc.low >= AUC_FAIR else "poor",
        )


def _steps(found: Findings) -> Iterator[Step]:
    outcomes, best = found.outcomes, found.recommendation
    source = outcomes.source
    file = shlex.quote(source.path) if source is not None and source.synthetic is None else "POOL"
    methods = {method.label: method for method in outcomes.methods}
    known = found.pool is not None and found.pool.correct is not None and found.pool.has_answers
    if known and all(method.name != "calibrated_vote" for method in outcomes.methods):
        yield Step(
            "See whether a rule that knows answers, which the paper's do not, saves more.",
            f"optscale report --pools {file} --comparison beyond --out runs/beyond",
        )
    if best is not None and best.label in methods:
        method, arguments = methods[best.label], dict(best.point.arguments)
        # One that was given stays: a pool says nothing of a calibration that was learnt on it.
        if "calibration" in arguments and not isinstance(arguments["calibration"], str):
            arguments["calibration"] = "calibration.json"
            yield Step(
                "Learn what a score is worth from this pool.",
                f"optscale train calibration --pool {file} --out calibration.json",
            )
        options = " ".join(f"--policy.{name} {_word(value)}" for name, value in arguments.items())
        yield Step(
            "Use the rule live, with your model and verifier in a configuration of your own.",
            f"optscale solve --config YOURS.yaml --policy.name {method.name} {options}",
        )
    if best is not None and (best.rivals or not best.saves or not best.keeps):
        yield Step(
            f"To tell what {outcomes.num_problems} problems cannot, sample more problems, not "
            "more completions of these: four times as many halve the intervals."
        )
    if found.fit is not None and not found.fit.verdict.trusted:
        laws = found.fit.laws
        best_law = laws and max(laws.laws, key=lambda name: float(laws.laws[name].value.mean))
        words = f"; of those compared, {best_law} fits best" if best_law else ""
        yield Step(
            f"Where the law does not fit, the bound is not what it claims{words}. Try others.",
            f"optscale replay --config laws --pool {file} --out runs/laws",
        )


def _word(value: object) -> str:
    """A setting as a word of a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else shlex.quote(str(value))
