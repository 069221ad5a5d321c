"""Run folders: train, find, read and write them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "artifacts": [
            "run_metrics",
            "timing",
            "write_figures",
            "write_history",
            "write_predictions",
            "write_results",
        ],
        "checkpoint": [
            "Checkpointer",
            "describe_saved",
            "drop_checkpoints",
            "load_checkpoint",
            "save_checkpoint",
            "to_bytes",
        ],
        "estimate": ["estimate_epoch_seconds"],
        "find": [
            "find_run",
            "find_runs",
            "load_pretrained",
            "machine_of",
            "reference_runs",
            "split_unreadable",
        ],
        "lifecycle": ["check_experiment", "clear", "train"],
        "record": [
            "artifact_checksums",
            "artifact_paths",
            "check_fingerprint",
            "describe_environment",
            "fingerprint",
            "make_folder",
            "new_record",
            "now",
            "write_record",
        ],
        "run": ["Run", "load_run"],
    },
)
