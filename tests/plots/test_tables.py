"""Tables and texts of notebooks."""

import statistics

import torch

from resnetlib import load_experiment, plots
from resnetlib.runs import reference_runs


def test_expectations_name_published_and_recorded_accuracy():
    facts = plots.expectations(load_experiment("lite", seed=3))
    assert "2.303" in facts["loss before training"]
    assert facts["published test accuracy"] == "79.87%"
    runs = [run for run in reference_runs() if run.record["variant"] == "lite"]
    found = [100 * run.metrics["test_accuracy"] for run in runs if run.has_own_recipe]
    result = f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} % ({len(found)} seeds)"
    assert facts["recorded test accuracy"] == result
    assert "changed here" not in facts


def test_expectations_of_a_changed_experiment():
    facts = plots.expectations(load_experiment("lite", epochs=3, dataset="digits"))
    assert facts["published test accuracy"] == facts["recorded test accuracy"] == "none"
    assert "epochs" in facts["changed here"]
    assert "changed here" not in plots.expectations(load_experiment("lite", budget=80_000, seed=1))


def test_expectations_name_what_kind_of_accuracy_is_published():
    facts = plots.expectations(load_experiment("class/yifei"))
    assert facts["published test accuracy"] == "97.80% (best on test)"


def test_explain_losses_names_what_differs():
    assert "dropout" in plots.explain_losses(load_experiment("dropout"))
    plain = plots.explain_losses(load_experiment("resnet18"))
    assert not any(w in plain for w in ("smooth", "augmented", "dropout", "shared", "average"))
    changed = load_experiment("lite", augment="crop,flip", label_smoothing=0.1)
    assert "augmented (crop, flip)" in plots.explain_losses(changed)
    champion = plots.explain_losses(load_experiment("champion"))
    assert "cutmix, cutout" in champion and "one_of" not in champion
    assert (
        "shared between two classes" in champion and "test loss that of their average" in champion
    )
    # The least cross-entropy of a target with 0.91 on one class and 0.01 on nine others.
    least = torch.tensor([0.91] + [0.01] * 9).double()
    assert f"{-(least * least.log()).sum():.3f} nats" in plots.explain_losses(changed)
