"""The command line as its users see it: messages, files and exit statuses."""

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
import torch
from click.testing import CliRunner
from conftest import NOTEBOOKS

from resnetlib import execute, files, list_variants, load_run
from resnetlib.cli import main

pytestmark = pytest.mark.slow

PROGRAM = str(Path(sys.executable).with_name("resnetlib"))
PYTHON = shlex.quote(sys.executable)
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


def invoke(*command):
    """The command in this process, where torch is imported already."""
    return CliRunner().invoke(main, [str(word) for word in command])


def start(root, **parameters):
    return subprocess.Popen(
        [PROGRAM, *words(root, **parameters)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_folder(root):
    (folder,) = (root / "lite").iterdir()
    return folder


# run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The root and the output of a finished run."""
    root = (
        tmp_path_factory.mktemp("finished") / "a folder ü 模型"
    )  # as a user of Windows may have it
    done = call(*words(root))
    assert done.returncode == 0, done.stderr
    return root, done


def test_run_leaves_notebook_and_report(finished):
    root, done = finished
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line[:11] for line in lines[:3]] == [f"epoch {n}/2  " for n in "012"]
    assert lines[3].startswith("Test accuracy") and lines[-1].startswith("report: ")
    folder = run_folder(root)
    report = re.sub(r"<[^>]*>", "", (folder / "report.html").read_text())
    assert "plots.confusion" in report  # the cells of the notebook
    papermill = json.loads((folder / "notebook.ipynb").read_text())["metadata"]["papermill"]
    assert papermill["input_path"] == "run_experiment.ipynb"
    assert papermill["output_path"] == "notebook.ipynb"
    assert papermill["exception"] is None
    assert str(Path.cwd()) not in json.dumps(papermill)
    assert not list(folder.glob(".notebook*"))


def test_run_again_loads_the_finished_run(finished):
    root, _ = finished
    folder = run_folder(root)
    before = (folder / "notebook.ipynb").read_bytes()
    again = invoke(*words(root))
    assert (again.exit_code, again.stderr) == (0, "")
    assert "epoch 1/2" not in again.stdout and "Test accuracy" in again.stdout
    assert (folder / "notebook.ipynb").read_bytes() == before


def test_run_refuses_a_locked_folder(finished):
    root, _ = finished
    folder = run_folder(root)
    before = (folder / "notebook.ipynb").read_bytes()
    with files.lock(folder / ".lock"):
        refused = invoke(*words(root, fresh=True))
    assert refused.exit_code == 1
    assert "in use by another process" in refused.stderr
    assert (folder / "notebook.ipynb").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "exit_code"), [(ZeroDivisionError("a bug"), 1), (KeyboardInterrupt(), 130)]
)
def test_fresh_run_that_fails_leaves_no_old_results(
    finished, tmp_path, monkeypatch, error, exit_code
):
    root = shutil.copytree(finished[0], tmp_path / "copy")

    def fail(*_):
        raise error

    monkeypatch.setattr("resnetlib.training.Trainer.train_epoch", fail)
    failed = invoke(*words(root, fresh=True))
    assert failed.exit_code == exit_code
    folder = run_folder(root)
    assert not (folder / "notebook.ipynb").exists()
    report = (folder / "report.html").read_text()
    assert load_run(folder).record["error"] in report
    assert "There are no results" in report and " %</b>" not in report


@pytest.mark.exhaustive
def test_unfinished_run_loses_an_old_notebook(finished, tmp_path):
    """Earlier versions left the notebook of an interrupted run in its folder."""
    root = shutil.copytree(finished[0], tmp_path / "copy")
    record = json.loads((run_folder(root) / "run.json").read_text())
    (run_folder(root) / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    (run_folder(root) / "notebook.ipynb").write_text("old")
    assert invoke(*words(root)).exit_code == 0
    assert (run_folder(root) / "notebook.ipynb").read_text() != "old"


def test_changed_notebook_is_neither_reported_nor_replaced(finished, tmp_path):
    root = shutil.copytree(finished[0], tmp_path / "copy")
    folder = run_folder(root)
    assert {"notebook.ipynb", "report.html"} < load_run(folder).record["artifacts"].keys()
    report = (folder / "report.html").read_bytes()
    (folder / "notebook.ipynb").write_text("my notes")
    refused = invoke(*words(root))
    assert refused.exit_code == 1
    assert "notebook.ipynb was changed after the run; rename or delete it" in refused.stderr
    assert (folder / "notebook.ipynb").read_text() == "my notes"
    assert (folder / "report.html").read_bytes() == report


def test_report_command_writes_the_index(finished):
    root, _ = finished
    assert invoke("report", root).exit_code == 0
    assert "lite" in (root / "index.html").read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["run", "liet"], "unknown variant 'liet'; did you mean 'lite'?"),
        (["run", "lite", "-p", "epoch", "3"], "unknown parameter 'epoch'; did you mean 'epochs'?"),
        (["run", "lite", "-p", "lr", "0.1", "-p", "lr", "0.2"], "-p lr is specified twice"),
        (["run", "lite", "-p", "lr", "fast"], "lr = 'fast'"),
        (["run", "lite", "-p", "variant", "se"], "the variant is the first argument"),
        (["run", "lite", "-p", "import os; lr", "1"], "unknown parameter 'import os; lr'"),
        (["run", "lite", "-p", "epochs = batch_size", "3"], "unknown parameter 'epochs = batch"),
        (["run", "resnet18", "-p", "budget", "5000000"], "exceed the budget"),
        (["rnu"], "No such command 'rnu'"),
        (["submit", "lite", "nothing.pkl"], "nothing.pkl"),
        (["submit", "nowhere", __file__], "nowhere"),
        (["verify", "outputs/nowhere"], "outputs/nowhere is not a run folder"),
        (["verify", "a" * 300], "File name too long"),
    ],
)
def test_mistake_exits_with_2_and_one_line(tmp_path, command, message):
    done = invoke(*command, *(["-p", "output_root", tmp_path] if command[0] == "run" else []))
    assert done.exit_code == 2
    last = done.stderr.splitlines()[-1]  # click's usage may stand above
    assert last.startswith("Error: ") and message in last
    assert done.stderr.count("Error: ") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [["--help"], ["run", "--help"], ["run", "liet"], ["run", "lite", "-p", "lr", "x"]]
)
def test_help_and_refusals_import_no_torch(command):
    program = (
        "import sys\n"
        "from resnetlib.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'papermill'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_notebook_without_parameters_tag_is_refused(tmp_path, monkeypatch):
    notebook = json.loads((NOTEBOOKS / "run_experiment.ipynb").read_text())
    for cell in notebook["cells"]:
        cell["metadata"].pop("tags", None)
    (tmp_path / "run_experiment.ipynb").write_text(json.dumps(notebook))
    monkeypatch.setattr(execute, "notebooks_folder", lambda: tmp_path)
    done = invoke(*words(tmp_path / "out"))
    assert done.exit_code == 2
    assert "no cell with the tag `parameters`" in done.stderr
    assert not (tmp_path / "out").exists()


def test_dry_run_describes_and_writes_nothing(tmp_path):
    done = invoke(*words(tmp_path / "out"), "--dry-run")
    assert done.exit_code == 0, done.stderr
    for text in ("widths: [8]", "parameters:", "device:", "(new)", "estimated time:", "2 epochs"):
        assert text in done.stdout
    assert not list(tmp_path.iterdir())


def test_dry_run_refuses_a_folder_that_the_run_would_refuse(tmp_path, monkeypatch):
    """In an output folder whose name is a number."""
    monkeypatch.chdir(tmp_path)
    planned = invoke(*words(2024), "--dry-run").stdout
    folder = Path(re.search(r"run folder: +(2024\S+) \(new\)", planned)[1])
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    done = invoke(*words(2024), "--dry-run")
    assert done.exit_code == 2
    assert "is not a run folder (no run.json) and holds other files: notes.txt" in done.stderr


def test_dry_run_of_a_finished_run_would_load_it(finished):
    root, _ = finished
    before = sorted(root.rglob("*"))
    done = invoke(*words(root), "--dry-run")
    assert "would be loaded, not retrained" in done.stdout
    assert "estimated time" not in done.stdout
    assert sorted(root.rglob("*")) == before
    assert "would start over" in invoke(*words(root, fresh=True), "--dry-run").stdout


def test_diverged_run_exits_with_1_and_has_a_report(tmp_path):
    done = invoke(*words(tmp_path, lr="1e20"), "--quiet")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "learning rate" in done.stderr
    folder = run_folder(tmp_path)
    assert "The run diverged" in (folder / "report.html").read_text()
    assert not (folder / "notebook.ipynb").exists()


def test_interrupted_run_says_so_and_resumes(tmp_path):
    settings = {"epochs": 20, "batch_size": 512}
    process = start(tmp_path, **settings)
    while not process.stdout.readline().startswith("epoch  2"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    (line,) = errors.splitlines()
    assert line.startswith("interrupted; ") and line.endswith("run it again to resume")
    folder = run_folder(tmp_path)
    assert load_run(folder).status == "interrupted"
    report = (folder / "report.html").read_text()
    assert "The run was interrupted" in report and "data:image/png" in report
    assert not (folder / "notebook.ipynb").exists()

    command = words(tmp_path, **settings)
    was = load_run(folder).record["fingerprint"]["memory_format"]
    other = "contiguous" if was == "channels_last" else "channels_last"
    refused = invoke(*command, "-p", "memory_format", other)
    assert refused.exit_code == 1
    assert "memory_format was" in refused.stderr and "allow_inexact_resume" in refused.stderr
    assert "interrupted; would resume after " in invoke(*command, "--dry-run").stdout
    done = invoke(*command)
    assert done.exit_code == 0, done.stderr
    assert "resuming after " in done.stdout
    assert len(load_run(folder).history) == 21
    assert (folder / "notebook.ipynb").exists()
    assert " %</b> measured</span>" in (folder / "report.html").read_text()


@pytest.mark.exhaustive
def test_terminated_run_is_interrupted(tmp_path):
    process = start(tmp_path, epochs=400, widths=16)
    while not process.stdout.readline().startswith("epoch   2"):
        assert process.poll() is None
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted" in errors and "Traceback" not in errors
    assert load_run(run_folder(tmp_path)).status == "interrupted"


def test_run_stopped_in_time_exits_with_4(tmp_path):
    stopped = invoke(*words(tmp_path, epochs=400, stop_after="1s"), "--quiet")
    assert stopped.exit_code == 4
    (line,) = stopped.stderr.splitlines()
    assert line.startswith("interrupted; ") and line.endswith("run it again to resume")
    folder = run_folder(tmp_path)
    assert load_run(folder).status == "interrupted"
    assert "The run was interrupted" in (folder / "report.html").read_text()


@pytest.mark.exhaustive
def test_run_attached_ends_with_its_input(tmp_path):
    """As the runs of a sweep do when the sweep is killed."""
    command = [PROGRAM, *words(tmp_path, epochs=400, widths=16), "--attached"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not process.stdout.readline().startswith("epoch   2"):
        assert process.poll() is None
    _, errors = process.communicate(timeout=120)  # which closes the input
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.startswith("interrupted; saved after ")


def test_signal_before_the_run_ends_the_command(tmp_path):
    process = start(tmp_path, epochs=400)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted" in errors and "Traceback" not in errors


def start_notebook(root):
    """The command that executes the notebook of a finished run, and its kernel."""
    for name in ("notebook.ipynb", "report.html"):
        (run_folder(root) / name).unlink()
    process = start(root)
    kernels = []
    while not kernels:
        assert process.poll() is None
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends meanwhile
            children = psutil.Process(process.pid).children(recursive=True)
            kernels = [child for child in children if "ipykernel_launcher" in child.cmdline()]
        time.sleep(0.05)
    return process, kernels[0]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.exhaustive)]
)
def test_signal_while_the_notebook_runs_keeps_the_run(finished, tmp_path, number):
    root = shutil.copytree(finished[0], tmp_path / "copy")
    process, kernel = start_notebook(root)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert errors.startswith("interrupted; the run is finished in ")
    assert "Traceback" not in errors  # the kernel may say that it ends with its parent
    psutil.wait_procs([kernel], timeout=30)
    assert not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE
    folder = run_folder(root)
    assert load_run(folder).status == "done"
    assert (folder / "report.html").exists() and not (folder / "notebook.ipynb").exists()


def test_dead_kernel_leaves_the_run_finished(finished, tmp_path):
    root = shutil.copytree(finished[0], tmp_path / "copy")
    folder = run_folder(root)
    process, kernel = start_notebook(root)
    kernel.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the run is finished, but its notebook failed" in errors and "Traceback" not in errors
    assert load_run(folder).status == "done"
    assert (folder / "report.html").exists() and not (folder / "notebook.ipynb").exists()


@pytest.mark.exhaustive
def test_closed_output_does_not_end_a_run(tmp_path):
    process = start(tmp_path)
    process.stdout.close()
    with process.stderr as stream:
        assert "Traceback" not in stream.read()
    process.wait(120)
    assert load_run(run_folder(tmp_path)).status == "done"
    assert (run_folder(tmp_path) / "report.html").exists()


def test_output_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").touch()
    done = invoke(*words(tmp_path / "file"))
    assert done.exit_code == 1
    assert "the run folder cannot be" in done.stderr


@pytest.mark.parametrize(
    "encoding",
    ["cp437", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("cp932", "ascii"))],
)
def test_consoles_of_any_encoding(tmp_path, encoding):
    printed = {"list": "lite", "runs": "run", "clean": "", "report": "index.html"}
    for command in (["list"], ["runs"], ["clean"], ["run", "liet"], ["report", tmp_path]):
        done = CliRunner(charset=encoding).invoke(main, [str(word) for word in command])
        assert done.exit_code == (2 if "liet" in command else 0), done.exception
        assert printed.get(command[0], "did you mean 'lite'?") in done.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has it")
def test_full_and_closed_output_are_one_line():
    full = "Error: the output cannot be written: No space left on device\n"
    shapes = {">/dev/full": (1, full), "<&- >&-": (0, ""), "<&- >&- 2>&-": (0, "")}
    for words in ("list", "--help", "run --help"):
        for redirection, expected in shapes.items():
            command = f"{PYTHON} -m resnetlib {words} {redirection}"
            done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == expected


@pytest.mark.parametrize(
    "error", [OSError("no room for a process"), BlockingIOError(errno.EAGAIN, "no room")]
)
def test_error_without_a_file_is_not_blamed_on_the_output(error, monkeypatch):
    monkeypatch.setattr(execute, "run_experiment", Mock(side_effect=error))
    done = invoke("run", "lite", "-p", "dataset", "digits")
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, f"Error: {error}")


@pytest.mark.skipif(os.name == "nt", reason="takes a POSIX shell")
def test_reader_that_leaves_ends_a_command_quietly():
    command = f"({PYTHON} -m resnetlib list; echo exit $? >&2) | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == "exit 1\n"


def test_interrupt_hidden_by_an_import_is_one_line(monkeypatch):
    """A compiled module that is interrupted while it is imported raises an ImportError."""

    def interrupted(*_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr("resnetlib.runs.upkeep.describe_runs", interrupted)
    done = invoke("runs")
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("error", [MemoryError, RuntimeError("can't allocate memory: 67108864")])
def test_lack_of_memory_is_one_line(tmp_path, monkeypatch, error):
    monkeypatch.setattr("resnetlib.execute.estimate_epoch_seconds", Mock(side_effect=error))
    done = invoke(*words(tmp_path), "--dry-run")
    assert done.exit_code == 1
    assert done.stderr == "Error: out of memory; a smaller network or batch_size may fit\n"


def test_dry_run_times_with_the_threads_that_it_names(tmp_path, monkeypatch):
    count = torch.get_num_threads() + 1
    monkeypatch.setattr(
        "resnetlib.execute.estimate_epoch_seconds", lambda *_: float(torch.get_num_threads())
    )
    plan = invoke(*words(tmp_path, epochs=1, threads=count), "--dry-run").stdout
    assert f"1 epoch of {count}.0 s" in plan


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signal_ends_any_command_with_one_line(monkeypatch, name):
    number = getattr(signal, name)
    outside = signal.signal(number, signal.SIG_DFL)  # `nohup` ignores SIGHUP
    monkeypatch.setattr(
        "resnetlib.runs.upkeep.describe_runs", lambda *_: os.kill(os.getpid(), number)
    )
    try:
        done = invoke("runs")
    finally:
        after = signal.signal(number, outside)
    assert (done.exit_code, done.stderr) == (128 + number, f"interrupted by {name}\n")
    assert after == signal.SIG_DFL


def test_long_argument_is_shortened():
    for words in (
        ["grade", "--budget", "9" * 5000, "."],
        ["grade", "x" * 5000],
        ["runs", "y" * 5000],
    ):
        done = invoke(*words)
        assert done.exit_code in (1, 2) and len(done.stderr) < 700


def test_closed_streams_are_open_in_child_processes():
    """A kernel whose standard output is closed dies."""
    child = "import os; [os.fstat(number) for number in range(3)]"
    program = (
        "import subprocess, sys\nfrom resnetlib.cli import main\n"
        "main(['list'], standalone_mode=False)\n"
        "sys.stderr.isatty(), print()\n"
        f"sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))"
    )
    command = f'{PYTHON} -c "$PROGRAM" <&- >&- 2>&-'
    done = subprocess.run(command, shell=True, check=False, env=os.environ | {"PROGRAM": program})
    assert done.returncode == 0


@pytest.mark.exhaustive
def test_run_without_any_open_stream_is_complete(tmp_path):
    command = shlex.join(map(str, [PROGRAM, *words(tmp_path)]))
    assert subprocess.run(f"{command} <&- >&- 2>&-", shell=True, check=False).returncode == 0
    assert load_run(run_folder(tmp_path)).keeps("report.html")


# Other commands ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaderboard_without_figures")
def test_report_skips_a_run_that_cannot_be_read(tmp_path):
    for name, record in (("a", "[]"), ("b", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(record)
        (tmp_path / name / "notebook.ipynb").touch()
    done = invoke("report", tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert (tmp_path / "index.html").is_file()


def test_list_says_where_it_found_no_run(tmp_path, monkeypatch):
    """As in an installed package, which has no recorded runs."""
    assert "No finished" not in invoke("list").stdout
    monkeypatch.setattr("resnetlib.cli.output_folder", lambda: tmp_path / "outputs")
    last = invoke("list").stdout.splitlines()[-1]
    assert last.startswith("No finished CIFAR-10 run") and last.endswith("/outputs.")


def test_list_has_every_variant_and_help_every_command():
    table = invoke("list").stdout
    assert all(variant in table for variant in list_variants())
    assert "4,903,242" in table and "89.68" in table
    commands = call("--help").stdout
    assert all(f"\n  {name} " in commands for name in main.commands)


def test_console_without_unicode_loses_signs_only():
    """As `cmd.exe` with an old code page; Python would end with a UnicodeEncodeError."""
    environment = os.environ | {"PYTHONIOENCODING": "cp437"}
    done = subprocess.run([PROGRAM, "list"], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"lite" in done.stdout and b"?" in done.stdout


def test_lab_without_jupyterlab_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jupyterlab.labapp", None)
    done = invoke("lab")
    assert done.exit_code == 2 and "`pip install jupyterlab`" in done.stderr


def test_lab_of_an_installed_package_opens_copies_where_the_user_works(tmp_path):
    """JupyterLab saves the notebooks that it opens, and a run's folder is beside them."""
    site, work = tmp_path / "site", tmp_path / "work"
    package, project = site / "resnetlib", NOTEBOOKS.parent
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(project / "resnetlib", package, ignore=ignored)
    for name in ("params", "notebooks"):  # as in a wheel
        shutil.copytree(project / name, package / name, ignore=ignored)
    work.mkdir()
    (work / "run_experiment.ipynb").write_text("the user's own")
    done = subprocess.run(
        [sys.executable, "-m", "resnetlib", "lab", "--version"],  # printed, and JupyterLab ends
        cwd=work, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {path.name for path in NOTEBOOKS.glob("*.ipynb")}
    assert {path.name for path in work.iterdir()} == names
    assert (work / "run_experiment.ipynb").read_text() == "the user's own"
    copied = work / "compare_variants.ipynb"
    assert copied.read_bytes() == (NOTEBOOKS / copied.name).read_bytes()


@pytest.mark.parametrize(
    "words",
    [("-p", "epochs=5"), ("epochs=5",), ("--epochs", "5"), ("-p", "augment", "crop", "flip")],
)
def test_parameter_in_another_form_is_answered_with_the_right_one(words):
    done = invoke("run", "lite", *words)
    assert done.exit_code == 2
    assert "`-p epochs 5`, a list as `-p augment crop,flip`" in done.stderr
    assert "epochs 5" not in invoke("list", "--nonsense").stderr
