r"""Chained arithmetic modulo 100: problems whose every step can be checked exactly.

    Compute 37+58*7-94 from left to right, modulo 100.

A solution is one step a paragraph, and the answer in a box:

    37+58=95

    95*7=65

    65-94=71

    \boxed{71}

Products are the hard part, and longer chains have more of them, so that the number of operations is
a problem's difficulty. As a command this module writes problems as MATH-500 is written, one JSON
object a line with `unique_id`, `problem`, `answer` and `level`:

    python -m optscale_jax.tiny.arithmetic --count 400 --seed 1 > problems.jsonl
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["LEVELS", "MODULUS", "SYSTEM_PROMPT", "Chain", "check_steps", "draw_chains"]

MODULUS = 100
LEVELS = (2, 3, 4, 5, 6, 7, 8)
"""Numbers of operations."""

SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."
"""What Qwen2.5-Math-PRM's chat template is given as the system's message."""

_STEP = re.compile(r"(\d{1,2})([-+*])(\d{1,2})=(\d{1,2})")
_BOX = re.compile(r"\\boxed\{(\d{1,2})\}")


@dataclasses.dataclass(frozen=True)
class Chain:
    """One problem.

    Attributes:
        start: First number, in [0, 99].
        operations: (sign, operand) in the order in which they apply.
    """

    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def level(self) -> int:
        """Number of operations."""
        return len(self.operations)

    @property
    def values(self) -> list[int]:
        """The start and the value after each operation, in [0, 99]."""
        values = [self.start]
        for sign, operand in self.operations:
            values.append(_apply(values[-1], sign, operand))
        return values

    @property
    def answer(self) -> str:
        """The last value."""
        return str(self.values[-1])

    @property
    def expression(self) -> str:
        """The chain as it is written, such as 37+58*7."""
        return str(self.start) + "".join(f"{sign}{operand}" for sign, operand in self.operations)

    @property
    def question(self) -> str:
        """The problem's text."""
        return f"Compute {self.expression} from left to right, modulo {MODULUS}."

    @property
    def steps(self) -> list[str]:
        """The paragraphs of the right solution."""
        values = self.values
        lines = [
            f"{before}{sign}{operand}={after}"
            for before, (sign, operand), after in zip(
                values, self.operations, values[1:], strict=False
            )
        ]
        return [*lines, f"\\boxed{{{values[-1]}}}"]

    @property
    def solution(self) -> str:
        """The right solution, as the reasoner is taught to write it."""
        return "\n\n".join(self.steps)


def _apply(value: int, sign: str, operand: int) -> int:
    if sign == "+":
        return (value + operand) % MODULUS
    if sign == "-":
        return (value - operand) % MODULUS
    return value * operand % MODULUS


def share_of_products(level: int) -> float:
    """How likely an operation is a product, in problems of a level: 0 at the easiest, 3/4 at 8."""
    return (level - 2) / 8


def draw_chains(
    seed: int | Sequence[int], count: int, *, levels: Sequence[int] = LEVELS
) -> list[Chain]:
    """Draws problems at random.

    Args:
        seed: Of the draw; one number or several. Different seeds give independent problems.
        count: How many, at least 0.
        levels: Numbers of operations, each as likely as the others.

    Returns:
        The problems, all different.
    """
    generator = np.random.default_rng(seed)
    chains: dict[Chain, None] = {}
    while len(chains) < count:
        level = int(generator.choice(levels))
        products = generator.random(level) < share_of_products(level)
        signs = np.where(products, "*", np.where(generator.random(level) < 0.5, "+", "-"))
        numbers = generator.integers(2, MODULUS, size=level + 1).tolist()
        operations = tuple(zip(signs.tolist(), numbers[1:], strict=True))
        chains[Chain(numbers[0], operations)] = None
    return list(chains)


def check_steps(chain: Chain, steps: Sequence[str]) -> list[bool]:
    """Labels the steps of a solution by exact arithmetic.

    A step is good if it and all before it are right: it applies the next operation to the value
    before and gets the right result, or boxes the last value after all operations. From the first
    wrong step on all are bad, as the labels of process reward models are.

    Args:
        chain: The problem.
        steps: The paragraphs of a solution.

    Returns:
        One label a step.
    """
    right = chain.steps
    labels = []
    good = True
    for index, step in enumerate(steps):
        good = good and index < len(right) and step.strip() == right[index]
        labels.append(good)
    return labels


def records(seed: int, count: int) -> Iterator[dict[str, object]]:
    """Problems with the fields of MATH-500.

    Args:
        seed: Of the draw.
        count: How many.

    Yields:
        unique_id, problem, answer and level of each.
    """
    for index, chain in enumerate(draw_chains(seed, count)):
        yield {
            "unique_id": f"arithmetic-{seed}/{index}",
            "problem": chain.question,
            "answer": chain.answer,
            "level": chain.level,
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Writes problems to standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m optscale_jax.tiny.arithmetic",
        description="Writes problems of chained arithmetic, one JSON object a line.",
    )
    parser.add_argument("--count", type=int, default=400, help="number of problems (default: 400)")
    parser.add_argument("--seed", type=int, default=1, help="of the draw, at least 0 (default: 1)")
    arguments = parser.parse_args(argv)
    if arguments.count < 1 or arguments.seed < 0:
        parser.error("--count must be at least 1 and --seed at least 0")
    for record in records(arguments.seed, arguments.count):
        print(json.dumps(record))


if __name__ == "__main__":
    sys.exit(main())
