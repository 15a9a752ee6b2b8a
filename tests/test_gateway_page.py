"""The gateway's page in a browser, and the numbers that it shows."""

import os

import httpx
import jax
import pytest

from optscale_jax import synthetic_pool
from optscale_jax.gateway.config import KeyConfig, ServeConfig
from optscale_jax.live.config import RecordedConfig
from optscale_jax.study.registry import PolicyConfig
from tests.browser import chromium, fits, opened
from tests.gateway import gateway, served

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


def ask(running, problem, policy="optscale", **headers):
    body = {"model": f"m@{policy}", "messages": [{"role": "user", "content": str(problem)}]}
    found = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60, headers=headers)
    assert found.status_code == 200, found.text
    return found.json()


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_is_live_and_fits_in_light_and_dark(running, pool, width, dark):
    with chromium() as browser, opened(browser, running.url, width=width, dark=dark) as page:
        page.wait_for_selector("#recent li")
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/page-{width}-{dark}.png", full_page=True)
        page.locator("#recent summary").first.click()
        page.wait_for_selector(".opened svg.law")
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/open-{width}-{dark}.png", full_page=True)
        assert fits(page)
