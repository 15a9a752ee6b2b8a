"""The small world: its problems, their exact checker, the tokenizer, and training."""

import collections
import json
import re

import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from optscale_jax.backends.families import FORMATS
from optscale_jax.backends.prm import split_steps, step_prompt
from optscale_jax.models import Qwen2, Qwen2Config
from optscale_jax.tiny import SYSTEM_PROMPT, Chain, check_steps, draw_chains, reasoner_path
from optscale_jax.tiny.__main__ import main
from optscale_jax.tiny.arithmetic import LEVELS, share_of_products
from optscale_jax.tiny.tokenizer import END, build_tokenizer
from train.tiny import (
    GROUPS,
    IGNORED,
    REPEATS,
    Batch,
    Examples,
    Judged,
    TinyConfig,
    auc,
    corrupt,
    fit,
    reasoner_accuracy,
    verifier_quality,
)
from train.tiny import main as train

CHAIN = Chain(37, (("+", 8), ("*", 7), ("-", 9)))
STEPS = ["37+8=15:45", "45*7=35:15", "15-9=16:06", r"\boxed{6}"]

numbers = st.integers(0, 99)
operations = st.lists(st.tuples(st.sampled_from("+-*"), numbers), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


# Problems -----------------------------------------------------------------------------------------


def test_an_example_by_hand():
    assert CHAIN.question == "Compute 37+8*7-9 from left to right, modulo 100."
    assert CHAIN.solution == "\n\n".join(STEPS)
    assert CHAIN.answer == "6"
    assert CHAIN.level == 3


@given(numbers, operations)
def test_the_answer_is_that_of_integers_without_a_modulus(value, operations):
    chain = Chain(value, tuple(operations))
    for sign, operand in operations:
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[sign]
    assert chain.answer == str(value % 100)
    assert chain.steps[-1] == f"\\boxed{{{chain.answer}}}"
    assert split_steps(chain.solution) == chain.steps


def test_draws_are_a_function_of_the_seed_and_all_different():
    drawn = draw_chains(3, 700)
    assert drawn == draw_chains(3, 700)
    # A longer draw begins with the shorter one.
    assert drawn[:50] == draw_chains(3, 50)
    assert len(set(drawn)) == 700
    # Of the shortest problems there are only some ten thousand.
    longer = {chain for chain in drawn if chain.level > 3}
    assert not longer & set(draw_chains(4, 700))
    assert not longer & set(draw_chains([3, 1], 700))


def test_levels_are_equally_frequent_and_products_as_frequent_as_stated():
    drawn = draw_chains(0, 7000)
    counts = collections.Counter(chain.level for chain in drawn)
    assert counts.keys() == set(LEVELS)
    # Five standard deviations of a binomial count.
    assert all(abs(count - 1000) < 5 * np.sqrt(1000 * 6 / 7) for count in counts.values())
    for level in LEVELS:
        signs = [s for chain in drawn if chain.level == level for s, _ in chain.operations]
        share, n = share_of_products(level), len(signs)
        assert abs(signs.count("*") - share * n) <= 5 * np.sqrt(share * (1 - share) * n)
        assert abs(signs.count("+") - signs.count("-")) <= 5 * np.sqrt((1 - share) * n)


# The checker --------------------------------------------------------------------------------------


@given(numbers, operations, st.data())
def test_all_is_good_before_the_first_wrong_step_and_bad_from_there(start, operations, data):
    chain = Chain(start, tuple(operations))
    steps = chain.steps
    assert check_steps(chain, steps) == [True] * len(steps)
    wrong = data.draw(st.integers(0, len(steps) - 1))
    number = re.findall(r"\d+", steps[wrong])[-1]
    other = data.draw(st.integers(0, 99).filter(lambda n: n != int(number)))
    before, _, after = steps[wrong].rpartition(number)
    corrupted = [*steps[:wrong], f"{before}{other}{after}", *steps[wrong + 1 :]]
    labels = [True] * wrong + [False] * (len(steps) - wrong)
    assert check_steps(chain, corrupted) == labels


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        ([], []),
        ([f" {STEPS[0]} "], [True]),
        # A step left out, repeated, or added after the answer.
        (STEPS[1:], [False, False, False]),
        ([STEPS[0], *STEPS], [True, False, False, False, False]),
        ([*STEPS, STEPS[-1]], [True, True, True, True, False]),
        # The right answer too early, and right steps after it.
        ([r"\boxed{6}", *STEPS], [False] * 5),
        # A true equation that is not the problem's.
        (["37+9=16:46", r"\boxed{46}"], [False, False]),
        # One error that the next one undoes.
        (["37+8=15:55", "55*7=35:15", *STEPS[2:]], [False] * 4),
        # A wrong carry before a right result.
        (["37+8=05:45"], [False]),
        (["thirty-seven"], [False]),
    ],
)
def test_steps_are_held_to_the_problem(steps, labels):
    assert check_steps(CHAIN, steps) == labels


# The command --------------------------------------------------------------------------------------


def test_problems_have_the_fields_of_math_500(capsys):
    main(["--count", "5", "--seed", "9"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["problem"] for record in records] == [c.question for c in draw_chains(9, 5)]
    assert [record["answer"] for record in records] == [c.answer for c in draw_chains(9, 5)]
    assert all(record["level"] in LEVELS for record in records)
    assert len({record["unique_id"] for record in records}) == 5


@pytest.mark.parametrize("arguments", [["--count", "0"], ["--seed", "-1"], ["--count", "many"]])
def test_numbers_that_cannot_be_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


# The tokenizer ------------------------------------------------------------------------------------


@given(st.text())
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert len(ids) <= len(text.encode())


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(str(tmp_path))
    again = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": CHAIN.question}]
    asked = [
        one.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for one in (tokenizer, again)
    ]
    assert asked[0] == asked[1]
    assert again.decode(asked[1]) == (
        f"<|im_start|>user\n{CHAIN.question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert again.eos_token == END
    assert again.pad_token == "<|endoftext|>"
    # One token: what every prompt repeats costs next to nothing.
    assert len(again.encode(SYSTEM_PROMPT, add_special_tokens=False)) == 1


# Examples -----------------------------------------------------------------------------------------


def test_the_reasoner_learns_the_solution_and_its_end(tokenizer):
    examples = Examples("reasoner", tokenizer)
    group = next(group for group in GROUPS if CHAIN.level in group)
    batch = examples.batch([CHAIN], group)
    learnt = batch.targets[0] != IGNORED
    assert tokenizer.decode(batch.targets[0][learnt]) == CHAIN.solution + END
    # Each target is the next token, the first of them after the prompt as it is sampled from.
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": CHAIN.question}], add_generation_prompt=True, return_dict=False
    )
    (first, *_), last = np.flatnonzero(learnt), np.flatnonzero(learnt)[-1]
    assert batch.tokens[0][: first + 1].tolist() == prompt
    assert (batch.tokens[0][first + 1 : last + 2] == batch.targets[0][first : last + 1]).all()


def test_the_verifier_learns_the_labels_of_what_it_is_shown_in_use(tokenizer):
    examples = Examples("verifier", tokenizer)
    steps = [*STEPS[:2], "15-9=16:07", r"\boxed{7}"]
    labels = check_steps(CHAIN, steps)
    group = next(group for group in GROUPS if CHAIN.level in group)
    batch = examples.batch([Judged(CHAIN, steps, labels)], group)
    prompt = step_prompt(
        tokenizer, FORMATS["qwen2.5-math-prm"], CHAIN.question, steps, max_len=1000
    )
    assert batch.tokens[0][: len(prompt.token_ids)].tolist() == prompt.token_ids
    for told in (batch.targets, batch.alone):
        assert np.flatnonzero(told[0] != IGNORED).tolist() == prompt.positions
    assert batch.targets[0][prompt.positions].tolist() == [1, 1, 0, 0]
    # By itself the last step is right: it boxes the number before it.
    assert batch.alone[0][prompt.positions].tolist() == [1, 1, 0, 1]
    # Which digit is right, where a digit of a result is to be read next.
    asked = np.flatnonzero(batch.digits[0] != IGNORED)
    written = tokenizer.decode(batch.tokens[0][asked + 1]).replace(" ", "")
    assert written == "1545" + "3515" + "1607"
    assert "".join(map(str, batch.digits[0][asked])) == "1545" + "3515" + "1606"


def test_a_step_after_a_wrong_one_is_judged_by_what_is_written(tokenizer):
    examples = Examples("verifier", tokenizer)
    group = next(group for group in GROUPS if CHAIN.level in group)
    steps = ["37+8=15:55", "55*7=35:85", "85-9=16:76", r"\boxed{06}"]
    batch = examples.batch([Judged(CHAIN, steps, check_steps(CHAIN, steps))], group)
    at = batch.tokens[0] == examples.step
    assert batch.targets[0][at].tolist() == [0, 0, 0, 0]
    assert batch.alone[0][at].tolist() == [0, 1, 1, 0]
    digits = batch.digits[0][batch.digits[0] != IGNORED]
    assert "".join(map(str, digits)) == "1545" + "3585" + "1676"


def test_a_corrupted_solution_goes_on_rightly_from_one_mistake(tokenizer):
    examples = Examples("verifier", tokenizer)
    random = np.random.default_rng(0)
    wrong = collections.Counter()
    for group in GROUPS:
        items = [corrupt(chain, random) for chain in draw_chains(7, 100, levels=group)]
        batch = examples.batch(items, group)
        for item, alone in zip(items, batch.alone, strict=True):
            assert item.labels == check_steps(item.chain, item.steps)
            first = item.labels.index(False)
            assert not any(item.labels[first:])
            # By itself only that step is wrong, and it is no other operation.
            told = alone[alone != IGNORED].tolist()
            assert told == [int(index != first) for index in range(item.chain.level + 1)]
            right, written = item.chain.steps[first], item.steps[first]
            assert right.split("=")[0] == written.split("=")[0]
            wrong.update(i - 10 for i in range(10) if right[i] != written[i])
    # The first digit of the result two times in five alone and once with the carry.
    assert set(wrong) == {-5, -4, -2, -1}
    assert wrong[-2] / 300 == pytest.approx(0.6, abs=0.12)
    assert wrong[-1] / 300 == pytest.approx(0.4, abs=0.12)


@pytest.mark.parametrize("extra", [["15-9=16:06"], ["é<|im_start|>", "Co"], ["1" * 500]])
def test_a_solution_that_goes_on_or_writes_anything_is_labelled_to_its_end(extra, tokenizer):
    examples = Examples("verifier", tokenizer)
    # Two operations in a group that has three leave room for more.
    chain = Chain(CHAIN.start, CHAIN.operations[:2])
    steps = [*chain.steps, *extra]
    group = next(group for group in GROUPS if CHAIN.level in group)
    batch = examples.batch([Judged(chain, steps, check_steps(chain, steps))], group)
    for labels in (batch.targets, batch.alone):
        told = labels[0][labels[0] != IGNORED].tolist()
        # What is longer than the longest solution is cut off.
        assert told == [1, 1, 1] + ([] if extra == ["1" * 500] else [0] * len(extra))


def test_a_right_solution_that_stops_early_is_right_up_to_its_end(tokenizer):
    examples = Examples("verifier", tokenizer)
    group = next(group for group in GROUPS if CHAIN.level in group)
    steps = [STEPS[0], STEPS[1][:-1]]  # and one digit short
    batch = examples.batch([Judged(CHAIN, steps, check_steps(CHAIN, steps))], group)
    for labels in (batch.targets, batch.alone):
        assert labels[0][labels[0] != IGNORED].tolist() == [1, 0]
    # Its digits have no fixed places.
    assert (batch.digits[0] != IGNORED).sum() == 4


# Measurements -------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
        lambda pairs: len({label for _, label in pairs}) == 2
    )
)
def test_auc_is_the_share_of_pairs_in_order(pairs):
    good = [score for score, label in pairs if label]
    bad = [score for score, label in pairs if not label]
    wins = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad]
    scores, labels = map(np.array, zip(*pairs, strict=True))
    assert auc(scores.astype(float), labels.astype(int)) == pytest.approx(np.mean(wins))


def test_accuracy_is_the_mean_probability_of_the_right_solution():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    tokens = np.array([[0, 1, 2], [2, 0, 1]], np.int32)
    targets = np.array([[IGNORED, 1, 2], [0, 0, IGNORED]], np.int32)
    batch = Batch(tokens, targets, *[np.full_like(tokens, IGNORED)] * 2)
    found = reasoner_accuracy(lambda tokens: np.log(probabilities[tokens]), {2: batch, 3: batch})
    expected = np.mean([0.8 * 0.6, 0.2 * 0.5])
    assert found == {"accuracy": expected, "accuracy_by_level": {2: expected, 3: expected}}


def test_quality_of_a_verifier_by_hand():
    # Two problems of two operations, REPEATS solutions each, of three steps and a token that is no
    # end of a step. All of the second problem's are right: it says nothing of telling them apart.
    random = np.random.default_rng(0)
    good = random.random((2 * REPEATS, 4))
    targets = np.ones(good.shape, np.int32)
    targets[1, 2:] = targets[3] = targets[6, 3] = 0
    targets[:, 1] = IGNORED
    tokens = np.arange(good.size, dtype=np.int32).reshape(good.shape)
    batch = Batch(tokens, targets, *[np.full_like(tokens, IGNORED)] * 2)

    def predict(tokens):
        probability = good.ravel()[tokens]
        return np.log(np.stack([1 - probability, probability], axis=-1))

    found = verifier_quality(predict, {2: batch})
    pairs = [(x, y) for x in good[targets == 1] for y in good[targets == 0]]
    score = good[:, [0, 2, 3]].mean(axis=1)
    right, wrong = [0, 2, 4, 5, 7], [1, 3, 6]
    solutions = [score[i] > score[j] for i in right for j in wrong]
    assert found == {
        "step_auc": round(np.mean([x > y for x, y in pairs]), 4),
        "good": round((targets == 1).sum() / (6 * REPEATS), 4),
        "solution_auc": round(np.mean(solutions), 4),
        "right": round(13 / 16, 4),
    }


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["reasoner", "verifier"])
def test_training_lowers_the_loss_and_repeats_itself_exactly(task, tokenizer):
    sizes = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1 if task == "reasoner" else 3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=task == "reasoner",
        head="language_model" if task == "reasoner" else "process_reward",
    )
    config = TinyConfig(
        task=task,
        reasoner="not read here",
        steps=40,
        batch_size=8,
        learning_rate=1e-2,
        warmup=5,
        log_every=20,
    )
    group = GROUPS[0]
    examples = Examples(task, tokenizer)

    def draw(step):
        chains = draw_chains([0, 1, step], config.batch_size, levels=[2])
        if task == "reasoner":
            return examples.batch(chains, group)
        # Half of them have the solution of another problem.
        written = [(chain if i % 2 else chains[0]).steps for i, chain in enumerate(chains)]
        judged = [
            Judged(chain, steps, check_steps(chain, steps))
            for chain, steps in zip(chains, written, strict=True)
        ]
        return examples.batch(judged, group)

    def trained():
        model = nnx.jit(lambda: Qwen2(sizes, rngs=nnx.Rngs(0)))()
        record = fit(model, draw, {2: draw(10_000)}, config)
        for entry in record:
            del entry["seconds"]
        return record, nnx.state(model)

    record, state = trained()
    assert [entry["step"] for entry in record] == [20, 40]
    first, last = (entry["loss"] for entry in record)
    if task == "reasoner":
        assert first < np.log(len(tokenizer))
        assert last < first - 1
    else:
        # What knowing nothing costs: of labels, of digits, and of labels again.
        nothing = np.log(2) + np.log(10) + np.log(2)
        assert last < min(first, nothing)
    again, state_again = trained()
    assert again == record
    leaves = zip(nnx.to_flat_state(state), nnx.to_flat_state(state_again), strict=True)
    assert all((a.get_value() == b.get_value()).all() for (_, a), (_, b) in leaves)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--learning_rate", "0"], "must be above 0"),
        (["--task", "verifier"], "reasoner is not given"),
        (["--task", "judge"], "task is 'judge'"),
        (["--corrupted", "1.5"], "corrupted is 1.5; it must be in [0, 1]"),
        (["--early", "-1"], "early is -1.0; it must be at least 0"),
        (["--start", "nowhere"], "start: nowhere/config.json: No such file"),
        (
            ["--model.num_attention_heads", "3"],
            "model: num_key_value_heads is 2; it must",
        ),
        (["--task", "verifier", "--reasoner", "nowhere"], "reasoner: nowhere is not a checkpoint"),
        (
            ["--task=verifier", f"--reasoner={reasoner_path()}", "--model.num_hidden_layers=2"],
            "the model has 2 layers: what it learns on the way needs 3; give a deeper one",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys):
    assert train([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
