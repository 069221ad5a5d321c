"""Grad-CAM, embeddings and t-SNE: which parts of an image count, and which images are similar."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..evaluation import evaluate, normalize, require_uint8

PRINCIPAL = 50  # components kept before t-SNE (van der Maaten & Hinton 2008, section 4.2: 30)
PERPLEXITY = 30  # scikit-learn's default


def grad_cam(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    layer: str = "final_activation",
) -> Tensor:
    """Where a layer's features support a class: float32 (N, h, w), 0 where they do not.

    ReLU of the sum over channels of activation times the mean gradient of the class's logit
    (Selvaraju et al. 2017, eq. 1 and 2; captum's `LayerGradCam`). h × w is the layer's resolution.
    Works on a copy of the model.

    Args:
        model: the network.
        images: uint8 (N, 3, H, W).
        classes: one class per image, int64 (N,).
        mean: per channel, for normalisation.
        std: per channel, for normalisation.
        layer: name of the submodule; by default the last feature map.
    """
    from captum.attr import LayerGradCam  # slow to import

    require_uint8(images, "grad_cam takes a uint8 tensor and normalises itself")
    if not len(images):
        return torch.empty(0, 1, 1)
    replica = copy.deepcopy(model).eval()
    device = next(replica.parameters()).device
    inputs = normalize(images.to(device), mean, std).requires_grad_()
    maps = LayerGradCam(replica, replica.get_submodule(layer)).attribute(
        inputs, classes.to(device), relu_attributions=True
    )  # (N, 1, h, w)
    return maps[:, 0].detach().cpu()


def embeddings(
    model: nn.Module,
    images: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "auto",
) -> Tensor:
    """Inputs of the last layer: float32 (N, C) on the CPU, for uint8 images (N, 3, H, W).

    The settings are those of `evaluate`. Works on a copy of the model.
    """
    replica = copy.deepcopy(model)
    features: list[Tensor] = []
    replica.linear.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].cpu()))
    no_labels = torch.zeros(len(images), dtype=torch.int64)
    evaluate(replica, images, no_labels, mean=mean, std=std, device=device)
    return torch.cat(features)


def tsne(features: Tensor, seed: int = 0) -> np.ndarray:
    """Two coordinates (N, 2) for each row of features (N, C): PCA, then t-SNE (scikit-learn)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    components = min(PRINCIPAL, *features.shape)
    reduced = PCA(components, random_state=seed).fit_transform(features.numpy())
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(reduced)
