"""The commands' own package, which holds the repository's `eval/` and `train/`.

A wheel has them in here, so that no package of these names is installed for all of Python to see;
a checkout has them beside `optscale_jax/`, where they are found just the same.
"""

import ast
from pathlib import Path

__all__ = ["COMMANDS", "listing"]

COMMANDS = {
    "replay": "eval.replay",
    "report": "eval.report",
    "solve": "eval.solve",
    "sample": "eval.sample",
    "show": "eval.show",
    "serve": "eval.serve",
    "labels": "train.labels",
    "train": "train.predictor",
    "train-calibration": "train.calibration",
    "predict": "eval.predict",
    "convert": "eval.convert",
    "push": "eval.push",
    "compare-priors": "eval.compare_priors",
    "compare-losses": "eval.compare_losses",
    "check-decisions": "eval.check_decisions",
    "check-answers": "eval.check_answers",
    "demo": "eval.demo",
    "bench": "eval.bench.core",
    "bench-live": "eval.bench.live",
    "bench-predictor": "eval.bench.predictor",
    "bench-serve": "eval.bench.serve",
    "bench-gateways": "eval.bench.gateways",
    "bench-shards": "eval.bench.shards",
    "train-tiny": "train.tiny",
}
"""Module of each command of `optscale`, below this package."""

_here = Path(__file__).resolve().parent
if not (_here / "eval").is_dir():
    __path__.append(str(_here.parents[2]))


def listing() -> str:
    """All commands with the first sentences of their docstrings; none of them is imported."""
    lines = ["usage: optscale COMMAND [--help] [--config NAME-OR-FILE] [--FIELD VALUE ...]", ""]
    width = max(map(len, COMMANDS))
    for name, module in COMMANDS.items():
        places = (Path(place, *module.split(".")).with_suffix(".py") for place in __path__)
        text = next(file for file in places if file.is_file()).read_text(encoding="utf-8")
        doc = ast.get_docstring(ast.parse(text)) or ""
        lines.append(f"  {name:{width}} {doc.splitlines()[0]}")
    return "\n".join(lines)
