"""The numbers that are held to an exact reference, compiled with all that XLA does for users."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import plainly

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not plainly.FLAGS, reason="all tests are compiled as users compile")
def test_numbers_are_exact_as_users_compile():
    files = [
        file for file in (ROOT / "tests").glob("test_*.py") if "mark.exact" in file.read_text()
    ]
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "exact"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
