"""What every benchmark keeps to."""

import subprocess
import sys

import pytest
from conftest import PROJECT

BENCHMARKS = sorted((PROJECT / "benchmarks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmark_is_found_and_says_how_it_is_used(path):
    """With --help it imports all that it measures, and measures nothing."""
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stdout[:6]) == (0, "usage:"), done.stderr
