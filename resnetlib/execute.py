"""Execute `run_experiment.ipynb` over a run."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import nbformat
import papermill
from jupyter_client import KernelManager
from nbformat import NotebookNode

from . import files
from .config import load_experiment
from .errors import ConfigError, RunError
from .experiment import Experiment
from .paths import notebooks_folder
from .runs.lifecycle import check_experiment
from .runs.record import make_folder
from .runs.run import Run, load_run

NOTEBOOK = "run_experiment.ipynb"
KEPT = "notebook.ipynb"  # in the run folder
INTERRUPT_AGAIN = 5.0  # seconds; a run needs far less to record that it was interrupted


class Stopped(RunError):
    """A signal came while there was nothing of the run to show, or nothing new."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def execute_notebook(
    variant: str, parameters: Mapping[str, Any], progress: TextIO | None = None
) -> tuple[Run, int | None]:
    """Carry out a variant with these overrides in its notebook.

    The names are those that `load_experiment` takes. Gives the run, whatever its outcome, and the
    signal (SIGINT or SIGTERM) that ended it, if one did. The executed notebook is put beside the
    results as `notebook.ipynb`; a finished run that has it is not executed again. `progress` gets
    one line an epoch.

    Raises `ConfigError` before any work, and `RunError` where the notebook ended by something else
    than what the run's record tells: no run came about, or it could not go on, or the run is done
    and showing it failed. Then the folder stays as it was.
    """
    if "variant" in parameters:
        raise ConfigError("the variant is the first argument; leave `-p variant` out")
    experiment = load_experiment(variant, **parameters)
    check_experiment(experiment)
    folder = experiment.folder.resolve()
    if _is_shown(experiment, folder):
        return load_run(folder), None

    make_folder(folder)
    partial = folder / f".notebook-{os.getpid()}.ipynb"
    try:
        caught = _execute(partial, _arguments(variant, parameters), progress)
        notebook = nbformat.read(partial, as_version=4)
        told = _told(notebook)
        if not (folder / "run.json").is_file():
            _refuse(told or "the notebook ended before its run began", caught)
        if told and told != load_run(folder).record.get("error"):
            _refuse(told, caught)
        # The folder is given to others: nothing in it names a place of this machine.
        notebook.metadata.papermill |= {"input_path": NOTEBOOK, "output_path": KEPT}
        files.write_text(folder / KEPT, nbformat.writes(notebook) + "\n")
    finally:
        partial.unlink(missing_ok=True)
    return load_run(folder), caught


def _refuse(told: str, caught: int | None) -> NoReturn:
    raise Stopped(told, caught) if caught else RunError(told)


def _is_shown(experiment: Experiment, folder: Path) -> bool:
    """Whether the run is finished and its notebook is there to be read."""
    if experiment.execution.fresh or not (folder / "run.json").is_file():
        return False
    run = load_run(folder)
    same = run.record["experiment"] == experiment.digest
    return same and run.status == "done" and (folder / KEPT).is_file()


def _arguments(variant: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What papermill passes: the notebook's own parameters by name, all else as `overrides`."""
    named = papermill.inspect_notebook(str(notebooks_folder() / NOTEBOOK)).keys() - {"overrides"}
    overrides = {name: value for name, value in parameters.items() if name not in named}
    arguments = {name: value for name, value in parameters.items() if name in named}
    is_path = variant.endswith((".yaml", ".yml"))
    arguments["variant"] = str(Path(variant).resolve()) if is_path else variant
    return arguments | ({"overrides": overrides} if overrides else {})


def _execute(output: Path, arguments: Mapping[str, Any], progress: TextIO | None) -> int | None:
    """Run the notebook; SIGINT and SIGTERM interrupt it, so that the run can say so. Which one."""
    # "auto": traffic with the kernel is encrypted where it can be, and ipykernel has no complaint.
    kernel = KernelManager(kernel_name="python3", transport_encryption="auto")
    failures: list[BaseException] = []

    def work() -> None:
        # Not in the main thread: there, nbclient's own answer to a signal is to kill the kernel.
        try:
            papermill.execute_notebook(
                notebooks_folder() / NOTEBOOK,
                output,
                arguments,
                km=kernel,
                kernel_name="python3",
                progress_bar=False,
                coalesce_streams=True,
                stdout_file=_Epochs(progress) if progress else None,
            )
        except papermill.PapermillExecutionError:
            pass  # the notebook shows it, and `run.json` says how the run ended
        except BaseException as error:
            failures.append(error)

    worker = threading.Thread(target=work, daemon=True)
    kernel.start_kernel()
    try:
        with _interrupting(kernel) as caught:
            worker.start()
            while worker.is_alive():  # a join without end would keep signals waiting
                worker.join(0.2)
                if not kernel.is_alive():  # then nbclient waits for ever
                    raise RunError(
                        "the kernel died, perhaps for want of memory; the same command goes on"
                    )
                if caught:  # between two cells, an interrupt goes unnoticed
                    worker.join(INTERRUPT_AGAIN)
                    if worker.is_alive():
                        kernel.interrupt_kernel()
    finally:
        kernel.shutdown_kernel(now=True)
    if failures:
        raise failures[0]
    return caught[0] if caught else None


@contextmanager
def _interrupting(kernel: KernelManager) -> Iterator[list[int]]:
    """While it lasts, SIGINT and SIGTERM interrupt the kernel; the list tells which came."""
    caught: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        kernel.interrupt_kernel()

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Epochs:
    """Passes on the lines that tell of epochs, of all that a notebook prints."""

    def __init__(self, to: TextIO):
        self.to = to

    def write(self, text: str) -> None:
        for line in text.splitlines():
            if line.startswith(("epoch ", "resuming after ")):
                print(line, file=self.to, flush=True)

    def flush(self) -> None:
        self.to.flush()


def _told(notebook: NotebookNode) -> str:
    """The error that ended the notebook, in one line; empty if none did."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"{output.ename}: {output.evalue}".rstrip(": ")  # as the record has it
    return ""
