"""A workbench for reproducible image-classification experiments under a parameter budget."""

from .config import list_variants, load_experiment
from .data import load_dataset
from .evaluate import evaluate
from .notebook import experiment_from_notebook
from .resnet import build_model, count_parameters, model_summary
from .runs import load_pretrained, load_run
from .train import train

__all__ = [
    "build_model",
    "count_parameters",
    "evaluate",
    "experiment_from_notebook",
    "list_variants",
    "load_dataset",
    "load_experiment",
    "load_pretrained",
    "load_run",
    "model_summary",
    "train",
]
