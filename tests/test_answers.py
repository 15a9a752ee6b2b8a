"""Answers: what is read out of a completion, which are the same, and how they are numbered."""

import time

import pytest

from optscale_jax.answers import (
    AnswerIds,
    answers_equal,
    cluster_answers,
    extract_answer,
    extract_gold,
    normalize_answer,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{5} and put it in \boxed{}", "5"),
        (r"\boxed{5} and cut off in \boxed{\frac{1", "5"),
        (r"f(x) = {1 and } or } then \boxed{8}", "8"),
        (r"<think>\boxed{1}</think> no, \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> as I said", "1"),
        ("<think>\\boxed{9} was wrong</think>\n#### 3", "3"),
        ("Work.\n#### 1,234", "1,234"),
        ("#### -$5.50\n", "-$5.50"),
        ("#### Step 2\nNothing here", None),
        ("So the answer is (C).", "C"),
        ("Answer: B\n", "B"),
        ("**Answer: D**", "D"),
        ("The answer is: (b)", "B"),
        ("Answer: A, no.\nThe answer is (E)", "E"),
        ("The answer is A great deal", None),
        ("The answer is a", None),
        ("Answer: (C) or \\boxed{4}", "4"),
        (r"\boxed{}", None),
        ("", None),
        ("The answer is 5.", "5"),
    ],
)
def test_final_answer(text, answer):
    assert extract_answer(text) == answer


def test_gold_is_bare_or_at_the_end_of_a_solution():
    assert extract_gold(" 204 ") == "204"
    assert extract_gold("48 + 24 = 72\n#### 72") == "72"
    assert extract_gold(r"Thus $\boxed{\pi}$.") == r"\pi"
    assert extract_gold("  ") is None


def test_a_box_repeated_until_the_cut_costs_no_square():
    text = r"\boxed{" * 20_000 + "x" * 100_000
    start = time.perf_counter()
    assert extract_answer(text) is None
    assert time.perf_counter() - start < 2


SAME = [
    ("1{,}200.0", "1200"),
    ("1,200", "1200"),
    ("073", "73"),
    (".5", r"\frac12"),
    (r"\dfrac{2}{4}", "1/2"),
    (r"-\tfrac{1}{2}", "-0.5"),
    ("−3", "-3"),
    ("+3", "3"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    (r"\text{(A)}", "A"),
    (r"\$18", "18"),
    ("$18$.", "18"),
    (r"90^\circ", r"90^{\circ}"),
    (r"5\%", "5%"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_same_answers(first, second):
    assert answers_equal(first, second)
    assert answers_equal(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [("1", "2"), ("a", "A"), ("1,2", "12"), ("(1,2)", "(12)"), ("50%", "50"), ("1/0", "0/1")],
)
def test_different_answers(first, second):
    assert not answers_equal(first, second)


@pytest.mark.parametrize("text", ["9" * 100_000, "1e999999999", "1/0", "٣", "", "..", "-", "/"])
def test_any_text_has_a_normal_form(text):
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


def test_ids_are_in_order_of_first_appearance():
    assert cluster_answers(["b", None, "a", "b", "1/2", "0.5"], "a") == ([0, -1, 1, 0, 2, 2], 1)
    # A right answer that no completion gives has the next free id.
    assert cluster_answers(["b", "b"], "a") == ([0, 0], 1)
    assert cluster_answers(["b", None]) == ([0, -1], -1)
    assert cluster_answers([None], "a") == ([-1], 0)


def test_correct_is_what_equals_gold_even_where_equality_is_not_transitive():
    def near(first, second):
        return abs(float(first) - float(second)) <= 1

    # 2 is near 1, which is near the gold answer, but 2 itself is not.
    assert cluster_answers(["2", "1", "0", "3"], "0", equal=near) == ([0, 1, 1, 0], 1)


def test_each_pair_is_compared_once():
    asked = []

    def equal(first, second):
        asked.append((first, second))
        return first == second

    cluster_answers(["x", "y", "x", "y", "x"], "g", equal=equal)
    assert len(asked) == len(set(asked)) == 3


def test_ids_given_one_at_a_time_are_those_of_the_whole_list():
    answers = ["b", None, "a", "b", "1/2", "0.5", "a"]
    ids = AnswerIds("a")
    given = [ids.add(answer) for answer in answers]
    # The gold answer's id is 0 from the start; a list's is that of its first appearance.
    assert given == [1, -1, 0, 1, 2, 2, 0]
    assert ids.gold_id == 0
    listed, gold = cluster_answers(answers, "a")
    assert [one == 0 for one in given] == [one == gold for one in listed]
    assert AnswerIds().gold_id == -1
    assert AnswerIds().add("a") == 0


def test_ids_go_on_from_those_of_an_earlier_run():
    answers = ["b", "a", None, "1/2", "b", "0.5", "c", "a"]
    whole = AnswerIds("a")
    expected = [whole.add(answer) for answer in answers]
    for cut in range(len(answers)):
        ids = AnswerIds("a")
        for answer, number in zip(answers[:cut], expected, strict=False):
            ids.restore(answer, number)
        assert [ids.add(answer) for answer in answers[cut:]] == expected[cut:]
