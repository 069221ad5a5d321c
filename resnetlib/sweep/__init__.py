"""Many runs: grids, searches, on this machine, on a Ray cluster, under Slurm."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "pool": ["LocalPool", "Needs", "visible_gpus"],
        "scheduler": ["carry_out", "exit_code"],
        "task": ["Task"],
    },
)
