"""The notebook run_experiment under papermill, from any working directory."""

import asyncio
import json
import os
import shutil
import subprocess
import threading
import time

import papermill
import psutil
import pytest
from conftest import (
    NOTEBOOKS,
    PAPERMILL,
    PROJECT,
    outputs_of,
    run_papermill,
    text_of,
    wait_until,
    with_figure,
    with_warning,
)
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from resnetlib import load_experiment, load_run, train
from resnetlib.download import CIFAR10_MD5

pytestmark = pytest.mark.slow

RUN_EXPERIMENT = NOTEBOOKS / "run_experiment.ipynb"
TINY = ["-p", "dataset", "digits", "-p", "epochs", "2", "-p", "device", "cpu"]
TINY += ["-y", "{overrides: {depths: [1], widths: [8]}}"]


def test_papermill_can_inspect_the_parameters():
    found = papermill.inspect_notebook(str(RUN_EXPERIMENT))
    assert found["variant"]["inferred_type_name"] == "str"
    assert found["epochs"] | {"name": 0} == {
        "name": 0,
        "inferred_type_name": "int",
        "default": "None",
        "help": "passes over the training images",
    }
    assert all(parameter["help"] for parameter in found.values())


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook run from a working directory that is neither the project's nor its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    done = run_papermill(
        RUN_EXPERIMENT, "out.ipynb", *TINY, "-p", "output_root", "runs", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs" / "lite").iterdir()
    return folder / "out.ipynb", load_run(run)


def test_executed_notebook_is_complete_and_small(executed):
    path, run = executed
    assert run.status == "done"
    assert path.stat().st_size < 3_000_000
    with_one = {"batch", "drawing", "curves", "confusion", "mistakes", "calibration"}
    assert with_figure(outputs_of(path)) == with_one
    text = path.read_text()
    assert "Total params" in text
    assert "class BasicBlock(ResidualBlock)" in text
    assert "ln 10 = 2.303" in text
    assert run.headline[:22] in text


def test_executed_notebook_has_a_line_per_epoch(executed):
    path, _ = executed
    cells = outputs_of(path)
    assert not with_warning(cells)
    printed = [output for output in cells["training"] if "text" in output]  # and the history
    lines = text_of(printed).splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", f"{n}/2"] for n in range(3)]


def test_finished_run_is_loaded_not_retrained(executed):
    path, run = executed
    started = run.record["started"]
    done = run_papermill(
        RUN_EXPERIMENT, "again.ipynb", *TINY, "-p", "output_root", "runs", cwd=path.parent
    )
    assert done.returncode == 0
    assert load_run(run.path).record["started"] == started
    (history,) = outputs_of(path.parent / "again.ipynb")["training"]
    assert "test_accuracy" in history["data"]["text/html"]


def test_unknown_parameter_fails_before_any_work(tmp_path):
    done = run_papermill(
        RUN_EXPERIMENT,
        "out.ipynb",
        "-p",
        "varient",
        "lite",
        "-p",
        "output_root",
        "runs",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "ConfigError: unknown parameter 'varient'; did you mean 'variant'?" in done.stderr
    assert "resnetlib/" not in done.stderr  # no traceback from deep inside
    assert not (tmp_path / "runs").exists()


def test_interrupted_cell_shows_one_line(tmp_path):
    """As a person sees it who interrupts the kernel; the same cell resumes the run."""
    settings = {"dataset": "digits", "epochs": 200, "device": "cpu", "depths": [1], "widths": [8]}
    cells = [
        "from resnetlib import load_experiment, train",
        f"experiment = load_experiment('lite', **{settings | {'output_root': str(tmp_path)}!r})",
        "train(experiment)",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, kernel_name="python3", allow_errors=True)
    with client.setup_kernel():
        arguments = (client.km, tmp_path)
        timer = threading.Thread(target=_interrupt_once_saved, args=arguments, daemon=True)
        timer.start()
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        timer.join(60)
    (error,) = [o for o in notebook.cells[2].outputs if o.output_type == "error"]
    assert error.ename == "KeyboardInterrupt"
    (line,) = error.traceback
    assert "interrupted; saved after " in line and "run it again to resume" in line
    (folder,) = (tmp_path / "lite").iterdir()
    assert load_run(folder).status == "interrupted"


def _interrupt_once_saved(kernel, root):
    wait_until(lambda: list(root.glob("lite/*/checkpoints/*.pt")))
    asyncio.run(kernel.interrupt_kernel())


def test_run_files_lists_every_file(executed):
    _, run = executed
    names = set(run.files) - {"run folder"}
    assert names == {
        path.relative_to(run.path).as_posix()
        for path in run.path.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.exhaustive
def test_new_variant_is_one_file(tmp_path):
    """A copy of the installed package with one more file in params/, and no other change."""

    for name in ("resnetlib", "params", "notebooks"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    text = (tmp_path / "params" / "lite.yaml").read_text()
    text = text.replace("variant: lite", "variant: ninth").replace("[16, 32, 64]", "[8, 16, 32]")
    (tmp_path / "params" / "ninth.yaml").write_text(text.split("published:")[0])
    done = run_papermill(
        "notebooks/run_experiment.ipynb",
        "out.ipynb",
        *("-p", "variant", "ninth", "-p", "dataset", "digits", "-p", "epochs", "1"),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "ninth").iterdir()
    assert load_run(run).status == "done"


def test_cifar10_is_read_from_data_root(cifar10_folder, tmp_path):
    """Without an output path, papermill prints the notebook."""
    words = ["-p", "epochs", "1", "-p", "holdout", "45000", "-p", "data_root", cifar10_folder]
    words += ["-p", "output_root", tmp_path / "runs", "-p", "augment", "crop,flip"]
    words += ["-y", "{overrides: {depths: [1], widths: [4]}}"]
    done = run_papermill("run_experiment.ipynb", *words, cwd=NOTEBOOKS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cells"]
    assert len(done.stdout) < 3_000_000
    (run,) = (tmp_path / "runs" / "lite").iterdir()
    assert load_run(run).record["dataset_checksums"] == CIFAR10_MD5
    assert load_run(run).metrics["test_images"] == 10_000


@pytest.mark.exhaustive
def test_resume_after_a_dead_kernel_is_bit_exact(tmp_path):
    """Papermill itself says that every cell completed; the run folder knows better."""
    settings = {"dataset": "digits", "epochs": 30, "device": "cpu"}
    network = {"depths": [1], "widths": [4], "batch_size": 128}
    words = [str(RUN_EXPERIMENT), "out.ipynb", "-p", "output_root", str(tmp_path / "runs")]
    words += [word for name, value in settings.items() for word in ("-p", name, str(value))]
    words += ["-y", json.dumps({"overrides": network})]
    process = subprocess.Popen([*PAPERMILL, *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    kernel = None
    while not list(tmp_path.glob("runs/lite/*/checkpoints/*.pt")):
        assert process.poll() is None
        kernel = next(iter(psutil.Process(process.pid).children()), kernel)
        time.sleep(0.02)
    kernel.kill()
    assert process.wait() != 0
    (folder,) = (tmp_path / "runs" / "lite").iterdir()
    assert load_run(folder).record["status"] == "running"
    assert load_run(folder).status == "interrupted"  # nothing works on it any more
    resumed = subprocess.run([*PAPERMILL, *words], cwd=tmp_path, capture_output=True, check=True)
    assert resumed.returncode == 0
    assert "resuming after " in (tmp_path / "out.ipynb").read_text()
    whole = train(load_experiment("lite", **settings, **network), output=tmp_path / "whole")
    for name in ("model.safetensors", "predictions.npz"):
        assert load_run(folder).record["artifacts"][name] == whole.record["artifacts"][name]
    same = [run.history.drop(columns="seconds") for run in (load_run(folder), whole)]
    assert same[0].equals(same[1])
