"""How a notebook's parameters become an experiment, in papermill and in JupyterLab."""

import json
from operator import attrgetter

import nbformat
import pytest
from conftest import NOTEBOOKS, run_papermill
from nbformat.v4 import new_code_cell, new_notebook
from papermill.translators import translate_parameters

from resnetlib import execute, load_experiment
from resnetlib.errors import ConfigError
from resnetlib.notebook import _injected_values, check_injected, experiment_from_cells

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


def test_defaults_are_the_variants_own_values():
    experiment = from_cells()
    assert (experiment.variant, experiment.dataset, experiment.seed) == ("lite", "cifar10", 0)
    assert experiment.overrides == {}


def test_cell_of_the_user_with_a_similar_first_line_is_not_taken_for_papermills():
    injected = {"epochs": 3, "overrides": {"lr": 0.1}}
    experiment = from_cells(injected, extra=["# Parameters of each stage\nprint(1)"])
    assert (experiment.recipe.epochs, experiment.recipe.optimizer.lr) == (3, 0.1)


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
    with pytest.raises(ConfigError, match=r"unknown parameter 'zzzz'\. One of: "):
        check_injected(["", parameters, "# Parameters\nzzzz = 3\n"])
    with pytest.raises(ConfigError, match="'rnu'"):  # run once more, after other cells
        check_injected(["", parameters, "print(1)", wrong])
    check_injected(["", parameters, wrong, "# Parameters\nrun = 'lite'\n"])  # put right


@pytest.mark.slow
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
