"""What a finished run leaves: figures drawn anew."""

import shutil

import pytest
import torch
from conftest import copy_recorded, recorded_lite

from resnetlib import files, load_run
from resnetlib.runs.artifacts import redraw_figures


@pytest.fixture
def run(tmp_path):
    """A copy of a recorded run, its figures of other times: one is outdated, one was removed.

    One is the user's own.
    """
    copy_recorded(recorded_lite().path, tmp_path / "run")
    (tmp_path / "run" / "figures" / "curves.png").write_bytes(b"outdated")
    (tmp_path / "run" / "figures" / "reliability.png").unlink()
    (tmp_path / "run" / "figures" / "mine.png").touch()
    return load_run(tmp_path / "run")


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.slow
def test_redraw_figures_changes_figures_and_checksums_only(run):
    before, record = contents(run.path), run.record
    images = torch.zeros(10_000, 3, 32, 32, dtype=torch.uint8)
    names = redraw_figures(run, images)
    assert names == ["confusion_matrix.png", "curves.png", "mistakes.png"]
    figures = {f"figures/{name}" for name in names}
    after = contents(run.path)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert {"figures/curves.png", "run.json"} <= changed <= figures | {"run.json"}
    sums = load_run(run.path).record["artifacts"]
    assert {name: sums[name] for name in figures} == {
        name: files.sha256(run.path / name) for name in figures
    }
    others = {name: value for name, value in sums.items() if name not in figures}
    assert others.items() <= record["artifacts"].items()
    assert load_run(run.path).record | {"artifacts": {}} == record | {"artifacts": {}}


@pytest.mark.slow
def test_redraw_figures_of_a_run_without_any(run):
    shutil.rmtree(run.path / "figures")
    before = contents(run.path)
    assert redraw_figures(run, torch.zeros(1, 3, 32, 32, dtype=torch.uint8)) == []
    assert contents(run.path) == before
