"""Writes problems as MATH-500 is written: unique_id, problem, answer and level, one JSON a line.

python -m optscale_jax.tiny --count 400 --seed 1 > problems.jsonl
"""

import argparse
import json
import sys
from collections.abc import Sequence

from optscale_jax.tiny.arithmetic import draw_chains, draw_problems

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes problems to standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m optscale_jax.tiny",
        description="Writes problems of chained arithmetic, one JSON object a line.",
    )
    parser.add_argument("--count", type=int, default=400, help="number of problems (default: 400)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw, at least 0 (default: 1)")
    arguments = parser.parse_args(argv)
    if arguments.count < 1 or arguments.seed < 0:
        parser.error("--count must be at least 1 and --seed at least 0")
    drawn = arguments.seed, arguments.count
    for problem, chain in zip(draw_problems(*drawn), draw_chains(*drawn), strict=True):
        record = {"unique_id": problem.id, "problem": problem.text, "answer": problem.answer}
        print(json.dumps({**record, "level": chain.level}))


if __name__ == "__main__":
    sys.exit(main())
