"""Tests that need vLLM are skipped where there is none, and counted at the end."""

import importlib.util

import pytest

NO_VLLM = "vLLM is not installed"


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason=NO_VLLM))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    if count := sum(NO_VLLM in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(f"{count} tests that need vLLM were skipped: {NO_VLLM}")
