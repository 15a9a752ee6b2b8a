"""Tests that need what may be missing are skipped where it is, and counted at the end."""

import collections
import importlib.util
import os
import signal

import hypothesis
import jax
import pytest

from tests import plainly
from tests.browser import missing

NEEDED = {"vllm": "vLLM", "ray": "Ray", "inspect_ai": "inspect_ai", "browser": "a browser"}
MISSING = {
    marker: f"{NEEDED[marker]} is not installed"
    for marker in ("vllm", "ray", "inspect_ai")
    if importlib.util.find_spec(marker) is None
}
if (reason := missing()) is not None:
    MISSING["browser"] = reason


# The suite runs as many processes as there are cores. Threads of linear algebra that wait for each
# other by spinning would take the cores from them: SciPy's optimisers took 28 s instead of one.
for library in ("OMP", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
# Read when the first function is compiled, here and in the commands that tests start. Who sets it
# to "" has all optimisations.
os.environ.setdefault("XLA_FLAGS", plainly.FLAGS)

# How long an example takes is the machine's: on one at half the speed a property of a text took
# .6 s once, and 7 ms when it was asked again.
hypothesis.settings.register_profile(
    "suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")

# A shell has what it starts in the background ignore interrupts, which tests send, to commands too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def hangups():
    """Commands that the test starts hear SIGHUP, which they inherit as ignored under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def _place(nodeid):
    """Files whose tests train the same predictors are one: they share what they compile."""
    file = nodeid.split("::")[0]
    return "predictors" if "/test_predictor_" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return _place(nodeid)

    config.option.loadscopereorder = False  # `pytest_collection_modifyitems` has ordered them
    return Together(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Forgets compiled functions that no later test asks for: a process grew by 6 GB."""
    if nextitem is None or _place(nextitem.nodeid) != _place(item.nodeid):
        from optscale_jax.heap import freeze_heap

        jax.clear_caches()
        # What is left, modules above all, need not be looked through after the next file again.
        freeze_heap()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        for marker, reason in MISSING.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    if os.environ["XLA_FLAGS"] == plainly.FLAGS != "" and any(
        item.name == plainly.AS_USERS_COMPILE for item in items
    ):
        exact = [item for item in items if item.get_closest_marker("exact")]
        config.hook.pytest_deselected(items=exact)
        items[:] = [item for item in items if item not in exact]
    # Long files first, so that no process is left alone with one at the end.
    slow = {_place(item.nodeid) for item in items if item.get_closest_marker("slow")}
    count = collections.Counter(_place(item.nodeid) for item in items)
    items.sort(key=lambda item: (_place(item.nodeid) not in slow, -count[_place(item.nodeid)]))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    for marker, reason in MISSING.items():
        if count := sum(reason in str(report.longrepr) for report in skipped):
            told = f"{count} tests that need {NEEDED[marker]} were skipped: {reason}"
            terminalreporter.write_line(told)
