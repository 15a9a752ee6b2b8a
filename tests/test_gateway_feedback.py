"""What users say of the gateway's answers: a calibration renewed, an alarm of claims that fail."""

import itertools
import json
import math
import os
import threading

import httpx
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optscale_jax import Calibration, synthetic_pool
from optscale_jax.errors import InputError
from optscale_jax.files import append_lines
from optscale_jax.gateway.config import FeedbackConfig, KeyConfig, ServeConfig
from optscale_jax.gateway.feedback import claims_against_truth
from optscale_jax.gateway.service import Service
from optscale_jax.live.config import RecordedConfig
from optscale_jax.readers import read_pool
from optscale_jax.study.registry import PolicyConfig
from tests.gateway import Upstream, box, gateway, served
from tests.test_gateway import sleeping
from train.calibration import main

RULE = PolicyConfig("calibrated_vote", calibration="scores", budget=4, max_samples=16)


def post(running, path, body, key=None):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{running.url}/v1/{path}", json=body, timeout=60, headers=headers)


def ask(running, text="x", key=None, **options):
    body = {"messages": [{"role": "user", "content": text}], "optscale": options}
    return post(running, "chat/completions", body, key).json()


def say(running, request_id, correct, key=None):
    return post(running, "feedback", {"request_id": request_id, "correct": correct}, key)


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_served_asked_and_judged_requests_teach_a_calibration(tmp_path):
    pool = synthetic_pool(jax.random.key(0), num_problems=24, num_samples=16)
    pool.save(tmp_path / "pool.npz")
    file, out = tmp_path / "said" / "lines.jsonl", tmp_path / "calibration.json"

    def make():
        recorded = RecordedConfig(pool=str(tmp_path / "pool.npz"))
        options = {"recorded": recorded, "verify": True, "feedback": FeedbackConfig(str(file))}
        return ServeConfig(models=[served("http://unused", policies=[RULE], **options)])

    with gateway(make_config=make) as running:
        asked = {}
        for row, name in enumerate(pool.problem_ids):
            found = ask(running, str(name), n_candidates=8)
            choice = found["choices"][0]
            selected = choice["optscale"]["selected_index"]
            right = bool(pool.correct[row, selected])
            asked[found["id"].rpartition("-")[2]] = row, selected, right
            told = say(running, found["id"], right)
            assert told.status_code == 200
            assert told.json()["completions"] == 8
            # Once more, it changes nothing; the opposite is refused.
            assert say(running, found["id"], right).json() == told.json()
            assert say(running, found["id"], not right).status_code == 409
        live = httpx.get(f"{running.url}/live").json()
        metrics = httpx.get(f"{running.url}/metrics").text
    rights = [right for *_, right in asked.values()]
    assert 0 < sum(rights) < len(rights)
    (claims,) = live["claims"]
    assert (claims["count"], claims["realised"]) == (24, np.mean(rights))
    by = 'model="m",policy="calibrated_vote"'
    assert f"optscale_drift_realised{{{by}}} {np.mean(rights)}" in metrics
    assert f'optscale_feedback_total{{correct="true",{by}}} {float(sum(rights))}' in metrics
    learnt = read_pool(file)
    assert sorted(map(str, learnt.problem_ids)) == sorted(asked)
    for row, name in enumerate(learnt.problem_ids):
        of, selected, right = asked[str(name)]
        np.testing.assert_array_equal(learnt.scores[row], pool.scores[of, :8])
        np.testing.assert_array_equal(learnt.tokens[row], pool.tokens[of, :8])
        same = pool.answers[of, :8] == pool.answers[of, selected]
        np.testing.assert_array_equal(learnt.correct[row], same & right)
        votes = [
            answers[:, None] == answers for answers in (learnt.answers[row], pool.answers[of, :8])
        ]
        np.testing.assert_array_equal(*votes)
    assert main(["--pool", str(file), "--out", str(out)]) == 0
    assert Calibration.load(out).num_problems == 24


def test_feedback_is_of_requests_that_are_known_of_ones_own_and_wanted(monkeypatch, tmp_path):
    for name in "AB":
        monkeypatch.setenv(f"KEY_{name}", f"sk-{name}")
    keys = [KeyConfig(name, env=f"KEY_{name}") for name in "AB"]
    told = FeedbackConfig(str(tmp_path / "lines.jsonl"), remembered=2)

    def make(url):
        models = [served(url, feedback=told), served(url, name="silent")]
        return ServeConfig(models=models, keys=keys)

    with gateway(Upstream(lambda body, i: box(i % 2)), make_config=make) as running:
        ids = [ask(running, key="sk-A")["id"] for _ in range(3)]
        # The first is too old by now.
        codes = [say(running, one, True, "sk-A").status_code for one in (*ids, "chatcmpl-none")]
        assert codes == [404, 200, 200, 404]
        assert say(running, ids[1], True, "sk-B").status_code == 404
        assert say(running, ids[1], True).status_code == 401
        body = {"model": "silent", "messages": [{"role": "user", "content": "x"}]}
        silent = post(running, "chat/completions", body, "sk-A").json()["id"]
        assert say(running, silent, True, "sk-A").status_code == 404
        for body in ([], {}, {"request_id": 1, "correct": True}, {"request_id": "x", "correct": 1}):
            found = post(running, "feedback", body, "sk-A")
            assert (found.status_code, set(found.json())) == (400, {"error"})
        # A full disk: nothing is kept of it, and it may be sent again.
        (tmp_path / "lines.jsonl").unlink()
        (tmp_path / "lines.jsonl").mkdir()
        one = ask(running, key="sk-A")["id"]
        assert say(running, one, False, "sk-A").status_code == 503
        (tmp_path / "lines.jsonl").rmdir()
        assert say(running, one, False, "sk-A").json()["completions"] == 4
    assert [line["correct"] for line in lines_of(tmp_path / "lines.jsonl")] == [False] * 4


def test_completions_behind_a_missing_one_are_not_written(tmp_path):
    told = FeedbackConfig(str(tmp_path / "lines.jsonl"))

    def make(url):
        return ServeConfig(models=[served(url, feedback=told)])

    upstream = Upstream(lambda body, i: sleeping(30) if i == 2 else box(7))
    with gateway(upstream, make_config=make) as running:
        found = ask(running, seconds=1.5)
        assert found["choices"][0]["optscale"]["samples"] == 3
        assert say(running, found["id"], True).json()["completions"] == 2
    assert [line["index"] for line in lines_of(tmp_path / "lines.jsonl")] == [0, 1]


def test_a_configuration_whose_feedback_cannot_be_kept_does_not_start(tmp_path):
    (tmp_path / "file").write_text("")
    bad = served("http://unused", feedback=FeedbackConfig(str(tmp_path / "file" / "x")))
    with pytest.raises(InputError, match=r"model m: feedback\.file: "):
        Service(ServeConfig(models=[bad]))
    good = FeedbackConfig(str(tmp_path / "file"))
    both = [served("http://unused", name=name, feedback=good) for name in "ab"]
    with pytest.raises(InputError, match="two models have one"):
        ServeConfig(models=both)


def test_lines_are_appended_whole_by_many_at_once_and_after_a_crash(tmp_path, monkeypatch):
    file = tmp_path / "lines"
    file.write_bytes(b"first\ncut sho")
    blocks = [[f"{i}-{j} {'x' * 3000}\n".encode() for j in range(20)] for i in range(8)]
    threads = [threading.Thread(target=append_lines, args=(file, block)) for block in blocks]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    first, *rest = file.read_bytes().splitlines(keepends=True)
    assert first == b"first\n"
    whole = [b"".join(rest[i : i + 20]) for i in range(0, len(rest), 20)]
    assert sorted(whole) == sorted(map(b"".join, blocks))
    before, write = file.read_bytes(), os.write

    def full(descriptor, data):
        if len(data) < 10_000:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:10_000])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        append_lines(file, blocks[0])
    assert file.read_bytes() == before


# Drift --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=9))
def test_the_chance_is_that_of_the_nearer_tail(claims):
    claimed, right = zip(*claims, strict=True)
    weight = [0.0] * (len(claims) + 1)
    for outcome in itertools.product((0, 1), repeat=len(claims)):
        each = (p if hit else 1 - p for p, hit in zip(claimed, outcome, strict=True))
        weight[sum(outcome)] += math.prod(each)
    hits = sum(right)
    expected = min(2 * min(sum(weight[: hits + 1]), sum(weight[hits:])), 1.0)
    found = claims_against_truth(claimed, right)
    assert found.chance == pytest.approx(expected, abs=1e-12)
    assert found.alarm == (found.chance < 1e-4)
    assert found.claimed == pytest.approx(np.mean(claimed))
    assert found.realised == pytest.approx(np.mean(right))


def test_an_alarm_goes_off_when_claims_fail_and_not_when_they_hold():
    random = np.random.default_rng(0)
    alarms = {}
    for realised in (0.9, 0.7):
        right = random.random(400) < realised
        seen = [
            claims_against_truth([0.9] * n, right[:n].tolist()).alarm for n in range(20, 401, 20)
        ]
        alarms[realised] = seen
    assert not any(alarms[0.9])
    assert all(alarms[0.7][9:])  # after 200 answers
