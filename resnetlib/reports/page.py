"""The leaderboard page `outputs/index.html`."""

import base64
import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from matplotlib.colors import to_hex

from .. import files
from ..analysis.significance import ALPHA, format_p_value, format_points
from ..config import list_class_variants, load_experiment
from ..errors import RunError
from ..experiment import DEFAULT_BUDGET
from ..explore.designs import claims
from ..paths import display_path, output_folder
from ..plots.leaderboard import (
    CLAIMS_TITLE,
    accuracy_against,
    claimed_accuracy,
    overlaid_curves,
    published_against_reproduced,
)
from ..plots.style import figure_svg, variant_color
from ..progress import duration
from ..runs.find import find_runs, split_unreadable
from ..runs.run import PAGES, RECIPE_CAVEAT, Run, folders_with
from .leaderboard import experiments, format_accuracy, own_recipes, results_table
from .ranking import best_for_size, significantly_best, with_statistics, within_budget
from .run_report import TEMPLATES

TITLE = "All runs: which network is best for its size?"  # the same in pages of older versions


def write_index(root: Path | None = None) -> Path:
    """Write `index.html` over all runs under `root` (default: `outputs/`) and return its path.

    It needs no network; its links to runs are relative, so that the folder can be moved. Raises
    `RunError` when `root` is not a folder, or has another `index.html`.
    """
    root = output_folder(root)
    if not root.is_dir():
        raise RunError(f"{display_path(root)} is not a folder: give one that holds run folders")
    path = root / "index.html"
    if path.exists() and f"<title>{TITLE}</title>".encode() not in files.read_head(path, 1000):
        raise RunError(
            f"{display_path(path)} is not a leaderboard page; rename it, or give another folder"
        )
    runs, damaged = split_unreadable(find_runs(root))
    damaged |= {
        folder: "has no run.json"
        for folder in folders_with("experiment.yaml", root)
        if not (folder / "run.json").is_file()
    }
    imported = [run for run in runs if run.is_imported]
    rows = with_statistics(experiments(runs))
    rows = [
        _with_page_fields(row, best, root)
        for row, best in zip(rows, significantly_best(rows), strict=True)
    ]
    # CIFAR-10 first; then by reproduced accuracy, then by published accuracy.
    rows.sort(key=lambda row: (row["dataset"], -(row["reproduced"] or 0), -(row["published"] or 0)))
    imported.sort(key=lambda run: (run.experiment.dataset, -run.metrics["test_accuracy"]))
    dates = [run.record.get("finished", "")[:10] for run in runs if run.status == "done"]
    content = (
        _environment()
        .get_template("index.html.j2")
        .render(
            measured=len(within_budget(rows)),
            front=best_for_size(rows),
            rows=rows,
            imported=[_imported_row(run, root) for run in imported],
            datasets=sorted({row["dataset"] for row in rows}),
            figures=_figures(own_recipes(rows)),
            teams=_teams(runs),
            finished=sum(run.status == "done" for run in runs),
            newest=max(dates, default=""),
            title=TITLE,
            damaged={path.relative_to(root).as_posix(): why for path, why in damaged.items()},
            budget=DEFAULT_BUDGET,
            alpha=ALPHA,
            caveat=RECIPE_CAVEAT,
        )
    )
    files.write_bytes(path, content.encode(errors="replace"))
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "accuracy": format_accuracy,
        "duration": duration,
        "p_value": format_p_value,
        "points": format_points,
    }
    return environment


def _with_page_fields(row: dict[str, Any], best: bool, root: Path) -> dict[str, Any]:
    """A row with what only the page needs: colour, difference, links to its runs."""
    links, count = [], Counter()
    for run in row["folders"]:
        seed = run.experiment.seed
        count[seed] += 1
        label = f"seed {seed}" if count[seed] == 1 else f"seed {seed}, run {count[seed]}"
        links.append({"label": label, "status": run.status, "href": _link(run, root)})
    known = row["reproduced"] is not None and row["published"] is not None
    return row | {
        "best": best,
        "color": to_hex(variant_color(row["variant"])),
        "difference": (row["reproduced"] - row["published"]) / 100 if known else None,
        "links": links,
    }


def _imported_row(run: Run, root: Path) -> dict[str, Any]:
    """What the page says of weights that were trained elsewhere, with a link to their report."""
    experiment, metrics = run.experiment, run.metrics
    return {
        "variant": experiment.variant,
        "dataset": experiment.dataset,
        "origin": run.origin,
        "file": run.record["source"]["file"],
        "parameters": metrics["parameters"],
        "accuracy": 100 * metrics["test_accuracy"],
        "interval": metrics["test_accuracy_interval_95"],
        "ece": 100 * metrics["ece"],
        "normalize": experiment.model_dump(mode="json")["recipe"]["normalize"],
        "href": _link(run, root),
        "color": to_hex(variant_color(experiment.variant)),
    }


def _link(run: Run, root: Path) -> str:
    return "./" + quote(os.fsencode(_page_of(run).relative_to(root).as_posix()))


def _page_of(run: Run) -> Path:
    """The report of a run, else its notebook, else its folder; no page that was changed."""
    return next((run.path / name for name in PAGES if run.keeps(name)), run.path)


def _teams(runs: list[Run]) -> list[dict[str, Any]]:
    """The teams of `params/class/`, the highest claim first, with the address of each source."""
    rows = results_table(runs, list_class_variants())
    for row in rows:
        row["source"] = load_experiment(row["variant"]).source
    return sorted(rows, key=lambda row: -(row["claimed"] or 0))


def _figures(own: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Each figure as an image in the page itself, with its title."""
    table = pd.DataFrame(own)
    figures = {
        "parameters": accuracy_against(table, "parameters"),
        "macs": accuracy_against(table, "macs"),
        "reproduced": published_against_reproduced(table),
        "claims": claimed_accuracy(claims())[0],
    }
    histories = [
        (row["variant"], row["variant"] + " †" * row["recipe_selected_on_test"], run.history)
        for row in own
        for run in row["folders"]
        if run.status == "done"
    ]
    if histories:
        figures["curves"] = overlaid_curves(histories)
    prefix = "data:image/svg+xml;base64,"
    return {
        name: {
            "title": axes.get_title() or CLAIMS_TITLE,
            "source": prefix + base64.b64encode(figure_svg(axes)).decode(),
        }
        for name, axes in figures.items()
    }
