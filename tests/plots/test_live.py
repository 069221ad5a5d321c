"""Curves that are drawn while a network trains."""

import sys

import matplotlib.pyplot as plt
import pytest

from resnetlib import plots
from resnetlib.training import Trainer, fit


class Recorder:
    """Stands in for IPython's display: what it displays, and then updates."""

    def __init__(self):
        self.images = []

    def display(self, image, display_id):
        self.images.append(image)
        return self

    def update(self, image):
        self.images.append(image)


class OldImage:
    """The image of Colab's IPython, which has no `alt`."""

    def __init__(self, data, *, width, metadata):
        self.data, self.metadata = data, metadata


@pytest.fixture
def displayed(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr("IPython.display.Image", OldImage)
    monkeypatch.setattr("IPython.display.display", recorder.display)
    return recorder.images


@pytest.mark.slow
def test_live_curves_draw_every_epoch_before_a_person(tiny, few_digits, displayed, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr("resnetlib.plots.live.is_interactive", lambda: True)
    monkeypatch.setattr("resnetlib.plots.live.TIME_SHARE", 1e9)
    experiment = tiny(epochs=2)
    training = Trainer(experiment, few_digits)
    fit(training, 2, [plots.LiveCurves(experiment)])
    assert len(displayed) == 4  # untrained, two epochs, and the end
    assert all(image.data.startswith(b"\x89PNG") for image in displayed)
    assert displayed[0].data != displayed[1].data
    assert "accuracy" in displayed[0].metadata["alt"]
    assert not plt.get_fignums()  # nothing that the notebook would display again


@pytest.mark.slow
def test_live_curves_leave_quick_epochs_out(tiny, few_digits, displayed, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr("resnetlib.plots.live.is_interactive", lambda: True)
    monkeypatch.setattr("resnetlib.plots.live.TIME_SHARE", 1e-9)
    fit(Trainer(tiny(epochs=3), few_digits), 3, [plots.LiveCurves(tiny(epochs=3))])
    assert len(displayed) == 2  # the first and the last


@pytest.mark.parametrize(("in_notebook", "watched"), [(True, False), (False, True)])
def test_live_curves_draw_nothing_in_batch(
    tiny, few_digits, displayed, monkeypatch, in_notebook, watched
):
    """Neither under papermill nor in a terminal."""
    if in_notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    else:
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr("resnetlib.plots.live.is_interactive", lambda: watched)
    fit(Trainer(tiny(), few_digits), 1, [plots.LiveCurves(tiny())])
    assert displayed == []
