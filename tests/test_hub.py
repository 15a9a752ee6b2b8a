"""Sharing on a model hub: what is pushed comes back by its name, and refusals say what to do."""

import jax
import numpy as np
import pytest
import yaml

from eval import push
from optscale_jax.calibration import Calibration
from optscale_jax.errors import HubError
from optscale_jax.estimation import Prior
from optscale_jax.policies import calibrated_vote
from optscale_jax.pool import Pool
from optscale_jax.predictor import ensemble
from optscale_jax.predictor.calibration import Offsets, Points, Quality
from optscale_jax.predictor.data import Normalisation
from optscale_jax.predictor.features import FeatureConfig, Recipe
from optscale_jax.predictor.head import HeadConfig
from optscale_jax.predictor.parts import find_head
from optscale_jax.predictor.predictor import FILES, Predictor
from optscale_jax.predictor.training import text_hashes
from optscale_jax.study.pools import PoolSource
from optscale_jax.tiny import pool_path
from tests import hub as fake
from tests.loopback import free_port

CALIBRATION = "package:optscale_jax/tiny/calibration.json"
constants = pytest.importorskip("huggingface_hub.constants")

# How the hub's client calls httpx is its own affair.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def server():
    with fake.serving() as server:
        yield server


@pytest.fixture(autouse=True)
def client(server, tmp_path, monkeypatch):
    """The hub's own client, as it is where HF_ENDPOINT is the server's address."""
    server.repositories.clear()
    monkeypatch.setenv("HF_TOKEN", fake.TOKEN)
    changed = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in changed.items():
        monkeypatch.setattr(constants, name, value)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.evidence, other.evidence)


def card_of(server, where):
    text = server.files(where)["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_pushed_calibration_stands_for_its_file(server, capsys):
    assert push.main([str(CALIBRATION), "--to", "vote"]) == 0
    pinned = capsys.readouterr().out.split()[-5]
    assert pinned.startswith("hf://ann/vote@")
    kept = Calibration.load(CALIBRATION)
    for name in ("hf://ann/vote", pinned, "hf://ann/vote@main/calibration.json"):
        same(Calibration.load(name), kept)
    assert calibrated_vote("hf://ann/vote", budget=8, max_samples=16).origin == kept.origin
    head, body = card_of(server, "models/ann/vote")
    assert head["library_name"] == "optscale-jax"
    told = (kept.origin.verifier, f"{kept.num_problems} problems", f"{kept.reliability.error:.3f}")
    assert all(words in body for words in (*told, 'calibrated_vote("hf://ann/vote"'))


def test_a_pushed_pool_stands_for_its_file(server, tmp_path):
    pool = Pool.load(pool_path()).subset(slice(20))
    pool.save(tmp_path / "mine.npz")
    assert push.main([str(tmp_path / "mine.npz"), "--to", "hf://datasets/lab/pool"]) == 0
    for read in (Pool.load, lambda name: PoolSource(name).load()):
        again = read("hf://lab/pool")
        np.testing.assert_array_equal(again.scores, pool.scores)
        np.testing.assert_array_equal(again.problem_ids, pool.problem_ids)
    assert again.origin == pool.origin
    _, body = card_of(server, "datasets/lab/pool")
    best = f"{pool.correct.mean():.1%}"
    assert all(words in body for words in (pool.origin.verifier, "| problems | 20 |", best))
    assert set(server.files("datasets/lab/pool")) == {"README.md", "pool.npz"}
    assert PoolSource("hf://datasets/lab/pool@main/pool.npz").load().num_problems == 20


def test_a_pushed_predictor_stands_for_its_folder_and_a_card_may_stay(server, tmp_path, capsys):
    kept = predictor()
    kept.save(tmp_path / "mine")
    assert push.main([str(tmp_path / "mine"), "--to", "lab/prior"]) == 0
    assert "note: ./model is not pushed" in capsys.readouterr().err
    _, body = card_of(server, "models/lab/prior")
    assert all(words in body for words in ("12 problems", "0.01230", 'Predictor.load("hf://lab/'))
    server.files("models/lab/prior")["README.md"] = b"mine"
    assert push.main([str(tmp_path / "mine"), "--to", "lab/prior", "--card", "false"]) == 0
    assert server.files("models/lab/prior")["README.md"] == b"mine"
    again = Predictor.load("hf://lab/prior")
    np.testing.assert_equal(again.params, kept.params)
    assert set(server.files("models/lab/prior")) == {"README.md", *FILES}


def predictor():
    """One as training would leave it, with a head that says nothing."""
    head, width = HeadConfig(hidden=[3], dropout=[0.0]), 4
    shapes = ensemble.shapes(ensemble.abstract(find_head(head), width)[1])
    worth = Quality(5, 0.0123, 0.5, 0.001, 0.4)._asdict()
    return Predictor(
        FeatureConfig(model="./model"),
        Recipe("./model", "0" * 64, (1,), "mean", 64, "float32"),
        head,
        {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()},
        Normalisation(np.zeros(width, np.float32), np.ones(width, np.float32)),
        Prior(0.8, 0.1, 0.2, 0.1),
        *(Offsets(), Points()),
        record={"labels": {"problems": 12, "scores": 8.0}, "quality": {"test": {"learned": worth}}},
        seen=text_hashes([]),
    )


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "the hub wants a token; give one that it takes: hf auth login, or HF_TOKEN"),
        ("hf_old", "the hub refuses the token (401); give one that it takes: hf auth login"),
        (fake.READ_ONLY, "the token may not do this (403); give one that may write there"),
    ],
)
def test_a_hub_that_refuses_says_what_to_do_and_no_token(server, token, says, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    assert push.main([CALIBRATION, "--to", "ann/vote"]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert told.err.count("\n") == 1
    assert not token or token not in told.out + told.err
    assert server.repositories == {}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf://ann/none", "there is no such repository (check the name), or this token may not"),
        ("hf://ann/vote@v7", "there is no such revision"),
        ("hf://ann/vote/other.json", "has no other.json; name what you mean: hf://ann/vote/FILE"),
        ("hf://ann/vo?te", "Repo id must"),
    ],
)
def test_what_a_hub_does_not_have_is_one_line(name, says, server, capsys):
    assert push.main([CALIBRATION, "--to", "ann/vote"]) == 0
    with pytest.raises(HubError) as caught:
        Calibration.load(name)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


def test_without_a_network_what_was_downloaded_serves_and_the_rest_is_one_line(monkeypatch):
    assert push.main([CALIBRATION, "--to", "ann/vote"]) == 0
    first = Calibration.load("hf://ann/vote")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    same(Calibration.load("hf://ann/vote"), first)
    with pytest.raises(HubError, match="cannot be reached; connect, or give the path of a copy"):
        Calibration.load("hf://ann/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids more; unset it"):
        Calibration.load("hf://ann/other")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "path is not given; use optscale push PATH --to OWNER/NAME"),
        ([CALIBRATION], "to is not given; use --to OWNER/NAME"),
        (["nothing.npz", "--to", "a/b"], "nothing.npz: no such file"),
        ([CALIBRATION, "--to", "a/b/c"], "cannot be pushed to: HFValidationError"),
    ],
)
def test_what_cannot_be_pushed_is_one_line_and_the_hub_hears_nothing(
    arguments, says, server, capsys
):
    assert push.main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert server.repositories == {}
