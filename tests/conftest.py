"""Shared fixtures: small experiments on the digits, and the genuine CIFAR-10 where it is found."""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from pathlib import Path

# Beside other work, threads that spin while they wait make everything ten times as slow. Read
# when torch is first imported; the processes that tests start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Compiled modules are imported in half the time, and the tests start many processes and kernels.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import nbformat
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from resnetlib import count_parameters, download, files, load_dataset, load_experiment
from resnetlib.download import find_cifar10
from resnetlib.resnet import ResNet
from resnetlib.runs import artifacts
from resnetlib.runs.find import reference_runs
from resnetlib.runs.run import WEIGHTS
from resnetlib.schema import IMAGE_SHAPE
from resnetlib.size import Size

sys.dont_write_bytecode = False  # in this process, which read the variable when it started

# A shell ignores Ctrl-C for what it starts in the background; the tests of signals need it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parents[1]
NOTEBOOKS = PROJECT / "notebooks"
GOLDEN = Path(__file__).parent / "golden"
PAPERMILL = [str(Path(sys.executable).with_name("papermill")), "--no-progress-bar"]

# One block of four channels: an epoch of the digits takes a tenth of a second.
TINY = {
    **{"depths": [1], "widths": [4], "batch_size": 128, "lr": 0.1, "augment": []},
    **{"dataset": "digits", "device": "cpu"},
}


def run_papermill(*words, cwd, **settings):
    """Papermill in a process of its own, since a notebook's working directory is its caller's."""
    return subprocess.run(
        [*PAPERMILL, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        **settings,
    )


def outputs_of(path):
    """The outputs of each code cell of an executed notebook, by the cell's id."""
    cells = nbformat.read(path, as_version=4).cells
    return {cell.id: cell.outputs for cell in cells if cell.cell_type == "code"}


def text_of(outputs):
    """What a cell shows as text: printed lines, tables as HTML, other results as they are."""
    shown = [output | output.get("data", {}) for output in outputs]
    return "".join(
        part.get("text", part.get("text/html", part.get("text/plain", ""))) for part in shown
    )


def with_figure(cells):
    """The ids of the cells that show a figure."""
    return {
        name
        for name, parts in cells.items()
        if any("image/png" in p.get("data", {}) for p in parts)
    }


def with_warning(cells):
    """The ids of the cells that wrote to stderr."""
    return {name for name, parts in cells.items() if any(p.get("name") == "stderr" for p in parts)}


def architecture_of(variant="lite", **overrides):
    return load_experiment(variant, **overrides).architecture


def first_images(dataset, train, test=None):
    """The data set with its first images alone."""
    return dataclasses.replace(
        dataset,
        train=tuple(part[:train] for part in dataset.train),
        test=tuple(part[:test] for part in dataset.test),
    )


def wait_until(condition, seconds=120, process=None):
    """What the condition gives once it holds; fails after this time, or with the process's end."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"still not so after {seconds} s"
        assert process is None or process.poll() is None, "the process has ended"
        time.sleep(0.05)
    return found


@contextmanager
def float64_by_default():
    """Where a caller has set another default type than torch's own."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def size_by_torch(architecture):
    """The size that torch's own counters find for the network."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = ResNet(architecture).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *IMAGE_SHAPE))
    return Size(count_parameters(model), counter.get_total_flops() // 2)  # two operations each


@contextmanager
def script(folder, name):
    """A script of `benchmarks/` or `docs/` as a module."""
    spec = importlib.util.spec_from_file_location(name, PROJECT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # which dataclasses look themselves up in
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]


def benchmark(name):
    return script("benchmarks", name)


def rewrite(folder, name, content):
    """Change a file of a finished run, and its checksum in the record with it."""
    if isinstance(content, str):
        content = content.encode()
    (folder / name).write_bytes(content)
    record = json.loads((folder / "run.json").read_text())
    record["artifacts"][name] = files.sha256_of(content)
    (folder / "run.json").write_text(json.dumps(record))


def edit_yaml(path, **changes):
    """Change values of a YAML file, by dotted key with `__` for the dot."""
    content = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        branch = content
        for parent in parents:
            branch = branch[parent]
        branch[last] = value
    path.write_text(yaml.safe_dump(content))


def edit_weights(folder, change):
    """Change the weights of a run; its record still has their old checksum."""
    weights = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(change(weights)))


def history_with(run, accuracy):
    """The history of a run that ends with this test accuracy, as CSV."""
    history = run.history.copy()
    history.loc[history.index[-1], "test_accuracy"] = accuracy
    return history.to_csv(index=False)


def copy_recorded(folder, copy):
    """A copy of recorded runs as they were committed: without what `resnetlib report` adds."""
    return shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("report.html"))


def recorded_lite(seed=0):
    """The run of `lite` under `outputs/reference/` with this seed."""
    runs = (run for run in reference_runs() if run.record["variant"] == "lite")
    return next(run for run in runs if run.record["seed"] == seed)


def weights_of(run):
    return run.record["artifacts"]["model.safetensors"]


def history_of(run):
    return run.history.drop(columns="seconds")


def outcome(run):
    """All that must be equal: weights, history without its times, selection."""
    return weights_of(run), history_of(run).to_csv(), run.metrics["selected_epoch"]


def pytest_collection_modifyitems(items):
    """A test that asks for the browser is marked so."""
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker("browser")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where everything must run, a skipped test is a failed one."""
    report = yield
    if report.skipped and os.environ.get("RESNETLIB_NO_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report


@pytest.fixture
def tiny(tmp_path):
    """Makes a small experiment on the digits; flat overrides as for `load_experiment`."""

    def make(variant="lite", **overrides):
        settings = TINY | {"epochs": 1, "output_root": tmp_path / "outputs"} | overrides
        return load_experiment(variant, **settings)

    return make


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="session")
def few_digits(digits):
    """320 digits to train on and 100 to test: for what needs many runs."""
    return first_images(digits, 320, 100)


@pytest.fixture(scope="session")
def cifar10_folder():
    folder = find_cifar10()
    if folder is None:
        pytest.skip("needs the genuine CIFAR-10, which is in none of the usual folders")
    return folder


@pytest.fixture(scope="session")
def cifar10(cifar10_folder):
    return load_dataset("cifar10", cifar10_folder)


@pytest.fixture
def small_archive(tmp_path, monkeypatch):
    """The archive of a small stand-in for CIFAR-10, beside its seven files; no other root."""
    source = tmp_path / "source" / download.CIFAR10_FOLDER
    source.mkdir(parents=True)
    sums = {}
    for name in download.CIFAR10_MD5:
        (source / name).write_bytes(np.random.default_rng(0).bytes(50_000))
        sums[name] = files.md5(source / name)
    archive = tmp_path / "source" / download.CIFAR10_ARCHIVE
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, download.CIFAR10_FOLDER)
    monkeypatch.setattr(download, "CIFAR10_MD5", sums)
    monkeypatch.setattr(download, "CIFAR10_ARCHIVE_MD5", files.md5(archive))
    monkeypatch.setattr(download, "CIFAR10_ARCHIVE_BYTES", archive.stat().st_size)
    monkeypatch.setattr(download, "project_folder", lambda: tmp_path / "project")
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", (2, 0.5))
    for name in ("NO_PROXY", "no_proxy"):  # where a proxy is set, it is for other servers
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(download.platformdirs, "user_cache_dir", lambda *a, **k: tmp_path / "cache")
    monkeypatch.delenv("RESNETLIB_DATA", raising=False)
    return archive


@pytest.fixture(scope="module")
def quick_figures():
    """Empty figures of runs in place of drawn ones, which take most of the time of a short run."""

    def write(folder, *_):
        for name in ("confusion_matrix", "curves", "mistakes", "reliability"):
            files.write_bytes(folder / f"{name}.png", b"")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "write_figures", write)
        yield


@pytest.fixture
def leaderboard_without_figures(monkeypatch):
    """They take most of the seconds of `write_index`; for tests that read the text only."""
    monkeypatch.setattr("resnetlib.reports.page._figures", lambda own: {})


@pytest.fixture(scope="session")
def browser():
    """A real Chromium, the system's own: `apt-get install chromium`."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    quiet = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a local file with the network cut; afterwards nothing was fetched, nothing complained.

    `open_page(path, width=1280, height=800, **settings)` gives Playwright's page; the settings
    are those of `browser.new_context` (`java_script_enabled`, `color_scheme`, …).
    """
    complaints, contexts = [], []

    def open_file(path, width=1280, height=800, **settings):
        viewport = {"width": width, "height": height}
        context = browser.new_context(viewport=viewport, offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:"))
                or complaints.append(f"request: {request.url}")
            ),
        )
        page.goto(Path(path).resolve().as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert complaints == []
