"""Weights from other programs: reading them, and matching them to a network by name or in order."""

import argparse
import os
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from resnetlib import build_model, load_experiment
from resnetlib.errors import DataError
from resnetlib.runs import matching
from resnetlib.runs.matching import COUNTERS, match_weights, read_weights


class Block(nn.Module):
    """As in most scripts for CIFAR-10."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class AttentionBlock(Block):
    def __init__(self, inputs, outputs, stride):
        super().__init__(inputs, outputs, stride)
        self.fc1 = nn.Linear(outputs, outputs // 16)
        self.fc2 = nn.Linear(outputs // 16, outputs)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(out.mean((2, 3))))))
        out = out * scale[:, :, None, None]
        return F.relu(out + self.shortcut(x))


class PreActBlock(nn.Module):
    """As in most scripts for wide networks: the shortcut comes last."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.convShortcut(out) if self.convShortcut else x
        out = F.relu(self.bn2(self.conv1(out)))
        return self.conv2(out) + shortcut


class Network(nn.Module):
    def __init__(self, block=Block, depths=(2, 1), widths=(16, 32)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.preact = block is PreActBlock
        if not self.preact:
            self.bn1 = nn.BatchNorm2d(widths[0])
        channels = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            blocks = nn.Sequential()
            for number in range(depth):
                stride = 2 if stage > 1 and number == 0 else 1
                blocks.append(block(channels, width, stride))
                channels = width
            setattr(self, f"layer{stage}", blocks)
        if self.preact:
            self.bn1 = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, 10)

    def forward(self, x):
        out = self.conv1(x)
        out = out if self.preact else F.relu(self.bn1(out))
        out = self.layer2(self.layer1(out))
        out = F.relu(self.bn1(out)) if self.preact else out
        return self.linear(out.mean((2, 3)))


def network_by_hand(block=Block):
    """A network with weights and statistics that no other has."""
    torch.manual_seed(3)
    network = Network(block)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (*module.parameters(), module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5)
    return network.eval()


def own_weights(**settings):
    """The variant's network and its weights without counters."""
    settings = {"depths": [2, 1], "widths": [16, 32]} | settings
    experiment = load_experiment("lite", **{f"architecture.{k}": v for k, v in settings.items()})
    model = build_model(experiment.architecture).eval()
    return model, without_counters(model)


def without_counters(network):
    state = network.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.endswith(COUNTERS)}


def renamed(weights, rules):
    """The weights in their order, with each rule (pattern, replacement) applied to each name."""
    new = OrderedDict()
    for name, tensor in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        new[name] = tensor
    return new


LAYOUTS = {  # rules that make the names of other programs from those of `Network`
    "kuangliu": [],
    "torchvision": [("shortcut", "downsample"), ("linear", "fc")],
    "DataParallel": [("^", "module.")],
    "torch.compile": [("^", "_orig_mod.")],
    "Lightning": [("^", "model.")],
    "both": [("^", "module._orig_mod.")],
    "weiaicunzai": [
        ("^conv1", "conv1.0"),
        ("^bn1", "conv1.1"),
        (r"layer(\d)", r"conv\1_x"),
        (r"(x\.\d)\.conv1", r"\1.residual_function.0"),
        (r"(x\.\d)\.bn1", r"\1.residual_function.1"),
        (r"(x\.\d)\.conv2", r"\1.residual_function.3"),
        (r"(x\.\d)\.bn2", r"\1.residual_function.4"),
        ("linear", "fc"),
    ],
    "osmr": [
        (r"layer(\d)\.(\d)", r"features.stage\1.unit\2"),
        (r"(unit\d\.)conv(\d)", r"\1body.conv\2.conv"),
        (r"(unit\d\.)bn(\d)", r"\1body.conv\2.bn"),
        (r"shortcut\.0", "identity_conv.conv"),
        (r"shortcut\.1", "identity_conv.bn"),
        ("^conv1", "features.init_block.conv"),
        ("^bn1", "features.init_block.bn"),
        ("linear", "output"),
    ],
    "stages": [(r"layer(\d)", r"layers.\1"), ("^conv1", "stem.conv"), ("^bn1", "stem.norm")],
}


def assert_same_function(model, matched, network):
    counters = {k: v for k, v in model.state_dict().items() if k.endswith(COUNTERS)}
    model.load_state_dict(matched | counters)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_match_weights_by_name_in_each_layout(layout, tmp_path):
    network = network_by_hand()
    path = tmp_path / "weights.pth"
    torch.save(renamed(network.state_dict(), LAYOUTS[layout]), path)
    model, own = own_weights()
    matched, method = match_weights(read_weights(path), own)
    assert method == "by name"
    assert_same_function(model, matched, network)


@pytest.mark.parametrize(
    ("block", "settings"),
    [
        (AttentionBlock, {"squeeze_excitation": {"placement": "block", "reduction": 16}}),
        (PreActBlock, {"block": "preact"}),
    ],
)
def test_match_weights_by_name_in_other_blocks(block, settings):
    network = network_by_hand(block)
    weights = without_counters(network)
    model, own = own_weights(**settings)
    matched, method = match_weights(weights, own)
    assert method == "by name"
    assert_same_function(model, matched, network)


def test_match_weights_by_name_where_the_first_has_no_number(tmp_path):
    """`bn` before `bn2`, in a format that sorts the names."""
    network = network_by_hand()
    weights = renamed(without_counters(network), [(r"(layer\d\.\d)\.bn1", r"\1.bn")])
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    model, own = own_weights()
    matched, method = match_weights(read_weights(tmp_path / "weights.safetensors"), own)
    assert method == "by name"
    assert_same_function(model, matched, network)


def test_match_weights_in_order_without_known_names():
    network = network_by_hand()
    weights = {f"x{index}": v for index, v in enumerate(without_counters(network).values())}
    model, own = own_weights()
    matched, method = match_weights(weights, own)
    assert method == "in order"
    assert_same_function(model, matched, network)


def without(*names):
    return lambda weights: {k: v for k, v in weights.items() if k not in names}


def changed(name, value):
    return lambda weights: weights | {name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("layer2.0.conv1.weight", torch.zeros(64, 16, 3, 3)),
            "layer2.0.conv1.weight (64, 16, 3, 3) does not fit the network's "
            "stages.1.0.conv1.weight (32, 16, 3, 3)",
        ),
        (
            changed("layer1.0.conv1.bias", torch.zeros(16)),
            "the network has no counterpart of layer1.0.conv1.bias (16,)",
        ),
        (
            changed("layer2.1.conv1.weight", torch.zeros(32, 32, 3, 3)),
            "the network has no counterpart of layer2.1.conv1.weight (32, 32, 3, 3)",
        ),
        (
            without("layer2.0.shortcut.0.weight"),
            "the file has no counterpart of the network's stages.1.0.shortcut.0.weight "
            "(32, 16, 1, 1)",
        ),
        (
            lambda weights: {f"x{i}": v for i, v in enumerate(weights.values()) if i != 5},
            "x6 (16,) does not fit the network's stages.0.0.conv1.weight (16, 16, 3, 3)",
        ),
        (
            lambda weights: {f"x{i}": v for i, v in enumerate([*weights.values(), torch.ones(2)])},
            "the network has no counterpart of x42 (2,)",
        ),
        (
            changed("bn1.bias", torch.zeros(16, dtype=torch.int64)),
            "bn1.bias (16,) does not hold ordinary floating-point numbers",
        ),
        (
            changed("bn1.bias", torch.full((16,), torch.nan)),
            "bn1.bias (16,) holds a number that is not finite",
        ),
        (
            changed("conv1.weight", torch.zeros(1).expand(10**9, 10**6, 3, 3)),
            "conv1.weight (1000000000, 1000000, 3, 3) does not fit the network's stem.0.weight "
            "(16, 3, 3, 3)",
        ),
    ],
)
def test_match_weights_refuses_the_first_mismatch(change, message):
    weights = without_counters(network_by_hand())
    with pytest.raises(DataError) as caught:
        match_weights(change(weights), own_weights()[1])
    assert str(caught.value) == message


# Reading ------------------------------------------------------------------------------------------

TENSORS = {"a.weight": torch.tensor([1.0, 2.0]), "b.weight": torch.tensor([3.0])}


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"state_dict": TENSORS, "best_prec1": 91.7},
        {"net": TENSORS, "acc": 91.7, "epoch": 3},
        {"model": TENSORS, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        {"model_state_dict": TENSORS},
        {"net": TENSORS, "args": argparse.Namespace(lr=0.1), "acc": np.float64(91.7)},
        {"module.a.weight": TENSORS["a.weight"], "module.b.weight": TENSORS["b.weight"]},
        TENSORS | {"a.num_batches_tracked": torch.tensor(7), "n_averaged": torch.tensor(7)},
        OrderedDict((k, nn.Parameter(v)) for k, v in TENSORS.items()),
    ],
)
@pytest.mark.parametrize("is_zip", [True, False])
def test_read_weights_finds_the_state_dict(content, is_zip, tmp_path):
    path = tmp_path / "ckpt.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    weights = read_weights(path)
    assert list(weights) == list(TENSORS)
    assert all(torch.equal(weights[name], TENSORS[name]) for name in TENSORS)


def test_read_weights_from_safetensors_sorts_names(tmp_path):
    names = ["layer1.weight", "layer2.weight", "layer10.weight"]
    path = tmp_path / "weights"  # recognised by its content
    path.write_bytes(safetensors.torch.save({name: torch.zeros(1) for name in reversed(names)}))
    assert list(read_weights(path)) == names


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"net": TENSORS, "x": [evil]}])
def test_read_weights_runs_no_code(wrap, is_zip, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    torch.save(wrap(Hostile(marker)), path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(
        DataError, match=r"evil\.pth is refused: it holds \w+\.system, and"
    ) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file is not hostile"


def test_read_weights_refuses_a_pickled_network(tmp_path):
    path = tmp_path / "network.pth"
    torch.save(own_weights()[0], path)
    with pytest.raises(DataError, match=r"it holds resnetlib\.resnet\.ResNet, .*state_dict"):
        read_weights(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>404</html>",
        pickle.dumps({"net": {}}),
        pickle.dumps(Hostile("marker")),
        (9).to_bytes(8, "little") + b'{"a": 1} ',
    ],
)
def test_read_weights_refuses_other_files(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ckpt.pth"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"ckpt\.pth cannot be read: it is neither safetensors nor"):
        read_weights(path)
    assert [file.name for file in tmp_path.iterdir()] == ["ckpt.pth"]


def test_read_weights_refuses_a_cut_file(tmp_path):
    path = tmp_path / "ckpt.pth"
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="or is damaged"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "weights": TENSORS}, "its keys: 'epoch', 'weights'"),
        ({"net": {}}, "its keys: 'net'"),
        ([1, 2], "its keys: none"),
        ({1: torch.zeros(1)}, "its keys: 1"),
        ({"a.b": torch.zeros(1), "module.a.b": torch.zeros(1)}, "two tensors for 'a.b'"),
    ],
)
def test_read_weights_needs_named_tensors(content, message, tmp_path):
    path = tmp_path / "ckpt.pth"
    torch.save(content, path)
    with pytest.raises(DataError, match=re.escape(message)):
        read_weights(path)


def test_read_weights_refuses_a_huge_file(tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "LARGEST_WEIGHTS", 100)
    path = tmp_path / "ckpt.pth"
    torch.save(TENSORS, path)
    with pytest.raises(DataError, match="more than 100 bytes"):
        read_weights(path)
