"""Sweeps of quick runs, which need no torch."""

from pathlib import Path

import pytest

from resnetlib.sweep import process
from resnetlib.sweep.task import Task


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Makes tasks whose processes are `quick_run.py`; overrides as for `load_experiment`."""
    monkeypatch.setattr(process, "PROGRAM", (str(Path(__file__).with_name("quick_run.py")),))

    def make(**overrides):
        settings = {"dataset": "digits", "epochs": 2, "output_root": str(tmp_path / "outputs")}
        return Task("lite", settings | overrides)

    return make
