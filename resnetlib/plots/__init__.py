"""Figures and tables. Nothing is displayed or saved, except by `LiveCurves`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "architecture": ["describe_drawing", "draw"],
        "errors": [
            "confusion_difference",
            "difference_intervals",
            "embedding",
            "heat_rows",
            "image_rows",
            "robustness",
        ],
        "leaderboard": ["claimed_accuracy", "overlaid_curves", "pareto_front", "sizes"],
        "live": ["LiveCurves"],
        "run": [
            "before_after",
            "class_balance",
            "confusion",
            "curves",
            "image_grid",
            "mistakes",
            "reliability",
        ],
        "style": ["drawable_names", "variant_color"],
        "tables": ["expectations", "explain_losses"],
    },
)
