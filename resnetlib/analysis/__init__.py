"""Questions about finished runs: significance, calibration, errors, attribution, corruptions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attribution": ["embeddings", "grad_cam", "tsne"],
        "calibration": ["Calibrated", "calibrated", "fit_temperature", "held_out"],
        "comparison": ["Pair", "Selection", "find_label", "finished_runs", "select"],
        "corruptions": [
            "Corruption",
            "caption",
            "corrupt",
            "drops",
            "examples",
            "images_to_damage",
            "robustness",
            "verdict",
        ],
        "errors": ["confused_pairs", "evaluation_settings", "surest_mistakes", "taken_for"],
        "significance": [
            "Comparison",
            "SeedComparison",
            "against",
            "compare",
            "compare_seeds",
            "holm",
            "points",
            "probability",
            "seeds_in_words",
        ],
    },
)
