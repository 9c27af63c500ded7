"""What the benchmarks' tests share: the scripts' folder, from which they import each other."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(FOLDER))


@pytest.fixture
def folder():
    """Give the folder of the benchmark scripts."""
    return FOLDER


@pytest.fixture
def steering(monkeypatch):
    """Give an importer of the scripts in `steering/`, each fresh for a test."""
    monkeypatch.syspath_prepend(str(FOLDER / "steering"))
    imported = []

    def load(name):
        imported.append(name)
        return import_module(name)

    yield load
    for name in imported:
        sys.modules.pop(name)
