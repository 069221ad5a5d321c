"""The explorer where files are broken, and where the parts of its starts exclude each other."""

import pytest

from resnetlib import load_experiment, paths
from resnetlib.explore.widget import ArchitectureExplorer

pytestmark = pytest.mark.slow


@pytest.fixture
def half_pasted(tmp_path, monkeypatch):
    """A project with the variant lite, and a file whose depths and widths disagree."""
    text = (paths.params_folder() / "lite.yaml").read_text()
    mine = text.replace("variant: lite", "variant: mine").replace("[1, 1, 1]", "[1, 1]")
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "lite.yaml").write_text(text)
    (tmp_path / "params" / "mine.yaml").write_text(mine)
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    return tmp_path / "params" / "mine.yaml"


def test_explorer_explains_a_broken_start(half_pasted):
    explorer = ArchitectureExplorer("lite")
    explorer.controls["start"].value = "mine"
    assert "depths has 2 stages and widths 3" in explorer.error
    assert "The last valid network" in explorer._message.value
    explorer.controls["conv_bias"].value = True
    assert "depths has 2 stages and widths 3" in explorer.error
    explorer.controls["start"].value = "lite"
    assert (explorer.architecture, explorer.error) == (load_experiment("lite").architecture, "")


def test_explorer_reads_a_start_again_that_was_put_right(half_pasted):
    explorer = ArchitectureExplorer("lite")
    explorer.controls["start"].value = "mine"
    text = half_pasted.read_text(encoding="utf-8")
    half_pasted.write_text(text.replace("depths: [1, 1]", "depths: [1, 1, 2]"), encoding="utf-8")
    explorer.controls["conv_bias"].value = True
    assert (explorer.architecture.depths, explorer.error) == ((1, 1, 2), "")


def test_explorer_page_leaves_a_broken_file_out(half_pasted, capsys):
    explorer = ArchitectureExplorer("lite")
    page = explorer._folds.titles.index("Beside the variants of params/")
    explorer._folds.selected_index = page
    explorer.controls["widths"].value = "16,32,65"
    assert ">lite</th>" in explorer._pages[page].value
    assert "mine.yaml: architecture: depths has 2 stages" in capsys.readouterr().err


def test_explorer_opens_block_dropout_without_dropout(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(load_experiment("dropout", **{"architecture.dropout": 0}).to_yaml())
    explorer = ArchitectureExplorer(path)
    assert explorer.architecture == load_experiment(path).architecture
    explorer.controls["start"].value = "lite"
    explorer.controls["block"].value = "dropout"
    assert explorer.architecture.dropout == 0.4  # and not that of the earlier start


@pytest.mark.parametrize(
    ("start", "control", "value"),
    [
        ("resnet20", "block", "pooled"),  # whose shortcut is the identity
        ("class/nehareddynelly", "block", "basic"),  # a shortcut of the raw input
        ("class/ankushpratap95", "block", "preact"),  # dropout after the addition
        ("class/coconut", "placement", "stem"),  # attention in some of the blocks
        ("class/jaivalbhup", "depths", "1,1,1"),
        ("laptop", "depths", "1,2,1,"),  # strides
    ],
)
def test_explorer_drops_what_an_option_refuses(start, control, value):
    explorer = ArchitectureExplorer(start)
    explorer.controls[control].value = value
    assert explorer.error == ""
    assert explorer.architecture != load_experiment(start).architecture


def test_explorer_keeps_what_is_set_per_stage():
    explorer = ArchitectureExplorer("class/zhoucailin")
    start = explorer.architecture
    for stages in (2, 4):
        explorer.controls["depths"].value = ",".join(["1"] * stages)
        explorer.controls["widths"].value = ",".join(["32"] * stages)
        assert explorer.error == ""
        for got, own in (
            (explorer.architecture.conv_kernel, start.conv_kernel),
            (explorer.architecture.shortcut.kernel, start.shortcut.kernel),
        ):
            assert len(own) == 3 and got == (own + own[-1:])[:stages]


def test_explorer_draws_after_typing_not_at_each_key():
    controls = ArchitectureExplorer("lite").controls
    for name in ("depths", "widths", "dropout", "reduction"):
        assert not controls[name].continuous_update


def test_explorer_says_that_no_design_fits():
    explorer = ArchitectureExplorer("lite", budget=100)
    page = explorer._folds.titles.index("All designs of this family within the budget")
    explorer._folds.selected_index = page
    assert explorer._pages[page].value == "No design of this family fits."
