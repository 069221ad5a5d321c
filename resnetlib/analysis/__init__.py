"""Questions about finished runs: significance, calibration, errors, attribution, corruptions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attribution": ["embeddings", "grad_cam", "tsne"],
        "calibration": ["Calibrated", "calibrated", "fit_temperature", "held_out"],
        "comparison": ["RunPair", "compare_runs", "seed_statistics"],
        "corruptions": [
            "Corruption",
            "accuracy_drops",
            "caption",
            "corrupt",
            "corruption_sample_size",
            "describe_robustness",
            "examples",
            "robustness",
        ],
        "errors": [
            "confused_pairs",
            "evaluation_settings",
            "misclassified_as",
            "most_confident_errors",
        ],
        "significance": [
            "Comparison",
            "SeedComparison",
            "SeedStatistics",
            "compare_networks",
            "compare_predictions",
            "compare_recipes",
            "compare_seeds",
            "compare_to_reference",
            "format_p_value",
            "format_points",
            "format_seeds",
            "holm",
            "sampling_sd",
        ],
    },
)
