"""Device, precision, memory format and compilation of a run on this machine.

Every choice is a function of the machine and the experiment, never of a measurement made at the
start of a run: two runs of one experiment on one machine compute the same. The measurement behind
each rule is in a comment beside it.
"""

import ctypes
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .augment import compose
from .blocks import Conv2d
from .errors import ConfigError, shorten_line
from .experiment import Experiment
from .optim import build_optimizer
from .resnet import build_model
from .rng import generator
from .schema import IMAGE_SHAPE, NUM_CLASSES, Architecture
from .size import measure_size

# Multiply-accumulates of a run's forward passes above which compiling pays for itself on a CPU:
# about four minutes of `lite` (two cores with AMX), where the compiled step is 1.3 times as fast
# and the first compilation takes 12 s; 10 to 40 s for the large networks, which gain 1.15.
COMPILE_ABOVE_MACS = 1e13
# On a GPU small networks wait for the launching of kernels, which the captured step does at once.
COMPILE_ABOVE_STEPS = 5_000  # not measured yet
COMPARED_IMAGES = 64  # in the step that a device must do as the CPU does
STEP_TOLERANCE = 0.01  # of the norm; rounding alone makes about a thousandth of that in float32
COMPILED_NETWORKS = 64  # of different shapes in one process; torch stops at 8 by itself
# In channels-last layout the convolutions of fewer channels are slower on a CPU: twice, at 8 to 15
# in bfloat16 on two cores with AMX.
CHANNELS_LAST_FROM = 16
# From fewer, the backward pass of a strided 1×1 convolution writes past its buffers
# (torch 2.15, AVX2).
CHANNELS_LAST_SAFE_FROM = 8
# Images at once. On a CPU a batch whose activations stay in cache: `lite` on two cores with AMX
# evaluates 14,000 images/s by 128 and 4,000 by 1,000; `wide66` 640 and 310.
EVALUATION_BATCH = {"cpu": 128, "cuda": 2000, "mps": 1000}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h; mallopt(3)


@dataclass(frozen=True)
class DeviceSettings:
    """How a run computes. `compiled`: the whole forward and backward pass, as one graph."""

    device: torch.device
    precision: torch.dtype  # of convolutions and products; weights and updates are float32
    memory_format: torch.memory_format
    compiled: bool
    threads: int  # of the CPU

    def autocast(self) -> torch.autocast:
        """The context in which the network runs in this precision."""
        # Each weight is cast once per step: a cache would not help, and CUDA graphs cannot use it.
        reduced = self.precision != torch.float32
        dtype = self.precision if reduced else torch.bfloat16  # without effect
        return torch.autocast(self.device.type, dtype, reduced, cache_enabled=False)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in this layout, with the convolutions that are fast there."""
        as_product = self.device.type == "cpu" and self.precision == torch.bfloat16 and has_amx()
        for module in model.modules():
            if isinstance(module, Conv2d):
                module.as_product = as_product
        return model.to(self.device, memory_format=self.memory_format)

    def describe(self) -> dict[str, str | int | bool]:
        """Everything here that decides the bits of a result, as recorded in the fingerprint."""
        precision = str(self.precision).removeprefix("torch.")
        if self.device.type == "cuda":
            if torch.backends.cudnn.conv.fp32_precision == "tf32":
                precision += ", float32 convolutions in tf32"
            if torch.backends.cuda.matmul.fp32_precision == "tf32":
                precision += ", float32 products in tf32"
        elif self.device.type == "cpu":
            onednn = torch.backends.mkldnn
            lower = {onednn.conv.fp32_precision, onednn.matmul.fp32_precision} & {"bf16", "tf32"}
            mode = os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE", "").lower()
            lower |= {mode} & {"bf16", "f16", "tf32", "any"}
            if lower:
                precision += f", float32 by way of {', '.join(sorted(lower))}"
        return {
            "device": self.device.type,
            "processor": processor(self.device),
            "threads": self.threads,
            "precision": precision,
            "memory_format": str(self.memory_format).removeprefix("torch."),
            "compile": self.compiled,
        }

    def in_words(self) -> dict[str, str]:
        """`describe()` for a reader: names with spaces, yes and no."""
        words = {True: "yes", False: "no"}
        return {
            name.replace("_", " "): words[value] if isinstance(value, bool) else str(value)
            for name, value in self.describe().items()
        }


def resolve_device_settings(experiment: Experiment) -> DeviceSettings:
    """The experiment's own settings; for each "auto" what is best on this machine.

    Raises `ConfigError` for what this machine cannot do.
    """
    execution = experiment.execution
    device = _compared_device(experiment)
    if execution.device == "auto" and device.type == "cpu" and (reason := unused_card()):
        warnings.warn(reason, stacklevel=1)  # once in a process, whoever asks
    native = has_native_bfloat16(device)
    if execution.precision == "bfloat16" and not native and device.type != "cpu":
        raise ConfigError(f"precision = 'bfloat16': {processor(device)} does not have it")
    best = "bfloat16" if native else "float16" if has_float16_units(device) else "float32"
    precision = best if execution.precision == "auto" else execution.precision
    narrowest = _narrowest_layer(experiment.architecture)
    layout = execution.memory_format
    if layout == "auto":
        layout = _best_layout(device, narrowest)
    if layout == "channels_last" and device.type == "cpu" and narrowest < CHANNELS_LAST_SAFE_FROM:
        raise ConfigError(
            f"memory_format = 'channels_last': not with {narrowest} channels on a CPU, where torch "
            f"writes past its buffers below {CHANNELS_LAST_SAFE_FROM}; 'auto' takes 'contiguous'"
        )
    compiled = execution.compile
    if compiled == "auto":
        compiled = has_compiler(device) and _pays_to_compile(experiment, device)
    elif compiled and not has_compiler(device):
        raise ConfigError(
            "compile = true: torch cannot compile here; on a CPU that takes a C++ compiler and "
            "Python's header files (python3-dev), on a card torch 2.10 and triton as well"
        )
    return DeviceSettings(
        device,
        getattr(torch, precision),
        torch.contiguous_format if layout == "contiguous" else torch.channels_last,
        compiled,
        torch.get_num_threads() if execution.threads == "auto" else execution.threads,
    )


def choose_device(name: str) -> torch.device:
    """The device by its name; "auto" is CUDA, else the CPU. Raises `ConfigError`.

    "auto" passes over a card that this torch has no kernels for, and says so.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    best = "cuda" if available["cuda"] else "cpu"
    device = torch.device(best if name == "auto" else name)
    there = available.get(device.type, True)
    if there and device.type == "cuda":
        there = (device.index or 0) < torch.cuda.device_count()
    if not there:
        usable = ["cpu", *(kind for kind, has in available.items() if has)]
        if available["cuda"]:
            usable[1] = ", ".join(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        raise ConfigError(f"device = {name!r}: this machine has none; it has {', '.join(usable)}")
    if device.type == "cuda" and not has_kernels(device):
        reason = f"torch {torch.__version__} has no kernels for the {processor(device)}"
        if name != "auto":
            raise ConfigError(f"device = {name!r}: {reason}; an older torch may, or `device: cpu`")
        warnings.warn(f"{reason}: computing on the CPU; an older torch may have them", stacklevel=2)
        return torch.device("cpu")
    return device


def _compared_device(experiment: Experiment) -> torch.device:
    """The experiment's device; MPS, where "auto" comes to it, only if it computes what a CPU does.

    torch's kernels for MPS are younger than those for CUDA, and some were wrong without an error.
    """
    automatic = experiment.execution.device == "auto"
    device = choose_device(experiment.execution.device)
    if automatic and device.type == "cpu" and torch.backends.mps.is_available():
        device = torch.device("mps")
    if device.type != "mps" or not (difference := compare_with_cpu(experiment, device)):
        return device
    consequence = "computing on the CPU" if automatic else "the results may be wrong"
    warnings.warn(
        f"a training step on MPS differs from the CPU's ({difference}): {consequence}", stacklevel=2
    )
    return torch.device("cpu") if automatic else device


_differences: dict[tuple[str, torch.device], str] = {}  # by experiment: found once a process


def compare_with_cpu(experiment: Experiment, device: torch.device) -> str:
    """Where a step on the device differs from the CPU's by over one per cent, or why it fails.

    Empty where it is the same.
    """
    key = (experiment.digest, device)
    if key not in _differences:
        expected = _step_outcome(experiment, "cpu")
        try:
            found = _step_outcome(experiment, device)
        except (RuntimeError, TypeError) as error:  # an operation is missing, or the memory
            return _differences.setdefault(key, f"it fails: {shorten_line(str(error))}")
        gaps = {
            name: float((found[name] - value).norm() / value.norm().clamp(min=1e-12))
            for name, value in expected.items()
        }
        _differences[key] = ", ".join(
            f"{name} by {100 * gap:.3g} %" for name, gap in gaps.items() if not gap < STEP_TOLERANCE
        )
    return _differences[key]


def _step_outcome(experiment: Experiment, device: str | torch.device) -> dict[str, Tensor]:
    """What one step of the experiment on random images gives, in float32, without dropout."""
    recipe = experiment.recipe
    draws = generator(experiment.seed, "augment")
    shape = (min(recipe.batch_size, COMPARED_IMAGES), *IMAGE_SHAPE)
    images = torch.randint(256, shape, generator=draws, dtype=torch.uint8).to(device)
    labels = (torch.arange(len(images)) % NUM_CLASSES).to(device)
    model = build_model(experiment.architecture, seed=experiment.seed).to(device).eval()
    for module in model.modules():  # only dropout, whose draws differ between devices, is left out
        module.training = isinstance(module, nn.BatchNorm2d)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(parameters, recipe)
    with torch.enable_grad():
        images, targets = compose(recipe.augment)(images, labels, draws)
        loss = F.cross_entropy(model(images / 127.5 - 1), targets)
        loss.backward()
    gradients = torch.cat([p.grad.flatten().cpu() for p in parameters])
    for p in parameters:  # the same ones everywhere: Adam makes much of a gradient near 0
        p.grad = p.detach().clone()
    optimizer.step()
    return {
        "images": images.cpu().float(),
        "loss": loss.detach().cpu(),
        "gradients": gradients,
        "weights": torch.cat([p.detach().flatten().cpu() for p in parameters]),
    }


def has_kernels(device: torch.device) -> bool:
    """Whether this torch was built for the CUDA card; torch itself fails at the first kernel."""
    names = torch.cuda.get_arch_list()  # sm_75, sm_90a, compute_120, …; none: not known
    if torch.version.hip or not names:
        return True
    capability = _capability(device)
    for name in names:
        kind, number = name.split("_")
        built = divmod(int(number.rstrip("af")), 10)
        # Machine code runs on later cards of its generation, PTX on all later ones.
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _capability(device: torch.device) -> tuple[int, int]:
    with warnings.catch_warnings(action="ignore"):  # nine lines on an unsupported card
        return torch.cuda.get_device_capability(device)


def has_float16_units(device: torch.device) -> bool:
    """Whether float16 is fast where bfloat16 is not: V100, T4, RTX 20xx and GTX 16xx."""
    return device.type == "cuda" and (7, 0) <= _capability(device) < (8, 0)


@cache
def unused_card() -> str:
    """Why torch cannot use the NVIDIA card of this machine, and what to do; empty without one."""
    program = shutil.which("nvidia-smi")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if program is None or hidden or torch.version.hip or torch.cuda.is_available():
        return ""
    query = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):  # a driver without a card
        return ""
    card = asked.stdout.partition("\n")[0].strip()
    reason = "needs a newer driver" if torch.version.cuda else "is built without CUDA"
    mend = "uv pip install torch torchvision --torch-backend=auto --reinstall"
    return f"the {card} is not used: torch {torch.__version__} {reason}. `{mend}`" if card else ""


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products have instructions of their own; emulated, they are slower."""
    if device.type == "cuda":
        return bool(torch.version.hip) or _capability(device) >= (8, 0)
    # Apple's processors and ARM servers have such instructions too; not measured, so not chosen.
    return device.type == "cpu" and bool(
        {"avx512_bf16", "amx_bf16"} & set(_cpuinfo("flags").split())
    )


def has_amx() -> bool:
    """Whether the processor has Intel's matrix unit for bfloat16."""
    return "amx_bf16" in _cpuinfo("flags").split()


def has_compiler(device: torch.device) -> bool:
    """Whether torch can compile for the device: it needs a compiler and Python's header files."""
    if device.type == "mps" or not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return False
    if device.type == "cuda":
        recent = _capability(device) >= (7, 0)  # as triton wants it
        has_triton = importlib.util.find_spec("triton") is not None
        return recent and has_triton and _found("CC", "gcc") and _compiles_deterministically()
    return _found("CXX", "clang++" if sys.platform == "darwin" else "g++")


def _compiles_deterministically() -> bool:
    """Whether kernels need not be chosen by timing them, which can change the bits: torch 2.10."""
    from torch._inductor import config  # slow to import

    return hasattr(config, "deterministic")


def _found(variable: str, usual: str) -> bool:
    """Whether the compiler starts: the one named in the environment, else the usual one."""
    program = shutil.which(os.environ.get(variable, usual).partition(" ")[0])
    return program is not None and _starts(program)


@cache
def _starts(program: str) -> bool:
    """Whether it answers; on a Mac without Apple's tools `clang++` only asks for them."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _narrowest_layer(architecture: Architecture) -> int:
    """The fewest channels that leave the stem or a stage, or that a 1×1 convolution takes.

    Of the image only if a strided 1×1 takes it; narrow layers within a stage are not looked at.
    """
    channels = [channels for channels, _ in architecture.outputs]
    if architecture.stem == "conv1x1" and architecture.stem_stride == 2:
        channels.append(IMAGE_SHAPE[0])
    if architecture.block == "bottleneck":
        channels += [
            block.out_channels // architecture.expansion
            for stage, kernel in zip(architecture.blocks, architecture.conv_kernels, strict=True)
            for block in stage
            if kernel == 1
        ]
    return min(channels)


def _best_layout(device: torch.device, narrowest: int) -> str:
    if device.type == "mps" or (device.type == "cpu" and narrowest < CHANNELS_LAST_FROM):
        return "contiguous"
    return "channels_last"


def _pays_to_compile(experiment: Experiment, device: torch.device) -> bool:
    recipe = experiment.recipe
    images = recipe.epochs * experiment.training_images
    if device.type == "cuda":
        return images / recipe.batch_size > COMPILE_ABOVE_STEPS
    return images * measure_size(experiment.architecture).macs > COMPILE_ABOVE_MACS


def compile_step(function: Callable, device: torch.device) -> Callable:
    """The function compiled for tensors of one shape; on CUDA also captured as a graph.

    Never call it with another shape: a second compilation, and with it the bits of the results,
    would depend on which shape came first.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # on idle CUDA tools
    torch._dynamo.config.recompile_limit = COMPILED_NETWORKS
    options = None
    if device.type == "cuda":  # kernels are not chosen by timing them, which can change the bits
        options = {"triton.cudagraphs": True, "deterministic": True}
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Where torch computes with this number of threads."""
    before = torch.get_num_threads()
    if count == before:  # setting it has side effects on MKL
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def fork_rng(device: torch.device) -> Iterator[None]:
    """Where the global random states of the CPU and of the device come back as they were."""
    on_mps = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            if on_mps is not None:
                torch.mps.set_rng_state(on_mps)


@contextmanager
def deterministic_cudnn() -> Iterator[None]:
    """Where cuDNN takes only algorithms that give the same bits each time."""
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
    try:
        yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Where glibc keeps the memory that the main thread's tensors free for its next ones.

    Otherwise tensors above 32 MiB, and smaller ones until its thresholds have grown, are mapped
    anew, and each of their pages is cleared when it is first touched: up to 350 MB in a step of the
    wide networks. Kept, a step of `se` is 1.33 times as fast, of `improved_sgd` 1.15, of `laptop`
    1.05 and of `lite` 1.02 times, and the process holds at most 13 % more (medians of five
    alternations, two cores with AMX, glibc 2.36; `benchmarks/throughput.py --memory`). What is
    free at the end goes back to the system. Other C libraries, and allocators in glibc's place,
    are not affected. Not to be nested. `RESNETLIB_KEEP_MEMORY=0` in the environment switches it
    off, for a machine with little memory; the results are the same.
    """
    wanted = sys.platform == "linux" and os.environ.get("RESNETLIB_KEEP_MEMORY") != "0"
    libc = ctypes.CDLL(None) if wanted else None
    if not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, 65_536)
        # Any mallopt ends glibc's own adjustment of these two; this is where that leads.
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


@contextmanager
def no_tf32() -> Iterator[None]:
    """As `deterministic_cudnn`, without rounding float32 convolutions and products to tf32."""
    rounded = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [operation.fp32_precision for operation in rounded]
    try:
        for operation in rounded:
            operation.fp32_precision = "ieee"
        with deterministic_cudnn():
            yield
    finally:
        for operation, precision in zip(rounded, before, strict=True):
            operation.fp32_precision = precision


def processor(device: torch.device) -> str:
    """The processor's name, with the instruction set that torch uses on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = _cpuinfo("model name") or _apple_chip() or platform.processor() or platform.machine()
    matrix_unit = " AMX" if has_amx() else ""
    return f"{name} {torch.backends.cpu.get_cpu_capability()}{matrix_unit}"


@cache
def _apple_chip() -> str:
    """Such as `Apple M4`; empty elsewhere."""
    if sys.platform != "darwin":
        return ""
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


@cache
def _cpuinfo(field: str) -> str:
    """A field of the first processor in Linux's /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""
