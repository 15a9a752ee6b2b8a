"""Tests that need vLLM are skipped where there is none, and counted at the end."""

import importlib.util
import os

import pytest

NO_VLLM = "vLLM is not installed"


def pytest_configure(config):
    # Most of the suite's time is compilation. What one process has compiled no other does again:
    # the workers, the commands that tests start, and the next run.
    folder = str(config.rootpath / ".pytest_cache" / "jax")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason=NO_VLLM))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    if count := sum(NO_VLLM in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(f"{count} tests that need vLLM were skipped: {NO_VLLM}")
