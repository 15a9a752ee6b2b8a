"""Cards of what is shared on a model hub: a repository's README.md, from their figures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import yaml

from optscale_jax.calibration import Calibration, Origin
from optscale_jax.hub import Kind
from optscale_jax.pool import Pool
from optscale_jax.predictor.calibration import Quality
from optscale_jax.report.priors import quality_table
from optscale_jax.report.tables import Table
from optscale_jax.study.comparison import Options
from optscale_jax.study.estimates import best_at_k, majority_at_k, pass_at_k
from optscale_jax.study.goodness_of_fit import calibrate, verdict
from optscale_jax.study.verifier import roc_of

__all__ = ["calibration_card", "pool_card", "predictor_card"]

_METHOD = (
    "OptScale ([Wang et al., AAAI 2026](https://arxiv.org/abs/2506.22376)) decides for each "
    "problem how many completions of a language model it needs."
)


def calibration_card(found: Calibration, name: str) -> str:
    """The card of a calibration.

    Args:
        found: The calibration.
        name: Of its repository, OWNER/NAME.
    """
    truth = "their right answers" if found.labels == "pool" else "the answer that leads in each"
    facts = _origin(found.origin)
    facts += [
        ("learnt on", f"{found.num_problems} problems, by {truth}"),
        ("signals", ", ".join(("the score", *found.signals))),
        ("mean tokens of a completion", f"{found.tokens:,.0f}" if found.tokens else "not known"),
        ("weights of the vote", ", ".join(f"{weight:.2f}" for weight in found.weights)),
    ]
    parts = [_table("What it is", facts)]
    if found.reliability is not None:
        error, *bins = found.reliability
        rows = [[f"{c:.1%}", f"{r:.1%}", f"{n:.0f}"] for c, r, n in zip(*bins, strict=True)]
        title = "What it claims, and what came true, on problems left out"
        note = f"mean difference (expected calibration error): {error:.3f}"
        parts.append(Table(title, ["claimed", "right", "claims"], rows, [note], 0).to_markdown())
    lines = [
        "from optscale_jax import policies",
        f'vote = policies.calibrated_vote("hf://{name}", budget=32, max_samples=64)',
    ]
    about = (
        "What a verifier's scores are worth as probabilities of being right. It is for the scores "
        "of this verifier alone."
    )
    return _card(name, "model", "verifier calibration", about, lines, parts)


def predictor_card(described: Mapping[str, Any], name: str) -> str:
    """The card of a predictor.

    Args:
        described: Its predictor.json.
        name: As for `calibration_card`.
    """
    record, recipe = described["record"], described["recipe"]
    labels = record.get("labels", {})
    facts = [
        ("law of scores", "truncated normal on [0, 1]"),
        ("learnt on", f"{labels.get('problems', 'unknown')} problems"),
        ("scores of a problem, mean", f"{labels.get('scores', float('nan')):.1f}"),
        ("features", f"{recipe['model']}, layers {', '.join(map(str, recipe['layers']))}"),
        ("head", described["head"]["name"]),
        ("epochs", str(record.get("epochs", "unknown"))),
    ]
    parts = [_table("What it is", facts)]
    rows = [
        ((split, kind, str(each["problems"])), _quality(each))
        for split, of_split in record.get("quality", {}).items()
        for kind, each in of_split.items()
    ]
    if rows:
        title = "How good the predicted priors are"
        parts.append(quality_table(title, ("split", "prior", "problems"), rows).to_markdown())
    lines = [
        "from optscale_jax.predictor.predictor import Predictor",
        f'prior = Predictor.load("hf://{name}").predict(["What is 6 times 7?"]).prior',
    ]
    about = "A prior of a verifier's scores for each problem, read off the problem's text."
    return _card(name, "model", "predictor of priors", about, lines, parts)


def _quality(told: dict[str, Any]) -> Quality:
    known: dict[str, Any] = {name: np.nan if v is None else v for name, v in told.items()}
    return Quality(**known)


def pool_card(pool: Pool, name: str) -> str:
    """The card of a pool; `name` as for `calibration_card`."""
    mean = pool.tokens[pool.mask].mean() if pool.has_tokens else np.nan
    facts = [*_origin(pool.origin), ("problems", f"{pool.num_problems:,}")]
    facts += [
        ("completions of a problem", f"{pool.num_samples}, {pool.kind}"),
        ("mean tokens of a completion", "not known" if np.isnan(mean) else f"{mean:,.0f}"),
    ]
    if pool.scores is not None:
        facts.append(("law of scores", verdict(calibrate(pool, key=jax.random.key(0))).sentence))
    if (roc := roc_of(pool, Options())) is not None:
        told = f"{roc.auc_within.mean:.3f} within problems, {roc.auc:.3f} over all"
        facts.append(("P(a right completion scores above a wrong one)", told))
    parts = [_table("What it is", facts)]
    if pool.correct is not None:
        parts.append(_accuracy(pool))
    lines = ["from optscale_jax import Pool", f'pool = Pool.load("hf://{name}")']
    about = (
        "Completions of a language model with a verifier's scores, to replay stopping rules on: "
        "numbers alone, no texts."
    )
    return _card(name, "dataset", "scored completions", about, lines, parts)


def _accuracy(pool: Pool) -> str:
    """What N completions are worth, over all choices of N of each problem's."""
    fewest = int(pool.samples_per_problem.min())
    # Of a sequence of completions each of which has seen the one before, no subset is a run.
    depths = (
        [1] if pool.kind == "sequential" else sorted({1, min(4, fewest), min(16, fewest), fewest})
    )
    rules: dict[str, Callable[[Pool, int], np.ndarray]] = {"any of N": pass_at_k}
    rules |= {"best of N by score": best_at_k} if pool.has_scores else {}
    rules |= {"majority of N": majority_at_k} if pool.has_answers else {}
    rows = [
        [rule, *(f"{right(pool, n).mean():.1%}" for n in depths)] for rule, right in rules.items()
    ]
    heads = ["right", *(f"N = {n}" for n in depths)]
    return Table("What more completions are worth", heads, rows, num_labels=1).to_markdown()


def _origin(origin: Origin) -> list[tuple[str, str]]:
    return [(field, value or "not known") for field, value in origin._asdict().items()]


def _table(title: str, facts: Sequence[tuple[str, str]]) -> str:
    return Table(title, ["what", "figure"], facts).to_markdown()


def _card(
    name: str, kind: Kind, what: str, about: str, lines: Sequence[str], parts: Sequence[str]
) -> str:
    tags = ["optscale", "best-of-n", "test-time-compute", what.replace(" ", "-")]
    head: dict[str, Any] = {"tags": tags}
    if kind == "model":
        head["library_name"] = "optscale-jax"
    named = yaml.safe_dump(head, sort_keys=False)
    code = "\n".join(lines)
    return "\n".join(
        [
            f"---\n{named}---\n",
            f"# {name.partition('/')[2]}: {what}\n",
            f"{about} {_METHOD}\n",
            f"```python\n{code}\n```\n",
            f"`hf://{name}` stands where a path does, `hf://{name}@COMMIT` for one version.\n",
            *parts,
        ]
    )
