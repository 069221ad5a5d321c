"""Reports: one run, all runs, the results table."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "leaderboard": [
            "experiments",
            "format_accuracy",
            "latex_table",
            "main",
            "markdown_table",
            "own_recipes",
            "results_table",
            "text_table",
            "with_table",
            "without_seed",
        ],
        "page": ["write_index"],
        "ranking": ["best_for_size", "significantly_best", "with_statistics", "within_budget"],
        "run_report": ["clean_html", "report_html", "sections", "summary", "write_report"],
    },
)
