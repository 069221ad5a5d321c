"""Many runs: grids, searches, on this machine, on a Ray cluster, under Slurm."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cluster": ["Cluster", "connect", "pack_folder", "run_on_node", "unpack_folder"],
        "command": [
            "Place",
            "plan_table",
            "results_summary",
            "sweep_grid",
            "sweep_search",
            "write_slurm",
        ],
        "display": ["Display"],
        "grid": [
            "alternatives",
            "each_note_once",
            "expand_grid",
            "read_alternatives",
            "split_outside_brackets",
        ],
        "pool": ["LocalPool", "Needs", "count_cores", "visible_gpus"],
        "process": ["Exit", "RunProcess", "end_with_stdin", "lower_priority", "wait_for"],
        "scheduler": ["Engine", "Outcome", "Scheduler", "carry_out", "exit_code"],
        "study": ["Range", "Search", "read_range"],
        "slurm": ["format_time", "slurm_script", "write_slurm_script"],
        "task": ["Task", "describe", "format_value"],
    },
)
