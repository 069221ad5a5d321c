"""Reports: one run, all runs, the results table."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "leaderboard": [
            "answer",
            "best_for_size",
            "experiments",
            "main",
            "markdown_table",
            "own_recipes",
            "results",
            "significantly_best",
            "text_table",
            "verdict",
            "with_table",
            "without_seed",
        ],
        "page": ["write_index"],
        "run_report": ["clean_html", "report_html", "sections", "summary", "write_report"],
    },
)
