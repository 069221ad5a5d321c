"""Reports: one run, all runs, the results table, grades of submissions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "grade": [
            "Assignment",
            "Grade",
            "GradingData",
            "Similarity",
            "Submission",
            "autograde",
            "compare_grades",
            "find_submissions",
            "format_grades",
            "grade_submission",
            "grades_json",
            "near_identical",
            "results_of",
            "write_autograder",
        ],
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
        ],
        "page": ["write_index"],
        "ranking": ["best_for_size", "significantly_best", "with_statistics", "within_budget"],
        "run_report": ["clean_html", "report_html", "sections", "summary", "write_report"],
    },
)
