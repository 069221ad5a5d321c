"""Attribution of one network: Grad-CAM, embeddings and their map."""

import pytest
import torch
from torch import nn

from resnetlib import build_model, load_experiment
from resnetlib.analysis.attribution import embeddings, grad_cam, tsne
from resnetlib.evaluation import evaluate, normalize

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(params=["lite", "preact"])
def model(request):
    overrides = {"block": "preact"} if request.param == "preact" else {}
    experiment = load_experiment("lite", depths=[1, 1], widths=[8, 16], **overrides)
    return build_model(experiment.architecture, seed=3)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (5, 3, 32, 32), generator=generator, dtype=torch.uint8)


def state_of(model):
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    grads = [p.grad for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    return tensors, [m.training for m in model.modules()], hooks, grads, flags


def assert_unchanged(model, before):
    tensors, *rest = before
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())
    assert state_of(model)[1:] == tuple(rest)


def test_grad_cam_at_the_last_feature_map_is_cam(model, images):
    """Before a global mean and a linear layer the gradient is that layer's weights over h w."""
    classes = torch.tensor([0, 3, 3, 9, 1])
    maps = grad_cam(model, images, classes, **RAW)
    model.eval()
    with torch.no_grad():
        x = normalize(images, **RAW)
        features = model.final_activation(model.stages(model.stem_activation(model.stem(x))))
        cam = torch.einsum("nc,nchw->nhw", model.linear.weight[classes], features)
    assert maps.shape == (5, 16, 16)
    assert (cam < 0).any() and (cam > 0).any()
    torch.testing.assert_close(maps, cam.clamp_min(0) / 16**2)


def test_grad_cam_refuses_normalised_images(model, images):
    with pytest.raises(ValueError, match=r"images are torch\.float32; grad_cam takes a uint8"):
        grad_cam(model, normalize(images, **RAW), torch.zeros(5, dtype=torch.int64), **RAW)


def test_grad_cam_of_no_image_is_empty(model, images):
    assert len(grad_cam(model, images[:0], torch.zeros(0, dtype=torch.int64), **RAW)) == 0


def test_grad_cam_matches_a_calculation_by_hand():
    """The mean gradients of two channels are 1 and -1: the first minus the second."""
    network = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(3 * 4, 2))
    network[2].weight.data[1] = torch.tensor([4, 0, 0, 0, 0, -2, -2, 0, 0, 0, 0, 0]).float()
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, 0] = torch.tensor([[255, 102], [0, 0]])
    image[0, 1] = torch.tensor([[0, 51], [255, 0]])
    maps = grad_cam(network, image, torch.tensor([1]), **RAW, layer="0")
    torch.testing.assert_close(maps, torch.tensor([[[1.0, 0.2], [0.0, 0.0]]]))


def test_grad_cam_accepts_any_layer(model, images):
    maps = grad_cam(model, images, torch.zeros(5, dtype=torch.int64), **RAW, layer="stages.0")
    assert maps.shape == (5, 32, 32)


def test_embeddings_are_inputs_of_the_linear_layer(model, images):
    features = embeddings(model, images, **RAW)
    logits = evaluate(model, images, torch.zeros(5, dtype=torch.int64), **RAW).logits
    torch.testing.assert_close(model.linear(features), logits)


@pytest.mark.parametrize("training", [True, False])
def test_attribution_does_not_change_the_model(model, images, training):
    model.train(training)
    model.stem[0].weight.requires_grad_(False)
    before = state_of(model)
    grad_cam(model, images, torch.zeros(5, dtype=torch.int64), **RAW)
    embeddings(model, images, **RAW)
    assert_unchanged(model, before)


@pytest.mark.slow
def test_tsne_is_deterministic_and_separates_groups():
    groups = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    features = (groups + 20 * torch.eye(8)[:3, None]).flatten(0, 1)
    points = tsne(features, seed=1)
    assert points.shape == (60, 2)
    assert (points == tsne(features, seed=1)).all()
    middles = torch.from_numpy(points).view(3, 20, 2).mean(1)
    spread = (torch.from_numpy(points).view(3, 20, 2) - middles[:, None]).norm(dim=-1).max()
    assert torch.pdist(middles).min() > spread
