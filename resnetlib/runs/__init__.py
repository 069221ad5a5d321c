"""Run folders: train, find, read and write them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "artifacts": [
            "redraw_figures",
            "run_metrics",
            "timing",
            "write_figures",
            "write_history",
            "write_predictions",
            "write_results",
        ],
        "checkpoint": [
            "Checkpointer",
            "checkpoint_checksums",
            "describe_saved",
            "drop_checkpoints",
            "last_position",
            "load_checkpoint",
            "remove_temporaries",
            "save_checkpoint",
            "to_bytes",
        ],
        "estimate": ["estimate_epoch_seconds"],
        "find": [
            "find_run",
            "find_runs",
            "finished_runs",
            "keeps",
            "load_pretrained",
            "machine_of",
            "reference_runs",
            "split_unreadable",
        ],
        "interrupts": ["StopOnSignal", "leave"],
        "lifecycle": ["check_experiment", "start_over", "train"],
        "record": [
            "artifact_checksums",
            "artifact_paths",
            "check_fingerprint",
            "describe_environment",
            "fingerprint",
            "make_folder",
            "new_record",
            "now",
            "step_source",
            "write_record",
        ],
        "run": ["Run", "load_run"],
        "verify": [
            "Evidence",
            "Result",
            "format_results",
            "overall",
            "results_json",
            "verify_runs",
        ],
    },
)
