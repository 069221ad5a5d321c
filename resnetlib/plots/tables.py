"""Styled tables for notebooks: plain data in, a pandas Styler out."""

from collections.abc import Mapping

import pandas as pd
from pandas.io.formats.style import Styler

_LEFT = [{"selector": "th, td", "props": "text-align: left"}]
_RIGHT = [{"selector": "th.col_heading, td", "props": "text-align: right"}]


def format_facts(content: Mapping[str, str]) -> Styler:
    """Names and what is to be said of them, in two columns; nothing is cut short."""
    frame = pd.DataFrame({"": content.values()}, index=list(content))
    return frame.style.format(escape="html").hide(axis="columns").set_table_styles(_LEFT)


def format_table(frame: pd.DataFrame, precision: int = 3) -> Styler:
    """A table of numbers: right-aligned, thousands separated, one precision; – where none is."""
    return (
        frame.style.format(precision=precision, thousands=",", na_rep="–", escape="html")
        .format_index(escape="html")
        .set_table_styles(_RIGHT)
    )
