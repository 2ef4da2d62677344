"""The facts of a report, made without a workspace."""

from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture
def samples(monkeypatch):
    """The module `report_samples`."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return import_module("report_samples")


@pytest.fixture
def facts(samples, make_plan):
    """The facts of four cases of two groups in two folds."""
    return samples.make_facts(make_plan)
