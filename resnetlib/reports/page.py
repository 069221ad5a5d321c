"""The leaderboard page `outputs/index.html`."""

import base64
import io
import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import matplotlib.pyplot as plt
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from .. import files
from ..analysis.significance import format_points, format_seeds
from ..errors import RunError
from ..experiment import DEFAULT_BUDGET
from ..paths import display_path, output_folder
from ..plots import leaderboard
from ..plots.style import variant_color
from ..progress import duration
from ..runs.find import find_runs, split_unreadable
from ..runs.run import Run
from .leaderboard import (
    best_for_size,
    experiments,
    format_significance,
    headline,
    own_recipes,
    significantly_best,
)
from .run_report import TEMPLATES


def write_index(root: Path | None = None) -> Path:
    """Write `index.html` over all runs under `root` (default: `outputs/`); give its path.

    It needs no network; its links are relative, so that the folder can be moved as a whole. Raises
    `RunError` when `root` is no folder.
    """
    root = output_folder(root)
    if not root.is_dir():
        raise RunError(f"{display_path(root)} is no folder: give one that holds run folders")
    runs, damaged = split_unreadable(find_runs(root))
    damaged |= {
        path.parent: "has no run.json"
        for path in root.rglob("experiment.yaml")
        if not (path.parent / "run.json").is_file()
    }
    table = experiments(runs)
    table["best"] = significantly_best(table)
    # CIFAR-10 first; the most accurate on top, then what was only published.
    table = table.sort_values(
        ["dataset", "reproduced", "published"], ascending=[True, False, False], ignore_index=True
    )
    dates = [run.record.get("finished", "")[:10] for run in runs]
    page = _environment().get_template("index.html.j2")
    content = page.render(
        answer=headline(table),
        front=best_for_size(table).to_dict("records"),
        rows=[_cells(row, root) for row in table.to_dict("records")],
        datasets=sorted(table["dataset"].unique()),
        figures=_figures(table),
        finished=sum(run.status == "done" for run in runs),
        newest=max(dates, default=""),
        damaged={path.relative_to(root).as_posix(): why for path, why in damaged.items()},
        budget=DEFAULT_BUDGET,
    )
    path = root / "index.html"
    files.write_text(path, content)
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"names": _names, "verdict": format_significance, "duration": duration}
    environment.filters |= {"points": format_points}
    environment.tests["missing"] = lambda value: value is None or math.isnan(value)
    environment.globals["inline"] = lambda name: Markup(
        (TEMPLATES / name).read_text(encoding="utf-8")
    )
    return environment


def _names(text: str) -> Markup:
    """Text with `names` set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _cells(row: dict[str, Any], root: Path) -> dict[str, Any]:
    """A row with what only the page needs: its colour, the difference, links to its runs."""
    links = [
        {
            "label": label,
            "status": run.status,
            "href": "./" + quote(_page_of(run).relative_to(root).as_posix()),
        }
        for label, run in _labelled(row["folders"]).items()
    ]
    return row | {
        "color": to_hex(variant_color(row["variant"])),
        "difference": (row["reproduced"] - row["published"]) / 100,
        "links": links,
    }


def _labelled(runs: tuple[Run, ...]) -> dict[str, Run]:
    """Runs of one experiment by `seed 0`, and where a seed was run again, `seed 0, run 2`."""
    labelled: dict[str, Run] = {}
    for run in runs:
        label, count = f"seed {run.experiment.seed}", 1
        while label in labelled:
            count += 1
            label = f"seed {run.experiment.seed}, run {count}"
        labelled[label] = run
    return labelled


def _page_of(run: Run) -> Path:
    """What a reader wants to open: the report, else the notebook, else the folder."""
    pages = [run.path / name for name in ("report.html", "notebook.ipynb")]
    return next((page for page in pages if page.is_file()), run.path)


def _figures(table: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Each figure as an image in the page itself, with its text for those who cannot see it."""
    own = own_recipes(table)
    figures = {
        "parameters": leaderboard.accuracy_against(own, "parameters"),
        "macs": leaderboard.accuracy_against(own, "macs"),
        "reproduced": leaderboard.published_against_reproduced(own),
    }
    histories = [
        (row.variant, row.variant, run.history)
        for row in own.itertuples()
        for run in row.folders
        if run.status == "done"
    ]
    if histories:
        figures["curves"] = leaderboard.overlaid_curves(histories)
    return {
        name: {"source": _image(axes), "alt": f"{axes.get_title()}. {_alt_text(own)}"}
        for name, axes in figures.items()
    }


def _alt_text(table: pd.DataFrame) -> str:
    """The figures of each variant in words."""
    sentences = []
    for row in table.dropna(subset=["published", "reproduced"], how="all").to_dict("records"):
        figures = [] if math.isnan(row["published"]) else [f"published {row['published']:.2f} %"]
        figures += (
            []
            if math.isnan(row["reproduced"])
            else [f"reproduced {format_seeds(row['accuracies'])}"]
        )
        size = f"{row['parameters']:,} parameters, {row['macs'] / 1e6:.1f} million MACs"
        sentences.append(f"{row['variant']}: {size}, {', '.join(figures)}.")
    return " ".join(sentences)


def _image(axes: Axes) -> str:
    """The figure as SVG in a data address, the same bytes each time; closes it."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "resnetlib", "svg.fonttype": "path"}):
        axes.figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(axes.figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue().encode()).decode()
