"""The report of a run: one self-contained HTML file.

The page fetches nothing and runs no script; those of a notebook's output are left out.
"""

import base64
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import nh3
from matplotlib.colors import to_hex
from nbconvert import HTMLExporter, preprocessors
from nbformat import NotebookNode, v4

from .. import files, plots
from ..analysis.significance import format_points
from ..errors import RunError, counted, shorten_line
from ..paths import display_path
from ..plots.style import figure_png, variant_color
from ..progress import duration
from ..runs.find import is_recorded, split_unreadable
from ..runs.imports import describe_source
from ..runs.record import record_checksums
from ..runs.run import RECIPE_CAVEAT, Run
from ..size import measure_size

TEMPLATES = Path(__file__).parent / "templates"
# Of the forms of one output the first of these is used; a widget or a script has its text, if any.
DISPLAY_PRIORITY = (
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/plain",
    "text/latex",
    "application/javascript",
    "application/vnd.jupyter.widget-view+json",
)
# By its name in nbconvert 7, or in nbconvert 6.4.
COALESCE_STREAMS = getattr(preprocessors, "CoalesceStreamsPreprocessor", None) or (
    preprocessors.coalesce_streams
)
# Sections that come first in a report, by their headings today and in recorded notebooks.
RESULTS = {"Training", "Test set", "Published and reproduced"}
RESULTS |= {"Curves", "Published beside reproduced"}
# Cells with one of these help to use the notebook, not to read its results.
NOTEBOOK_ONLY = ("This notebook trains one network", "**On Colab or Kaggle**", '"google.colab"')
FACT_CHARACTERS = 2000
SOFTWARE = ("python", "torch", "resnetlib")
UNFINISHED = {
    "running": "The run has not finished: it is still running, or it was killed.",
    "interrupted": "The run was interrupted; the same command resumes it.",
    "diverged": "The run diverged.",
    "failed": "The run failed.",
}

IMPORTED_FIGURES = {
    "confusion_matrix": "## Confusion matrix\n\nRows are true classes, columns predicted ones.",
    "reliability": "## Calibration\n\nAccuracy by confidence, on the test set.",
    "mistakes": "## Errors\n\nThe most confident errors on the test set.",
}


def write_report(run: Run) -> Path:
    """Write `report.html` into the run folder, atomically, and return its path.

    It has the run's executed notebook, results first. A run without one, such as a failed one, gets
    its summary and the curves of its history; imported weights get their figures. Raises
    `RunError` where the notebook is none, or is not the one that was recorded.
    """
    path = run.path / "report.html"
    page = report_html(run)
    files.write_bytes(path, page.encode(errors="replace"))  # text may hold half a surrogate pair
    # A record of an older version has no checksum of pages; one under git must not change.
    has_checksums = run.is_imported or "notebook.ipynb" in run.record.get("artifacts", {})
    if has_checksums and not is_recorded(run):
        record_checksums(run.path, [path.name])
    return path


def report_html(run: Run) -> str:
    """The page that `write_report` writes."""
    path = run.path / "notebook.ipynb"
    if path.exists():
        content = _parse_notebook(path, run.read(path.name))
    else:
        content = _figures_notebook(run) if run.is_imported else _history_notebook(run)
    _describe_images(content, run.record["variant"])
    _put_results_first(content)
    unlink_notebooks(content)
    exporter = HTMLExporter(
        template_name="basic",
        template_file="report.html.j2",
        extra_template_paths=[str(TEMPLATES)],
        extra_template_basedirs=[],  # no templates of the working directory
        filters={"clean_html": clean_html, "sections": sections},
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    exporter.config.NbConvertBase.display_data_priority = list(DISPLAY_PRIORITY)
    exporter.register_preprocessor(COALESCE_STREAMS, True)
    facts = summary(run)
    try:
        html, _ = exporter.from_notebook_node(content, {"run": facts})
    except Exception as error:  # of a notebook that a stranger may have written
        reason = shorten_line(str(error) or type(error).__name__)
        raise RunError(f"{display_path(path)} cannot be made into a page: {reason}") from error
    return html


def _parse_notebook(path: Path, content: bytes) -> NotebookNode:
    try:
        notebook = nbformat.reads(content.decode(), as_version=4)
        _bound_size(notebook)
        return notebook
    except Exception:  # a stranger may have written the file
        raise RunError(f"{display_path(path)} is not a readable notebook") from None


# Characters of one source, output or image in a report, and of all; sources take longest to render.
LIMITS = {"source": 20_000, "output": 100_000, "image": 12_000_000}
TOTALS = {"source": 200_000, "output": 1_000_000, "image": 12_000_000}
CELLS = 1000


def _bound_size(notebook: NotebookNode) -> None:
    """Shorten long texts, and leave out texts, images and cells beyond what a page can hold."""
    left = dict(TOTALS)
    del notebook.cells[CELLS:]
    for cell in notebook.cells:
        cell.source = _bounded(cell.source, left, "source")
        uses = cell.source.count("attachment:")  # the page has a copy for each
        for data in cell.get("attachments", {}).values():
            for kind, content in data.items():
                if uses * len(content) > left["image"]:
                    data[kind] = ""
                else:
                    left["image"] -= uses * len(content)
        for output in cell.get("outputs", []):
            if "text" in output:
                output.text = _bounded(output.text, left, "output")
            if output.output_type == "error":
                if isinstance(output.traceback, str):
                    raise ValueError("its lines are not in a list")
                output.traceback = [_bounded("\n".join(output.traceback), left, "output")]
            data = output.get("data", {})
            for kind, content in data.items():
                image = kind.startswith("image/") and kind != "image/svg+xml"
                data[kind] = _bounded(content, left, "image" if image else "output")


def _bounded(content: Any, left: dict[str, int], kind: str) -> Any:
    """The content, shortened to what is left of its kind; an image is whole or empty."""
    if not isinstance(content, str):
        return content
    most = min(left[kind], LIMITS[kind])
    if len(content) > most:
        omitted = f"\n… {len(content) - most:,} more characters are left out"
        content = "" if kind == "image" else content[:most] + omitted
    left[kind] -= min(len(content), left[kind])
    return content


def _history_notebook(run: Run) -> NotebookNode:
    """In place of an executed notebook: the curves, where an epoch has been trained."""
    notebook = v4.new_notebook()
    if not (run.path / "history.csv").is_file() or len(run.history) < 2:
        return notebook
    curves = figure_png(plots.curves(run.history, run.experiment)[0])
    image = v4.new_output("display_data", {"image/png": base64.b64encode(curves).decode()})
    text = f"## Curves\n\n{counted(len(run.history) - 1, 'epoch')} on record."
    notebook.cells = [v4.new_markdown_cell(text), v4.new_code_cell(outputs=[image])]
    return notebook


def _figures_notebook(run: Run) -> NotebookNode:
    """In place of an executed notebook: the figures of imported weights, as they were recorded."""
    notebook = v4.new_notebook()
    for name, text in IMPORTED_FIGURES.items():
        figure = f"figures/{name}.png"
        if (run.path / figure).is_file():
            data = {"image/png": base64.b64encode(run.read(figure)).decode()}
            image = v4.new_output("display_data", data)
            notebook.cells += [v4.new_markdown_cell(text), v4.new_code_cell(outputs=[image])]
    return notebook


def summary(run: Run) -> dict[str, Any]:
    """The content of the summary box: title, status, measurements, size, facts.

    A run that is not done has no measurements: `measured` is None, and `problem` says why.
    """
    experiment, record = run.experiment, run.record
    name = f"{experiment.variant} on {experiment.dataset}, {run.origin}"
    problem = UNFINISHED.get(run.status)
    if not problem:
        _, faults = split_unreadable([run])
        problem = next((f"The run cannot be read: {fault}." for fault in faults.values()), None)
    measured = None if problem else _measured(run)
    outcome = f"{100 * measured['accuracy']:.2f} %" if measured else run.status
    return {
        "page_title": f"{name}: {outcome}",
        "name": name,
        "title": experiment.title,
        "status": run.status,
        "problem": problem,
        "error": shorten_line(str(record["error"]), FACT_CHARACTERS) if "error" in record else None,
        "color": to_hex(variant_color(experiment.variant)),
        "measured": measured,
        "size": _size(run),
        "facts": {
            name: shorten_line(str(fact), FACT_CHARACTERS) for name, fact in _facts(run) if fact
        },
    }


def _measured(run: Run) -> dict[str, Any]:
    metrics, published = run.metrics, run.published
    accuracy, before = metrics["test_accuracy"], published.test_accuracy
    low, high = metrics["test_accuracy_interval_95"]
    points = [value for value in (low, high, before) if value is not None]
    margin = 0.12 * (max(points) - min(points)) or 0.01
    first, last = min(points) - margin, max(points) + margin
    places = {"low": low, "accuracy": accuracy, "high": high, "published": before}
    return {
        "accuracy": accuracy,
        "interval": (low, high),
        "images": metrics["test_images"],
        "epochs": metrics.get("epochs"),  # None: trained elsewhere
        "published": before,
        "published_best": published.best_test_accuracy,
        "claim": published.claim,
        "difference": None if before is None else format_points(accuracy - before),
        "scale": {  # places on a line, in per cent of its length
            name: 100 * (value - first) / (last - first)
            for name, value in places.items()
            if value is not None
        },
        **({} if run.is_imported else _training(run)),
    }


def _training(run: Run) -> dict[str, Any]:
    """What only a run that was trained here has."""
    metrics = run.metrics
    selected = metrics["selected_epoch"] != metrics["epochs"]
    return {
        "time": duration(metrics["train_seconds"]),
        "images_per_second": metrics["images_per_second"],
        "caveat": RECIPE_CAVEAT if run.recipe_selected_on_test else None,
        "kept": run.selection if selected else None,
    }


def _size(run: Run) -> dict[str, Any]:
    budget = run.experiment.budget
    parameters = measure_size(run.experiment.architecture).parameters
    return {
        "parameters": parameters,
        "budget": None if budget == "none" else budget,
        "share": None if budget == "none" else parameters / budget,
    }


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    experiment, record = run.experiment, run.record
    yield "Data set", experiment.dataset
    if run.is_imported:
        for name, value in describe_source(run).items():
            yield name.capitalize(), value
    else:
        planned = "" if run.status == "done" else " planned"
        yield "Epochs", f"{experiment.recipe.epochs}{planned}"
        yield "Seed", f"{experiment.seed}"
    for name in ("started", "finished"):
        if name in record:
            try:
                moment = datetime.fromisoformat(record[name])
            except ValueError:
                raise RunError(f"run.json is damaged: its {name!r} is no date") from None
            yield name.capitalize(), f"{moment.day} {moment:%B %Y, %H:%M %Z}"
    if "processor" in record.get("fingerprint", {}):
        yield "Machine", run.machine
    versions = record.get("versions", {})
    software = [f"{name} {versions[name]}" for name in SOFTWARE if name in versions]
    yield "Software", ", ".join(software)
    if record.get("git"):
        changed = " with changes" if record["git"]["modified"] else ""
        yield "Commit", f"{record['git']['commit'][:12]}{changed}"
    changes = [
        f"{key} = {value}"
        for key, value in experiment.overrides.items()
        if not run.is_imported or key.startswith(("architecture.", "dataset"))  # not how to train
    ]
    if changes:
        yield "Changed", ", ".join(changes)
    for number, resumed in enumerate(record.get("inexact_resumes", []), 1):
        differences = "; ".join(resumed["differences"])
        yield f"Inexact resume {number}", f"after {resumed['after']}: {differences}"
    yield "Source", experiment.source


def unlink_notebooks(notebook: NotebookNode) -> None:
    """Leave the text of links to other notebooks, which do not lie beside this one."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\[([^]]+)\]\((?!\w+:)[^)]*\.ipynb\)", r"\1", cell.source)


def _put_results_first(notebook: NotebookNode) -> None:
    """Put what was measured above how it was set up; leave out what only a notebook needs."""
    sections: list[list[NotebookNode]] = [[]]
    for cell in notebook.cells:
        if _heading(cell):
            sections.append([])
        if not any(mark in cell.source for mark in NOTEBOOK_ONLY):
            sections[-1].append(cell)
    sections.sort(key=lambda cells: not (cells and _heading(cells[0]) in RESULTS))  # stable
    notebook.cells = [cell for cells in sections for cell in cells]


def _heading(cell: NotebookNode) -> str | None:
    """The heading of the second level that the cell begins with."""
    line = cell.source.lstrip().partition("\n")[0]
    is_heading = cell.cell_type == "markdown" and line.startswith("## ")
    return line.removeprefix("## ").strip() if is_heading else None


def _describe_images(notebook: NotebookNode, variant: str) -> None:
    """Set the alt text of each cell's images: the heading and the last paragraph above the cell.

    An output's own `alt` comes first.
    """
    heading = text = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for paragraph in cell.source.strip().split("\n\n"):
                text = re.sub(r"[#*`_]+|<[^>]*>", "", paragraph).strip()
                heading = text if paragraph.startswith("#") else heading
        elif cell.cell_type == "code":
            described = heading if text == heading else f"{heading}: {text}"
            cell.metadata.setdefault("alt", " ".join(f"{variant}, {described}".split()))


# nbconvert's own filter would remove headings, paragraphs and table headers.
_INLINE = ["a", "abbr", "b", "br", "code", "del", "em", "i", "img", "span", "strong", "sub", "sup"]
_BLOCKS = ["blockquote", "dd", "details", "div", "dl", "dt", "figcaption", "figure", "hr", "li"]
_BLOCKS += ["ol", "p", "pre", "section", "summary", "ul"]
_TABLES = ["caption", "table", "tbody", "td", "tfoot", "th", "thead", "tr"]
_HEADINGS = [f"h{level}" for level in range(1, 7)]
_EMBEDDED = "embedded-image/"  # stands for data:image/, an address that the sanitizer refuses
_ATTRIBUTES = {
    "*": {"class"},
    "a": {"href"},
    "img": {"alt", "src"},
    "span": {"id"},  # the target of papermill's link to the cell that failed
    **{heading: {"id"} for heading in _HEADINGS},
    **{cell: {"colspan", "rowspan"} for cell in ("td", "th")},
}


def _keep(tag: str, attribute: str, value: str) -> str | None:
    """The attribute's value; None for the address of an image that is not in the page."""
    is_remote = (tag, attribute) == ("img", "src") and not value.startswith(_EMBEDDED)
    return None if is_remote else value


# Elements that HTML opens again in every block until they are closed.
_REOPENED = "a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u"
_ATTRIBUTE = r"""\s+[\w:-]+(?:=(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=`]+))?"""
_WHOLE = re.compile(  # one with text alone, and what is never open
    rf"<({_REOPENED}|span)(?:{_ATTRIBUTE})*\s*>[^<]*</\1\s*>|<(?:br|img)(?:{_ATTRIBUTE})*\s*/?>",
    re.IGNORECASE,
)
MOST_REOPENED = 20  # a page may have each of them in every block
DEEPEST = 100  # inside each other


def _count_reopened(html: str) -> int:
    """How many elements that are opened again may be open, at most."""
    for _ in range(DEEPEST):
        html, found = _WHOLE.subn("x", html)
        if not found:
            break
    return len(re.findall(rf"<(?:{_REOPENED})\b", html, re.IGNORECASE))


def clean_html(html: str) -> str:
    """HTML without scripts, styles, drawings and remote addresses; tables and text stay."""
    html = str(html).encode(errors="replace").decode()  # without halves of surrogate pairs
    if _count_reopened(html) > MOST_REOPENED:
        return f"<p>HTML with more than {MOST_REOPENED} unclosed elements is left out.</p>"
    html = nh3.clean(
        html.replace('src="data:image/', f'src="{_EMBEDDED}'),
        tags={*_INLINE, *_BLOCKS, *_TABLES, *_HEADINGS},
        clean_content_tags={"script", "style"},
        attributes=_ATTRIBUTES,
        attribute_filter=_keep,
        url_schemes={"http", "https", "mailto"},
        link_rel=None,
    )
    return html.replace(f'src="{_EMBEDDED}', 'src="data:image/')


def sections(html: str) -> list[tuple[str, str]]:
    """Anchor and text (HTML) of every heading of the second level that a text cell has."""
    heading = r'<h2 id="([^"]*)">((?:(?!</?h2\b).)*?)<a class="anchor-link"'
    marks = {"code", "em", "strong", "sub", "sup"}
    return [
        (anchor, nh3.clean(text, tags=marks, attributes={}))
        for anchor, text in re.findall(heading, html, re.DOTALL)
    ]
