"""A workbench for reproducible image-classification experiments under a parameter budget."""

import lazy_loader

# Names are imported when they are first used: `resnetlib --help` does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["list_variants", "load_experiment"],
        "data": ["load_dataset"],
        "evaluation": ["evaluate"],
        "notebook": ["experiment_from_notebook"],
        "resnet": ["build_model"],
        "size": ["count_parameters", "model_summary"],
        "runs.find": ["load_pretrained"],
        "runs.run": ["load_run"],
        "runs.lifecycle": ["train"],
    },
)
