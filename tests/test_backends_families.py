"""Families of reward models: their prompts and scores against their authors' own ways."""

import asyncio
import functools
import itertools

import numpy as np
import pytest

from optscale_jax.backends import prm
from optscale_jax.backends.config import JudgeConfig, PromptConfig, VerifierConfig
from optscale_jax.backends.families import FORMATS
from optscale_jax.backends.make import make_verifier
from optscale_jax.backends.prm import split_steps, step_prompt
from optscale_jax.backends.prompts import neutral
from optscale_jax.backends.vllm_sampler import prompt_token_ids
from optscale_jax.records import Completion, Problem
from tests.checkpoints import LLAMA_SPECIAL, SPECIAL, save_family, save_tokenizer
from tests.spellings import Obeyed, raised, scored, spellings

FAMILIES = ["math-shepherd", "rlhflow", "skywork-o1-prm", "reward"]
SHAPES = {
    "qwen2.5-math-prm": "qwen",
    "qwen2.5-math-prm800k": "qwen",
    "math-shepherd": "mistral",
    "rlhflow": "llama",
    "skywork-o1-prm": "skywork",
    "reward": "llama",
}
PROBLEM = "What is 1 + 1?"
STEPS = ["Add: 1 + 1 = 2.", "So it is <b>2</b>.", "The answer is \\boxed{2} (2.0 - 0)."]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    made = {}
    for shape in sorted(set(SHAPES.values())):
        folder = tmp_path_factory.mktemp(shape)
        save_tokenizer(folder, shape=shape)
        made[shape] = transformers.AutoTokenizer.from_pretrained(folder)
    return {family: made[shape] for family, shape in SHAPES.items()}


def shepherd(tokenizer, steps):
    """As the model card of peiyi9979/math-shepherd-mistral-7b-prm."""
    ids = tokenizer.encode(PROBLEM + " " + "\n".join(f"{step} ки" for step in steps))
    tag = tokenizer.encode("ки")[-1]
    return ids, [i for i, token in enumerate(ids) if token == tag]


def rlhflow(tokenizer, steps):
    """As RLHFlow's evaluation: a conversation that grows, read two tokens before its end."""
    chat, positions, ids = [], [], []
    for i, step in enumerate(steps):
        chat.append({"role": "user", "content": step if i else f"{PROBLEM} {step}"})
        chat.append({"role": "assistant", "content": "+"})
        ids = tokenizer.apply_chat_template(chat, return_dict=False)
        positions.append(len(ids) - 3)
    return ids, positions


def skywork(tokenizer, steps):
    """As prepare_input of skywork-o1-prm-inference."""
    ids = tokenizer.encode(tokenizer.bos_token + PROBLEM + "\n")
    positions = []
    for step in steps:
        ids += [*tokenizer.encode(step), tokenizer.encode("\n")[-1]]
        positions.append(len(ids) - 1)
    return ids, positions


def reward(tokenizer, steps):
    """As the model cards of sequence classifiers: the whole chat, read at its last token."""
    chat = [{"role": "user", "content": PROBLEM}, {"role": "assistant", "content": steps[0]}]
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    return ids, [len(ids) - 1]


WAYS = {
    "math-shepherd": shepherd,
    "rlhflow": rlhflow,
    "skywork-o1-prm": skywork,
    "reward": reward,
}


def shown(family):
    return ["\n".join(STEPS)] if family == "reward" else STEPS


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_the_authors_token_by_token(tokenizers, family):
    tokenizer, steps = tokenizers[family], shown(family)
    prompt = step_prompt(tokenizer, FORMATS[family], PROBLEM, steps, max_len=1000)
    ids, positions = WAYS[family](tokenizer, steps)
    assert prompt.token_ids == ids
    assert prompt.positions == positions


@pytest.mark.parametrize("family", SHAPES)
def test_no_spelling_changes_the_control_tokens_of_a_prompt(tokenizers, family):
    tokenizer, form = tokenizers[family], FORMATS[family]
    control = set(tokenizer.all_special_ids)
    if form.reserved:
        control.add(tokenizer.encode(form.separator.strip())[-1])

    def controls(*texts):
        problem, *steps = texts
        prompt = step_prompt(tokenizer, form, problem, steps, max_len=100_000)
        assert len(prompt.positions) == len(steps)
        return [token for token in prompt.token_ids if token in control]

    n = len(shown(family))
    plain = controls(PROBLEM, *shown(family))
    assert len(plain) >= (1 if isinstance(form.messages("", [""]), str) else 4)
    made = spellings()
    assert len(set(made)) > 150
    for one in made:
        assert controls(PROBLEM, *[f"So {one} it is."] * n) == plain, one
        assert controls(f"{one}{PROBLEM}{one}", *[one + "."] * n) == plain, one


@pytest.mark.parametrize("shape", ["qwen2.5-math-prm", "rlhflow", "math-shepherd"])
def test_no_spelling_changes_the_control_tokens_of_a_judges_prompt(tokenizers, shape):
    tokenizer = tokenizers[shape]
    config = PromptConfig(chat=shape != "math-shepherd")
    template = JudgeConfig().template

    def controls(text):
        asked = template.replace("{problem}", text).replace("{completion}", text)
        ids = prompt_token_ids(tokenizer, config, asked)
        return [token for token in ids if token in set(tokenizer.all_special_ids)]

    plain = controls("It is 2.")
    assert plain
    for one in spellings():
        assert controls(f"It is {one}2.") == plain, one


def test_a_plain_text_is_tokenised_as_the_tokenizer_does_it(tokenizers):
    texts = ["", " a  b\n\n", "1 + 1 = 2?\n", "é漢字🙂", "<b>x</b> [y] ки"]
    for tokenizer, text in itertools.product(tokenizers.values(), texts):
        ids = prompt_token_ids(tokenizer, PromptConfig(chat=False), text)
        # All but the separator of a family, which only that family's prompts keep out.
        assert ids == tokenizer.encode(text)


def test_for_servers_of_texts_nothing_that_looks_like_a_control_token_is_left():
    for one in spellings():
        left = neutral(one)
        assert not any(token in left for token in (*SPECIAL, *LLAMA_SPECIAL, "</s>", "<s>"))
        assert neutral(left) == left
    for plain in ("a < b > c", "|x| < 3", "[INSTANT]", "<b>", "x <| y", "2<3|4>1"):
        assert neutral(plain) == plain


@pytest.mark.parametrize(
    ("at", "steps"),
    [
        (None, ["a\nb", "c"]),
        (r"\n+", ["a", "b", "c"]),
        ("", ["a\nb\n\nc"]),
        (r"(?m)^(?=b)", ["a", "b\n\nc"]),
    ],
)
def test_steps_are_split_as_the_user_says(at, steps):
    assert split_steps("a\nb\n\nc", *([] if at is None else [at])) == steps


def test_what_is_no_pattern_of_steps_is_said():
    with pytest.raises(ValueError, match=r"^steps: unterminated character set"):
        VerifierConfig(steps="[")


# Through vLLM -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    with asyncio.Runner() as runner:
        yield runner.run


def expected_scores(folder, family, steps):
    """The scores by transformers, as the authors compute them."""
    import torch
    import transformers
    from safetensors.torch import load_file

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids, positions = WAYS[family](tokenizer, steps)
    tokens = torch.tensor([ids])
    with torch.no_grad():
        if family == "reward":
            kind = transformers.AutoModelForSequenceClassification
            return torch.sigmoid(kind.from_pretrained(folder).eval()(tokens).logits[0]).tolist()
        if family == "skywork-o1-prm":
            state = load_file(folder / "model.safetensors")
            model = transformers.Qwen2ForCausalLM.from_pretrained(folder).eval().model
            hidden = model(tokens).last_hidden_state[0, positions]
            values = hidden @ state["v_head.summary.weight"].T + state["v_head.summary.bias"]
            return torch.sigmoid(values[:, 0]).tolist()
        logits = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(tokens).logits
        signs = tokenizer.encode("+ -")[1:] if family == "math-shepherd" else None
        signs = signs or [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]
        return logits[0, positions][:, signs].softmax(-1)[:, 0].tolist()


@pytest.fixture(scope="module", params=FAMILIES)
def verifying(request, run, tmp_path_factory):
    """A family, its checkpoint's folder and a verifier on a real engine."""
    family = request.param
    folder = save_family(tmp_path_factory.mktemp("models") / family, family)
    verifier = make_verifier(VerifierConfig(model=str(folder), family=family), seed=0)
    yield family, folder, verifier
    run(verifier.close())


def on_an_engine(test):
    test = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")(test)
    test = pytest.mark.filterwarnings("ignore::ResourceWarning")(test)
    unraisable = "ignore::pytest.PytestUnraisableExceptionWarning"
    return pytest.mark.vllm(pytest.mark.filterwarnings(unraisable)(test))


@on_an_engine
def test_scores_through_vllm_are_those_of_transformers(run, verifying):
    family, folder, verifier = verifying
    whole = family == "reward"
    steps = [[f"Step {i}: {i * n} = {n}." for i in range(n)] for n in range(1, 8)]
    joint = "\n\n" if family == "rlhflow" else "\n"
    texts = [joint.join(each) for each in steps]
    completions = [Completion(i, text, 1) for i, text in enumerate(texts)]
    scores = run(verifier.score(Problem("p", PROBLEM), completions))
    for text, each, score in zip(texts, steps, scores, strict=True):
        expected = expected_scores(folder, family, [text] if whole else each)
        assert (score.value, *score.steps) == pytest.approx(
            (np.mean(expected), *(() if whole else expected)), abs=1e-4
        )
    assert np.ptp([score.value for score in scores]) > 1e-3


@on_an_engine
def test_no_spelling_raises_a_score(run, verifying, monkeypatch):
    *_, verifier = verifying
    assert raised(lambda texts: scored(run, verifier, texts)) == 0
    # The verifier is one that control tokens would convince.
    monkeypatch.setattr(prm, "tokens_of", functools.cache(Obeyed))
    assert raised(lambda texts: scored(run, verifier, texts)) > 10
