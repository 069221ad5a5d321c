"""Train, execute `run_experiment.ipynb` over the finished run, and write its report."""

import signal
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.manager import KernelManager
from nbformat import NotebookNode
from papermill.translators import translate_parameters
from traitlets.config import Config

from . import files
from .config import apply_overrides, known_variants
from .device import cpu_threads
from .errors import ConfigError, Interrupted, RunError, counted
from .experiment import Experiment
from .paths import display_path, notebooks_folder, output_folder, real_path
from .progress import duration
from .reports.run_report import unlink_notebooks, write_report
from .runs.checkpoint import describe_position, describe_saved, last_position
from .runs.drive import local_folder
from .runs.estimate import estimate_epoch_seconds
from .runs.lifecycle import check_experiment, check_folder, train
from .runs.record import record_checksums
from .runs.run import Run, load_run
from .size import describe_size
from .yaml_core import write_yaml

NOTEBOOK = "run_experiment.ipynb"
KEPT = "notebook.ipynb"  # in the run folder


def run_experiment(experiment: Experiment, arguments: Mapping[str, Any]) -> Run:
    """Train, execute the notebook over the finished run, and write its report.

    `arguments` are those of the notebook. A finished run is loaded, and its notebook executed only
    if it is missing. Raises what `train` raises, and `RunError` where the notebook
    fails; a run that ended early has a report too, without a notebook.
    """
    folder = experiment.folder
    try:
        was_done = _status(folder) == "done"
        run = train(experiment)
        if was_done and files.is_read_only(folder):
            return run
        if not (was_done and (folder / KEPT).exists()):
            execute_notebook(run, experiment, arguments)
        elif not run.keeps(KEPT):
            raise RunError(
                f"{display_path(folder / KEPT)} was changed after the run; rename or delete it: "
                "the same command writes it again"
            )
    except BaseException as error:
        with suppress(Exception):  # the first error is the one to read
            _report_unfinished(folder)
        if isinstance(error, SystemExit):  # a signal other than Ctrl-C
            saved = describe_saved(folder, fresh=experiment.execution.fresh)
            raise Interrupted(saved, error.code - 128) from None
        if isinstance(error, KeyboardInterrupt) and _status(folder) == "done":
            number = getattr(error, "exit_code", 128 + signal.SIGINT) - 128
            raise Interrupted(
                f"interrupted; the run is finished in {display_path(folder)}: the same command "
                "executes its notebook",
                number,
            ) from None
        raise
    write_report(run)
    return run


def _status(folder: Path) -> str | None:
    with suppress(RunError):  # there is none, or a damaged one: `train` explains or replaces it
        return load_run(folder).status
    return None


def _report_unfinished(folder: Path) -> None:
    """Write the report from record and history, unless another process works on the run."""
    run = load_run(folder)
    if run.status != "running":
        if run.status != "done":
            (folder / KEPT).unlink(missing_ok=True)
        write_report(run)


def describe_plan(experiment: Experiment) -> dict[str, str]:
    """Size, device, folder and estimated time of a run of the experiment; nothing is written.

    Raises `ConfigError` for what could not be trained here, or would overwrite other files.
    """
    settings = check_experiment(experiment)
    if not local_folder(experiment.folder):  # Drive may have lost the record for a while
        check_folder(experiment.folder, output_folder(experiment.execution.output_root))
    done, state = _resume_point(experiment)
    facts = describe_size(experiment.architecture, experiment.budget)
    facts |= settings.in_words()
    facts["run folder"] = f"{display_path(experiment.folder)} ({state})"
    if left := experiment.recipe.epochs - done:
        with cpu_threads(settings.threads):
            seconds = estimate_epoch_seconds(experiment, settings)
        facts["estimated time"] = (
            f"about {duration(left * seconds)}: {counted(left, 'epoch')} of {duration(seconds)}, "
            "from a few timed steps; longer beside other work"
        )
    return facts


def _resume_point(experiment: Experiment) -> tuple[int, str]:
    """The epochs that need no more training, and what a run would do."""
    folder = experiment.folder
    if not (folder / "run.json").is_file():
        return 0, "new"
    if experiment.execution.fresh:
        return 0, "would start over"
    run = load_run(folder)
    if run.status == "done":
        return experiment.recipe.epochs, "finished; would be loaded, not retrained"
    if not (position := last_position(folder)):
        return 0, f"{run.status}; would start over"
    return position[0], f"{run.status}; would resume after {describe_position(*position)}"


def notebook_arguments(variant: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What papermill passes: the notebook's own parameters by name, all else as `overrides`.

    `fresh` is left out: the run is done by then. A default that somebody has changed and saved in
    the notebook is overridden by None. Raises `ConfigError` where the notebook has lost the tag of
    its parameters, whose defaults would replace the values.
    """
    path = notebooks_folder() / NOTEBOOK
    inspected = papermill.inspect_notebook(str(path))
    named = inspected.keys() - {"overrides"}
    if not named:
        raise ConfigError(f"{display_path(path)} has no cell with the tag `parameters`")
    given = {name: value for name, value in parameters.items() if name.split(".")[-1] != "fresh"}
    arguments = {
        name: None for name, facts in inspected.items() if facts["default"] not in ("None", "{}")
    }
    arguments |= {name: value for name, value in given.items() if name in named}
    overrides = {name: value for name, value in given.items() if name not in named}
    arguments["variant"] = variant if variant in known_variants() else str(real_path(variant))
    return arguments | ({"overrides": overrides} if overrides else {})


def execute_notebook(run: Run, experiment: Experiment, arguments: Mapping[str, Any]) -> None:
    """Put the executed notebook into the folder of a finished run, which it loads.

    While it is executed, the variant is the experiment itself: the variant's file may have changed
    since. Raises `RunError` where a cell fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experiment.yaml"
        done = apply_overrides(experiment, {"fresh": False})
        path.write_text(write_yaml(done.model_dump(mode="json")), encoding="utf-8")
        notebook = _executed({**arguments, "variant": str(path)})
    # The folder is shared with others: papermill notes places of this machine.
    places = {"input_path": NOTEBOOK, "output_path": KEPT}
    notebook.metadata.papermill |= places | {"parameters": dict(arguments)}
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = translate_parameters("python3", "python", dict(arguments), "Parameters")
    unlink_notebooks(notebook)
    files.write_text(run.path / KEPT, nbformat.writes(notebook) + "\n")
    record_checksums(run.path, [KEPT])


def _executed(arguments: dict[str, Any]) -> NotebookNode:
    try:
        return papermill.execute_notebook(
            notebooks_folder() / NOTEBOOK,
            None,
            arguments,
            kernel_name="python3",
            progress_bar=False,
            coalesce_streams=True,
            shutdown_kernel="immediate",  # a graceful end interrupts it first, which it may print
            config=_kernel_settings(),
        )
    except (papermill.PapermillExecutionError, RuntimeError) as error:  # the latter: it died
        reason = f"{getattr(error, 'ename', '')}: {getattr(error, 'evalue', error)}".lstrip(": ")
        raise RunError(
            f"the run is finished, but its notebook failed ({reason}); "
            "the same command executes it again"
        ) from None


def _kernel_settings() -> Config:
    """Encrypted connections where they exist; else new ipykernels print a warning."""
    known = KernelManager.class_trait_names()  # jupyter_client 7 has no encryption
    encryption = {"transport_encryption": "auto"} if "transport_encryption" in known else {}
    return Config({"KernelManager": encryption})
