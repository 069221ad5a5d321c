"""Listing all runs, and removing what killed processes left of them."""

import json
import shutil

import pytest
from click.testing import CliRunner
from conftest import recorded_lite

from resnetlib import files
from resnetlib.cli import main
from resnetlib.runs.run import ARTIFACTS
from resnetlib.runs.upkeep import (
    checkpoint_files,
    describe_runs,
    leftovers,
    removable,
    remove_leftovers,
)

LEFT = [
    *(f"{name}.ab_12xyz" for name in ("run.json", "report.html", "notebook.ipynb", *ARTIFACTS)),
    "checkpoints/epoch-00001-step-000000.pt.ab_12xyz",
    "notebook-7047.ipynb",  # of older versions
]
KEPT = [".lock", ".run.json.mine", "notes.txt", ".notebook-mine.ipynb", "figures/.mine.png"]
FOLDERS = [".run.json.abcdefgh", ".history.csv.abcdefgh", ".notebook-1.ipynb"]  # of the user's own


@pytest.fixture
def root(tmp_path):
    """A finished run, one that was killed after epoch 3, and one that is damaged."""
    run = recorded_lite()
    for name in ("done", "killed"):
        shutil.copytree(run.path, tmp_path / "lite" / name)
    killed = tmp_path / "lite" / "killed"
    record = run.record | {"status": "running", "artifacts": {}}
    (killed / "run.json").write_text(json.dumps(record))
    lines = (killed / "history.csv").read_text().splitlines()
    (killed / "history.csv").write_text("\n".join(lines[:5]) + "\n")
    (killed / "checkpoints").mkdir()
    for epoch in (2, 3):
        (killed / "checkpoints" / f"epoch-0000{epoch}-step-000000.pt").write_bytes(bytes(1000))
    for name in LEFT:
        folder, _, name = name.rpartition("/")
        (killed / folder / f".{name}").touch()
    for name in KEPT:
        (killed / name).touch()
    for name in FOLDERS:
        (killed / name).mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("[" * 100_000)
    return tmp_path


def invoke(*words, **settings):
    return CliRunner().invoke(main, [str(word) for word in words], **settings)


def test_describe_runs_gives_status_epoch_time_and_size(root):
    rows = {row["run"]: row for row in describe_runs(root)}
    assert list(rows) == ["damaged", "lite/done", "lite/killed"]
    assert [row["status"] for row in rows.values()] == ["damaged", "done", "interrupted"]
    assert [row["epoch"] for row in rows.values()] == ["–", "40/40", "3/40"]
    left = [row["time left"] for row in rows.values()]
    assert left[:2] == ["–", "–"] and " min" in left[2]
    assert rows["lite/done"]["size"].endswith(" MB") and rows["damaged"]["size"] == "100 KB"
    with files.lock(root / "lite" / "killed" / ".lock"):
        assert describe_runs(root / "lite" / "killed")[0]["status"] == "running"
    for path in checkpoint_files(root / "lite" / "killed"):
        path.unlink()
    assert describe_runs(root / "lite" / "killed")[0]["epoch"] == "0/40"  # it would start over


def test_runs_command_lists_every_run(root, tmp_path):
    lines = invoke("runs", root).stdout.splitlines()
    assert len(lines) == 4 and lines[0].split() == [
        "run",
        "status",
        "epoch",
        "time",
        "left",
        "size",
    ]
    (tmp_path / "none").mkdir()
    assert "no runs under" in invoke("runs", tmp_path / "none").stdout


def test_runs_command_prints_nothing_but_text(tmp_path):
    """Names and records may be a stranger's: no escape sequence reaches the terminal."""
    for name, status in {
        "a\nb": "done",
        "x\x1b[2J": "done\n\x1b[2J",
        "long": "d" * 100_000,
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"status": status}))
    printed = invoke("runs", tmp_path).stdout
    assert len(printed.splitlines()) == 4 and len(printed) < 400
    assert all(line.isprintable() for line in printed.splitlines())


@pytest.mark.parametrize(
    "history",
    [
        "seconds\n" + "9" * 200_000,  # longer than the csv module reads
        "seconds\n" + "1e308\n" * 9,
        "seconds" + "," * 2**20,
        "seconds\n\udcff",
    ],
    ids=["long", "sum", "wide", "not text"],
)
def test_history_of_a_stranger_keeps_no_run_from_the_list(root, history):
    path = root / "lite" / "killed" / "history.csv"
    path.write_bytes(history.encode(errors="surrogateescape"))
    rows = {row["run"]: row for row in describe_runs(root)}
    assert rows["lite/killed"]["time left"] == "–"
    assert rows["lite/done"]["epoch"] == "40/40"


def test_leftovers_are_all_that_a_killed_process_leaves(root):
    killed = root / "lite" / "killed"
    assert len(leftovers(killed)) == len(LEFT)
    remove_leftovers(killed)
    assert leftovers(killed) == []
    assert all((killed / name).exists() for name in (*KEPT, *FOLDERS))
    assert len(list((killed / "checkpoints").iterdir())) == 2


def test_clean_command_removes_what_is_asked(root):
    killed = root / "lite" / "killed"
    before = sorted(root.rglob("*"))
    shown = invoke("clean", root)
    assert f"{len(LEFT)} leftovers" in shown.stdout and "2 checkpoints, 2 KB" in shown.stdout
    assert "Nothing was removed" in shown.stdout
    refused = invoke("clean", root, "--leftovers", input="n\n")
    assert refused.exit_code == 0 and sorted(root.rglob("*")) == before
    assert invoke("clean", root, "--checkpoints", input="").exit_code == 1  # nobody to answer
    assert sorted(root.rglob("*")) == before
    with files.lock(killed / ".lock"):
        assert "nothing to remove" in invoke("clean", root, "--leftovers", "--yes").stdout
    assert invoke("clean", root, "--leftovers", input="y\n").exit_code == 0
    assert leftovers(killed) == [] and len(list(killed.glob("checkpoints/*"))) == 2
    assert invoke("clean", killed, "--checkpoints", "--yes").exit_code == 0
    assert not list(killed.glob("checkpoints/*"))
    assert all((killed / name).exists() for name in KEPT)
    assert list(removable(root, checkpoints=True)) == []


def test_clean_follows_no_link(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(root / "lite" / "killed" / "checkpoints", elsewhere / "checkpoints")
    (root / "lite" / "killed" / "checkpoints").symlink_to(elsewhere / "checkpoints")
    (root / "linked").symlink_to(root / "lite")
    (elsewhere / "figures").mkdir()
    (elsewhere / "figures" / ".curves.png.abcd1234").touch()  # that another run is writing
    shutil.rmtree(root / "lite" / "killed" / "figures", ignore_errors=True)
    (root / "lite" / "killed" / "figures").symlink_to(elsewhere / "figures")
    invoke("clean", root, "--leftovers", "--checkpoints", "--yes")
    assert len(list((elsewhere / "checkpoints").iterdir())) == 3
    assert len(list((elsewhere / "figures").iterdir())) == 1
