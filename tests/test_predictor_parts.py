"""Heads, losses and optimizers of one's own: what training takes, and what it says of the rest."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optscale_jax.errors import InputError
from optscale_jax.predictor.features import FeatureConfig, Recipe
from optscale_jax.predictor.head import HeadConfig
from optscale_jax.predictor.losses import LOSSES, LossConfig
from optscale_jax.predictor.parts import OptimizerConfig, Parts
from optscale_jax.predictor.predictor import Predictor
from optscale_jax.predictor.training import TrainingConfig, train
from tests.predictor_problems import CONFIG, WIDTH, problems

RECIPE = Recipe("model", "fingerprint", (1,), "mean", WIDTH, "float32")


class Line(nnx.Module):
    """A linear head."""

    outputs = 4

    def __init__(self, width, *, rngs):
        self.value = nnx.Linear(width, self.outputs, rngs=rngs)

    def __call__(self, x, mask, *, key=None):
        return self.value(x[:, 0])


class Three(Line):
    """One output too few."""

    outputs = 3


class Constant(Line):
    """What is no array."""

    def __call__(self, x, mask, *, key=None):
        return 1.0


class Counts(Line):
    """Whole numbers."""

    def __call__(self, x, mask, *, key=None):
        return jnp.zeros((len(x), 4), jnp.int32)


class Deaf(Line):
    """Takes no key."""

    def __call__(self, x, mask):
        return self.value(x[:, 0])


class Narrow(Line):
    """For features of another width."""

    def __call__(self, x, mask, *, key=None):
        return self.value(x[:, 0, :3])


class Stateful(Line):
    """Draws from a stream of its own."""

    def __init__(self, width, *, rngs):
        super().__init__(width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)


def test_a_head_a_loss_and_an_optimizer_are_trained_as_they_are(tmp_path, monkeypatch):
    features, labels = problems()

    def squared(prior, targets):
        return (prior.loc - targets.stats.mean) ** 2

    losses = []
    fitted = train(
        features,
        labels,
        CONFIG,
        head=Line,
        loss=squared,
        optimizer=optax.adam(0.01),
        log=lambda numbers: losses.append(numbers["loss"]),
    )
    assert losses[-1] < 0.8 * losses[0]
    assert fitted.params["value.kernel"].shape == (CONFIG.members, WIDTH, 4)
    made = Predictor.of(fitted, FeatureConfig(), RECIPE)
    made.save(tmp_path)
    again = Predictor.load(tmp_path)
    assert again.head == HeadConfig(name=f"{__name__}:Line")
    monkeypatch.setattr(
        "optscale_jax.predictor.predictor.extract", lambda *_, **__: (features, RECIPE)
    )
    texts = [text for text in labels.texts if text]
    for one, other in zip(
        jax.tree.leaves(made.predict(texts)), jax.tree.leaves(again.predict(texts)), strict=True
    ):
        np.testing.assert_array_equal(one, other)

    unnamed = made.__class__(
        **{**vars(made), "head": lambda width, *, rngs: Line(width, rngs=rngs)}
    )
    with pytest.raises(InputError, match=r"no name finds it again; put it into a file"):
        unnamed.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_part_gets_those_fields_that_its_signature_names():
    losses = {name: LossConfig(name=name) for name in LOSSES}
    for loss in losses.values():
        Parts.find(HeadConfig(), loss, OptimizerConfig()).check(5, tokens=False)
    one, other = (
        Parts.find(HeadConfig(hidden=hidden), LossConfig(), OptimizerConfig())
        for hidden in ([512, 256], [16, 8])
    )
    again = Parts.find("mlp", "weighted", "adamw")
    # The same object for the same numbers, so that what uses it is compiled once.
    assert (one.head, one.loss, one.optimizer(7)) == (again.head, again.loss, again.optimizer(7))
    assert one.head != other.head
    assert nnx.state(other.head(5, rngs=nnx.Rngs(0)))["towers"][0]["output"]["kernel"].shape[0] == 8


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (Three, "head Three: gives float32[3, 3]; expected floats [3, 4], of each text the mean"),
        (Constant, "head Constant: gives "),
        (Counts, "head Counts: gives int32[3, 4]; expected floats [3, 4]"),
        (Deaf, "head Deaf: called with features of shape (3, 1, 64), mask, key=...: TypeError: "),
        (Narrow, "head Narrow: called with features of shape (3, 1, 64), mask, key=...: "),
        (Stateful, "head Stateful: keeps drop.rngs.count (RngCount), which is no nnx.Param"),
        (Line(3, rngs=nnx.Rngs(0)), "head Line: is a module already; give what makes one, such as"),
        (lambda width, rngs: {}, "makes a dict; expected a flax.nnx.Module"),
        (len, "head len: called with (64, rngs=...): TypeError: "),
        ("nonsense", "head 'nonsense': no such head, and one of your own is module:name or"),
        (f"{__name__}:Three", f"head {__name__}:Three: gives float32[3, 3]; expected floats"),
        (f"{__name__}:Thre", "has no Thre; did you mean Three?"),
    ],
)
def test_a_head_that_training_cannot_use_is_said_before_any_work(head, says):
    features, labels = problems(6)
    with pytest.raises(InputError, match="^.*" + re.escape(says)) as caught:
        train(features, labels, head=head)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda prior, targets: prior.loc.mean(), "gives float32[]; expected floats [3], one num"),
        (lambda prior, targets: 1.0, "gives "),
        (lambda prior: prior.loc, "called with (prior, targets): TypeError: "),
        (lambda prior, targets: prior.mean, "called with (prior, targets): AttributeError: "),
        ("margnal", "'margnal': no such loss, and one of your own is module:name or "),
    ],
)
def test_a_loss_that_training_cannot_use_is_said_before_any_work(loss, says):
    features, labels = problems(6)
    with pytest.raises(InputError, match="^loss .*" + re.escape(says)) as caught:
        train(features, labels, loss=loss)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (lambda steps: 0.1, "is of type float; expected an optax.GradientTransformation"),
        (lambda: optax.sgd(0.1), "called with the number of steps: TypeError: "),
        (f"{__name__}:RECIPE", "is of type Recipe; expected an optax.GradientTransformation"),
        ("adam", "'adam': no such optimizer, and one of your own is module:name"),
    ],
)
def test_an_optimizer_that_training_cannot_use_is_said_before_any_work(optimizer, says):
    features, labels = problems(60)
    config = TrainingConfig(members=1)
    with pytest.raises(InputError, match="^optimizer .*" + re.escape(says)) as caught:
        train(features, labels, config, optimizer=optimizer)
    assert "\n" not in str(caught.value)
