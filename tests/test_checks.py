"""The words that configurations check their numbers with."""

import dataclasses
import math

import pytest

from optscale_jax.checks import at_least, finite, one_of, positive, within
from optscale_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Config:
    a: float | None = 1.0
    b: float | None = None
    name: str = "mean"


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (lambda c: at_least(c, 2, "a"), [2, 7.5]),
        (lambda c: finite(c, "a"), [-1e308, 0]),
        (lambda c: positive(c, "a"), [5e-324, 1e308]),
        (lambda c: within(c, "(0, 1)", "a"), [5e-324, 0.5]),
        (lambda c: within(c, "[0, 1)", "a"), [0, 0.5]),
        (lambda c: within(c, "(0, 1]", "a"), [0.5, 1]),
        (lambda c: within(c, "[0, 1]", "a"), [0, 1]),
        (lambda c: one_of(c, {"mean", "last"}, "name"), [1]),
    ],
)
def test_what_is_in_the_domain_passes_and_none_has_nothing_to_check(check, values):
    for value in (*values, None):
        check(Config(value))


@pytest.mark.parametrize(
    ("check", "values", "domain"),
    [
        (lambda c: at_least(c, 2, "b", "a"), [1, -math.inf, math.inf, math.nan], "at least 2"),
        (lambda c: finite(c, "b", "a"), [-math.inf, math.inf, math.nan], "finite"),
        (lambda c: positive(c, "b", "a"), [0, -1, math.inf, math.nan], "above 0"),
        (lambda c: within(c, "(0, 1)", "a"), [0, 1, math.nan], r"in \(0, 1\)"),
        (lambda c: within(c, "[0, 1)", "a"), [-1e-9, 1, math.nan], r"in \[0, 1\)"),
        (lambda c: within(c, "(0, 1]", "a"), [0, 1 + 1e-9, math.nan], r"in \(0, 1\]"),
        (lambda c: within(c, "[0, 1]", "a"), [-1e-9, math.inf, math.nan], r"in \[0, 1\]"),
    ],
)
def test_what_is_outside_is_named_with_its_value_and_its_domain(check, values, domain):
    for value in values:
        with pytest.raises(InputError, match=rf"^a is {value}; it must be {domain}$"):
            check(Config(value))


def test_a_choice_that_there_is_not_is_named_with_those_that_there_are():
    says = r"^verifier.name is 'best'; it must be one of mean, last$"
    with pytest.raises(InputError, match=says):
        one_of(Config(name="best"), ["mean", "last"], "name", of="verifier.")
