"""The gateway's page in a browser, and the numbers that it shows."""

import itertools
import os
import re

import httpx
import jax
import numpy as np
import pytest

from optscale_jax import TruncatedNormal, synthetic_pool
from optscale_jax.gateway.config import FeedbackConfig, KeyConfig, ServeConfig
from optscale_jax.live.config import RecordedConfig
from optscale_jax.study.registry import PolicyConfig
from tests.browser import chromium, fits, opened
from tests.gateway import Upstream, box, gateway, served

SHOTS = os.environ.get("OPTSCALE_SHOTS")  # a folder for pictures of the page


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    path = tmp_path_factory.mktemp("pool") / "pool.npz"
    made = synthetic_pool(jax.random.key(0), num_problems=12, num_samples=16)
    made.save(path)
    return made, path


@pytest.fixture(scope="module")
def running(pool):
    """A gateway over a recorded pool that has answered each of its problems, by two policies."""
    recorded = RecordedConfig(pool=str(pool[1]))
    rules = (
        PolicyConfig("optscale", s_min=0.9, alpha=0.9, max_samples=16, min_samples=4),
        PolicyConfig("calibrated_vote", calibration="scores", budget=4, max_samples=16),
    )

    def make():
        return ServeConfig(
            models=[served("http://unused", policies=rules, recorded=recorded, verify=True)]
        )

    with gateway(make_config=make) as found:
        for rule in rules:
            for problem in pool[0].problem_ids:
                ask(found, problem, rule.name)
        yield found


@pytest.mark.browser
def test_the_page_raises_an_alarm_once_claims_fail(pool, tmp_path, caplog):
    rule = PolicyConfig("calibrated_vote", calibration="scores", budget=4, max_samples=16)
    recorded = RecordedConfig(pool=str(pool[1]))
    said = FeedbackConfig(str(tmp_path / "said.jsonl"))
    options = {"policies": [rule], "recorded": recorded, "verify": True, "feedback": said}

    def make():
        return ServeConfig(models=[served("http://unused", **options)])

    with gateway(make_config=make) as judged, chromium() as browser:
        with opened(browser, judged.url, width=390, dark=True) as page:
            page.wait_for_selector("#main")
            assert not page.is_visible("#alarm")
            for problem in pool[0].problem_ids:
                found = ask(judged, problem, rule.name)
                body = {"request_id": found["id"], "correct": False}
                assert httpx.post(f"{judged.url}/v1/feedback", json=body).status_code == 200
            page.wait_for_selector("#alarm")
            assert "m@calibrated_vote" in page.inner_text("#alarm")
            assert "under 0.01%" in page.inner_text("#claims")
            assert fits(page)
            if SHOTS:
                page.screenshot(path=f"{SHOTS}/alarm.png", full_page=True)
        metrics = httpx.get(f"{judged.url}/metrics").text
    assert 'optscale_drift_alarm{model="m",policy="calibrated_vote"} 1.0' in metrics
    assert caplog.text.count("learn its calibration again") == 1


def ask(running, problem, policy="optscale"):
    body = {"model": f"m@{policy}", "messages": [{"role": "user", "content": str(problem)}]}
    found = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60)
    assert found.status_code == 200, found.text
    return found.json()


def live(running, path="", **options):
    return httpx.get(f"{running.url}/live{path}", timeout=60, **options)


@pytest.mark.browser
def test_the_page_follows_requests_and_opens_them_at_any_width_in_light_and_dark(running, pool):
    from playwright.sync_api import expect

    with chromium() as browser:
        for width, dark in itertools.product((1400, 390), (False, True)):
            with opened(browser, running.url, width=width, dark=dark) as page:
                asked = []
                page.on("request", lambda one, asked=asked: asked.append(one.url))
                before = live(running).json()
                first = before["recent"][0]["id"]
                page.wait_for_selector(f"text={len(before['recent'][0]['scores'])} of 16")
                assert page.inner_text("#requests") == str(int(before["requests"]["200"]))
                assert page.locator("#policies tbody tr").count() == 2
                assert page.locator("#stops tbody tr").count() == len(before["stops"])
                background = "getComputedStyle(document.body).backgroundColor"
                colour = "rgb(23, 25, 28)" if dark else "rgb(255, 255, 255)"
                assert page.evaluate(background) == colour
                opened_line = page.locator("#recent details").first
                opened_line.locator("summary").click()
                opened_line.locator("svg.cdf").wait_for()
                ask(running, pool[0].problem_ids[0])
                more = str(int(before["requests"]["200"]) + 1)
                expect(page.locator("#requests")).to_have_text(more)
                # The line that is being read stays open, below the new one.
                lines = page.locator("#recent details")
                assert [lines.nth(i).get_attribute("open") for i in (0, 1)] == [None, ""]
                lines.first.locator("summary").click()
                lines.first.locator("svg.cdf").wait_for()
                newest = live(running).json()["recent"][0]
                assert lines.first.locator("tbody tr").count() == newest["samples"]
                assert lines.first.locator("path").count() == 3
                assert "truncated_normal, loc" in lines.first.locator("figcaption").inner_text()
                assert newest["id"] != first
                assert fits(page)
                assert all(url.startswith(running.url) for url in asked)
                if SHOTS:
                    page.screenshot(path=f"{SHOTS}/{width}-{dark}.png", full_page=True)


@pytest.mark.browser
def test_the_page_asks_for_a_key_and_keeps_it_in_its_tab(monkeypatch):
    monkeypatch.setenv("PAGE_KEY", "sk-page")

    def make(url):
        return ServeConfig(models=[served(url)], keys=[KeyConfig("one", env="PAGE_KEY")])

    with gateway(Upstream(lambda body, i: box(1)), make_config=make) as keyed:
        assert live(keyed).status_code == live(keyed, "/x").status_code == 401
        with (
            chromium() as browser,
            opened(browser, keyed.url, width=390, fails=["401"]) as page,
        ):
            field = page.get_by_label("API key")
            for key in ("sk-other", "sk-page"):
                assert not page.is_visible("#main")
                field.fill(key)
                page.get_by_role("button", name="Show").click()
                if key == "sk-other":
                    page.wait_for_selector("text=This key is unknown")
            page.wait_for_selector("#main")
            assert not field.is_visible()
            page.reload()
            page.wait_for_selector("#main")
            assert fits(page)


def test_the_pages_numbers_are_those_of_prometheus_and_hold_no_text(running):
    found, text = live(running), httpx.get(f"{running.url}/metrics").text
    numbers = found.json()
    counted = {}
    for line in text.splitlines():
        if line[0] != "#":
            name, value = line.rsplit(" ", 1)
            counted[name] = counted.get(name, 0.0) + float(value)

    def total(name):
        return sum(v for k, v in counted.items() if k.partition("{")[0] == f"optscale_{name}")

    assert sum(numbers["requests"].values()) == total("requests_total")
    assert numbers["saved_tokens"] == total("saved_tokens_total") > 0
    assert sum(numbers["tokens"].values()) == total("tokens_total")
    assert sum(numbers["stops"].values()) == total("stops_total")
    assert numbers["seconds"]["count"] == total("request_duration_seconds_count")
    assert sum(step[1] for step in numbers["steps"]) == numbers["tokens"]["completed"]
    assert numbers["confidence"]["count"] == total("confidence_count") == 12
    assert "boxed" not in found.text


def test_tokens_saved_are_those_of_as_many_completions_as_the_cap(running, pool):
    for one in live(running).json()["recent"]:
        each = live(running, f"/{one['id']}").json()
        tokens = [tokens for *_, tokens in each["completions"]]
        spent = one["spent"]
        assert spent >= sum(tokens)
        assert one["saved"] == max(round(16 * np.mean(tokens)) - spent, 0)
    assert live(running, "/none").status_code == 404


def test_a_request_is_shown_with_the_law_that_its_policy_fitted(running):
    shown = [live(running, f"/{one['id']}").json() for one in live(running).json()["recent"]]
    fitted = [one for one in shown if one["name"] == "m@optscale"]
    assert fitted
    for one in fitted:
        law = TruncatedNormal(**{name: np.float32(v) for name, v in one["params"].items()})
        expected = law.cdf(np.array(one["law"]["x"], np.float32))
        np.testing.assert_allclose(one["law"]["cdf"], expected, atol=1e-5)
        assert one["aim"] == ["s_min", pytest.approx(0.9)]
        assert one["selected"] == max(one["completions"], key=lambda c: c[1])[0]
    assert [one["law"] for one in shown if one["name"] != "m@optscale"] == [None] * 12


def test_the_page_may_load_and_run_nothing_but_its_own(running):
    found = httpx.get(running.url)
    allowed = found.headers["content-security-policy"]
    assert "default-src 'none'" in allowed
    assert "unsafe" not in allowed
    assert re.findall(r"(?:src|href)=|url\(|https?://(?!www\.w3\.org)", found.text) == []
