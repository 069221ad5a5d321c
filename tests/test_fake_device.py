"""The step, the evaluation and the analysis on a pretended CUDA or MPS device."""

import math

import pytest
import torch
from conftest import TINY, first_images
from fake_device import DeviceTensor, FakeDevice, Refused

from resnetlib import build_model, evaluate, load_experiment, pickles, schema
from resnetlib import device as device_module
from resnetlib import training as training_module
from resnetlib.analysis.attribution import embeddings, grad_cam
from resnetlib.analysis.corruptions import robustness
from resnetlib.augment import compose
from resnetlib.device import DeviceSettings, compare_with_cpu, resolve_device_settings
from resnetlib.optim import FUSED
from resnetlib.rng import generator
from resnetlib.runs import lifecycle
from resnetlib.runs.checkpoint import to_bytes
from resnetlib.training import Callback, Trainer

KINDS = ["cuda", "mps"]
CHANNELS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


@pytest.fixture(scope="module")
def digits_60(digits):
    """60 images to train on, three batches of 16 and one of 12, and 20 to test."""
    return first_images(digits, 60, 20)


@pytest.fixture(params=KINDS)
def fake(request):
    with FakeDevice(request.param) as device:
        yield device


@pytest.fixture
def cuda():
    with FakeDevice("cuda") as device:
        yield device


@pytest.fixture
def images(digits):
    return digits.train[0][:24]


def experiment_of(**overrides):
    return load_experiment("lite", **TINY | {"batch_size": 16, "epochs": 2} | overrides)


def trainer(experiment, dataset, kind, precision=torch.float32, compiled=False):
    settings = DeviceSettings(
        torch.device(kind), precision, torch.contiguous_format, compiled, threads=1
    )
    return Trainer(experiment, dataset, settings)


def train(training, epochs=1, device=None):
    """Epochs in which, on a device, no step may wait for it."""
    if device:
        step = training.train_step

        def strict_step(*batch):
            with device.strict():
                return step(*batch)

        training.train_step = strict_step
    if not training.history:
        training.record_epoch(training.evaluate_untrained())
    for _ in range(epochs):
        training.record_epoch(training.train_epoch(lambda: None))
    return training


def values_of(training):
    """Every tensor of the state by its name, on the CPU, and the figures of the history."""
    tensors = dict(training_module._tensors(training.state()))
    values = {
        name: value.data_on_cpu if isinstance(value, DeviceTensor) else value
        for name, value in tensors.items()
    }
    return values, training.table().drop(columns="seconds").to_csv()


def assert_equal(training, expected):
    values, history = values_of(training)
    wanted, wanted_history = values_of(expected)
    assert values.keys() == wanted.keys()
    assert not [name for name, value in wanted.items() if not torch.equal(value, values[name])]
    assert history == wanted_history


# The step ----------------------------------------------------------------------------------------

RECIPES = {
    "plain": {},
    "every option": {
        "lookahead": {"k": 2, "alpha": 0.5},
        "sam": {"rho": 0.05},
        "ema": {"decay": 0.9},
        "clip": {"by": "norm", "limit": 0.5},
        "label_smoothing": 0.1,
        "augment": ["crop", "flip", "cutmix"],
        "schedule": "one_cycle",
        "holdout": 20,
        "select": "best_holdout",
    },
    "clip by value": {"clip": {"by": "value", "limit": 0.01}, "augment": ["mixup"]},
    "weights without decay": {"decay_on": "weights", "normalize": "per_image_std"},
    "dropout": {"block": "dropout", "dropout": 0.3, "stochastic_depth": 0.2},
    "preact": {"block": "preact", "placement": "block"},
    "bottleneck": {
        "block": "bottleneck",
        "activation": "leaky_relu",
        "head_dropout": 0.2,
        "stem": "double_conv3x3",
    },
    "pyramid": {"block": "pyramid", "init": "kaiming_fan_out", "conv_bias": True},
    "pooled": {"block": "pooled", "stem": "whitening", "batch_norm_scale": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_train_on_a_device_equals_the_cpu(digits_60, cuda, recipe):
    experiment = experiment_of(**RECIPES[recipe])
    training = train(trainer(experiment, digits_60, "cuda"), 2, cuda)
    assert all(isinstance(parameter, DeviceTensor) for parameter in training.parameters)
    assert_equal(training, train(trainer(experiment, digits_60, "cpu"), 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", schema.tagged_models(schema.Optimizer))
def test_every_optimizer_on_a_device_equals_the_cpu(digits_60, fake, name):
    """The same bits, but for those without fused kernels: a GPU updates all tensors at once."""
    experiment = experiment_of(optimizer={"name": name, "lr": 0.01})
    training = train(trainer(experiment, digits_60, fake.device.type), 1, fake)
    expected = train(trainer(experiment, digits_60, "cpu"), 1)
    if name in FUSED:
        assert_equal(training, expected)
    else:
        torch.testing.assert_close(values_of(training)[0], values_of(expected)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", schema.tagged_models(schema.Optimizer))
def test_every_optimizer_skips_without_a_wait(digits_60, cuda, name):
    experiment = experiment_of(optimizer={"name": name, "lr": 0.01})
    training = trainer(experiment, digits_60, "cuda", torch.float16)
    before = [parameter.data_on_cpu.clone() for parameter in training.parameters]
    scale = training.scaler.scale
    training.scaler.scale = lambda loss: scale(loss) * math.inf
    train(training, 1, cuda)
    assert training.scaler.skipped.item() == training.steps_per_epoch
    for parameter, weights in zip(training.parameters, before, strict=True):
        assert torch.equal(parameter.data_on_cpu, weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FUSED))
def test_steps_are_skipped_on_mps_whose_kernels_do_not_skip(digits_60, monkeypatch, name):
    run = FakeDevice.run

    def never_skips(device, func, args, kwargs):
        return run(device, func, args, kwargs | dict.fromkeys(kwargs.keys() & {"found_inf"}))

    monkeypatch.setattr(FakeDevice, "run", never_skips)
    with FakeDevice("mps"):
        experiment = experiment_of(optimizer={"name": name, "lr": 0.01})
        training = trainer(experiment, digits_60, "mps", torch.float16)
        before = [parameter.data_on_cpu.clone() for parameter in training.parameters]
        scale = training.scaler.scale
        training.scaler.scale = lambda loss: scale(loss) * math.inf
        train(training)
        for parameter, weights in zip(training.parameters, before, strict=True):
            assert torch.equal(parameter.data_on_cpu, weights)


OPTIONS = [
    {"name": "crop", "padding_mode": "reflect"},
    {"name": "flip", "alternate": True},
    {"name": "color_jitter", "hue": 0.2},
    {"name": "cutout", "probability": 0.5},
    {"name": "mixup", "alpha": 0.4, "probability": 0.5},
    {"name": "one_of", "choices": ["rotation", "perspective"]},
]


@pytest.mark.parametrize("step", [*schema.tagged_models(schema.Augment), *OPTIONS], ids=str)
def test_every_augmentation_on_a_device_equals_the_cpu(images, fake, step):
    augment = compose(schema.Augmentations(augment=[step]).augment)
    labels = torch.arange(len(images)) % 10
    flip_mask = labels > 4
    with fake.strict():
        results = augment(fake.put(images), fake.put(labels), generator(0, "test"), flip_mask)
    expected = augment(images, labels, generator(0, "test"), flip_mask)
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result.data_on_cpu, wanted)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_reduced_precision_needs_no_wait(digits_60, cuda, precision):
    experiment = experiment_of(**RECIPES["every option"])
    training = train(trainer(experiment, digits_60, "cuda", precision), 1, cuda)
    assert training.scaler.is_enabled() == (precision == torch.float16)
    assert math.isfinite(training.history[-1]["train_loss"])


def test_train_on_a_second_card(digits_60):
    with FakeDevice("cuda:1") as second:
        experiment = experiment_of(**RECIPES["every option"] | RECIPES["dropout"])
        training = train(trainer(experiment, digits_60, "cuda:1", torch.float16), 1, second)
        assert math.isfinite(training.history[-1]["train_loss"])


def test_train_epoch_waits_every_sixteen_steps(digits_60, cuda, monkeypatch):
    """Once for the order of the images, once for the sums, and to look for divergence."""
    monkeypatch.setattr(Trainer, "_evaluate", lambda *_, **__: {})
    training = trainer(experiment_of(batch_size=3), digits_60, "cuda")
    training.record_epoch(training.evaluate_untrained())
    before = cuda.waits
    training.train_epoch(lambda: None)
    assert training.steps_per_epoch == 20
    assert cuda.waits - before == 1 + 2 + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, *schema.tagged_models(schema.Optimizer)])
def test_resume_on_a_device_is_exact_and_waits_for_nothing(digits_60, cuda, name):
    optimizer = {} if name is None else {"optimizer": {"name": name, "lr": 0.01}}
    experiment = experiment_of(**(optimizer or RECIPES["every option"]))
    whole = train(trainer(experiment, digits_60, "cuda", torch.float16), 2, cuda)
    first = train(trainer(experiment, digits_60, "cuda", torch.float16), 1, cuda)
    second = trainer(experiment, digits_60, "cuda", torch.float16)
    second.load_state(pickles.unpickle_tensors(to_bytes(first.state())))
    assert_equal(train(second, 1, cuda), whole)


# The compiled part -------------------------------------------------------------------------------

CHANGING = {"schedule": "one_cycle", "block": "dropout", "dropout": 0.2, "ema": {"decay": 0.9}}


def test_captured_kernels_are_the_same_at_every_step(digits_60, cuda, monkeypatch):
    """A captured graph repeats its kernels with the numbers that they had when it was captured."""
    captured = []

    def capture(function, device):
        def captured_function(*tensors):
            cuda.kernels = []
            with cuda.strict():
                result = function(*tensors)
            captured.append(cuda.kernels)
            cuda.kernels = None
            return result

        return captured_function

    monkeypatch.setattr(training_module, "compile_step", capture)
    training = trainer(experiment_of(**CHANGING), digits_60, "cuda", compiled=True)
    train(training, 2, cuda)
    first, *others = captured
    assert len(first) > 20
    assert others == [first] * 5  # three whole batches in each of two epochs


@pytest.mark.slow
def test_compile_happens_once_and_without_breaks(digits_60, monkeypatch):
    """Over epochs with a short last batch, a changing rate, and evaluations between them."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_with_torch = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, options=None, **given: compile_with_torch(
            function, backend=backend, **given
        ),
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    training = trainer(experiment_of(**CHANGING), digits_60, "cpu", compiled=True)
    train(training, 2)
    assert len(graphs) == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert_equal(training, train(trainer(experiment_of(**CHANGING), digits_60, "cpu"), 2))


# Evaluation and analysis -------------------------------------------------------------------------


@pytest.fixture
def model():
    return build_model(experiment_of(widths=[8]).architecture, seed=1)


def test_evaluate_on_a_card_does_not_round_to_tf32(model, images, fake):
    seen = []
    convolutions = torch.backends.cudnn.conv
    model.register_forward_pre_hook(lambda *_: seen.append(convolutions.fp32_precision))
    before = convolutions.fp32_precision
    labels = torch.zeros(len(images), dtype=torch.int64)
    evaluate(model, images, labels, **CHANNELS, batch_size=len(images), device=fake.device)
    assert before == convolutions.fp32_precision == "tf32"
    assert seen == ["ieee" if fake.device.type == "cuda" else "tf32"]


@pytest.mark.parametrize("kind", ["cudnn.conv", "cudnn", ""])
def test_cudnn_settings_do_not_depend_on_the_users(kind):
    """Whichever of torch's two interfaces the user has set; and all is as it was afterwards."""
    owner = torch.backends
    for name in filter(None, kind.split(".")):
        owner = getattr(owner, name)
    before = owner.fp32_precision
    owner.fp32_precision = "tf32"
    try:
        cudnn = torch.backends.cudnn
        flags = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
        with device_module.deterministic_cudnn():
            assert cudnn.deterministic and not cudnn.benchmark
        products = torch.backends.cuda.matmul
        before_products = products.fp32_precision
        with device_module.no_tf32():
            assert cudnn.deterministic
            assert cudnn.conv.fp32_precision == products.fp32_precision == "ieee"
        assert products.fp32_precision == before_products
        assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic) == flags
        assert cudnn.conv.fp32_precision == "tf32"
    finally:
        owner.fp32_precision = before


def test_fork_rng_keeps_the_state_of_mps(monkeypatch):
    states = ["before"]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    with device_module.fork_rng(torch.device("mps")):
        states.append("seeded")
    assert states == ["before", "seeded", "before"]


def test_evaluate_leaves_a_model_that_cannot_be_moved_as_it_was(model, images, monkeypatch):
    home = type(model).to

    def to(self, place):
        if place != torch.device("cpu"):
            raise RuntimeError("CUDA out of memory")
        return home(self, place)

    monkeypatch.setattr(type(model), "to", to)
    model.train()
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(model, images, torch.zeros(len(images)).long(), **CHANNELS, device="meta")
    assert all(module.training for module in model.modules())


def test_evaluate_on_a_device_equals_the_cpu(model, images, fake):
    labels = torch.arange(len(images)) % 10
    expected = evaluate(model, images, labels, **CHANNELS, batch_size=10)
    result = evaluate(model, images, labels, **CHANNELS, batch_size=10, device=fake.device)
    assert torch.equal(result.logits, expected.logits)
    assert not isinstance(next(model.parameters()), DeviceTensor)


def test_attribution_on_a_device_equals_the_cpu(model, images, fake):
    classes = torch.arange(len(images)) % 10
    expected = grad_cam(model, images, classes, **CHANNELS), embeddings(model, images, **CHANNELS)
    model.to(fake.device)
    result = grad_cam(model, images, classes, **CHANNELS), embeddings(model, images, **CHANNELS)
    assert all(torch.equal(*pair) for pair in zip(result, expected, strict=True))


@pytest.mark.parametrize("recipe", [*RECIPES, "adam"])
def test_compare_with_cpu_passes_a_correct_device(recipe):
    adam = {"optimizer": {"name": "adam", "lr": 0.01}, "augment": ["auto_augment", "mixup"]}
    with FakeDevice("mps") as mps:
        assert compare_with_cpu(experiment_of(**RECIPES.get(recipe, adam)), mps.device) == ""


def test_compare_with_cpu_allows_rounding(monkeypatch):
    """Also of a bias before BatchNorm, whose gradient is nothing but rounding, with Adam."""
    correct = FakeDevice.run
    noise = torch.Generator().manual_seed(0)

    def rounded(device, func, args, kwargs):
        result = correct(device, func, args, kwargs)
        if func.overloadpacket.__name__ == "convolution_backward":
            for tensor in filter(torch.is_tensor, result):
                values = tensor.data_on_cpu
                values += 1e-6 * values.std() * torch.randn(values.shape, generator=noise)
        return result

    monkeypatch.setattr(FakeDevice, "run", rounded)
    experiment = experiment_of(optimizer={"name": "adam", "lr": 0.1}, conv_bias=True)
    with FakeDevice("mps") as mps:
        assert compare_with_cpu(experiment, mps.device) == ""


WRONG = {
    "grid_sampler_2d": ("images by", {"augment": ["rotation"]}),
    "addmm": ("loss by", {}),
    "convolution_backward": ("gradients by", {}),
    "_fused_sgd_": ("weights by", {}),
}


@pytest.mark.parametrize("kernel", WRONG)
def test_auto_refuses_a_device_that_computes_otherwise(monkeypatch, kernel):
    message, overrides = WRONG[kernel]
    correct = FakeDevice.run

    def wrong(device, func, args, kwargs):
        if func.overloadpacket.__name__ == kernel and kernel == "_fused_sgd_":
            return correct(device, func, args, kwargs | {"lr": 2 * kwargs["lr"]})
        result = correct(device, func, args, kwargs)
        if func.overloadpacket.__name__ == kernel:
            for tensor in result if isinstance(result, tuple) else [result]:
                if tensor is not None:
                    tensor.data_on_cpu.view(-1)[::7] *= 3
        return result

    monkeypatch.setattr(FakeDevice, "run", wrong)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(device_module, "_differences", {})
    with FakeDevice("mps"):
        automatic = experiment_of(**overrides, device="auto")
        with pytest.warns(UserWarning, match=f"step on MPS .*{message} .*: computing on the CPU"):
            assert resolve_device_settings(automatic).device.type == "cpu"
        asked = experiment_of(**overrides, device="mps")
        with pytest.warns(UserWarning, match="the results may be wrong"):
            assert resolve_device_settings(asked).device.type == "mps"


def test_auto_refuses_a_device_that_fails(monkeypatch):
    def fail(device, func, args, kwargs):
        raise NotImplementedError("aten::x is not implemented for MPS.\nSee the issue")

    monkeypatch.setattr(FakeDevice, "run", fail)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(device_module, "_differences", {})
    with FakeDevice("mps"), pytest.warns(UserWarning, match="it fails: aten::x is not .* CPU$"):
        assert resolve_device_settings(experiment_of(device="auto")).device.type == "cpu"


def test_auto_takes_mps_where_it_computes_the_same(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with FakeDevice("mps"):
        assert resolve_device_settings(experiment_of(device="auto")).device.type == "mps"


@pytest.mark.slow
def test_robustness_on_a_device_equals_the_cpu(model, images, cuda):
    settings = CHANNELS | {"images": images[:4], "labels": torch.arange(4)}
    expected = robustness(model, **settings)
    assert robustness(model, **settings, device=cuda.device).equals(expected)


# What the pretended device refuses ---------------------------------------------------------------

BREAKS = {
    "a tensor on the CPU": lambda x, d: x + torch.ones(3),
    "a sum on the CPU": lambda x, d: torch.zeros(()).add_(x.sum()),
    "item": lambda x, d: x.sum().item(),
    "a condition": lambda x, d: bool(x.sum() > 1),
    "tolist": lambda x, d: x.tolist(),
    "cpu": lambda x, d: x.cpu(),
    "mask": lambda x, d: x[x > 1],
    "nonzero": lambda x, d: (x > 1).nonzero(),
    "repeats": lambda x, d: x.repeat_interleave(x.long()),
    "another card": lambda x, d: x + torch.zeros(3, device="cuda:1"),
    "index on the CPU": lambda x, d: x[torch.tensor([0])],
    "constant": lambda x, d: x * torch.tensor([1.0, 2.0, 3.0], device=d),
    "copy": lambda x, d: x * torch.ones(3).to(d),
    "copy in place": lambda x, d: x.copy_(torch.ones(3)),
    "copy that is not awaited": lambda x, d: x.to("cpu", non_blocking=True),
    "a stack with a sum on the CPU": lambda x, d: torch.stack([x.sum(), torch.zeros(())]),
    "a generator of the CPU": lambda x, d: torch.rand(3, generator=generator(0, "t"), device=d),
    "an inverse": lambda x, d: torch.linalg.inv(x.outer(x)),
    "unique rows": lambda x, d: torch.unique(x[:, None], dim=0),
    "a convolution of integers": lambda x, d: torch.conv1d(x.long()[None], x.long()[None, None]),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_step_refuses(cuda, what):
    x = cuda.put(torch.arange(3.0))
    with cuda.strict(), pytest.raises(Refused):
        BREAKS[what](x, cuda.device)


def test_mps_refuses_float64():
    with FakeDevice("mps") as mps:
        x = mps.put(torch.arange(3.0))
        for make in (x.double, lambda: torch.zeros(2, dtype=torch.float64, device="mps")):
            with pytest.raises(Refused, match="no float64"):
                make()
        with pytest.raises(Refused, match="no float64"):
            torch.arange(3.0).double().to("mps")


# A whole run -------------------------------------------------------------------------------------


@pytest.fixture
def t4(cuda, monkeypatch):
    """The pretended device as torch describes a T4."""
    rng = {"get_rng_state": lambda device: torch.get_rng_state(), "set_rng_state": lambda *_: None}
    for name, value in rng.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    return cuda


@pytest.mark.slow
def test_run_on_a_t4_resumes_exactly(t4, quick_figures, digits_60, tmp_path, monkeypatch):
    """From the choice of float16 to the written results, stopped and resumed."""
    monkeypatch.setattr("resnetlib.runs.lifecycle.load_dataset", lambda *_: digits_60)
    experiment = experiment_of(**RECIPES["every option"], device="auto", compile=False)
    whole = lifecycle.train(experiment, output=tmp_path / "whole")
    mark = whole.record["fingerprint"]
    assert (mark["device"], mark["processor"]) == ("cuda", "Tesla T4")
    assert mark["precision"].startswith("float16")

    class Stop(Callback):
        def after_epoch(self, training):
            if training.epochs_done == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lifecycle.train(experiment, output=tmp_path / "stopped", callbacks=[Stop()])
    resumed = lifecycle.train(experiment, output=tmp_path / "stopped")
    assert resumed.record["inexact_resumes"] == []
    weights = [run.record["artifacts"]["model.safetensors"] for run in (whole, resumed)]
    assert weights[0] == weights[1]
