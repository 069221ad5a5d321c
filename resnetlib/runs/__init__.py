"""Run folders: train, find, read and write them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "find": ["reference_runs"],
        "imports": ["import_weights"],
        "record": ["artifact_checksums", "write_record"],
    },
)
