"""Answers: what is read out of a completion, which are the same, and how they are numbered."""

import itertools
import time

import pytest

from optscale_jax.answers import (
    EXTRACTORS,
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
        ("So she has 72 - 6. #### 66", "66"),
        ("a####5 and ##### 6", None),
        # After a number a comma and a word begin no further answer.
        ("The answer is 5, not 6.", "5"),
        ("The answer is 50%, rounded to the nearest percent.", "50%"),
        ("Answer: 1,200, i.e. twelve hundred", "1,200"),
        ("Answer: 2, pi", "2, pi"),
        ("The answer is 3, 4, and 5.", "3, 4, and 5"),
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
        # Several boxes that only commas or "and" part are one answer.
        (r"so $\boxed{2}$, $\boxed{4}$ and $\boxed{8}$", "2, 4, 8"),
        (r"$p=\boxed{1}$ or $q=\boxed{6}$", "1, 6"),
        (r"We had \boxed{2}. Now \boxed{4}.", "4"),
        (r"\fbox{11} it is", "11"),
        (r"that is $\boxed 7$", "7"),
        # Stated, in the words of models and harnesses.
        ("9 - 2 = 7. The answer is 7.", "7"),
        (r"**Final Answer:** \(\frac{2}{9}\).", r"\frac{2}{9}"),
        ("## Final answer\n\n**31**\n", "31"),
        ("Answer: $2$ million", "2 million"),
        ("The final answer is $x^2$. I hope it is correct.", "x^2"),
        ("Answer: the area is 14.", "14"),
        ("The answer is 4, since 2 + 2 = 4.", "4"),
        ("<answer>\n16\n</answer>", "16"),
        ("<answer>(b)</answer>", "B"),
        ("#### **5/6**", "5/6"),
        ("Answer: Lisbon", "Lisbon"),
        ("The correct choice is (D).", "D"),
        ("The answer is C. Note that B is close.", "C"),
        ("So it is option A.", "A"),
        ("因此答案是 36。", "36"),
        ("故选：B", "B"),
        ("La respuesta es 21.", "21"),
        ("Die Antwort lautet: 8", "8"),
        # The last one counts, whatever its form.
        ("\\boxed{\\Delta H}\n\n**Answer: B**", "B"),
        (r"The answer is 3. No: \boxed{4}", "4"),
        (r"\boxed{4}. We check our answer: $4 + 1 = 5$.", "4"),
        (r"\boxed{4} The answer is correct.", "4"),
        ("The answer is not known.", None),
        ("work\r\n#### 12\r\n", "12"),
        ("Answer: E\r\n", "E"),
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


def test_other_ways_to_read_an_answer():
    text = r"Half of 9 is \boxed{4.5}, and the answer is 4.5, or -1,234 in all."
    assert EXTRACTORS["last_number"](text) == "-1,234"
    assert EXTRACTORS["boxed"](text) == "4.5"
    assert EXTRACTORS["boxed"]("The answer is 7") is None
    assert EXTRACTORS["last_number"]("none") is None


@pytest.mark.parametrize(
    "text",
    [
        "answer" + " " * 50000 + "x",
        "the answer is " * 5000,
        "<answer>" * 5000,
        "####" * 9000,
        "#### " + "x " * 50000,
        r"\boxed{5}, " * 5000,
        "$" * 50000,
        "Answer: " + "*" * 50000,
    ],
)
def test_what_repeats_itself_is_read_in_bounded_time(text):
    start = time.perf_counter()
    extract_answer(text)
    assert time.perf_counter() - start < 10


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
    ("4 3/4", "19/4"),
    ("2 500", r"2\,500"),
    ("1.2e3", "1200"),
    ("4e-05", "0.00004"),
]


@pytest.mark.parametrize(("first", "second"), SAME)
def test_same_answers(first, second):
    assert answers_equal(first, second)
    assert answers_equal(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1", "2"),
        ("a", "A"),
        ("1,2", "12"),
        ("(1,2)", "(12)"),
        ("50%", "50"),
        ("1/0", "0/1"),
        ("43/4", "4 3/4"),
        ("56", "5 6"),
        ("56", "5\n6"),
        ("56", r"5\ 6"),
        ("1e2", "1e3"),
    ],
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


def test_clusters_are_the_same_in_every_order():
    def near(first, second):
        return abs(float(first) - float(second)) <= 1

    for order in itertools.permutations(["5", "6", "7", "9"]):
        ids, gold = cluster_answers(order, "2", equal=near)
        # 6 joins 5 and 7, which are not near each other, and 9 is alone.
        assert len({ids[order.index(each)] for each in "567"}) == 1
        assert (len(set(ids)), gold) == (2, 2)


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
