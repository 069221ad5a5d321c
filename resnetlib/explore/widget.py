"""The interactive architecture explorer for JupyterLab."""

import base64
import html
import re
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from matplotlib.axes import Axes
from pandas.io.formats.style import Styler

from ..config import list_variants, load_experiment
from ..errors import ConfigError
from ..experiment import DEFAULT_BUDGET
from ..plots import tables
from ..plots.architecture import describe_drawing, draw
from ..plots.leaderboard import sizes
from ..plots.style import figure_svg
from ..resnet import build_model
from ..schema import Architecture
from ..size import Size, describe_architecture, describe_budget, measure_size, model_summary, stages
from .designs import published, rank_by_size, search, to_yaml

BLUE, ORANGE = "#0173b2", "#d55e00"  # of seaborn's colour-blind safe palette
MOST_BUILT = 50_000_000  # parameters, for a summary table: 200 MB, twice
LABEL = {"style": {"description_width": "7em"}, "layout": {"width": "24em"}}


class ArchitectureExplorer(widgets.VBox):
    """Controls, facts, budget bar and diagram of one network; `bench.architecture` reads it.

    Settings that make no network leave the last good one in place and are told in one line,
    `bench.error`. The controls are `bench.controls`, by name; setting their `value` is using them.
    """

    def __init__(self, variant: str = "lite", budget: int = DEFAULT_BUDGET):
        self.architecture: Architecture = load_experiment(variant).architecture
        self.error = ""
        self._budget = budget
        self.controls = _controls(variant)
        self._loading = False
        self._message, self._facts, self._picture = (widgets.HTML() for _ in range(3))
        self._facts.layout.margin = "0 0 0 2em"
        self._details = _details(budget)
        self._shown = [widgets.HTML() for _ in self._details]
        self._folds = widgets.Accordion(self._shown, titles=tuple(self._details))
        for name, control in self.controls.items():
            control.observe(self._load if name == "start" else self._apply, "value")
        self._folds.observe(lambda _: self._show_details(), "selected_index")
        settings = widgets.VBox([*self.controls.values(), self._message])
        top = widgets.HBox([settings, self._facts], layout={"flex_flow": "row wrap"})
        super().__init__([top, self._picture, self._folds])
        self._load()

    def __repr__(self) -> str:
        """What a notebook shows where widgets are not drawn, as in a report."""
        return f"ArchitectureExplorer: {describe_drawing(self.architecture)} (live in JupyterLab)"

    @property
    def size(self) -> Size:
        """Of the network on the bench."""
        return measure_size(self.architecture)

    @property
    def yaml(self) -> str:
        """The `architecture:` block to paste into a file of `params/`."""
        return to_yaml(self.architecture)

    def _load(self, _: Any = None) -> None:
        """Put every control as the chosen variant has it, then show that network once."""
        architecture = load_experiment(self.controls["start"].value).architecture
        attention = architecture.squeeze_excitation
        values = {
            "block": architecture.block,
            "depths": _add_run(architecture.depths),
            "widths": _add_run(architecture.widths),
            "dropout": architecture.dropout or self.controls["dropout"].value,
            "conv_bias": architecture.conv_bias,
            "placement": attention.placement,
            "reduction": attention.reduction,
        }
        self._loading = True
        for name, value in values.items():
            self.controls[name].value = value
        self._loading = False
        self._apply()

    def _apply(self, _: Any = None) -> None:
        """Show the network that the controls describe, or what is wrong with it."""
        if self._loading:
            return
        values = {name: control.value for name, control in self.controls.items()}
        dropout, attention = values["block"] == "dropout", values["placement"] != "none"
        self.controls["dropout"].disabled = not dropout
        self.controls["reduction"].disabled = not attention
        settings = {
            "block": values["block"],
            "depths": values["depths"],
            "widths": values["widths"],
            "conv_bias": values["conv_bias"],
            "dropout": values["dropout"] if dropout else 0.0,
            "squeeze_excitation.placement": values["placement"],
            "squeeze_excitation.reduction": values["reduction"] if attention else 16,
        }
        if strides := load_experiment(values["start"]).architecture.strides:
            stages = len(values["depths"].split(","))  # those beyond the strides halve
            settings["strides"] = (strides + (2,) * stages)[:stages]
        overrides = {f"architecture.{name}": value for name, value in settings.items()}
        try:
            architecture = load_experiment(values["start"], **overrides).architecture
            measure_size(architecture)  # which refuses what is absurdly large
            self.architecture, self.error = architecture, ""
        except ConfigError as error:
            self.error = re.sub(r"^override: (architecture[.:] ?)?", "", str(error))
        self._show()

    def _show(self) -> None:
        self._message.value = (
            f'<div role="alert" style="color: {ORANGE}; max-width: 24em; line-height: 1.4">'
            f"{html.escape(self.error)}<br>Shown is the last network that could be built.</div>"
            if self.error
            else ""
        )
        if self.error:
            return
        facts = describe_architecture(self.architecture, self._budget)
        del facts["budget"]  # which stands beneath its bar
        bar = budget_bar(self.size.parameters, self._budget)
        self._facts.value = bar + _table(tables.facts(facts))
        axes = draw(self.architecture)
        self._picture.value = _image(axes, describe_drawing(self.architecture))
        self._show_details()

    def _show_details(self) -> None:
        """Only what is unfolded is made."""
        if (index := self._folds.selected_index) is not None:
            make = list(self._details.values())[index]
            self._shown[index].value = make(self.architecture)


def budget_bar(parameters: int, budget: int) -> str:
    """HTML: how much of the budget is used, as a bar and in words."""
    over = parameters > budget
    words = describe_budget(parameters, budget)
    filled, color = min(100, 100 * parameters / budget), ORANGE if over else BLUE
    hatch = "repeating-linear-gradient(45deg, transparent 0 6px, rgba(255, 255, 255, .5) 6px 12px)"
    return (
        f'<div style="width: 48em; max-width: 100%; line-height: 1.8">'
        f'<div style="border: 1px solid #777; height: 16px; background: #eee">'
        f'<div style="width: {filled:.2f}%; height: 100%; background-color: {color};'
        f' background-image: {hatch if over else "none"}"></div></div>'
        f"<b>{words}</b></div>"
    )


def _controls(variant: str) -> dict[str, widgets.Widget]:
    """By name, in the order in which they stand."""
    return {
        "start": widgets.Dropdown(
            options=list_variants(), value=variant, description="start from", **LABEL
        ),
        "block": widgets.Dropdown(
            options=["basic", "dropout", "preact", "pooled"], description="block", **LABEL
        ),
        "depths": widgets.Text(description="depths", placeholder="blocks a stage: 1,1,1", **LABEL),
        "widths": widgets.Text(
            description="widths", placeholder="channels a stage: 16,32,64", **LABEL
        ),
        "dropout": widgets.FloatSlider(
            value=0.4, min=0, max=0.95, step=0.05, description="dropout", **LABEL
        ),
        "conv_bias": widgets.Checkbox(description="biases in convolutions", **LABEL),
        "placement": widgets.Dropdown(
            options=[("none", "none"), ("after the stem", "stem"), ("in every block", "block")],
            description="attention",
            **LABEL,
        ),
        "reduction": widgets.BoundedIntText(
            value=16, min=1, max=1024, description="reduction", **LABEL
        ),
    }


def _details(budget: int) -> dict[str, Callable[[Architecture], str]]:
    """What can be unfolded beneath the picture: a title, and what makes it."""
    return {
        "Stage by stage": lambda a: _table(tables.figures(stages(a))),
        "Beside the published networks": lambda a: _comparison(a, budget),
        "All designs of this family within the budget": lambda a: _designs(a, budget),
        "Summary table": _summary,
        "For params/<name>.yaml": lambda a: f"<pre>{html.escape(to_yaml(a))}</pre>",
    }


def _comparison(architecture: Architecture, budget: int) -> str:
    table = rank_by_size(architecture)
    axes = sizes(published(), budget, table.loc["this design"])
    text = "Parameters against multiply-accumulates of the published networks and of this design"
    return _image(axes, text) + _table(tables.figures(table, precision=4))


def _designs(architecture: Architecture, budget: int) -> str:
    found = search(architecture, budget=budget)
    table = _table(tables.figures(found.head(20))) if len(found) else ""
    return f"{len(found):,} designs within the budget; the largest are:{table}"


def _summary(architecture: Architecture) -> str:
    parameters = measure_size(architecture).parameters
    if parameters > MOST_BUILT:
        return f"No table: that takes a real network, and {parameters:,} parameters are too many."
    return f"<pre>{html.escape(model_summary(build_model(architecture)))}</pre>"


def _table(content: Styler) -> str:
    """In JupyterLab's own look, which tables in widgets are otherwise without."""
    return (
        f'<div class="jp-RenderedHTMLCommon" style="width: fit-content">{content.to_html()}</div>'
    )


def _image(axes: list[Axes], text: str) -> str:
    """The figure as an `img` of SVG; closes it."""
    encoded = base64.b64encode(figure_svg(axes[0])).decode()
    source = f"data:image/svg+xml;base64,{encoded}"
    style = "width: 1000px; max-width: 100%; background: white"
    return f'<img src="{source}" alt="{html.escape(text)}" style="{style}">'


def _add_run(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))
