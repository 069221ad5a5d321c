"""Questions about finished runs: significance, calibration, errors, attribution, corruptions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attribution": ["embeddings", "grad_cam", "tsne"],
        "calibration": ["calibrated", "held_out"],
        "comparison": ["compare_runs"],
        "errors": [
            "confused_pairs",
            "evaluation_settings",
            "misclassified_as",
            "most_confident_errors",
        ],
    },
)
