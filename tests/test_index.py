"""The results table of the README comes from the recorded runs."""

import dataclasses

import pytest
from conftest import PROJECT

from resnetlib import list_variants
from resnetlib.index import BEGIN, END, markdown_table, results, with_table
from resnetlib.runs import reference_runs


def test_the_readme_holds_the_table_that_the_recorded_runs_make():
    readme = (PROJECT / "README.md").read_text()
    assert readme == with_table(readme, markdown_table(results(reference_runs())))
    assert all(f"| `{variant}` |" in readme for variant in list_variants())


@dataclasses.dataclass
class Recorded:
    record: dict
    metrics: dict
    status: str = "done"


def recorded(accuracy, seed, **changes):
    from resnetlib import load_experiment

    experiment = load_experiment("lite", seed=seed, **changes)
    return Recorded(
        {
            "variant": "lite",
            "seed": seed,
            "experiment": experiment.digest,
            "fingerprint": {
                "device": "cpu",
                "processor": "P",
                "threads": 2,
                "torch": "2.15",
                "precision": "float32",
            },
        },
        {"test_accuracy": accuracy, "train_seconds": 600},
    )


def test_mean_and_spread_are_over_seeds_of_the_variants_own_recipe():
    runs = [recorded(0.79, 0), recorded(0.81, 1), recorded(0.99, 2, epochs=3)]
    runs.append(dataclasses.replace(recorded(0.1, 3), status="interrupted"))
    row = results(runs).set_index("variant").loc["lite"]
    assert row["runs"] == 2
    assert row["reproduced"] == pytest.approx(80)
    assert row["spread"] == pytest.approx(2**0.5)
    assert row["minutes"] == 10
    assert "| 79.87 | 80.00 ± 1.41 | 2 | 10, 2 cores of P, float32, torch 2.15 |" in markdown_table(
        results(runs)
    )


def test_one_run_has_no_spread_and_none_has_no_figure():
    table = markdown_table(results([recorded(0.8, 0)]))
    assert "| 79.87 | 80.00 | 1 |" in table
    assert "| `dropout` | 4,700,682 | 798.7 M | 100 | – | – | – | – |" in table


def test_a_text_without_the_markers_is_refused():
    with pytest.raises(ValueError, match="results"):
        with_table("no markers", "table")
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
