"""The notebook analyze_errors under papermill, on a run of the digits and on the recorded lite."""

import papermill
import pytest
from conftest import NOTEBOOKS, outputs_of, recorded_lite, text_of, with_figure, with_warning
from traitlets.config import Config

from resnetlib import train

pytestmark = pytest.mark.slow

ANALYZE_ERRORS = NOTEBOOKS / "analyze_errors.ipynb"
# ipykernel otherwise warns of its unencrypted connection.
QUIET = Config({"KernelManager": {"transport_encryption": "auto"}})


def executed(folder, **parameters):
    """The outputs of the notebook's cells, executed in a folder of its own."""
    folder.mkdir()
    papermill.execute_notebook(
        str(ANALYZE_ERRORS),
        str(folder / "errors.ipynb"),
        parameters={name: str(value) for name, value in parameters.items() if name != "images"}
        | {"images": parameters.get("images")},
        cwd=str(folder),
        progress_bar=False,
        config=QUIET,
    )
    return outputs_of(folder / "errors.ipynb")


def assert_complete(cells):
    """Every cell has at most one result, nothing on stderr, and every figure and table exists."""
    assert not with_warning(cells)
    assert all(len(outputs) <= 1 for outputs in cells.values())
    assert len(with_figure(cells)) == 9
    drops = text_of(cells["drops"])
    assert all(text in drops for text in ("noise", "13 points from severity", "trivial_augment"))
    assert "95 % interval" in text_of(cells["clean"])


def test_parameters_are_inspectable():
    found = papermill.inspect_notebook(str(ANALYZE_ERRORS))
    assert list(found) == ["run", "images", "data_root", "output_root"]
    assert all(parameter["default"] == "None" for parameter in found.values())
    assert all(parameter["help"] for parameter in found.values())


def test_notebook_analyzes_a_run_of_the_digits(tiny, tmp_path):
    run = train(tiny(epochs=2, widths=[8], holdout=100))
    cells = executed(tmp_path / "cwd", output_root=tmp_path / "outputs", images=100)
    assert_complete(cells)
    assert run.path.name in text_of(cells["run"])
    table = text_of(cells["temperature"])
    assert "fitted on 100 training images held out of this run" in table
    assert ">100<" in text_of(cells["clean"])
    assert [path.name for path in (tmp_path / "cwd").iterdir()] == ["errors.ipynb"]


@pytest.mark.exhaustive
def test_notebook_analyzes_the_recorded_lite(cifar10_folder, tmp_path):
    lite = recorded_lite(0)
    cells = executed(tmp_path / "cwd", run=lite.path, data_root=cifar10_folder, images=500)
    assert_complete(cells)
    assert f"{lite.metrics['test_accuracy']:.2%}" in text_of(cells["run"])
    table = text_of(cells["temperature"])
    assert "fitted on each half of the test images for the other" in table


def test_notebook_refuses_a_run_without_weights(tmp_path):
    without = recorded_lite(1)
    with pytest.raises(papermill.PapermillExecutionError, match="has no weights"):
        executed(tmp_path / "cwd", run=without.path)
    left = outputs_of(tmp_path / "cwd" / "errors.ipynb")
    (error,) = [part for parts in left.values() for part in parts if part.output_type == "error"]
    assert len(error["traceback"]) == 1
    assert "outputs/reference/lite/cifar10-seed0" in error["traceback"][0].partition("weights: ")[2]
