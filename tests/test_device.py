"""Device settings: chosen for the machine, settable, recorded, and bit-exact on resuming."""

import os
import platform
import subprocess
import sys
import warnings
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from resnetlib import (
    device,
    list_variants,
    load_experiment,
    load_run,
    train,
    training,
)
from resnetlib.blocks import Conv2d
from resnetlib.device import has_kernels, has_native_bfloat16, resolve_device_settings
from resnetlib.errors import ConfigError, RunError
from resnetlib.runs import checkpoint

pytestmark = pytest.mark.usefixtures("quick_figures")

CPU = torch.device("cpu")


def test_precision_is_bfloat16_where_native(tiny):
    best = torch.bfloat16 if has_native_bfloat16(CPU) else torch.float32
    assert resolve_device_settings(tiny()).precision == best
    for name in ("float32", "bfloat16"):
        assert resolve_device_settings(tiny(precision=name)).precision == getattr(torch, name)


@pytest.mark.parametrize(
    ("flags", "native"),
    [("fpu avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_bf16", True), ("", False)],
)
def test_native_bfloat16_is_read_from_the_flags(monkeypatch, flags, native):
    monkeypatch.setattr(device, "_cpuinfo", {"flags": flags}.get)
    assert has_native_bfloat16(CPU) == native


@pytest.fixture
def card(monkeypatch):
    """Pretends a CUDA card of a capability, and a torch built for these architectures."""

    def pretend(capability, *built):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P100-PCIE-16GB")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))

    return pretend


@pytest.mark.parametrize(
    ("capability", "precision"),
    [
        ((6, 1), torch.float32),  # GTX 10xx: float16 is slower
        ((7, 0), torch.float16),  # V100
        ((7, 5), torch.float16),  # T4, RTX 20xx
        ((8, 0), torch.bfloat16),
        ((8, 6), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_precision_of_a_card_is_the_fast_one(tiny, card, capability, precision):
    card(capability, "sm_61", "sm_70", "sm_80", "compute_90")
    settings = resolve_device_settings(tiny(device="auto", compile=False))
    assert (settings.device.type, settings.precision) == ("cuda", precision)
    if precision != torch.bfloat16:  # which torch itself would emulate
        with pytest.raises(ConfigError, match=r"precision = 'bfloat16': .* does not have it"):
            resolve_device_settings(tiny(device="cuda", precision="bfloat16"))


@pytest.mark.parametrize(
    ("flags", "precision", "as_product"),
    [
        ("avx2 amx_bf16", "bfloat16", True),
        ("avx2 amx_bf16", "float32", False),
        ("avx2 avx512_bf16", "bfloat16", False),
    ],
)
def test_convolutions_are_products_in_bfloat16_with_amx(
    tiny, few_digits, monkeypatch, flags, precision, as_product
):
    monkeypatch.setattr(device, "_cpuinfo", {"flags": flags}.get)
    settings = device.DeviceSettings(
        CPU, getattr(torch, precision), torch.channels_last, False, threads=1
    )
    model = training.Trainer(tiny(), few_digits, settings).model
    assert {m.as_product for m in model.modules() if isinstance(m, Conv2d)} == {as_product}


def test_float32_that_is_less_on_this_machine_is_recorded(tiny, monkeypatch):
    """By a switch of torch, or by oneDNN's own."""
    settings = resolve_device_settings(tiny(precision="float32"))
    monkeypatch.delenv("ONEDNN_DEFAULT_FPMATH_MODE", raising=False)
    assert settings.describe()["precision"] == "float32"
    products = torch.backends.mkldnn.matmul
    before, products.fp32_precision = products.fp32_precision, "bf16"
    try:
        assert settings.describe()["precision"] == "float32, float32 by way of bf16"
    finally:
        products.fp32_precision = before
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert settings.describe()["precision"] == "float32, float32 by way of bf16"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_autocast_is_of_device_and_precision(precision):
    for kind in ("cpu", "cuda"):
        settings = device.DeviceSettings(
            torch.device(kind), getattr(torch, precision), torch.contiguous_format, False, threads=1
        )
        with warnings.catch_warnings():  # without CUDA torch switches its autocast off
            warnings.simplefilter("ignore")
            context = settings.autocast()
        assert context.device == kind
        if precision != "float32":
            assert context.fast_dtype == settings.precision
        if kind == "cpu":
            assert context._enabled == (precision != "float32")


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((6, 0), ["sm_75", "sm_80", "sm_90", "compute_90"], False),
        ((7, 5), ["sm_70"], True),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((8, 9), ["sm_80", "sm_90a"], True),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((12, 0), ["sm_75", "sm_100", "sm_120"], True),
        ((6, 0), [], True),  # not known
    ],
)
def test_has_kernels_for_the_card(card, capability, built, runs):
    card(capability, *built)
    assert has_kernels(torch.device("cuda")) == runs


def test_a_card_without_kernels_is_one_line(tiny, card):
    card((6, 0), "sm_75", "sm_80")
    with pytest.raises(ConfigError, match=r"^device = 'cuda': torch .* has no kernels for the Tes"):
        resolve_device_settings(tiny(device="cuda"))
    with pytest.warns(UserWarning, match=r"no kernels for the Tesla P100.*: computing on the CPU"):
        assert resolve_device_settings(tiny(device="auto")).device == CPU


def test_channels_last_from_sixteen_channels(tiny):
    layouts = {
        width: resolve_device_settings(tiny(widths=[width])).memory_format for width in (15, 16)
    }
    assert layouts == {15: torch.contiguous_format, 16: torch.channels_last}
    # A strided 1×1 convolution of fewer than 8 channels writes past its buffers.
    for narrow in (
        {"stem": "conv1x1", "stem_stride": 2},
        {"block": "bottleneck", "conv_kernel": 1, "expansion": 4},
    ):
        settings = resolve_device_settings(tiny(widths=[16, 32], depths=[1, 1], **narrow))
        assert settings.memory_format == torch.contiguous_format
        with pytest.raises(ConfigError, match="not with"):
            resolve_device_settings(
                tiny(widths=[16, 32], depths=[1, 1], memory_format="channels_last", **narrow)
            )
    wide = {"widths": [64, 128], "depths": [1, 1], "stem_width": 16, "conv_kernel": [1, 3]}
    wide = tiny(block="bottleneck", expansion=4, **wide)  # 16 inner channels and more
    assert resolve_device_settings(wide).memory_format == torch.channels_last
    forced = tiny(widths=[8], memory_format="channels_last")
    assert resolve_device_settings(forced).memory_format == torch.channels_last
    with pytest.raises(ConfigError, match="not with 7 channels"):
        resolve_device_settings(tiny(widths=[7], memory_format="channels_last"))


def test_compile_is_chosen_for_long_runs(monkeypatch):
    monkeypatch.setattr(device, "has_compiler", lambda _: True)
    chosen = {epochs: load_experiment("lite", epochs=epochs, device="cpu") for epochs in (2, 40)}
    assert [resolve_device_settings(chosen[epochs]).compiled for epochs in (2, 40)] == [False, True]
    assert not resolve_device_settings(
        load_experiment("lite", dataset="digits", device="cpu")
    ).compiled


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_retain_freed_memory_reuses_and_returns_it():
    """A page that a process gets from the system is one fault when it is first touched."""
    words = [sys.executable, "-c", FAULTS]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    lines = printed.splitlines()
    large, small, held = zip(*(map(int, line.split()) for line in lines), strict=True)
    pages = 20 * (100 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert min(large[0], large[2]) > pages / 600  # huge pages, where the system makes them, are 512
    assert large[1] < large[0] / 10
    # Smaller ones are not mapped anew in a process that has had large ones, also not afterwards.
    assert max(small) < pages / 250
    assert held[2] - held[1] < 32 << 20


@pytest.mark.slow
def test_training_retains_freed_memory(tiny, monkeypatch):
    happened = []
    step = training.Trainer.train_step

    @contextmanager
    def noted():
        happened.append("kept")
        yield
        happened.append("returned")

    def noted_step(*arguments):
        happened.append("step")
        return step(*arguments)

    monkeypatch.setattr(training, "retain_freed_memory", noted)
    monkeypatch.setattr(training.Trainer, "train_step", noted_step)
    train(tiny(batch_size=1347))
    assert happened == ["kept", "step", "returned"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_retain_freed_memory_can_be_switched_off(monkeypatch):
    def calls():
        made = []
        libc = SimpleNamespace(mallopt=lambda *words: made.append(words), malloc_trim=made.append)
        monkeypatch.setattr(device.ctypes, "CDLL", lambda _: libc)
        with device.retain_freed_memory():
            pass
        return len(made)

    assert calls() > 0
    monkeypatch.setenv("RESNETLIB_KEEP_MEMORY", "0")
    assert calls() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "threads", ["auto", 2, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (1, 3))]
)
def test_threads_are_applied_recorded_and_restored(tiny, monkeypatch, threads):
    used = {}
    before = torch.get_num_threads()
    monkeypatch.setattr(
        training.Trainer, "train_step", noting(used, "step", training.Trainer.train_step)
    )
    monkeypatch.setattr(
        training.Trainer, "evaluate", noting(used, "evaluation", training.Trainer.evaluate)
    )
    run = train(tiny(threads=threads))
    expected = before if threads == "auto" else threads
    assert used == {"step": expected, "evaluation": expected}
    assert run.record["fingerprint"]["threads"] == expected
    assert torch.get_num_threads() == before
    assert run.experiment.digest == tiny().digest


def noting(used, name, function):
    """The function, which notes the number of threads under a name."""

    def noted(*arguments):
        used[name] = torch.get_num_threads()
        return function(*arguments)

    return noted


# The faults of 20 large blocks, those of 20 smaller ones and the bytes that were held at first:
# before, within and after the context. The blocks are Python's own, because torch has an allocator
# besides glibc's on some machines.
FAULTS = """
import os, resource
from resnetlib.device import retain_freed_memory

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        b"1" * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def report():
    held = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    for size in (30 << 20, 100 << 20, 4 << 20):
        faults(size)
    print(faults(100 << 20), faults(4 << 20), held, flush=True)

report()
with retain_freed_memory():
    report()
report()
"""


@pytest.mark.slow
def test_compile_of_any_number_of_networks(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))

    def total(x):
        return (2 * x).sum()

    for width in range(1, 20):  # torch stops at the ninth by itself
        compiled = device.compile_step(total, torch.device("cpu"))
        assert compiled(torch.ones(width)) == 2 * width


def test_empty_name_of_a_compiler_is_none(monkeypatch):
    monkeypatch.setenv("CXX", "")
    assert not device.has_compiler(torch.device("cpu"))


def test_compiler_that_does_not_start_is_none(monkeypatch, tmp_path):
    """Such as the one of a Mac without Apple's tools."""
    stub = tmp_path / "stub"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("CXX", f"{stub} -O2")
    assert not device.has_compiler(torch.device("cpu"))


@pytest.mark.slow
def test_compile_is_refused_without_a_compiler(monkeypatch):
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    assert not resolve_device_settings(load_experiment("lite", device="cpu")).compiled
    with pytest.raises(ConfigError, match="takes a C\\+\\+ compiler"):
        resolve_device_settings(load_experiment("lite", device="cpu", compile=True))


@pytest.mark.slow
def test_resume_refuses_other_device_settings(tiny, monkeypatch):
    experiment = tiny(epochs=2, precision="float32", memory_format="contiguous", compile=False)
    save = checkpoint.save_checkpoint

    def save_then_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_checkpoint", save_then_stop)
        train(experiment)
    fingerprint = load_run(experiment.folder).record["fingerprint"]
    chosen = [fingerprint[name] for name in ("precision", "memory_format", "compile")]
    assert chosen == ["float32", "contiguous_format", False]
    with pytest.raises(RunError, match="precision was 'float32' and is now 'bfloat16'"):
        train(tiny(epochs=2, precision="bfloat16", memory_format="contiguous", compile=False))


COMPILED = """
import shutil, sys
from resnetlib import load_experiment, train
from resnetlib.runs import checkpoint
checkpoint.CHECKPOINT_SECONDS, checkpoint.CHECKPOINT_SHARE = 0, float("inf")
root, copy = sys.argv[1:]
save = checkpoint.save_checkpoint
def save_then_copy(folder, epochs, steps, *rest):
    save(folder, epochs, steps, *rest)
    if copy and (epochs, steps) == (1, 2):
        shutil.copytree(root, copy)
checkpoint.save_checkpoint = save_then_copy
run = train(load_experiment("lite", dataset="digits", depths=[1], widths=[16], batch_size=256,
            epochs=2, device="cpu", compile=True, output_root=root, block="dropout", dropout=0.2))
print(run.record["artifacts"]["model.safetensors"], run.record["fingerprint"]["compile"])
"""


def compiled_run(root, copy=""):
    """Its result; `copy` is left as by a process that was killed in the second epoch."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, str(root), str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(not device.has_compiler(torch.device("cpu")), reason="needs a C++ compiler")
def test_resume_of_a_compiled_run_is_bit_exact(tmp_path):
    """The last batch of an epoch, 67 images, is the first that the resumed process sees."""
    whole = compiled_run(tmp_path / "whole", copy=tmp_path / "killed")
    resumed = compiled_run(tmp_path / "killed")
    assert resumed[0] == "resuming after step 2 of epoch 2"
    assert resumed[-1] == whole[-1] and whole[-1].endswith("True")


ONE_STEP = """
import sys
from resnetlib import load_dataset, load_experiment
from resnetlib.training import Trainer
dataset = load_dataset("digits")
seen = set()
for variant in sys.argv[2:]:
    experiment = load_experiment(variant, dataset="digits", device="cpu", batch_size=8,
                                 precision=sys.argv[1], holdout=0, compile=False)
    if experiment.architecture in seen:
        continue
    seen.add(experiment.architecture)
    training = Trainer(experiment, dataset)
    training.model.train()
    images, labels = (part[:8] for part in dataset.train)
    training.train_step(images, labels, labels > 4, 1, 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision", ["auto", pytest.param("float32", marks=pytest.mark.exhaustive)]
)
def test_no_network_uses_reference_kernels(precision):
    """A convolution that the processor has no kernel for runs ten to a hundred times as long."""
    done = subprocess.run(
        [sys.executable, "-c", ONE_STEP, precision, *list_variants()],
        env=os.environ | {"ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    kernels = [line.split(",") for line in done.stdout.splitlines() if "primitive,exec" in line]
    used = {(fields[5], fields[6]) for fields in kernels}
    assert "convolution" in {kind for kind, _ in used}
    assert not {(kind, name) for kind, name in used if "ref" in name}
