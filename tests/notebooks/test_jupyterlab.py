"""JupyterLab in a browser: the notebook is opened, changed, run to its end, and interrupted."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from conftest import NOTEBOOKS, wait_until

from resnetlib import load_run

pytestmark = pytest.mark.slow

WAIT = 300_000  # milliseconds; a kernel that imports torch beside a busy machine


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a copy of the project, started by our own command; its address.

    The command opens the notebooks of the package that it is part of: JupyterLab saves them.
    """
    project = tmp_path / "project"
    for name in ("resnetlib", "params", "notebooks"):
        ignored = shutil.ignore_patterns(".*", "__pycache__")
        shutil.copytree(NOTEBOOKS.parent / name, project / name, ignore=ignored)
    command = [sys.executable, "-m", "resnetlib", "lab", "--no-browser"]
    command += [
        "--allow-root",
        "--port=0",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=t",
    ]
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    environment |= {"JUPYTER_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(project)}
    log = tmp_path / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, cwd=project
        )
        try:
            yield _address(log, server)
        finally:
            server.terminate()
            server.wait(30)


def _address(log, server):
    for _ in range(300):
        found = re.search(r"(http://(?:localhost|127\.0\.0\.1):\d+/lab)", log.read_text())
        if found:
            return found[1]
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


def open_notebook(browser, lab, parameters):
    """The page of `run_experiment.ipynb`, with these lines added to its parameters."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{lab}/tree/run_experiment.ipynb?token=t", timeout=WAIT)
    cell = page.locator(".jp-CodeCell .cm-content", has_text="variant: str").first
    cell.click(timeout=WAIT)
    page.keyboard.press("Control+End")
    page.keyboard.insert_text(f"\n{parameters}")
    # Before its kernel is there, JupyterLab ignores "Run All Cells". (The notebook's own sign is
    # "idle" before there is a kernel, too.)
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=WAIT)
    return page


def errors_in(notebook):
    """The errors among the outputs of a notebook."""
    cells = json.loads(notebook.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [output for output in outputs if output["output_type"] == "error"]


def choose(page, menu, item):
    page.get_by_role("menuitem", name=menu, exact=True).click()
    # A name may be followed by its shortcut.
    page.get_by_role("menuitem", name=re.compile(f"^{item}( |$)")).first.click()


def test_notebook_runs_to_its_end_in_jupyterlab(browser, lab, tmp_path):
    page = open_notebook(
        browser,
        lab,
        f'dataset = "digits"\nepochs = 2\noutput_root = "{tmp_path / "outputs"}"'
        '\noverrides = {"depths": [1], "widths": [8]}',
    )
    choose(page, "Run", "Run All Cells")
    last = page.locator(".jp-CodeCell").last
    last.scroll_into_view_if_needed()
    last.locator(".jp-OutputArea-output").get_by_text("run.json").wait_for(timeout=WAIT)
    assert page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    (folder,) = (tmp_path / "outputs" / "lite").iterdir()
    assert load_run(folder).status == "done"
    training = page.locator(".jp-CodeCell").filter(has_text="LiveCurves")
    training.scroll_into_view_if_needed()
    curves = training.locator(".jp-OutputArea-output img")
    curves.wait_for(timeout=WAIT)
    assert curves.count() == 1  # drawn again in the same place
    page.close()


@pytest.mark.exhaustive
def test_interrupted_cell_ends_in_one_line_in_jupyterlab(browser, lab, tmp_path):
    page = open_notebook(
        browser,
        lab,
        f'dataset = "digits"\nepochs = 400\noutput_root = "{tmp_path / "outputs"}"'
        '\noverrides = {"depths": [1], "widths": [8]}',
    )
    choose(page, "Run", "Run All Cells")
    wait_until(lambda: list(tmp_path.glob("outputs/lite/*/checkpoints/*.pt")), WAIT / 1000)
    choose(page, "Kernel", "Interrupt Kernel")
    saved = tmp_path / "project" / "notebooks" / "run_experiment.ipynb"
    until = time.monotonic() + WAIT / 1000
    while not (errors := errors_in(saved)):
        assert time.monotonic() < until
        page.keyboard.press("Control+s")
        time.sleep(1)
    ((line,),) = [error["traceback"] for error in errors]
    assert "interrupted" in line and "resume" in line
    (folder,) = (tmp_path / "outputs" / "lite").iterdir()
    assert load_run(folder).status == "interrupted"
    page.close()
