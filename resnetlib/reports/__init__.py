"""Reports: one run, all runs, the results table."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "leaderboard": [
            "best_for_size",
            "experiments",
            "format_significance",
            "headline",
            "main",
            "markdown_table",
            "own_recipes",
            "results_table",
            "significantly_best",
            "text_table",
            "with_table",
            "without_seed",
        ],
        "page": ["write_index"],
        "run_report": ["clean_html", "report_html", "sections", "summary", "write_report"],
    },
)
