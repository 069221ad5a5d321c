"""The interactive architecture explorer for JupyterLab."""

import base64
import html
import re
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from matplotlib.axes import Axes
from pandas.io.formats.style import Styler

from ..config import known_variants, load_experiment
from ..errors import ConfigError
from ..experiment import DEFAULT_BUDGET
from ..plots.architecture import describe_drawing, draw
from ..plots.leaderboard import sizes
from ..plots.style import figure_svg
from ..plots.tables import format_facts, format_table
from ..resnet import build_model
from ..schema import PREACTIVATED, Architecture, block_names
from ..size import (
    Size,
    check_counts,
    describe_budget,
    describe_size,
    measure_size,
    model_summary,
    stages,
)
from .designs import published, rank_by_size, search, to_yaml

BLUE, VERMILION = "#0173b2", "#d55e00"  # of seaborn's colour-blind safe palette
DROPOUT = 0.4  # of block `dropout` where the start has none; as in the variant of this name
MAX_SUMMARY = 50_000_000  # parameters of a network with a summary table: 200 MB, twice
LABEL = {"style": {"description_width": "7em"}, "layout": {"width": "24em"}}
AT_END = LABEL | {"continuous_update": False}  # drawn after Enter, not at each key


class ArchitectureExplorer(widgets.VBox):
    """Controls, facts, budget bar and drawing of one network, `explorer.architecture`.

    `explorer.controls` are the controls by name; to set their `value` has the effect of using them.
    Invalid settings leave the last valid network in place; `explorer.error` says what is wrong.

    Args:
        variant: the network to start from.
        budget: trainable parameters that a network may have.
    """

    def __init__(self, variant: str = "lite", budget: int = DEFAULT_BUDGET):
        check_counts(budget=[budget])
        self.architecture: Architecture = load_experiment(variant).architecture
        self.error = ""
        self._budget = budget
        self.controls = _controls(variant)
        self._loading = False
        self._message, self._facts, self._drawing = (widgets.HTML() for _ in range(3))
        self._facts.layout.margin = "0 0 0 2em"
        self._details = _details(budget)
        self._pages = [widgets.HTML() for _ in self._details]
        self._folds = widgets.Accordion(self._pages, titles=tuple(self._details))
        for name, control in self.controls.items():
            control.observe(self._load if name == "start" else self._apply, "value")
        self._folds.observe(lambda _: self._show_details(), "selected_index")
        settings = widgets.VBox([*self.controls.values(), self._message])
        top = widgets.HBox([settings, self._facts], layout={"flex_flow": "row wrap"})
        super().__init__([top, self._drawing, self._folds])
        self._load()

    def __repr__(self) -> str:
        """The text in place of the widget where there is no JavaScript, as in a report."""
        return f"ArchitectureExplorer: {describe_drawing(self.architecture)} (live in JupyterLab)"

    @property
    def size(self) -> Size:
        """Parameters and multiply-accumulates of the network."""
        return measure_size(self.architecture)

    @property
    def yaml(self) -> str:
        """The `architecture:` block to paste into a file of `params/`."""
        return to_yaml(self.architecture)

    def _load(self, _: Any = None) -> None:
        """Set every control to the chosen variant's value, then display that network once."""
        try:
            self._start = load_experiment(self.controls["start"].value).architecture
        except ConfigError as error:
            self._start, self.error = None, str(error)
            return self._show()
        start, attention = self._start, self._start.squeeze_excitation
        values = {
            "block": start.block,
            "depths": _comma_separated(start.depths),
            "widths": _comma_separated(start.widths),
            "dropout": start.dropout or (0.0 if start.block == "dropout" else DROPOUT),
            "conv_bias": start.conv_bias,
            "placement": attention.placement,
            "reduction": attention.reduction,
        }
        self._loading = True
        for name, value in values.items():
            self.controls[name].value = value
        self._loading = False
        self._apply()

    def _apply(self, _: Any = None) -> None:
        """Display the network that the controls describe, or what is wrong with it."""
        if self._loading:
            return None
        if self._start is None:  # its file could not be read, and may be put right
            return self._load()
        values = {name: control.value for name, control in self.controls.items()}
        dropout, attention = values["block"] == "dropout", values["placement"] != "none"
        self.controls["dropout"].disabled = not dropout
        self.controls["reduction"].disabled = not attention
        start = self._start
        settings = {name: values[name] for name in ("block", "depths", "widths", "conv_bias")}
        if dropout or start.block == "dropout":  # the control is of that block
            settings["dropout"] = values["dropout"] if dropout else 0.0
        depths = [part.strip() for part in values["depths"].split(",") if part.strip()]
        settings["squeeze_excitation"] = {"placement": "none"}
        if attention:
            given = {name: values[name] for name in ("placement", "reduction")}
            if values["placement"] == "stem" or depths != list(map(str, start.depths)):
                given["blocks"] = None  # numbers of the start's blocks
            settings["squeeze_excitation"] = start.squeeze_excitation.model_dump() | given
        settings |= _refit(start, values["block"], len(depths))
        overrides = {f"architecture.{name}": value for name, value in settings.items()}
        try:
            self.architecture = load_experiment(values["start"], **overrides).architecture
            self.error = ""
        except ConfigError as error:
            self.error = re.sub(r"^override: (architecture[.:] ?)?", "", str(error))
        self._show()

    def _show(self) -> None:
        self._message.value = (
            f'<div role="alert" style="color: {VERMILION}; max-width: 24em; line-height: 1.4">'
            f"{html.escape(self.error)}<br>The last valid network is displayed.</div>"
            if self.error
            else ""
        )
        if self.error:
            return
        bar = budget_bar(self.size.parameters, self._budget)
        facts = describe_size(self.architecture, memory=True)
        self._facts.value = bar + _table(format_facts(facts))
        axes = draw(self.architecture)
        self._drawing.value = _image(axes, describe_drawing(self.architecture))
        self._show_details()

    def _show_details(self) -> None:
        """Compute only the page that is unfolded."""
        if (index := self._folds.selected_index) is not None:
            make = list(self._details.values())[index]
            try:
                page = make(self.architecture)
            except ConfigError as error:
                page = html.escape(str(error))
            self._pages[index].value = page


def _refit(start: Architecture, block: str, stages: int) -> dict[str, Any]:
    """What this block or number of stages would refuse of the start, as they can have it.

    Of what is set per stage the last value is repeated; stages beyond the strides halve.
    """
    kernels, strides = start.shortcut.kernel, start.strides
    per_stage = {
        "activation": (start.activation, stages + 1),
        "conv_kind": (start.conv_kind, stages),
        "conv_kernel": (start.conv_kernel, stages),
        "shortcut.kernel": (kernels if block != "pooled" else (), stages),
        "strides": ((*strides, 2) if strides else (), stages),
    }
    settings: dict[str, Any] = {
        name: (values + values[-1:] * count)[:count]
        for name, (values, count) in per_stage.items()
        if len(values) > 1
    }
    if block == "pooled":  # its shortcut is the identity
        settings["shortcut"] = {}
    elif block != "preact":
        settings["shortcut.input"] = "activated"
    if block in PREACTIVATED and start.dropout_place == "addition":
        settings["dropout_place"] = "output"  # the same where nothing follows the addition
    return settings


def budget_bar(parameters: int, budget: int) -> str:
    """HTML: how much of the budget is used, as a bar and as text."""
    over = parameters > budget
    text = describe_budget(parameters, budget)
    filled, color = min(100, 100 * parameters / budget), VERMILION if over else BLUE
    hatch = "repeating-linear-gradient(45deg, transparent 0 6px, rgba(255, 255, 255, .5) 6px 12px)"
    return (
        f'<div style="width: 48em; max-width: 100%; line-height: 1.8">'
        f'<div style="border: 1px solid #777; height: 16px; background: #eee">'
        f'<div style="width: {filled:.2f}%; height: 100%; background-color: {color};'
        f' background-image: {hatch if over else "none"}"></div></div>'
        f"<b>{text}</b></div>"
    )


def _controls(variant: str) -> dict[str, widgets.Widget]:
    """The controls by name, in their order on the page."""
    names = known_variants()
    names = names if variant in names else [variant, *names]  # the path of a file
    return {
        "start": widgets.Dropdown(options=names, value=variant, description="start from", **LABEL),
        "block": widgets.Dropdown(options=block_names(), description="block", **LABEL),
        "depths": widgets.Text(
            description="depths", placeholder="blocks per stage: 1,1,1", **AT_END
        ),
        "widths": widgets.Text(
            description="widths", placeholder="channels per stage: 16,32,64", **AT_END
        ),
        "dropout": widgets.FloatSlider(min=0, max=0.95, step=0.05, description="dropout", **AT_END),
        "conv_bias": widgets.Checkbox(description="biases in convolutions", **LABEL),
        "placement": widgets.Dropdown(
            options=[
                ("none", "none"),
                ("after the stem", "stem"),
                ("in the blocks", "block"),
                ("after their addition", "addition"),
            ],
            description="attention",
            **LABEL,
        ),
        "reduction": widgets.BoundedIntText(
            value=16, min=1, max=1024, description="reduction", **LABEL
        ),
    }


def _details(budget: int) -> dict[str, Callable[[Architecture], str]]:
    """The pages below the drawing: titles, and functions that return HTML."""
    return {
        "Stage by stage": lambda a: _table(format_table(stages(a))),
        "Beside the variants of params/": lambda a: _comparison(a, budget),
        "All designs of this family within the budget": lambda a: _designs(a, budget),
        "Summary table": _summary,
        "For params/<name>.yaml": lambda a: f"<pre>{html.escape(to_yaml(a))}</pre>",
    }


def _comparison(architecture: Architecture, budget: int) -> str:
    table = rank_by_size(architecture)
    axes = sizes(published(), budget, table.loc["this design"])
    text = "Parameters against multiply-accumulates of the variants and of this design"
    return _image(axes, text) + _table(format_table(table, precision=4))


def _designs(architecture: Architecture, budget: int) -> str:
    found = search(architecture, budget=budget)
    if found.empty:
        return "No design of this family fits."
    table = _table(format_table(found.head(20)))
    return f"{len(found):,} designs within the budget; the largest are:{table}"


def _summary(architecture: Architecture) -> str:
    parameters = measure_size(architecture).parameters
    if parameters > MAX_SUMMARY:
        return f"No table: {parameters:,} parameters are too many to build the network for it."
    return f"<pre>{html.escape(model_summary(build_model(architecture)))}</pre>"


def _table(content: Styler) -> str:
    """In JupyterLab's own style, which tables in widgets do not have by themselves."""
    return (
        f'<div class="jp-RenderedHTMLCommon" style="width: fit-content">{content.to_html()}</div>'
    )


def _image(axes: list[Axes], text: str) -> str:
    """The figure as an `img` of SVG; closes it."""
    encoded = base64.b64encode(figure_svg(axes[0])).decode()
    source = f"data:image/svg+xml;base64,{encoded}"
    style = "width: 1000px; max-width: 100%; background: white"
    return f'<img src="{source}" alt="{html.escape(text)}" style="{style}">'


def _comma_separated(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))
