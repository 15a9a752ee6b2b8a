"""Tests that need what may be missing are skipped where it is, and counted at the end."""

import importlib.util
import os

import pytest

NEEDED = {"vllm": "vLLM", "inspect_ai": "inspect_ai"}
MISSING = {
    marker: f"{name} is not installed"
    for marker, name in NEEDED.items()
    if importlib.util.find_spec(marker) is None
}


# The suite runs as many processes as there are cores. Threads of linear algebra that wait for each
# other by spinning would take the cores from them: SciPy's optimisers took 28 s instead of one.
for library in ("OMP", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    for item in items:
        for marker, reason in MISSING.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    for marker, reason in MISSING.items():
        if count := sum(reason in str(report.longrepr) for report in skipped):
            told = f"{count} tests that need {NEEDED[marker]} were skipped: {reason}"
            terminalreporter.write_line(told)
