"""The command line as a person uses it: what it says, what it leaves, how it exits."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from resnetlib import files, list_variants, load_run
from resnetlib.cli import parse

PROGRAM = str(Path(sys.executable).with_name("resnetlib"))
TINY = {"dataset": "digits", "device": "cpu", "depths": 1, "widths": 8, "epochs": 2}


def words(root, variant="lite", **parameters):
    settings = TINY | {"output_root": root} | parameters
    return [
        "run",
        variant,
        *(word for pair in settings.items() for word in ("-p", *map(str, pair))),
    ]


def call(*command, **variables):
    return subprocess.run(
        [PROGRAM, *command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )


def test_a_run_leaves_notebook_and_report_and_is_then_only_shown(tmp_path):
    done = call(*words(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line[:11] for line in done.stdout.splitlines()[:3]] == [f"epoch {n}/2  " for n in "012"]
    assert "Test accuracy" in done.stdout
    (folder,) = (tmp_path / "lite").iterdir()
    assert (folder / "report.html").stat().st_size > 10_000
    assert not list(folder.glob(".notebook*"))
    papermill = json.loads((folder / "notebook.ipynb").read_text())["metadata"]["papermill"]
    assert papermill["input_path"] == "run_experiment.ipynb"
    assert papermill["output_path"] == "notebook.ipynb"
    assert papermill["exception"] is None

    before = (folder / "notebook.ipynb").read_bytes()
    again = call(*words(tmp_path))
    assert (again.returncode, again.stderr) == (0, "")
    assert "epoch 1/2" not in again.stdout and "Test accuracy" in again.stdout
    assert (folder / "notebook.ipynb").read_bytes() == before

    with files.lock(folder / ".lock"):
        refused = call(*words(tmp_path, fresh=True))
    assert refused.returncode == 1
    assert "in use by another process" in refused.stderr
    assert (folder / "notebook.ipynb").read_bytes() == before

    page = call("report", str(tmp_path))
    assert page.returncode == 0
    assert "lite" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["run", "liet"], "unknown variant 'liet'; did you mean 'lite'?"),
        (["run", "lite", "-p", "epoch", "3"], "unknown parameter 'epoch'; did you mean 'epochs'?"),
        (["run", "lite", "-p", "lr", "0.1", "-p", "lr", "0.2"], "-p lr is given twice"),
        (["run", "lite", "-p", "lr", "fast"], "lr = 'fast'"),
        (["run", "lite", "-p", "variant", "se"], "the variant is the first argument"),
        (["run", "resnet18", "-p", "budget", "5000000"], "exceed the budget"),
        (["rnu"], "No such command 'rnu'"),
        (["submit", "nowhere", "nothing.pkl"], "nowhere"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_exits_with_2(tmp_path, command, told):
    done = call(*command, *(["-p", "output_root", str(tmp_path)] if command[0] == "run" else []))
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_that_diverges_exits_with_1_and_has_a_report(tmp_path):
    done = call(*words(tmp_path, lr="1e20"))
    assert done.returncode == 1
    assert done.stderr.startswith("diverged: Diverged: ")
    (folder,) = (tmp_path / "lite").iterdir()
    assert "diverged" in (folder / "report.html").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_says_so_and_goes_on_afterwards(tmp_path, number):
    command = [PROGRAM, *words(tmp_path, epochs=40, widths=16)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stdout.readline().startswith("epoch  2"):
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.startswith("interrupted: KeyboardInterrupt")
    (folder,) = (tmp_path / "lite").iterdir()
    assert load_run(folder).status == "interrupted"
    kept = (folder / "notebook.ipynb").read_bytes()

    refused = call(*command[1:], OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    assert refused.returncode == 1
    assert "threads was" in refused.stderr and "allow_inexact_resume" in refused.stderr
    assert (folder / "notebook.ipynb").read_bytes() == kept

    done = call(*command[1:])
    assert done.returncode == 0
    assert "resuming after epoch" in done.stdout
    assert len(load_run(folder).history) == 41


def cells_done(folder):
    """How many cells papermill has carried out of the notebook that it is at."""
    for path in folder.glob("*/.notebook-*.ipynb"):
        try:
            cells = json.loads(path.read_text())["cells"]
        except ValueError:  # it is being written
            return 0
        return sum(cell["metadata"]["papermill"]["status"] == "completed" for cell in cells)
    return 0


def test_a_signal_before_the_run_has_begun_ends_the_command_with_its_number(tmp_path):
    process = subprocess.Popen(
        [PROGRAM, *words(tmp_path, epochs=400)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while cells_done(tmp_path / "lite") < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "KeyboardInterrupt" in errors and "Traceback" not in errors


def test_a_kernel_that_dies_is_told_in_a_line_and_the_same_command_goes_on(tmp_path):
    command = [PROGRAM, *words(tmp_path, epochs=40, widths=16)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stdout.readline().startswith("epoch  2"):
        assert process.poll() is None
    for child in psutil.Process(process.pid).children(recursive=True):
        if "ipykernel_launcher" in child.cmdline():
            child.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the kernel died" in errors and "Traceback" not in errors
    assert call(*command[1:]).returncode == 0


def test_an_output_folder_that_cannot_be_made_is_told_in_a_line(tmp_path):
    (tmp_path / "file").touch()
    done = call(*words(tmp_path / "file"))
    assert done.returncode == 1
    assert "the run folder cannot be made" in done.stderr and "Traceback" not in done.stderr


def test_the_page_is_written_beside_a_run_that_cannot_be_read(tmp_path):
    for name, record in (("a", "[]"), ("b", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(record)
        (tmp_path / name / "notebook.ipynb").touch()
    done = call("report", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "index.html").is_file()


def test_list_shows_every_variant_and_help_every_command():
    shown = call("list").stdout
    assert all(variant in shown for variant in list_variants())
    assert "4,903,242" in shown and "89.68" in shown
    commands = call("--help").stdout
    assert all(f"\n  {name} " in commands for name in ("run", "list", "report", "submit", "lab"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("None", None),
        ("crop,flip", "crop,flip"),
        ("1,2,3", [1, 2, 3]),
        ("{'name': 'adam', 'lr': 0.1}", {"name": "adam", "lr": 0.1}),
        ("../data", "../data"),
    ],
)
def test_values_are_what_a_person_means(text, value):
    assert parse(text) == value
    assert type(parse(text)) is type(value)
    assert math.isnan(parse("nan"))
