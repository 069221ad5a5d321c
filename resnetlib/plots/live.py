"""Live curves: loss and accuracy drawn in the notebook while a network trains."""

import io
import sys
import time
from typing import Any

from matplotlib.figure import Figure

from ..experiment import Experiment
from ..progress import is_interactive
from ..training import Callback, Trainer
from .run import draw_history
from .style import figure_style

TIME_SHARE = 0.1  # of the training time at most goes into drawing: quick epochs are skipped


class LiveCurves(Callback):
    """Draws the history after each epoch where a person watches a notebook, nothing elsewhere.

    `train(experiment, callbacks=[LiveCurves(experiment)])`; the figure is beneath the progress bar.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.watched = "ipykernel" in sys.modules and is_interactive()
        self.output: Any = None  # the place in the notebook that is drawn into again
        self.next_drawing = 0.0  # not before, on the monotonic clock

    def after_epoch(self, training: Trainer) -> None:
        if self.watched and time.monotonic() >= self.next_drawing:
            self._draw(training)

    def after_training(self, training: Trainer) -> None:
        if self.watched:
            self._draw(training)

    def _draw(self, training: Trainer) -> None:
        from IPython.display import Image, display

        began = time.monotonic()
        # IPython 7 has no argument `alt`, and passes this on in the same way.
        described = {"alt": "loss and accuracy of each epoch so far"}
        image = Image(self._png(training), width=800, metadata=described)
        if self.output is None:
            self.output = display(image, display_id=True)
        else:
            self.output.update(image)
        ended = time.monotonic()
        self.next_drawing = ended + (ended - began) / TIME_SHARE

    def _png(self, training: Trainer) -> bytes:
        """Not a figure of pyplot, which the notebook would display once more after the cell."""
        history = training.table()
        with figure_style(), io.BytesIO() as buffer:
            figure = Figure(figsize=(10, 3.6), layout="constrained")
            loss, accuracy = figure.subplots(1, 2)
            draw_history(loss, accuracy, history, self.experiment)
            for axes in (loss, accuracy):
                axes.set_xlim(0, self.experiment.recipe.epochs)
            figure.savefig(buffer, format="png")
            return buffer.getvalue()
