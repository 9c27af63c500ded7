"""What the benchmarks' tests share: the scripts' folder, from which they import each other."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(FOLDER))


@pytest.fixture
def folder():
    """Give the folder of the benchmark scripts."""
    return FOLDER
