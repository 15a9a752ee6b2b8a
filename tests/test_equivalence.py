"""Equivalence of answers as mathematics: what is the same, and that nothing makes it hang."""

import concurrent.futures
import time

import pytest

from optscale_jax.answers import answers_equal
from optscale_jax.equivalence import EquivalenceChecker

pytest.importorskip("mpmath")


@pytest.fixture(scope="module")
def equal():
    with EquivalenceChecker(seconds=10) as checker:
        # A worker starts when it is first needed, which is no part of what is measured here.
        assert checker("x+1", "1+x")
        yield checker


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("5", "x=5"),
        (r"6-5i", r"-5i+6"),
        (r"\left(3,\frac{\pi}{2}\right)", r"(3, \pi/2)"),
        (r"\text{east}", "east"),
        ("C", r"\text{(C)}"),
        ("1200", "1{,}200.0"),
    ],
)
def test_same_mathematics(equal, gold, answer):
    assert equal(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [("1", "2"), ("x+1", "x-1"), (r"\sqrt2", r"\sqrt3"), ("(1,2)", "(2,1)"), ("A", "B"), ("5", "")],
)
def test_different_mathematics(equal, gold, answer):
    assert not equal(gold, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "1e9999",
        "1e9999999999",
        "{" * 50_000 + "}" * 50_000,
        r"\frac{1}{" * 30 + "x" + "}" * 30,
        r"\sqrt{" * 5_000 + "25" + "}" * 5_000,
        "(" * 900 + ")" * 50,
        "x" * 100_000,
        "9" * 100_000,
        "\\",
        "\x00\ud800\n\r\n",
        '"]\n["',
    ],
    ids=lambda answer: f"{answer[:12]!a}*{len(answer)}",
)
def test_adversarial_answers_come_back(equal, answer):
    start = time.monotonic()
    assert not equal("x^2", answer)
    assert equal("x+1", "1+x")
    assert time.monotonic() - start < 30


def test_what_takes_too_long_is_given_up_and_the_next_one_is_answered():
    with EquivalenceChecker(seconds=1, workers=1) as equal:
        assert equal("x+1", "1+x")
        equal.seconds = 1e-9  # nothing is read in that time, whatever bounds the reading has
        assert not equal("x+2", "2+x")
        assert equal.timeouts == 2
        equal.seconds = 60
        assert equal("x+3", "3+x")


def test_threads_share_the_workers(equal):
    pairs = [(f"x+{n}", f"{n}+x" if n % 2 else f"{n}-x") for n in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda pair: equal(*pair), pairs))
    assert found == [bool(n % 2) for n in range(8)]


def test_what_text_and_numbers_decide_needs_no_worker():
    checker = EquivalenceChecker()
    checker.close()
    for gold, answer in [("1/2", "0.5"), ("7", "8"), (r"\frac12", "0.25"), ("abc", " abc.")]:
        assert checker(gold, answer) == answers_equal(gold, answer)
    with pytest.raises(RuntimeError, match="closed"):
        checker("x+1", "1+x")
