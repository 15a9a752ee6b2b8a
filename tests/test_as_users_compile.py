"""The numbers that are held to an exact reference, compiled with all that XLA does for users."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXACT = {
    "test_special": "",
    "test_truncated_normal": "every_point",
    "test_beta": "every_point",
    "test_logit_normal": "every_point",
    "test_with_atoms": "every_point",
    "test_bounds": "least_count or fused",
    "test_estimation": "never_above_scipy",
}


@pytest.mark.slow
def test_numbers_are_as_exact_as_in_the_plain_compilation_of_the_suite():
    asked = " or ".join(
        f"({file}{f' and ({tests})' * bool(tests)})" for file, tests in EXACT.items()
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
        + [f"tests/{file}.py" for file in EXACT]
        + ["-k", asked],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
