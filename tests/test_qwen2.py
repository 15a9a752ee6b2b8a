"""Qwen2 in Flax against transformers' own, and checkpoints that go from one to the other."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.torch import load_file, save_file

from optscale_jax.errors import CheckpointError
from optscale_jax.models import Qwen2, Qwen2Config

LENGTH = 19
SMALL = Qwen2Config(
    vocab_size=23,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
CONFIGS = {
    "tied": dict(heads=4, shared=4, width=32, inner=48, layers=2, tied=True),
    "untied": dict(heads=2, shared=2, width=24, inner=64, layers=3, tied=False),
    "grouped heads": dict(heads=6, shared=2, width=48, inner=80, layers=2, tied=True),
    "one shared head, odd sizes": dict(heads=3, shared=1, width=42, inner=37, layers=1, tied=False),
    "heads wider than the model": dict(
        heads=4, shared=2, width=20, inner=33, layers=2, tied=False, head=12
    ),
}


@nnx.jit
def run(model: Qwen2, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    return model(tokens, mask)


@nnx.jit(static_argnames="config")
def initialized(config: Qwen2Config) -> Qwen2:
    return Qwen2(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def small() -> Qwen2:
    return initialized(config=SMALL)


def reference(
    *, heads, shared, width, inner, layers, tied, head=None
) -> transformers.Qwen2ForCausalLM:
    """A random transformers model whose every weight matters: norms and biases are random too."""
    config = transformers.Qwen2Config(
        vocab_size=53,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        head_dim=head,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0 + 10 * width},
    )
    if head is None:
        del config.head_dim
    torch.manual_seed(width)
    model = transformers.Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 2 else 1.0)
    return model


def batch(vocabulary: int = 53) -> tuple[jax.Array, jax.Array]:
    """Tokens without padding, with padding on the right and on the left, and one token alone."""
    tokens = np.random.default_rng(0).integers(vocabulary, size=(4, LENGTH))
    mask = np.ones(tokens.shape, bool)
    mask[1, 11:] = mask[2, :5] = mask[3, 1:] = False
    return jnp.asarray(tokens), jnp.asarray(mask)


def run_reference(model, tokens, mask):
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
        return model(
            torch.tensor(np.asarray(tokens)),
            attention_mask=torch.tensor(np.asarray(mask)),
            position_ids=torch.tensor(positions),
            output_hidden_states=True,
        )


@pytest.mark.parametrize("sizes", CONFIGS.values(), ids=CONFIGS)
def test_logits_and_hidden_states_are_those_of_transformers(sizes, tmp_path):
    theirs = reference(**sizes)
    theirs.save_pretrained(tmp_path)
    ours = Qwen2.from_pretrained(tmp_path)
    tokens, mask = batch()
    expected = run_reference(theirs, tokens, mask)

    @nnx.jit
    def everything(model):
        depths = range(-sizes["layers"] - 1, sizes["layers"] + 1)
        states = {layer: model.hidden_states(tokens, mask, layer=layer) for layer in depths}
        return model(tokens, mask), states, list(model.states(tokens, mask))

    logits, states, in_order = everything(ours)
    assert len(in_order) == len(expected.hidden_states)
    # Logits of tens and a thousand additions each: 1e-4 is float32's rounding, and no more.
    np.testing.assert_allclose(logits[mask], expected.logits.numpy()[mask], rtol=0, atol=1e-4)
    for layer, state in states.items():
        theirs_there = expected.hidden_states[layer].numpy()
        np.testing.assert_allclose(state[mask], theirs_there[mask], rtol=0, atol=1e-4)
        np.testing.assert_allclose(in_order[layer][mask], state[mask], rtol=0, atol=1e-5)


def test_padding_and_what_comes_later_change_nothing(small):
    tokens, _ = batch(SMALL.vocab_size)
    everywhere = jnp.ones(tokens.shape, bool)
    whole = run(small, tokens, everywhere)
    changed = tokens.at[:, 7:].add(1) % SMALL.vocab_size
    np.testing.assert_allclose(run(small, changed, everywhere)[:, :7], whole[:, :7], atol=1e-5)
    padded = run(small, jnp.roll(tokens, 3, axis=1), everywhere.at[:, :3].set(False))
    np.testing.assert_allclose(padded[:, 3:], whole[:, :-3], atol=1e-5)


def test_checkpoint_that_is_read_and_written_is_the_same(tmp_path):
    theirs = reference(**CONFIGS["untied"])
    theirs.save_pretrained(tmp_path / "theirs")
    Qwen2.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours", eos_token_id=7)
    # Whoever may read the configuration may read the weights.
    modes = {file.stat().st_mode for file in (tmp_path / "ours").iterdir()}
    assert len(modes) == 1
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["eos_token_id"] == 7


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_what_is_written(tied, tmp_path):
    ours = initialized(config=dataclasses.replace(SMALL, tie_word_embeddings=tied))
    ours.save_pretrained(tmp_path)
    theirs, info = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens, mask = batch(SMALL.vocab_size)
    expected = run_reference(theirs.eval(), tokens, mask).logits.numpy()
    np.testing.assert_allclose(run(ours, tokens, mask)[mask], expected[mask], atol=1e-4)


def test_process_reward_head_is_linear_relu_linear(tmp_path):
    """transformers has no such class; these are the layers of Qwen2.5-Math-PRM-7B's own code."""
    body = reference(**CONFIGS["grouped heads"])
    width = body.config.hidden_size
    score = torch.nn.Sequential(
        torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
    )
    body.config.architectures = ["Qwen2ForProcessRewardModel"]
    body.config.save_pretrained(tmp_path)
    tensors = {f"model.{name}": value for name, value in body.model.state_dict().items()}
    tensors |= {f"score.{name}": value for name, value in score.state_dict().items()}
    # Present in the 7B checkpoint too, although nothing reads it.
    tensors["lm_head.weight"] = torch.zeros(53, width)
    save_file(tensors, tmp_path / "model.safetensors")
    ours = Qwen2.from_pretrained(tmp_path)
    tokens, mask = batch()
    with torch.no_grad():
        expected = score(run_reference(body, tokens, mask).hidden_states[-1]).numpy()
    labels = run(ours, tokens, mask)
    assert labels.shape == (4, LENGTH, 2)
    np.testing.assert_allclose(labels[mask], expected[mask], atol=1e-4)
    ours.save_pretrained(tmp_path / "again")
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert {name for name in written if "score" in name} == {
        f"score.{layer}.{leaf}" for layer in (0, 2) for leaf in ("weight", "bias")
    }
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForProcessRewardModel"]


def test_sharded_checkpoint_is_read_whole(tmp_path):
    theirs = reference(**CONFIGS["untied"])
    theirs.save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tokens, mask = batch()
    expected = run_reference(theirs, tokens, mask).logits.numpy()
    logits = run(Qwen2.from_pretrained(tmp_path), tokens, mask)
    np.testing.assert_allclose(logits[mask], expected[mask], atol=1e-4)


def test_bfloat16_computes_in_bfloat16(tmp_path):
    reference(**CONFIGS["tied"]).save_pretrained(tmp_path)
    tokens, mask = batch()
    full = run(Qwen2.from_pretrained(tmp_path), tokens, mask)
    half = Qwen2.from_pretrained(tmp_path, dtype=jnp.bfloat16)
    logits = run(half, tokens, mask)
    assert logits.dtype == jnp.bfloat16
    # Two layers' roundings to eight bits: about a hundredth of the logits' spread, in the mean.
    error = np.asarray(logits, np.float32)[mask] - np.asarray(full)[mask]
    assert 1e-3 < np.std(error) / np.std(np.asarray(full)[mask]) < 2e-2
    half.save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    again = Qwen2.from_pretrained(tmp_path / "half", dtype=jnp.bfloat16)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, nnx.state(half), nnx.state(again)))


def test_both_spellings_of_the_rotary_base_are_read(tmp_path):
    SMALL_4 = {"model_type": "qwen2", **dataclasses.asdict(SMALL), "rope_theta": 123.0}
    SMALL_5 = {**SMALL_4, "rope_parameters": {"rope_type": "default", "rope_theta": 456.0}}
    for given, theta in ((SMALL_4, 123.0), (SMALL_5, 456.0)):
        (tmp_path / "config.json").write_text(json.dumps(given))
        assert Qwen2Config.from_pretrained(tmp_path).rope_theta == theta
    assert (
        transformers.Qwen2Config(
            **{k: v for k, v in SMALL_5.items() if k != "rope_theta"}
        ).rope_parameters["rope_theta"]
        == 456.0
    )


def test_no_such_layer(small):
    for layer in (3, -4):
        with pytest.raises(ValueError, match="layers 0 to 2"):
            small.hidden_states(jnp.zeros((1, 2), int), layer=layer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "must divide the 4 num_attention_heads"),
        ({"hidden_size": 18}, "must be a multiple of the 4"),
        ({"hidden_size": 12}, "need an even one"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "sixteen"}, "hidden_size is 'sixteen'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type"),
        ({"rope_parameters": 1e6}, "rope_parameters is 1000000.0"),
        ({"use_sliding_window": True}, "use_sliding_window is true"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_key_value_heads": 3}, "must divide"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "Qwen2ForSequenceClassification"),
    ],
)
def test_configuration_that_cannot_be_used_is_named_in_one_line(changes, message, small, tmp_path):
    small.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message) as caught:
        Qwen2.from_pretrained(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_checkpoint_is_named_in_one_line(small, tmp_path):
    good = tmp_path / "good"
    small.save_pretrained(good)
    tensors = load_file(good / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"

    def damaged(number, write):
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        write(folder)
        return folder

    def cut(folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])

    without = {key: value for key, value in tensors.items() if key != name}
    index = {"weight_map": {name: "model-00001-of-00001.safetensors"}}
    cases = [
        (lambda f: (f / "config.json").unlink(), "config.json: No such file"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: there is no such file"),
        (cut, "model.safetensors: damaged"),
        (lambda f: save_file(without, f / "model.safetensors"), f"there is no tensor {name}"),
        (
            lambda f: save_file({**tensors, name: torch.zeros(3, 4)}, f / "model.safetensors"),
            rf"{name} has shape \(4, 3\)",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "not an index"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(json.dumps(index)),
            "model-00001-of-00001.safetensors: there is no such file",
        ),
    ]
    for number, (write, message) in enumerate(cases):
        with pytest.raises(CheckpointError, match=message) as caught:
            Qwen2.from_pretrained(damaged(number, write))
        assert "\n" not in str(caught.value)
