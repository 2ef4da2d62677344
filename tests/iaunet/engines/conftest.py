"""What tests of engines share."""

from importlib import import_module
from pathlib import Path

import pytest

from iaunet.engines.tasks import Task


@pytest.fixture
def jobs(monkeypatch):
    """The module of functions that other processes import."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return import_module("jobs_for_engines")


@pytest.fixture
def task(tmp_path):
    """Makes tasks that log below ``tmp_path``."""
    return lambda name, item: Task(name, item, tmp_path / "logs" / f"{name}.txt")
