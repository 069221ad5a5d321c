"""The command line.

Exit status: 0 done, 1 the run failed, 2 a mistake in the command, 130 or 143 on Ctrl-C or TERM.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .config import parse_value
from .errors import ConfigError, UserError
from .paths import display_path, notebooks_folder, output_folder

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Program(click.Group):
    """Tells a person's mistakes in one line each, with the exit status that they have."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise Mistake(str(error), 2) from None
        except (UserError, BlockingIOError) as error:
            raise Mistake(str(error), 1) from None
        except OSError as error:
            if error.filename is None:  # no file's fault, such as a reader of the output that left
                raise
            raise Mistake(f"{display_path(Path(error.filename))}: {error.strerror}", 1) from None


class Mistake(click.ClickException):
    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@click.group(cls=Program, context_settings=SETTINGS)
@click.version_option(package_name="resnetlib")
def main() -> None:
    """Reproducible image-classification experiments under a parameter budget.

    \b
    resnetlib list                          what there is
    resnetlib run lite -p dataset digits    train it, in a minute, and write its report
    resnetlib report                        all runs on one page: outputs/index.html
    resnetlib lab                           explore in JupyterLab
    """


@main.command("run", short_help="Train a variant, or go on with it, and write its report.")
@click.argument("variant")
@click.option(
    "-p",
    "--parameter",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Any parameter of the notebook or dotted key of the variant's file; may be repeated.",
)
@click.option("-q", "--quiet", is_flag=True, help="Do not show the epochs.")
def run_command(variant: str, parameters: Sequence[tuple[str, str]], quiet: bool) -> None:
    """Train VARIANT, or go on with it, and write its notebook and its report.

    VARIANT is a name that `resnetlib list` shows, or the path of a variant file or of a run's
    experiment.yaml. The same command goes on where it was interrupted; a finished run is shown,
    not trained again (`-p fresh True` starts over).

    \b
    resnetlib run lite
    resnetlib run lite -p epochs 10 -p lr 0.05 -p seed 1
    resnetlib run lite -p dataset digits -p optimizer.momentum 0.8 -p depths 2,2,2
    """
    from .execute import Stopped, execute_notebook
    from .reports.run_report import write_report

    try:
        finished, signal = execute_notebook(
            variant, dict(_values(parameters)), progress=None if quiet else sys.stdout
        )
    except Stopped as stop:
        raise Mistake(str(stop), 128 + stop.signal) from None
    report = write_report(finished)
    done = finished.status == "done"
    told = f"{finished.status}: {finished.record.get('error', 'no result')}"
    click.echo(finished.headline if done else told, err=not done)
    click.echo(f"report: {display_path(report)}")
    sys.exit(128 + signal if signal and not done else int(not done))


def _values(parameters: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    names = [name for name, _ in parameters]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"-p {name} is given twice; say it once")
    return [(name, parse(text)) for name, text in parameters]


def parse(text: str) -> Any:
    """The value of a parameter as it is written on the command line."""
    return parse_value(text)


@main.command("list", short_help="Show every variant: size, origin, accuracy.")
def list_() -> None:
    """Show every variant: size, origin, published and reproduced accuracy."""
    from .reports.leaderboard import results_table, text_table
    from .runs.find import find_runs

    click.echo(text_table(results_table(find_runs(output_folder()))))


@main.command("report", short_help="Write index.html: all runs on one page.")
@click.argument(
    "folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
def report_command(folder: Path | None) -> None:
    """Write index.html, all runs under FOLDER (default: outputs) on one page.

    Runs that have an executed notebook and no report get their report too.
    """
    from .reports.page import write_index
    from .reports.run_report import write_report
    from .runs.find import find_runs, split_unreadable

    folder = output_folder(folder)
    readable, _ = split_unreadable(find_runs(folder))  # the page names the others
    for found in readable:
        if (found.path / "notebook.ipynb").is_file() and not (found.path / "report.html").is_file():
            write_report(found)
    click.echo(display_path(write_index(folder)))


@main.command(short_help="Write a competition's CSV from a run's weights.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The CSV file to write.")
@click.option(
    "--tta",
    type=click.Choice(["none", "flip", "flip_and_shift"]),
    default="none",
    show_default=True,
    help="Test-time augmentation: average over mirrored (and shifted) views.",
)
def submit(run: Path, file: Path, output: Path | None, tta: str) -> None:
    """Predict the competition's FILE with the weights of RUN, and write and check the CSV.

    RUN is a run folder, or the name of a variant with kept weights.
    """
    from .kaggle import submit

    click.echo(display_path(submit(run, file, output, tta=tta)))


@main.command(
    short_help="Open JupyterLab on the notebooks.",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def lab(options: tuple[str, ...]) -> None:
    """Open JupyterLab on the notebooks; OPTIONS are handed to it."""
    folder = str(notebooks_folder())
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *options, folder])


@main.command("verify", short_help="Recompute what runs claim: PASS, FAIL or NOT CHECKED.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--data-root", type=click.Path(path_type=Path), help="The folder with CIFAR-10.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_command(runs: tuple[str, ...], data_root: Path | None, as_json: bool) -> None:
    """Recompute what each RUN claims, and print PASS, FAIL or NOT CHECKED with its reason.

    RUN is a run folder or the name of a variant. Checked are checksums, record, experiment,
    parameters, summary, learning rates, history, metrics, report and, from the weights and the
    genuine test set, accuracy and predictions. Exit status 3 if anything fails, 2 for a mistake
    in the command, else 0.
    """
    from tqdm import tqdm

    from .runs.find import find_run
    from .runs.verify import FAIL, format_results, overall, results_json, verify_runs

    try:  # a folder may be damaged, so it is taken as it is
        folders = [Path(run) if Path(run).is_dir() else find_run(run).path for run in runs]
    except UserError as error:
        raise Mistake(str(error), 2) from None
    verified = dict(tqdm(verify_runs(folders, data_root), total=len(folders), disable=None))
    click.echo(results_json(verified) if as_json else format_results(verified))
    sys.exit(3 if any(overall(results) == FAIL for results in verified.values()) else 0)
