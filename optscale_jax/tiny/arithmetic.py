r"""Chained arithmetic modulo 100: problems whose every step can be checked exactly.

    Compute 37+8*7-9 from left to right, modulo 100.

A solution is one step a paragraph, and the answer in a box:

    37+8=15:45

    45*7=35:15

    15-9=16:06

    \boxed{6}

A step's result has two digits, so that everything has a fixed place; before it stands what the last
digits carry (or borrow) and give, since a small model takes far longer to learn a first digit
whose carry it has not yet written. Products are the hard part, and longer chains have more of
them, so that the number of operations is a problem's difficulty.

`python -m optscale_jax.tiny` writes problems to a file.
"""

import dataclasses
import itertools
import operator
from collections.abc import Sequence

import numpy as np

from optscale_jax.records import Problem

__all__ = [
    "LEVELS",
    "MODULUS",
    "SYSTEM_PROMPT",
    "Chain",
    "check_steps",
    "draw_chains",
    "draw_problems",
]

MODULUS = 100
LEVELS = (2, 3, 4, 5, 6, 7, 8)
"""Numbers of operations."""

# Not 2 and 5: a few factors of both, and all further products are 0.
_FACTORS = (3, 4, 6, 7, 8, 9)

SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."
"""What Qwen2.5-Math-PRM's chat template is given as the system's message."""


@dataclasses.dataclass(frozen=True)
class Chain:
    """One problem.

    Attributes:
        start: First number, in [0, 99].
        operations: (sign, operand) in the order in which they apply; operands are in [0, 99], and
            of one digit in problems that are drawn.
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
            values.append(_SIGNS[sign](values[-1], operand) % MODULUS)
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
        lines = [
            f"{before:02}{sign}{operand}={_carry(before, sign, operand)}{after % 10}:{after:02}"
            for (before, after), (sign, operand) in zip(
                itertools.pairwise(self.values), self.operations, strict=True
            )
        ]
        return [*lines, f"\\boxed{{{self.answer}}}"]

    @property
    def solution(self) -> str:
        """The right solution, as the reasoner is taught to write it."""
        return "\n\n".join(self.steps)


_SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def _carry(value: int, sign: str, operand: int) -> int:
    """What the last digits carry to the first ones, or borrow from them."""
    return abs(_SIGNS[sign](value % 10, operand % 10) // 10)


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
        operands = np.where(
            products, generator.choice(_FACTORS, level), generator.integers(1, 10, level)
        )
        operations = tuple(zip(signs.tolist(), operands.tolist(), strict=True))
        chains[Chain(int(generator.integers(10, MODULUS)), operations)] = None
    return list(chains)


def check_steps(chain: Chain, steps: Sequence[str]) -> list[bool]:
    """Labels the steps of a solution by exact arithmetic.

    A step is good if it and all before it are right: it applies the next operation to the value
    before and gets the right result, or boxes the last value after all operations. From the first
    wrong step on all are bad, as the labels of process reward models are.
    """
    right = [*chain.steps, *[None] * len(steps)]  # what goes on after the end is wrong
    same = (step.strip() == expected for step, expected in zip(steps, right, strict=False))
    return list(itertools.accumulate(same, operator.and_))


def draw_problems(seed: int, count: int) -> list[Problem]:
    """Draws problems for a sampler, named arithmetic-SEED/INDEX, with their answers."""
    return [
        Problem(f"arithmetic-{seed}/{index}", chain.question, chain.answer)
        for index, chain in enumerate(draw_chains(seed, count))
    ]
