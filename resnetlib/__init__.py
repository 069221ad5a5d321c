"""A workbench for reproducible image-classification experiments under a parameter budget.

    from resnetlib import load_experiment, train

    run = train(load_experiment("lite", dataset="digits", epochs=10))
    run.metrics["test_accuracy"], run.history, run.model()

- `list_variants()`: the names of the variants in `params/`.
- `load_experiment(variant, **overrides)`: a variant with its network, recipe and settings.
- `experiment_from_notebook()`: the same from a notebook's parameters.
- `train(experiment)`: train or resume it, and return the `Run`.
- `load_run(folder)`: a `Run` from its folder.
- `load_pretrained(variant)`: a network with the recorded weights of this project.
- `load_dataset(name)`: CIFAR-10 or the digits as uint8 tensors.
- `build_model(architecture)`, `count_parameters(model)`, `model_summary(model)`: a network, its
  trainable parameters, its table of layers.
- `evaluate(model, images, labels, mean=…, std=…)`: accuracy, confusion and calibration.
"""

import lazy_loader

# The names of `__init__.pyi`, which editors read, are imported when they are first used:
# `resnetlib --help` does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
