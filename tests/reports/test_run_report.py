"""The report of a run in a browser, offline, with and without scripts."""

import json
import shutil

import nbformat
import papermill
import pytest
from conftest import NOTEBOOKS, TINY, copy_recorded, recorded_lite, rewrite
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from resnetlib import files, load_run, train
from resnetlib.errors import RunError
from resnetlib.progress import duration
from resnetlib.reports.run_report import report_html, write_report

PIXEL = (  # a PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """The report of a small run, from the notebook as papermill executed it."""
    root = tmp_path_factory.mktemp("report")
    notebook = root / "executed.ipynb"
    own = {"depths": TINY["depths"], "widths": TINY["widths"]}
    papermill.execute_notebook(
        str(NOTEBOOKS / "run_experiment.ipynb"),
        str(notebook),
        {"dataset": "digits", "epochs": 1, "output_root": str(root / "out"), "overrides": own},
        progress_bar=False,
    )
    (record,) = root.glob("out/lite/*/run.json")
    run = load_run(record.parent)
    shutil.move(notebook, run.path / "notebook.ipynb")
    return write_report(run)


@pytest.fixture
def recorded(tmp_path):
    """A recorded run of `lite` on CIFAR-10, copied so that it may be changed."""
    run = recorded_lite()
    return load_run(copy_recorded(run.path, tmp_path / run.path.name))


def with_notebook(run, *cells):
    """The run with a notebook of these cells, as if it had been recorded with it."""
    rewrite(run.path, "notebook.ipynb", json.dumps(new_notebook(cells=list(cells))))
    return load_run(run.path)


def cell_with_output(kind, content):
    return new_code_cell("display", outputs=[new_output("display_data", {kind: content})])


def change(run, name, **values):
    """The run with these values put into one of its JSON files."""
    content = json.dumps(json.loads((run.path / name).read_text()) | values)
    if name == "run.json":
        (run.path / name).write_text(content)
    else:
        rewrite(run.path, name, content)
    return load_run(run.path)


# The page ----------------------------------------------------------------------------------------


def test_report_needs_no_scripts_or_network(executed, open_page):
    page = open_page(executed, java_script_enabled=False)
    assert executed.name == "report.html"
    assert executed.stat().st_size < 3_000_000
    assert page.title().startswith("lite on digits, seed 0: ")
    box = page.locator("header.run").inner_text()
    for text in ("Lite (small) ResNet", "done", "95 % interval", "of the budget of 5,000,000"):
        assert text in box
    assert page.get_by_role("cell", name="3 × 32 × 32").is_visible()  # the table of the data
    assert page.get_by_text("epoch 1/1").is_visible()
    assert page.locator("article").get_by_text("text-align").count() == 0  # no stray style sheet
    aligned = page.get_by_role("columnheader", name="precision").evaluate(
        "cell => getComputedStyle(cell).textAlign"
    )
    assert aligned == "right"


def test_figures_are_drawn_and_described(executed, open_page):
    images = open_page(executed).locator("img")
    alts = [image.get_attribute("alt") for image in images.all()]
    sections = ["Training", "Test set", "Test set", "Test set", "Data", "Network"]
    for alt, section in zip(alts, sections, strict=True):
        assert alt.startswith(f"lite, {section}: ") and len(alt) > 30
    assert len(set(alts)) == len(alts)
    assert images.evaluate_all("all => all.every(image => image.naturalWidth > 500)")


def test_code_is_folded_until_clicked(executed, open_page):
    page = open_page(executed, java_script_enabled=False)
    one, other = page.get_by_text("format_facts(describe_size("), page.get_by_text("run = train(")
    code = page.locator("details.code .highlight")
    assert not one.is_visible()
    page.locator("details", has=one).locator("summary").click()
    assert one.is_visible()
    assert not other.is_visible()
    page.get_by_label("Show all code").check()
    assert all(cell.is_visible() for cell in code.all())
    page.get_by_label("Show all code").uncheck()
    assert not other.is_visible()


def test_contents_lead_to_the_sections(executed, open_page):
    page = open_page(executed)
    page.get_by_role("navigation").get_by_role("link", name="Test set").click()
    assert 0 <= page.get_by_role("heading", name="Test set").bounding_box()["y"] < 200


def test_results_come_before_how_they_were_made(executed, open_page):
    notebook = nbformat.read(executed.parent / "notebook.ipynb", as_version=4)
    written = [line for cell in notebook.cells for line in cell.source.split("\n")]
    headings = [line.removeprefix("## ") for line in written if line.startswith("## ")]
    results = ["Training", "Test set", "Published and reproduced"]
    page = open_page(executed)
    links = page.get_by_role("navigation").get_by_role("link").all_inner_texts()
    assert links == results + [heading for heading in headings if heading not in results]
    assert [
        heading.removesuffix("¶") for heading in page.locator("article h2").all_inner_texts()
    ] == links
    for hint in ("Choose a variant in the parameters cell", "On Colab or Kaggle"):
        assert any(hint in line for line in written)
        assert page.get_by_text(hint).count() == 0


def test_page_fits_a_phone(executed, open_page):
    page = open_page(executed, width=390, height=844)
    for code in ("folded", "open"):
        assert page.evaluate("document.documentElement.scrollWidth") == 390, code
        page.get_by_label("Show all code").check()


def test_dark_and_print(executed, open_page):
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = (open_page(executed, color_scheme=scheme) for scheme in ("light", "dark"))
    assert light.evaluate(background) == "rgb(255, 255, 255)"
    assert max(map(int, dark.evaluate(background)[4:-1].split(","))) < 50
    card = dark.locator("figure").first
    assert card.evaluate("card => getComputedStyle(card).backgroundColor") == "rgb(255, 255, 255)"

    light.get_by_label("Show all code").check()
    light.emulate_media(media="print")
    assert not light.get_by_text("run = train(").is_visible()
    assert not light.get_by_role("navigation").is_visible()
    assert light.get_by_text("epoch 1/1").is_visible()


# The summary box ---------------------------------------------------------------------------------


def test_summary_has_measured_and_published_numbers(recorded, open_page):
    metrics = recorded.metrics
    box = open_page(write_report(recorded)).locator("header.run").inner_text()
    low, high = (f"{100 * bound:.2f}" for bound in metrics["test_accuracy_interval_95"])
    difference = 100 * (metrics["test_accuracy"] - 0.7987)
    for text in (
        f"{100 * metrics['test_accuracy']:.2f} % reproduced",
        "79.87 % published",
        f"95 % interval {low} to {high} % over 10,000 images, after epoch 40",
        f"{difference:+.2f} points",
        "78,042",
        "1.6 % of the budget of 5,000,000",
        duration(metrics["train_seconds"]),
        recorded.record["fingerprint"]["processor"],
        recorded.record["git"]["commit"][:12],
    ):
        assert text in box
    assert "Selected checkpoint" not in box


def test_run_of_an_earlier_recipe_is_not_compared_with_what_was_published(open_page, tmp_path):
    earlier = recorded_lite().path.with_name("cifar10-seed0-9fbf37a8")
    run = load_run(copy_recorded(earlier, tmp_path / earlier.name))
    box = open_page(write_report(run)).locator("header.run").inner_text()
    assert "% measured" in box and "published" not in box.replace("No accuracy is published", "")
    assert run.comparison["published"].isna().all()


def test_summary_names_the_selected_epoch(recorded, open_page):
    (recorded.path / "predictions.npz").unlink()  # which would say another accuracy
    run = change(
        recorded,
        "metrics.json",
        select="best_test",
        selected_epoch=39,
        selected_test_accuracy=0.8213,
    )
    box = open_page(write_report(run)).locator("header.run").inner_text()
    assert "epoch 39 (best on the test set, which biases it optimistically)" in box
    assert "82.13%" in box


def test_diverged_run_has_a_report(tiny, open_page):
    experiment = tiny(lr=1e9)
    with pytest.raises(RunError):
        train(experiment)
    run = load_run(experiment.folder)
    stopped = new_output("error", ename="Diverged", traceback=["\x1b[31mDiverged: nan\x1b[0m"])
    cell = new_code_cell("run = train(experiment)", outputs=[stopped])
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("## Training"), cell]), run.path / "notebook.ipynb"
    )
    page = open_page(write_report(run))
    assert page.title() == "lite on digits, seed 0: diverged"
    problem = page.get_by_role("alert").inner_text()
    assert "The run diverged" in problem
    assert "learning rate of 1e+09" in problem
    assert page.get_by_text("Test accuracy").count() == 0
    assert page.get_by_text("Diverged: nan").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_unfinished_run_has_no_measurements(recorded, status):
    run = change(recorded, "run.json", status=status, error="<b>KeyError</b>")
    with files.lock(run.path / ".lock"):  # without it a run is not running
        text = write_report(run).read_text()
    assert f"seed 0: {status}</title>" in text
    assert "&lt;b&gt;KeyError" in text
    assert " %</b>" not in text


def test_report_of_a_recorded_run_leaves_its_record(recorded, monkeypatch):
    """The record is under version control, the report is not."""
    monkeypatch.setattr("resnetlib.runs.find._reference", lambda: recorded.path.parent)
    before = (recorded.path / "run.json").read_bytes()
    write_report(recorded)
    assert (recorded.path / "run.json").read_bytes() == before


@pytest.mark.parametrize("missing", ["metrics.json", "fingerprint"])
def test_summary_leaves_out_what_the_run_lacks(recorded, missing):
    if missing == "metrics.json":
        (recorded.path / missing).unlink()
    else:
        names = ("status", "variant", "dataset", "seed", "artifacts")
        bare = {name: recorded.record[name] for name in names}
        (recorded.path / "run.json").write_text(json.dumps(bare))
    text = write_report(load_run(recorded.path)).read_text()
    assert "The run cannot be read: " in text and missing in text
    assert "78,042" in text
    assert " %</b>" not in text


def test_report_links_no_notebook_that_is_not_there(recorded):
    page = report_html(recorded)
    assert "compare_variants" in page and 'compare_variants.ipynb"' not in page


@pytest.mark.parametrize("content", ["no JSON", "{}"])
def test_file_that_is_no_notebook_makes_no_report(recorded, content):
    rewrite(recorded.path, "notebook.ipynb", content)
    with pytest.raises(RunError, match=r"notebook\.ipynb"):
        write_report(load_run(recorded.path))
    assert not (recorded.path / "report.html").exists()


def test_bare_notebook_makes_a_report(recorded, open_page):
    """Without metadata, ids or kernel; with an attached image, as JupyterLab pastes it."""
    pasted = {"one.png": {"image/png": PIXEL}}
    markdown = {"cell_type": "markdown", "source": "![A dot](attachment:one.png)", "metadata": {}}
    code = {"cell_type": "code", "source": "", "metadata": {}, "outputs": []}
    cells = [markdown | {"attachments": pasted}, code | {"execution_count": None}]
    bare = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    rewrite(recorded.path, "notebook.ipynb", json.dumps(bare))
    page = open_page(write_report(load_run(recorded.path)))
    assert page.get_by_alt_text("A dot").evaluate("image => image.naturalWidth") == 1
    assert page.get_by_label("Show all code").count() == 0  # there is none


def test_contents_have_the_headings_of_text_cells(recorded, open_page):
    cells = [
        cell_with_output("text/html", '<h2 id="in-output">Output</h2><p>printed</p>'),
        new_markdown_cell("## First part"),
    ]
    page = open_page(write_report(with_notebook(recorded, *cells)))
    assert page.locator("nav a[href^='#']").all_inner_texts() == ["First part"]
    assert "printed" not in page.locator("nav").first.inner_text()


def test_report_keeps_tables_and_many_elements(recorded, open_page):
    """Elements that are never closed, or close themselves, do not count as nested."""
    table = "<table>" + "<col>" * 150 + "<tr><th colspan=2>head<td>cell</table>"
    styled = "<p><a href='#x'><code>kept</code></a> <b>a > b<br></b></p>" * 30
    drawing = "<svg>" + '<path d="M0"/>' * 150 + "</svg><p>below</p>"
    cells = [cell_with_output("text/html", table), cell_with_output("text/html", drawing)]
    cells.append(cell_with_output("text/html", f"<details><summary>{styled}</summary></details>"))
    page = open_page(write_report(with_notebook(recorded, *cells)))
    assert page.get_by_role("cell", name="cell").is_visible()
    assert page.locator("th[colspan='2']").count() == 1
    assert page.get_by_text("below").is_visible()
    assert page.get_by_text("kept").count() == 30


# Hostile content ---------------------------------------------------------------------------------

HOSTILE = """
<script>window.hit = 1</script><ScRiPt src="https://example.com/x.js">/* */</sCrIpT >
<img src="https://example.com/x.png" onerror="window.hit = 2" alt="remote">
<img src="x" onerror="window.hit = 3"><svg onload="window.hit = 4"><a href="#x">in svg</a></svg>
<a href="javascript:window.hit = 5" onclick="window.hit = 6">click</a>
<a href="data:text/html,<script>window.hit = 7</script>">data</a>
<iframe srcdoc="<script>parent.hit = 8</script>" src="https://example.com"></iframe>
<style>@import url(https://example.com/x.css); .run { display: none }</style>
<div style="position: fixed; inset: 0; background: url(https://example.com/y.png)">over</div>
<meta http-equiv="refresh" content="0; url=https://example.com"><base href="https://example.com/">
<form action="https://example.com"><input autofocus onfocus="window.hit = 9"></form>
<table><tr><td onmouseover="window.hit = 10">kept cell</td></tr></table>
"""


def test_hostile_notebook_is_inert(recorded, open_page):
    svg = '<svg xmlns="http://www.w3.org/2000/svg" onload="window.hit = 11" width="9" height="9"/>'
    cells = [
        new_markdown_cell(HOSTILE),
        new_markdown_cell("# <img src=x onerror=window.hit=12>\n[go](javascript:window.hit=13)"),
        cell_with_output("text/html", HOSTILE),
        cell_with_output("text/markdown", HOSTILE),
        cell_with_output("image/svg+xml", svg),
        cell_with_output("image/png", PIXEL),
        cell_with_output("application/javascript", "window.hit = 15"),
        cell_with_output("text/latex", HOSTILE),
        cell_with_output("text/plain", HOSTILE),
        new_code_cell(HOSTILE, outputs=[new_output("stream", text=HOSTILE)]),
    ]
    size = {"width": "9 onload=window.hit=14", "alt": '" onload="window.hit = 14'}
    cells[5].outputs[0].metadata["image/png"] = size
    cells[-2].metadata["tags"] = ['"><script>window.hit = 16</script>']
    run = with_notebook(recorded, *cells)
    hostile = change(run, "run.json", error="<script>window.hit = 17</script>", status="failed")
    page = open_page(write_report(hostile))
    for link in page.locator("article a", has_text="click").all():
        link.click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit") is None
    assert page.url.startswith("file:")
    assert page.locator("header.run").is_visible()
    assert (
        page.locator("script, iframe, svg, form, base, article style, [style*=fixed]").count() == 0
    )
    assert page.get_by_role("cell", name="kept cell").count() == 3
    # The policy of the page would stop what slips through, even that.
    policy = page.locator("meta[http-equiv='Content-Security-Policy']").get_attribute("content")
    assert policy.startswith("default-src 'none'")


LARGE = {
    "printed text": lambda: new_code_cell(
        "x", outputs=[new_output("stream", text="y" * 15_000_000)]
    ),
    "html": lambda: cell_with_output("text/html", "<b>" * 5_000_000),
    "nested html": lambda: cell_with_output("text/html", "<div>" * 100_000),
    "reopened elements": lambda: cell_with_output(
        "text/html", "".join(f"<b class={n}><p>" for n in range(6000))
    ),
    "quoted closing tags": lambda: cell_with_output(
        "text/html", "".join(f'<b class={n} x"y="></b>"><p>' for n in range(3000))
    ),
    "closing tags": lambda: cell_with_output("text/html", "<div></x>" * 10_000),
    "unclosed scripts": lambda: cell_with_output("text/html", "<script " * 12_000),
    "headings": lambda: cell_with_output("text/html", '<h2 id="a">x</h2>' * 5000),
    "traceback": lambda: new_code_cell(
        "x", outputs=[new_output("error", traceback=["\x1b[31mx" * 1_300_000])]
    ),
    "markdown": lambda: new_markdown_cell("*a*" * 2_000_000),
    "quotes": lambda: new_markdown_cell(">" * 100_000 + "a"),
    "code": lambda: new_code_cell("x = 1\n" * 2_000_000),
    "image": lambda: cell_with_output("image/png", "A" * 15_000_000),
    "attachment": lambda: new_markdown_cell(
        "![a](attachment:o.png)" * 100, attachments={"o.png": {"image/png": "A" * 400_000}}
    ),
    "half a surrogate pair": lambda: cell_with_output("text/plain", "a\ud800"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
def test_report_of_a_large_notebook_is_bounded(recorded, kind):
    page = write_report(with_notebook(recorded, LARGE[kind]()))
    assert page.stat().st_size < 20_000_000
    assert "reproduced</span>" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_report_bounds_the_cells(recorded):
    printed = new_output("stream", text="y" * 5000)
    cells = [new_code_cell("x", outputs=[printed]) for _ in range(1500)]
    assert write_report(with_notebook(recorded, *cells)).stat().st_size < 5_000_000


@pytest.mark.slow
@pytest.mark.parametrize("text", ["a\ud800b", "$\\frac{$", "a\0\x1b[31m", "x" * 300_000])
def test_report_of_a_record_with_any_text(recorded, text):
    values = {
        "error": text,
        "git": {"commit": text, "modified": False},
        "versions": {"torch": text},
    }
    run = change(recorded, "run.json", status="failed", **values)
    (run.path / "notebook.ipynb").unlink()
    assert write_report(run).stat().st_size < 2_000_000
