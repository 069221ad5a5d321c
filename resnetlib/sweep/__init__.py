"""Many runs: grids, searches, on this machine, on a Ray cluster, under Slurm."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
