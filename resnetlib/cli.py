"""The command line: its commands, their options, and exit codes.

Exit status: 0 done, 1 the run failed, 2 a mistake in the command, 3 a verification failed,
4 stopped at its time limit (`stop_after`), 128 plus a signal's number.
"""

import contextlib
import errno
import io
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from .config import (
    known_variants,
    list_class_variants,
    load_experiment,
    parse_parameter,
    parse_value,
)
from .errors import (
    ConfigError,
    UserError,
    is_out_of_memory,
    print_line,
    shorten,
    shorten_line,
)
from .experiment import DEFAULT_BUDGET
from .paths import (
    display_path,
    expand_home,
    notebooks_folder,
    output_folder,
    project_folder,
)
from .signals import STOP_SIGNALS, handled, stop_now
from .size import check_size

LONGEST_NAME = 200  # characters of a path in a message
LONGEST_MISTAKE = 500  # characters of what click says of an argument
LARGEST_MEMORY = 10_000  # GB, of one run of a sweep
MOST_TRIALS = 10_000  # of a search, like the runs of a grid
# Of an error that names no file: what the output goes to is full or gone (EINVAL on Windows).
OUTPUT_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EINVAL)
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Program(click.Group):
    """Prints a user's mistake in one line and exits with its status."""

    def main(self, *args: Any, **settings: Any) -> Any:
        _open_closed_streams()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a console of cp437 has no –
                stream.reconfigure(errors="replace")
        return super().main(*args, **settings)

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        with _explained():  # this prints the help
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        with _explained(), _interruptible():
            return super().invoke(ctx)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn a user's mistake, and an interrupt, into one line and an exit status."""
    try:
        yield
    except click.BadParameter as error:
        error.message = shorten_line(error.message, LONGEST_MISTAKE)
        raise
    except click.UsageError as error:
        options = error.ctx.command.params if error.ctx else ()
        about = getattr(error, "option_name", None)  # click gives no context with this one
        if about == "-p" or any(option.name == "parameters" for option in options):
            how = "a parameter is given as `-p epochs 5`, a list as `-p augment crop,flip`"
            error.message = f"{error.message.rstrip('.')}; {how}"
        raise
    except ConfigError as error:
        raise Failure(str(error), 2) from None
    except UserError as error:
        raise Failure(str(error), 1) from None
    except BrokenPipeError:  # the output's reader has left, such as `head`: click ends quietly
        raise
    except OSError as error:
        if error.filename is None:
            if error.errno not in OUTPUT_FAULTS:
                raise Failure(str(error), 1) from None
            _discard_output()
            raise Failure(f"the output cannot be written: {error.strerror}", 1) from None
        name = display_path(Path(error.filename))
        name = name if len(name) <= LONGEST_NAME else shorten(name)
        code = 2 if error.errno == errno.ENAMETOOLONG else 1  # a mistake in the command
        raise Failure(f"{name}: {error.strerror}", code) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise Failure("out of memory; a smaller network or batch_size may fit", 1) from None
    except (KeyboardInterrupt, ImportError) as error:
        stop = _interrupt_in(error)
        if stop is None:
            raise
        click.echo(str(stop) or "interrupted", err=True)
        sys.exit(getattr(stop, "exit_code", 128 + signal.SIGINT))


def _interrupt_in(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that the error is, or that it came from: compiled modules hide one."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _open_closed_streams() -> None:
    """Open standard streams that the caller has closed: a kernel would use their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _discard_output() -> None:
    """Send what is still to be written to nowhere, so that Python does not fail at its end."""
    with contextlib.suppress(OSError, ValueError):  # no file, as in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Failure(click.ClickException):
    """A message for the user, with the exit status of the command."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@click.group(cls=Program, context_settings=SETTINGS)
@click.version_option(package_name="resnetlib")
def main() -> None:
    """Reproducible image-classification experiments under a parameter budget.

    \b
    resnetlib list                          list the variants
    resnetlib run laptop -p dataset digits  train one, in a minute, and write its report
    resnetlib sweep lite -p seed 0..4       train it with five seeds
    resnetlib report                        put all runs on one page: outputs/index.html
    resnetlib runs                          list all runs, with time left and size on disk
    resnetlib lab                           explore in JupyterLab
    resnetlib doctor                        check this installation
    """
    # The kernels of notebooks write a warning about debugging, which nobody does here.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # without a line of source


_data_root_option = click.option(
    "--data-root", type=click.Path(path_type=Path), help="The folder with CIFAR-10."
)


def _parameters_option(help: str, metavar: str = "NAME VALUE") -> Callable[..., Any]:
    """`-p NAME VALUE`, any number of times."""
    return click.option(
        "-p", "--parameter", "parameters", nargs=2, multiple=True, metavar=metavar, help=help
    )


@main.command("run", short_help="Train a variant, or resume it, and write its report.")
@click.argument("variant")
@_parameters_option(
    "A setting by its name or dotted path (docs/variant_file.md lists them); may be repeated."
)
@click.option("-q", "--quiet", is_flag=True, help="Suppress per-epoch output.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the experiment, its size, device, folder and estimated time; train nothing.",
)
@click.option("--attached", is_flag=True, hidden=True, help="End when standard input ends.")
def run_command(
    variant: str,
    parameters: Sequence[tuple[str, str]],
    quiet: bool,
    dry_run: bool,
    attached: bool,
) -> None:
    """Train VARIANT, or resume it, and write its notebook and its report.

    VARIANT is a name from `resnetlib list`, or the path of a variant file or of a run folder, whose
    experiment is then run in the output folder. The same command resumes an interrupted run; a
    finished run is loaded, not retrained (`-p fresh true` starts over).

    \b
    resnetlib run lite
    resnetlib run lite -p epochs 10 -p lr 0.05 -p seed 1
    resnetlib run lite -p dataset digits -p optimizer.momentum 0.8 -p depths 2,2,2
    resnetlib run lite -p stop_after 11h    save and stop after this time; the exit code is then 4
    resnetlib run lite --dry-run
    """
    values = dict(_values(parameters))
    if "variant" in values:
        raise ConfigError("the variant is the first argument; omit `-p variant`")
    experiment = load_experiment(variant, **values)
    check_size(experiment)  # like every refusal so far without torch
    if dry_run:
        from .execute import describe_plan

        plan = describe_plan(experiment)
        click.echo(experiment.to_yaml())
        width = max(map(len, plan)) + 2
        for name, value in plan.items():
            click.echo(f"{name + ':':{width}}{value}")
        return

    if attached:
        from .sweep.process import end_with_stdin

        end_with_stdin()
    from . import progress
    from .execute import notebook_arguments, run_experiment

    with progress.quiet() if quiet else contextlib.nullcontext():
        run = run_experiment(experiment, notebook_arguments(variant, values))
    click.echo(run.headline)
    if (report := run.path / "report.html").is_file():
        click.echo(f"report: {display_path(report)}")


def _interruptible() -> contextlib.AbstractContextManager[None]:
    """Where each of the signals ends the command as Ctrl-C does, unless it is ignored (`nohup`)."""
    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return handled(numbers, stop_now)


def _values(parameters: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    names = [name for name, _ in parameters]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"-p {name} is specified twice")
    return [(name, parse_parameter(name, text)) for name, text in parameters]


@main.command("sweep", short_help="Train many runs: variants × seeds × parameters, or a search.")
@click.argument("variants", metavar="VARIANT...", nargs=-1, required=True)
@_parameters_option(
    "A parameter with its alternatives: 0.05,0.1 or 0..4 or '[2,2,2],[3,3,3]'; may be repeated.",
    metavar="NAME VALUES",
)
@click.option(
    "--at-once", type=click.IntRange(1), help="Runs at a time; as many as fit by default."
)
@click.option(
    "--gpus",
    type=float,
    metavar="SHARE",
    help="The share of a GPU of each run: 0, or 0.01 to 1; 1 by default where there are GPUs, "
    "else 0. Runs that share a GPU share its memory too.",
)
@click.option(
    "--memory",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="GB",
    help="Memory that a cluster reserves for each run.",
)
@click.option("--address", help="Run on this Ray cluster, such as head:6379 or auto.")
@click.option(
    "--search",
    "ranges",
    multiple=True,
    metavar="NAME=RANGE",
    help="Search a parameter: 'lr=log(0.01,0.3)', 'dropout=linear(0,0.5)', "
    "'batch_size=int(64,256)' or 'optimizer=choice(sgd,adam)'; may be repeated.",
)
@click.option(
    "--trials",
    type=click.IntRange(1, MOST_TRIALS),
    help="Trials of the search, all calls together.",
)
@click.option("--save", metavar="NAME", help="Write the best trial as the new variant NAME.")
@click.option(
    "--slurm",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a Slurm array script with one run per task; train nothing.",
)
@click.option("--dry-run", is_flag=True, help="List the runs and their state; train nothing.")
def sweep_command(
    variants: tuple[str, ...],
    parameters: Sequence[tuple[str, str]],
    at_once: int | None,
    gpus: float | None,
    memory: float,
    address: str | None,
    ranges: tuple[str, ...],
    trials: int | None,
    save: str | None,
    slurm: Path | None,
    dry_run: bool,
) -> None:
    """Train every combination of VARIANTs and parameters, each as `resnetlib run` would.

    The same command resumes: finished runs are not repeated, interrupted ones are resumed. A run
    that fails does not stop the others. On a CPU one run trains on each core with one thread
    (`-p threads N`: N cores each). Commas separate alternatives, so a list is written in brackets.

    \b
    resnetlib sweep lite laptop -p seed 0..4
    resnetlib sweep lite -p seed 0..2 -p lr 0.05,0.1 -p augment '[crop,flip],[]'
    resnetlib sweep lite -p seed 0..9 --address auto        on a Ray cluster
    resnetlib sweep lite -p seed 0..9 --slurm lite.sh       for sbatch

    A search judges each trial on images held out of the training images (`holdout`, a tenth of
    them by default), never on the test set, and stops the worst trials early:

    \b
    resnetlib sweep lite --search 'lr=log(0.01,0.3)' --trials 40 --save lite_tuned

    Exit status: 0 all runs are done, 1 a run failed, 4 stopped at the time limit (`-p stop_after
    11h`, for the whole sweep).
    """
    from .sweep import command
    from .sweep.grid import expand_grid

    if not memory < LARGEST_MEMORY:  # not a number included
        raise ConfigError(f"--memory {memory:g}: give less than {LARGEST_MEMORY:,} GB")
    if gpus is not None and not (gpus == 0 or 0.01 <= gpus <= 1):
        raise ConfigError(f"--gpus {gpus:g}: give 0, or 0.01 to 1; a run uses one GPU")
    if ranges and (slurm or dry_run):
        raise ConfigError("--search excludes --slurm and --dry-run")
    if slurm and (dry_run or address):
        raise ConfigError("--slurm excludes --dry-run and --address")
    if (trials or save) and not ranges:
        raise ConfigError("--trials and --save belong to a search; add --search 'lr=log(0.01,0.3)'")
    if ranges and not trials:
        raise ConfigError("a search needs --trials N")
    place = command.Place(at_once, gpus, memory, address)
    if ranges:
        code = command.sweep_search(
            variants, parameters, place, ranges=ranges, trials=trials, save=save
        )
    elif dry_run:
        click.echo(command.plan_table(expand_grid(variants, parameters)))
        code = 0
    elif slurm:
        click.echo(command.write_slurm(variants, parameters, place, slurm))
        code = 0
    else:
        code = command.sweep_grid(variants, parameters, place)
    sys.exit(code)


@main.command("data", short_help="Download CIFAR-10, or check the files that are here.")
@_data_root_option
def data_command(data_root: Path | None) -> None:
    """Download CIFAR-10 unless it is here, and check every file.

    For machines whose compute nodes have no network: run it on a login node.
    """
    from .download import check_cifar10, find_cifar10, obtain_cifar10

    folder = find_cifar10(data_root) or obtain_cifar10(data_root)
    check_cifar10(folder)
    click.echo(f"CIFAR-10 is complete in {display_path(folder)}")


@main.command("list", short_help="List the variants: size, accuracy.")
@click.option("--class", "of_class", is_flag=True, help="List the networks of student teams.")
def list_command(of_class: bool) -> None:
    """List the variants: size, published and reproduced accuracy.

    With --class, the networks that student teams published for one course project, the highest
    claimed accuracy first. What is claimed differs: the accuracy of the last epoch, of the epoch
    best on the test set, of held-out training images, or of the competition's hidden test set.
    """
    from .reports.leaderboard import class_table, results_table, text_table
    from .runs.find import find_runs

    runs = find_runs(output_folder())
    rows = results_table(runs, list_class_variants() if of_class else None)
    click.echo(class_table(rows) if of_class else text_table(rows))
    if not any(row["runs"] for row in rows):
        click.echo(
            f"\nNo finished CIFAR-10 run of these recipes in {display_path(output_folder())}."
        )


@main.command("report", short_help="Write index.html: all runs on one page.")
@click.argument("folder", required=False, type=FOLDER)
@click.option("--latex", is_flag=True, help="Print the table for a paper (LaTeX); write nothing.")
def report_command(folder: Path | None, latex: bool) -> None:
    """Write index.html: all runs under FOLDER (default: outputs) on one page.

    A report is also written for each run that has an executed notebook, or was imported, but has no
    report.
    """
    from .reports.page import write_index
    from .reports.run_report import write_report
    from .runs.find import find_runs, split_unreadable

    folder = output_folder(folder)
    readable, damaged = split_unreadable(find_runs(folder))
    if latex:
        from .reports.leaderboard import experiments, latex_table
        from .reports.ranking import with_statistics

        for path, why in damaged.items():  # the page lists them
            click.echo(f"left out: {display_path(path)} ({why})", err=True)
        click.echo(latex_table(with_statistics(experiments(readable))))
        return
    for found in readable:
        is_reported = found.is_imported or (found.path / "notebook.ipynb").is_file()
        if is_reported and not (found.path / "report.html").is_file():
            try:
                write_report(found)
            except (UserError, OSError) as error:  # one run must not keep others from the page
                click.echo(error, err=True)
    click.echo(display_path(write_index(folder)))


@main.command("runs", short_help="List all runs: status, epoch, time left, size on disk.")
@click.argument("folder", required=False, type=FOLDER)
def runs_command(folder: Path | None) -> None:
    """List all runs under FOLDER (default: outputs): status, epoch, time left, size on disk."""
    from .reports.leaderboard import aligned
    from .runs.upkeep import describe_runs

    rows = describe_runs(output_folder(folder))
    if not rows:
        click.echo(f"no runs under {display_path(output_folder(folder))}")
        return
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    click.echo("\n".join(aligned(lines, left=2)))


@main.command("clean", short_help="Remove checkpoints, or temporary files of killed runs.")
@click.argument("folder", required=False, type=FOLDER)
@click.option("--leftovers", is_flag=True, help="Remove temporary files of killed processes.")
@click.option(
    "--checkpoints", is_flag=True, help="Remove checkpoints: an unfinished run starts over."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask before removing.")
def clean_command(folder: Path | None, leftovers: bool, checkpoints: bool, yes: bool) -> None:
    """List leftovers and checkpoints of the runs under FOLDER (default: outputs).

    With --leftovers or --checkpoints they are removed. FOLDER may be a single run. Runs that a
    process works on are left alone.
    """
    from . import files
    from .runs.upkeep import format_size, removable

    root, removed = output_folder(folder), []
    for kind, wanted in (("leftovers", leftovers), ("checkpoints", checkpoints)):
        if wanted or not (leftovers or checkpoints):
            for run, found in removable(root, checkpoints=kind == "checkpoints"):
                size = format_size(sum(path.lstat().st_size for path in found))
                click.echo(f"{display_path(run)}: {len(found)} {kind}, {size}")
                removed.append((run, found))
    if not removed:
        click.echo(f"nothing to remove under {display_path(root)}")
    elif not (leftovers or checkpoints):
        click.echo("Nothing was removed; add --leftovers or --checkpoints.")
    elif yes or click.confirm("Remove these files?"):
        for run, found in removed:
            with files.lock(run / ".lock"):  # the run may have been resumed meanwhile
                for path in found:
                    path.unlink(missing_ok=True)


@main.command("import", short_help="Evaluate weights that were trained elsewhere.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--variant", required=True, help="The variant whose network the weights are of.")
@click.option(
    "--normalize",
    help="How images are normalised: a value of `recipe.normalize`; found by itself unless given.",
)
@_parameters_option("A setting, as for `resnetlib run`; may be repeated.")
def import_command(
    file: Path, variant: str, normalize: str | None, parameters: Sequence[tuple[str, str]]
) -> None:
    """Evaluate the weights in FILE on the test set, and keep them as a run with a report.

    FILE is safetensors or what `torch.save` wrote: a state dict, or one under `state_dict`, `net`,
    `model` or `model_state_dict`. Code in it never runs. All tensors must fit the network of the
    variant. The run has the status `imported`; name it by its folder.

    \b
    resnetlib import ckpt.pth --variant resnet18
    resnetlib import ckpt.pth --variant resnet18 --normalize per_image_std
    """
    values = dict(_values(parameters))
    if values.keys() & {"normalize", "recipe.normalize"}:
        raise ConfigError("give the normalisation as --normalize")
    experiment = load_experiment(variant, **values)
    check_size(experiment)  # like every refusal so far without torch

    from .reports.run_report import write_report
    from .runs.imports import describe_source, import_weights

    run = import_weights(
        file, experiment, normalize=None if normalize is None else parse_value(normalize)
    )
    for name, value in describe_source(run).items():
        click.echo(f"{name + ':':19}{value}")
    click.echo(run.headline)
    click.echo(f"report: {display_path(write_report(run))}")


@main.command("predict", short_help="Classify pictures of your own with a run's network.")
@click.argument("run")
@click.argument(
    "images",
    metavar="IMAGE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)
@_data_root_option
def predict_command(run: str, images: tuple[Path, ...], data_root: Path | None) -> None:
    """Print the three most likely classes of each IMAGE, which is resized to 32×32.

    RUN is a run folder, variant/folder-name, or a variant with kept weights.
    """
    from .runs.find import find_run
    from .runs.prediction import predict_pictures

    found = find_run(run, dataset="cifar10")
    for path, classes in zip(images, predict_pictures(found, images, data_root), strict=True):
        listed = ", ".join(f"{name} {share:.1%}" for name, share in classes)
        click.echo(f"{display_path(path)}: {listed}")


@main.command("submit", short_help="Write a competition's CSV from a run's weights.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The CSV file to write; by default one in outputs/submissions/, whose path is printed.",
)
@click.option(
    "--tta",
    type=click.Choice(["none", "flip", "flip_and_shift"]),
    default="none",
    show_default=True,
    help="Test-time augmentation: average over mirrored (and shifted) views.",
)
@_data_root_option
def submit_command(
    run: Path, file: Path, output: Path | None, tta: str, data_root: Path | None
) -> None:
    """Predict the competition's FILE with the weights of RUN; write and check the CSV.

    RUN is a run folder, variant/folder-name, or a variant with kept weights. FILE is a pickle of a
    mapping: `data`, uint8 (N, 32, 32, 3), and `ids`, N integers or strings.
    """
    from .kaggle import submit

    if not expand_home(file).is_file():
        raise ConfigError(f"{display_path(file)} is not a file")
    click.echo(display_path(submit(run, file, output, tta=tta, data_root=data_root)))


@main.command(
    "lab",
    short_help="Open JupyterLab on the notebooks.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("options", metavar="[JUPYTER OPTIONS]", nargs=-1, type=click.UNPROCESSED)
def lab_command(options: tuple[str, ...]) -> None:
    """Open JupyterLab on the notebooks.

    Of an installed package, on copies of them in the working directory; those that are there stay
    as they are. JupyterLab's own options are passed on, such as `--no-browser`; `--help-all` lists
    them.
    """
    try:
        from jupyterlab.labapp import LabApp
    except ImportError:
        raise ConfigError(
            "JupyterLab is not installed: `pip install jupyterlab`, or open the files of "
            f"{display_path(notebooks_folder())} in another notebook program"
        ) from None
    folder = notebooks_folder()
    if folder != project_folder() / "notebooks":  # what they save and write is the user's
        for notebook in folder.glob("*.ipynb"):
            if not (copy := Path(notebook.name)).exists():
                shutil.copyfile(notebook, copy)
        folder = Path.cwd()
    LabApp.launch_instance([*options, str(folder)])


@main.command("verify", short_help="Recompute what runs claim: PASS, FAIL or NOT CHECKED.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@_data_root_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_command(runs: tuple[str, ...], data_root: Path | None, as_json: bool) -> None:
    """Recompute what each RUN claims, and print PASS, FAIL or NOT CHECKED with its reason.

    RUN is a run folder, variant/folder-name, or a variant. Checked are checksums, record,
    experiment, parameters, summary, learning rates, history, metrics, confusion matrix, per-class
    table, report and, from the weights and the genuine test set, accuracy and predictions. Exit
    status 3 if anything fails, 2 for a mistake in the command, else 0.
    """
    from tqdm import tqdm

    from .runs.find import find_run, run_folder
    from .runs.verify import FAIL, format_results, overall, results_json, verify_runs

    def is_folder(run: str) -> bool:
        """A folder may be damaged and is taken as it is; one of the runs of a variant is none."""
        is_of_variant = run in known_variants() and not (Path(run) / "run.json").exists()
        return Path(run).is_dir() and not is_of_variant

    try:
        folders = [
            Path(run) if is_folder(run) else run_folder(run) or find_run(run).path for run in runs
        ]
    except UserError as error:
        raise Failure(str(error), 2) from None
    verified = dict(tqdm(verify_runs(folders, data_root), total=len(folders), disable=None))
    click.echo(results_json(verified) if as_json else format_results(verified))
    sys.exit(3 if any(overall(results) == FAIL for results in verified.values()) else 0)


@main.command("grade", short_help="Grade submissions, or write a Gradescope autograder.")
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--zip",
    "archive",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Write a Gradescope autograder to OUT; grade nothing.",
)
@click.option(
    "--dataset",
    type=click.Choice(["cifar10", "digits"]),
    default="cifar10",
    show_default=True,
    help="The data set of the assignment.",
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=DEFAULT_BUDGET,
    show_default=True,
    help="Most trainable parameters, whatever a submission says.",
)
@_data_root_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def grade_command(
    folders: Sequence[Path],
    archive: Path | None,
    dataset: str,
    budget: int,
    data_root: Path | None,
    as_json: bool,
) -> None:
    """Evaluate submissions on the test set, or write a Gradescope autograder that does.

    A submission is a folder with model.safetensors and experiment.yaml, such as a run folder.
    Nothing is trained, and no code of a submission is run. A single FOLDER with neither file holds
    submissions, one in each subfolder; of several, each is a submission. Pairs with near-identical
    weights or predictions are listed. Exit status 3 if a submission gets a zero, 2 for a mistake in
    the command, else 0.

    \b
    resnetlib grade --zip autograder.zip
    resnetlib grade downloaded/*
    """
    if bool(folders) == bool(archive):
        raise ConfigError("give either the folders of submissions or --zip OUT")
    if archive and as_json:
        raise ConfigError("--json is for folders of submissions; omit it beside --zip")
    for path in folders:
        if not path.exists():
            raise ConfigError(f"{display_path(path)} is not a folder")
        if not path.is_dir():  # such as a list that lies beside downloaded submissions
            print_line(f"{display_path(path)} is not a folder: skipped", to_stderr=True)
    folders = [path for path in folders if path.is_dir()]
    if not folders and not archive:
        raise ConfigError("none of these is a folder")
    if archive and (archive.exists() or archive.is_symlink()):
        raise ConfigError(f"{display_path(archive)} exists; give a new name, or remove it")

    from .data import load_dataset
    from .reports import grade

    assignment, data = grade.Assignment(dataset, budget), load_dataset(dataset, data_root)
    if archive:
        grade.write_autograder(archive, grade.GradingData.of(data), assignment)
        click.echo(display_path(archive))
        return
    from tqdm import tqdm

    found = grade.find_submissions(folders)
    grades = [grade.grade_submission(path, data, assignment) for path in tqdm(found, disable=None)]
    similar = grade.near_identical(grades)
    format_all = grade.grades_json if as_json else grade.format_grades
    click.echo(format_all(grades, similar))
    sys.exit(3 if any(one.reason for one in grades) else 0)


@main.command("doctor", short_help="Check this installation: versions, devices, data.")
def doctor_command() -> None:
    """Print versions, devices, precision and data of this machine, and what is wrong with them.

    Paste the output into a report of a problem. The exit status is 3 if there is a problem.
    """
    from .doctor import examine, format_examination

    facts, problems = examine()
    click.echo(format_examination(facts, problems))
    sys.exit(3 if problems else 0)
