"""The notebook as its users run it through papermill, with and without mistakes."""

import asyncio
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import types
from importlib.machinery import PathFinder
from operator import attrgetter

import nbformat
import papermill
import psutil
import pytest
from conftest import NOTEBOOKS, PAPERMILL, PROJECT, run_papermill
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from papermill.translators import translate_parameters

from resnetlib import execute, load_experiment, load_run, train
from resnetlib.download import CIFAR10_MD5
from resnetlib.errors import ConfigError
from resnetlib.notebook import _injected_values, check_injected, experiment_from_cells

pytestmark = pytest.mark.slow

RUN_EXPERIMENT = NOTEBOOKS / "run_experiment.ipynb"


def parameters_cell():
    cells = json.loads(RUN_EXPERIMENT.read_text())["cells"]
    (cell,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return "".join(cell["source"])


def injected_by_papermill(parameters):
    """The source of the cell that papermill itself makes of these parameters."""
    return translate_parameters("python3", "python", parameters, "Parameters")


def from_cells(parameters=None, *, extra=(), namespace=None):
    cells = ["", parameters_cell()]
    cells += [injected_by_papermill(parameters)] if parameters else []
    cells += extra
    left_behind = {}
    for cell in cells:
        exec(cell, left_behind)
    return experiment_from_cells(cells, left_behind | (namespace or {}))


# Parameters --------------------------------------------------------------------------------------


def test_papermill_can_inspect_the_parameters():
    found = papermill.inspect_notebook(str(RUN_EXPERIMENT))
    assert found["variant"]["inferred_type_name"] == "str"
    assert found["epochs"] | {"name": 0} == {
        "name": 0,
        "inferred_type_name": "int",
        "default": "None",
        "help": "passes over the training images",
    }
    assert all(parameter["help"] for parameter in found.values())


def test_defaults_are_the_variants_own_values():
    experiment = from_cells()
    assert (experiment.variant, experiment.dataset, experiment.seed) == ("lite", "cifar10", 0)
    assert experiment.overrides == {}


def test_cell_of_the_user_with_a_similar_first_line_is_not_taken_for_papermills():
    injected = {"epochs": 3, "overrides": {"lr": 0.1}}
    experiment = from_cells(injected, extra=["# Parameters of each stage\nprint(1)"])
    assert (experiment.recipe.epochs, experiment.recipe.optimizer.lr) == (3, 0.1)


@pytest.fixture
def setup_cells():
    """The script that writes the set-up cells and badges, as a module."""
    path = PROJECT / "docs" / "setup_cells.py"
    spec = importlib.util.spec_from_file_location("setup_cells", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_setup_cell_is_first_and_as_written(path, setup_cells):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    written = setup_cells.setup_cells(setup_cells.repository(), path.name)
    assert [cell["id"] for cell in cells[1:3]] == list(written)
    assert ["".join(cell["source"]) for cell in cells[1:3]] == list(written.values())
    assert "parameters" in cells[4]["metadata"]["tags"]


@pytest.mark.parametrize("address", ["", "https://github.com/someone/something"])
def test_setup_cell_installs_on_kaggle_only(address, setup_cells, tmp_path, monkeypatch):
    """In IPython, without a project, with one, and where it is installed already.

    A folder that is called `resnetlib` and holds the project is not the package.
    """
    source = setup_cells.setup_cells(address, "x.ipynb")["setup"]
    assert len(source.splitlines()) <= 15
    commands = []
    shell = types.SimpleNamespace(
        system=commands.append, run_line_magic=lambda name, line: commands.append([name, line])
    )
    source = TransformerManager().transform_cell(source)  # `!` and `%` as IPython calls them
    monkeypatch.chdir(tmp_path)

    def run():
        commands.clear()
        exec(source, {"get_ipython": lambda: shell})

    def find_spec(name):  # without the project that is tested here
        importlib.invalidate_caches()
        return PathFinder.find_spec(name, ["", sys.path[0]])

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    run()
    assert commands == []  # it is not on Kaggle
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    with pytest.raises(FileNotFoundError, match="internet" if address else "upload its ZIP file"):
        run()
    package = tmp_path / "resnetlib" / "resnetlib"
    (package / "runs").mkdir(parents=True)
    (package / "__init__.py").touch()
    run()
    assert commands[:-1] == (
        [f"git clone --quiet --depth 1 {address} resnetlib-project"] * bool(address)
    )
    name, line = commands[-1]
    assert name == "pip" and "{" in line
    assert sys.path[0] == str(package.parent)
    run()
    assert commands == []  # it is found
    monkeypatch.undo()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    run()
    assert commands == []  # it is installed


def test_badges_open_the_notebook_of_the_repository(setup_cells, tmp_path):
    """They are in every notebook and in the README as soon as there is an address."""
    address = "https://github.com/someone/something"
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks")
    marks = f"# Title\n\n{setup_cells.BADGES}\n{setup_cells.END}\n\nText\n"
    (tmp_path / "README.md").write_text(marks, encoding="utf-8")
    setup_cells.write_all(tmp_path, address)
    colab = "(https://colab.research.google.com/github/someone/something/blob/main/notebooks/"
    kaggle = f"(https://kaggle.com/kernels/welcome?src={address}/blob/main/notebooks/"
    for path in (tmp_path / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert f"{colab}{path.name})" in text and f"{kaggle}{path.name})" in text
        assert f"!git clone --quiet --depth 1 {address} " in text
    assert f"{colab}run_experiment.ipynb)" in (tmp_path / "README.md").read_text(encoding="utf-8")
    setup_cells.write_all(tmp_path, "")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == marks
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert (tmp_path / "notebooks" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_cells_are_small_and_introduced(path):
    """At most 15 lines (the parameters apart), a sentence above each, no output, live links."""
    cells = json.loads(path.read_text())["cells"]
    for above, cell in itertools.pairwise(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            tagged = "parameters" in cell["metadata"].get("tags", [])
            assert len(cell["source"]) <= 15 or tagged, source
            assert above["cell_type"] == "markdown", source
            assert not cell["outputs"] and cell["execution_count"] is None, source
        for link in re.findall(r"\]\((\w+\.ipynb)\)", source):
            assert (NOTEBOOKS / link).is_file(), link


def test_injected_values_win_and_rebound_names_do_not_count():
    experiment = from_cells(
        {"variant": "wide66", "epochs": 3, "lr": 0.01, "overrides": {"eps": 1e-6}},
        namespace={"dataset": object(), "epochs": "rebound by a later cell"},
    )
    assert experiment.variant == "wide66"
    assert experiment.recipe.epochs == 3
    assert experiment.recipe.optimizer.lr == 0.01
    assert experiment.recipe.optimizer.eps == 1e-6


def test_written_experiment_is_the_same_in_the_notebook(tmp_path):
    experiment = load_experiment("lite", dataset="digits", seed=3, epochs=2)
    (tmp_path / "experiment.yaml").write_text(experiment.to_yaml())
    again = from_cells({"variant": str(tmp_path / "experiment.yaml")})
    assert again.digest == experiment.digest
    assert from_cells({"overrides": {"seed": 3}}).seed == 3


def test_every_parameter_may_stand_in_overrides():
    """A default that is no value is not a second one."""
    given = {"execution.device": "cpu", "fresh": True, "output_root": "elsewhere"}
    execution = from_cells({"overrides": given}).execution
    assert (execution.device, execution.fresh) == ("cpu", True)
    assert from_cells(execute.notebook_arguments("lite", given)).execution.device == "cpu"


def test_inject_paths_are_not_parameters():
    paths = {"PAPERMILL_INPUT_PATH": "in.ipynb", "PAPERMILL_OUTPUT_PATH": "out.ipynb"}
    assert from_cells({"epochs": 3} | paths).recipe.epochs == 3
    check_injected(["run: str = None", injected_by_papermill({"run": "lite"} | paths)])


@pytest.mark.parametrize(
    ("later", "variant", "epochs"),
    [
        ('variant = "se"', "se", 3),
        ("epochs = 5", "lite", 5),
        ('variant = "se"\nepochs = 5', "se", 5),
        ('variant = "se"\nmomentum = 0.8', "se", 3),
        ("epochs = train(experiment)", "lite", 3),
        ("title = 'epochs'", "lite", 3),
    ],
)
def test_later_cell_of_literals_changes_parameters(later, variant, epochs):
    cells = [parameters_cell(), injected_by_papermill({"epochs": 3}), later]
    changed = experiment_from_cells(cells, {})
    assert (changed.variant, changed.recipe.epochs) == (variant, epochs)


def test_cell_run_last_counts():
    first = parameters_cell()
    second = first.replace('"lite"', '"se"')
    assert experiment_from_cells(["", first, "x = 1", second], {}).variant == "se"
    injected = injected_by_papermill({"epochs": 3})
    again = experiment_from_cells([first, injected, second, injected], {})
    assert (again.variant, again.recipe.epochs) == ("se", 3)


@pytest.mark.parametrize("line", ["momentum = 0.8", "momentun = 0.8", "widths = [8, 8, 8]"])
def test_line_deleted_from_the_parameters_cell_no_longer_counts(line):
    first = parameters_cell()
    assert experiment_from_cells([f"{first}\n{line}", first], {}).overrides == {}
    shorter = first.replace("epochs: int = None", "")
    cells = [first.replace("epochs: int = None", "epochs = 3"), shorter]
    assert experiment_from_cells(cells, {}).overrides == {}


def test_injected_cell_run_again_replaces_itself():
    first, wrong = parameters_cell(), injected_by_papermill({"epoch": 3, "seed": 1})
    again = experiment_from_cells([first, wrong, injected_by_papermill({"epochs": 3})], {})
    assert (again.recipe.epochs, again.seed) == (3, 0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"varient": "lite"}, r"unknown parameter 'varient'; did you mean 'variant'\?"),
        ({"epoch": 3}, r"unknown parameter 'epoch'; did you mean 'epochs'"),
        ({"depth": 2}, r"unknown parameter 'depth'; did you mean 'depths'\?"),
        ({"override": {}}, r"unknown parameter 'override'; did you mean 'overrides'\?"),
        ({"eps": 1e-6}, r"'eps'; eps is a key of optimizer adam"),
        ({"momentun": 0.8}, r"unknown parameter 'momentun'; did you mean 'momentum'"),
        ({"typo": None}, r"unknown parameter 'typo'"),
        ({"variant": "liet"}, r"unknown variant 'liet'; did you mean 'lite'"),
        ({"lr": float("nan")}, r"lr = nan"),
        ({"lr": 0.1, "overrides": {"lr": 0.2}}, r"lr is specified twice"),
        ({"overrides": 3}, r"overrides = 3: give a mapping"),
        ({"variant": "resnet18", "overrides": {"budget": 5000000}}, r"exceed the budget"),
    ],
)
def test_mistake_is_refused_in_the_first_cell(parameters, message):
    with pytest.raises(ConfigError, match=message):
        from_cells(parameters)


@pytest.mark.parametrize(
    ("parameters", "path", "value"),
    [
        ({"depths": "2,2,2"}, "architecture.depths", (2, 2, 2)),
        ({"strides": "1,1,2"}, "architecture.strides", (1, 1, 2)),
        ({"dropout": 0.2, "block": "dropout"}, "architecture.dropout", 0.2),
        ({"warmup_epochs": 2}, "recipe.schedule.warmup_epochs", 2),
        ({"select": "best_test"}, "recipe.select", "best_test"),
        ({"eps": 1e-6, "optimizer": "adam"}, "recipe.optimizer.eps", 1e-6),
        ({"every_epochs": 2, "gamma": 0.9, "schedule": "exponential"}, "recipe.epochs", 40),
    ],
)
def test_parameter_that_the_cell_lacks_is_accepted(parameters, path, value):
    """However close its name is to one of those in the cell."""
    assert attrgetter(path)(from_cells(parameters)) == value


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("epochs = batch_size", "epochs = batch_size = 3"),
        ("import os; lr", "import os"),
        ("lr = 0.1; epochs", "epochs = 3"),
        ("# epochs", "# epochs = 3"),
        ("epochs = 2  #", "epochs = 2"),
        ("epochs: int", "epochs: int = 3"),
        ("epochs, lr", "epochs, lr = 3"),
        ("overrides['lr']", r"overrides\['lr'\] = 3"),
        ("seed = f() or", "seed = f"),
        ("if True: epochs", "if True"),
        ("!touch canary; epochs", "touch canary"),
        ("%time epochs", "time epochs"),
        ("get_ipython().system('ls'); epochs", r"get_ipython\(\).system\('ls'\)"),
        ("epochs = 2\nepochs", "epochs = 3"),
        ("2 fast", "2 fast = 3"),
    ],
)
def test_injected_code_is_refused(name, quoted):
    """Papermill writes a parameter's name into the cell as it is."""
    cell = injected_by_papermill({"variant": "adamw", name: 3})
    with pytest.raises(ConfigError, match=f"papermill injected .*{quoted}"):
        experiment_from_cells([parameters_cell(), cell], {})
    with pytest.raises(ConfigError, match=f"papermill injected .*{quoted}"):
        check_injected([parameters_cell(), cell])


def test_values_above_the_defaults_are_refused():
    """Where papermill puts them in a notebook whose `parameters` tag was lost."""
    cells = [injected_by_papermill({"epochs": 3}), "import sys", parameters_cell()]
    for check in (lambda: experiment_from_cells(cells, {}), lambda: check_injected(cells)):
        with pytest.raises(ConfigError, match="give that cell the tag `parameters`"):
            check()


@pytest.mark.parametrize("code", ["import os", "print(epochs)", "!nvidia-smi", "lr = ("])
def test_parameters_cell_that_computes_is_refused(code):
    """Also once there was one that holds assignments only."""
    cell = f"{code}\n{parameters_cell()}\n{code}"
    for cells in ([cell], [parameters_cell(), cell], [cell, injected_by_papermill({"epochs": 1})]):
        with pytest.raises(ConfigError, match=r"parameters cell.* holds assignments only"):
            experiment_from_cells(cells, {})
    assert experiment_from_cells([cell, parameters_cell()], {}).variant == "lite"


def test_value_without_quotes_is_refused():
    cell = parameters_cell().replace('"lite"', "lite")
    with pytest.raises(ConfigError, match="variant = lite: it has no value; are quotes missing"):
        experiment_from_cells([parameters_cell(), cell], {})
    assert experiment_from_cells([cell, parameters_cell()], {}).variant == "lite"  # put right


def test_analysis_may_use_the_name_variant():
    """In a notebook whose parameters cell sets nothing else."""
    later = "import math\nvariant = run.experiment.variant\nprint(variant)"
    assert experiment_from_cells(['variant = "se"', later], {}).variant == "se"


def test_injected_values_may_be_nested_and_infinite():
    """Negative, infinite and nested values come through as they were given."""
    cell = injected_by_papermill({"overrides": {"a": [-1, float("inf")], "b": {"c": None}}})
    assert _injected_values(cell) == {"overrides": {"a": [-1, float("inf")], "b": {"c": None}}}


# Through papermill -------------------------------------------------------------------------------

TINY = ["-p", "dataset", "digits", "-p", "epochs", "2", "-p", "device", "cpu"]
TINY += ["-y", "{overrides: {depths: [1], widths: [8]}}"]


def outputs_of(notebook):
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"]), cell["outputs"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook run from a working directory that is neither the project's nor its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    done = run_papermill(
        RUN_EXPERIMENT, "out.ipynb", *TINY, "-p", "output_root", "runs", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs" / "lite").iterdir()
    return json.loads((folder / "out.ipynb").read_text()), folder / "out.ipynb", load_run(run)


def test_executed_notebook_is_complete_and_small(executed):
    notebook, path, run = executed
    assert run.status == "done"
    assert path.stat().st_size < 3_000_000
    figures = [
        source
        for source, outputs in outputs_of(notebook)
        for output in outputs
        if "image/png" in output.get("data", {})
    ]
    names = ("image_grid", "draw", "curves", "confusion", "mistakes", "reliability")
    assert [name for name in names if any(f"plots.{name}(" in f for f in figures)] == list(names)
    assert len(figures) == len(names)
    text = json.dumps(notebook)
    assert "Total params" in text
    assert "class BasicBlock(ResidualBlock)" in text
    assert "ln 10 = 2.303" in text
    assert run.headline[:22] in text


def test_executed_notebook_has_a_line_per_epoch(executed):
    notebook, _, _ = executed
    for source, outputs in outputs_of(notebook):
        assert not [o for o in outputs if o.get("name") == "stderr"], source
    (outputs,) = [outputs for source, outputs in outputs_of(notebook) if "train(experi" in source]
    printed = [output for output in outputs if "text" in output]  # and the history
    lines = "".join(line for stream in printed for line in stream["text"]).splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", f"{n}/2"] for n in range(3)]


def test_finished_run_is_loaded_not_retrained(executed):
    _, path, run = executed
    started = run.record["started"]
    done = run_papermill(
        RUN_EXPERIMENT, "again.ipynb", *TINY, "-p", "output_root", "runs", cwd=path.parent
    )
    assert done.returncode == 0
    assert load_run(run.path).record["started"] == started
    again = outputs_of(json.loads((path.parent / "again.ipynb").read_text()))
    ((history,),) = [outputs for source, outputs in again if "train(experiment" in source]
    assert "test_accuracy" in "".join(history["data"]["text/html"])


def test_check_injected_refuses_unknown_names():
    parameters = "run: str = None  # a folder\nimages: int = None"
    check_injected(["", parameters, "# Parameters\nrun = 'lite'\n"])
    check_injected(["", parameters])  # opened in JupyterLab
    check_injected(["", "# Parameters\nrun = 'lite'\n"])  # nothing is known of this notebook
    wrong = "# Parameters\nrnu = 'lite'\n"
    with pytest.raises(
        ConfigError, match=r"unknown parameter 'rnu'; did you mean 'run'\? One of: "
    ):
        check_injected(["", parameters, wrong])
    with pytest.raises(ConfigError, match="'rnu'"):  # run once more, after other cells
        check_injected(["", parameters, "print(1)", wrong])
    check_injected(["", parameters, wrong, "# Parameters\nrun = 'lite'\n"])  # put right


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_checks_its_parameters_first(path):
    cells = json.loads(path.read_text())["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    following = "".join(cells[tags.index(["parameters"]) + 1]["source"])
    statements = [line for line in following.splitlines() if line and "import " not in line]
    checks = {"check_parameters()", "experiment = experiment_from_notebook()"}
    assert statements[0] in checks


@pytest.mark.exhaustive
def test_unknown_parameter_of_another_notebook(tmp_path):
    done = run_papermill(
        NOTEBOOKS / "analyze_errors.ipynb", "out.ipynb", "-p", "rnu", "x", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "ConfigError: unknown parameter 'rnu'; did you mean 'run'?" in done.stderr


def test_unknown_parameter_fails_before_any_work(tmp_path):
    done = run_papermill(
        RUN_EXPERIMENT,
        "out.ipynb",
        "-p",
        "varient",
        "lite",
        "-p",
        "output_root",
        "runs",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "ConfigError: unknown parameter 'varient'; did you mean 'variant'?" in done.stderr
    assert "resnetlib/" not in done.stderr  # no traceback from deep inside
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["lost", pytest.param("too late", marks=pytest.mark.exhaustive)])
def test_misplaced_parameters_tag_is_refused_before_training(tmp_path, place):
    defaults = new_code_cell(parameters_cell())
    read = "from resnetlib import experiment_from_notebook\nexperiment_from_notebook()"
    read = new_code_cell(read)
    note, train = new_code_cell("x = 1"), new_code_cell("open('trained', 'w')")
    if place == "too late":
        note.metadata.tags = ["parameters"]
    notebook = new_notebook(cells=[defaults, read, note, train])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, tmp_path / "in.ipynb")
    done = run_papermill("in.ipynb", "out.ipynb", "-p", "epochs", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert "ConfigError: papermill injected its values" in done.stderr
    assert "the tag `parameters`" in done.stderr
    assert not (tmp_path / "trained").exists()


def test_interrupted_cell_shows_one_line(tmp_path):
    """As a person sees it who interrupts the kernel; the same cell resumes the run."""
    settings = {"dataset": "digits", "epochs": 200, "device": "cpu", "depths": [1], "widths": [8]}
    cells = [
        "from resnetlib import load_experiment, train",
        f"experiment = load_experiment('lite', **{settings | {'output_root': str(tmp_path)}!r})",
        "train(experiment)",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, kernel_name="python3", allow_errors=True)
    with client.setup_kernel():
        arguments = (client.km, tmp_path)
        timer = threading.Thread(target=_interrupt_once_saved, args=arguments, daemon=True)
        timer.start()
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
        timer.join(60)
    (error,) = [o for o in notebook.cells[2].outputs if o.output_type == "error"]
    assert error.ename == "KeyboardInterrupt"
    (line,) = error.traceback
    assert "interrupted; saved after epoch" in line and "run it again to resume" in line
    (folder,) = (tmp_path / "lite").iterdir()
    assert load_run(folder).status == "interrupted"


def _interrupt_once_saved(kernel, root):
    while not list(root.glob("lite/*/checkpoints/*.pt")):
        time.sleep(0.05)
    asyncio.run(kernel.interrupt_kernel())


def test_run_files_lists_every_file(executed):
    _, _, run = executed
    names = set(run.files) - {"run folder"}
    assert names == {
        path.relative_to(run.path).as_posix()
        for path in run.path.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.exhaustive
def test_new_variant_is_one_file(tmp_path):
    """A copy of the installed package with one more file in params/, and no other change."""

    for name in ("resnetlib", "params", "notebooks"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    text = (tmp_path / "params" / "lite.yaml").read_text()
    text = text.replace("variant: lite", "variant: ninth").replace("[16, 32, 64]", "[8, 16, 32]")
    (tmp_path / "params" / "ninth.yaml").write_text(text.split("published:")[0])
    done = run_papermill(
        "notebooks/run_experiment.ipynb",
        "out.ipynb",
        *("-p", "variant", "ninth", "-p", "dataset", "digits", "-p", "epochs", "1"),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "ninth").iterdir()
    assert load_run(run).status == "done"


def test_cifar10_is_read_from_data_root(cifar10_folder, tmp_path):
    """Without an output path, papermill prints the notebook."""
    words = ["-p", "epochs", "1", "-p", "holdout", "45000", "-p", "data_root", cifar10_folder]
    words += ["-p", "output_root", tmp_path / "runs", "-p", "augment", "crop,flip"]
    words += ["-y", "{overrides: {depths: [1], widths: [4]}}"]
    done = run_papermill("run_experiment.ipynb", *words, cwd=NOTEBOOKS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cells"]
    assert len(done.stdout) < 3_000_000
    (run,) = (tmp_path / "runs" / "lite").iterdir()
    assert load_run(run).record["dataset_checksums"] == CIFAR10_MD5
    assert load_run(run).metrics["test_images"] == 10_000


@pytest.mark.exhaustive
def test_resume_after_a_dead_kernel_is_bit_exact(tmp_path):
    """Papermill itself says that every cell completed; the run folder knows better."""
    settings = {"dataset": "digits", "epochs": 30, "device": "cpu"}
    network = {"depths": [1], "widths": [4], "batch_size": 128}
    words = [str(RUN_EXPERIMENT), "out.ipynb", "-p", "output_root", str(tmp_path / "runs")]
    words += [word for name, value in settings.items() for word in ("-p", name, str(value))]
    words += ["-y", json.dumps({"overrides": network})]
    process = subprocess.Popen([*PAPERMILL, *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    kernel = None
    while not list(tmp_path.glob("runs/lite/*/checkpoints/*.pt")):
        assert process.poll() is None
        kernel = next(iter(psutil.Process(process.pid).children()), kernel)
        time.sleep(0.02)
    kernel.kill()
    assert process.wait() != 0
    (folder,) = (tmp_path / "runs" / "lite").iterdir()
    assert load_run(folder).record["status"] == "running"
    assert load_run(folder).status == "interrupted"  # nothing works on it any more
    resumed = subprocess.run([*PAPERMILL, *words], cwd=tmp_path, capture_output=True, check=True)
    assert resumed.returncode == 0
    assert "resuming after epoch" in (tmp_path / "out.ipynb").read_text()
    whole = train(load_experiment("lite", **settings, **network), output=tmp_path / "whole")
    for name in ("model.safetensors", "predictions.npz"):
        assert load_run(folder).record["artifacts"][name] == whole.record["artifacts"][name]
    same = [run.history.drop(columns="seconds") for run in (load_run(folder), whole)]
    assert same[0].equals(same[1])
