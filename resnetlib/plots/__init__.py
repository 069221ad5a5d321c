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
        "leaderboard": [
            "accuracy_against",
            "claimed_accuracy",
            "overlaid_curves",
            "pareto_front",
            "published_against_reproduced",
            "sizes",
        ],
        "live": ["LiveCurves"],
        "run": [
            "before_after",
            "class_balance",
            "confusion",
            "curves",
            "draw_history",
            "image_grid",
            "mistakes",
            "reliability",
        ],
        "style": [
            "class_matrix",
            "color_limit",
            "figure_png",
            "drawable",
            "drawable_names",
            "figure_style",
            "figure_svg",
            "variant_color",
        ],
        "tables": ["explain_losses", "expectations", "format_facts", "format_table"],
    },
)
