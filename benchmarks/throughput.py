"""Images per second of resnetlib's training loop and of two baseline loops, side by side.

    python benchmarks/throughput.py                 # every variant that both loops can train
    python benchmarks/throughput.py lite --rounds 7
    python benchmarks/throughput.py lite --precision float32

The baseline is the usual loop: torchvision's transforms image by image, a `DataLoader` with two
workers, float32, eager, `.item()` after each step. The tuned baseline is what a good practitioner
writes: images as tensors on the device, torchvision's v2 transforms of whole batches (with one draw
for all images of a batch, unlike the other two), precision, memory format and compilation as in
resnetlib. All loops train the same network by the same recipe on the same images of CIFAR-10. They
alternate, each in a process of its own that sleeps while another is timed. Starting the workers is
not included, nor is our first step with its compilation, which is printed apart. Memory is the peak
of each process: of the device on CUDA, otherwise of the whole process; the workers of the baseline
are not included.
"""

import argparse
import itertools
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from resnetlib import build_model, list_variants, load_dataset, load_experiment
from resnetlib.data import normalization
from resnetlib.device import deterministic_cudnn, resolve_device_settings, retain_freed_memory
from resnetlib.experiment import Experiment
from resnetlib.optim import build_optimizer
from resnetlib.schema import Sometimes
from resnetlib.size import measure_size
from resnetlib.training import Trainer, epoch_flip_mask

WORKERS = 2  # of the baseline loop
SECONDS = 6  # of each measurement, approximately


# The baseline loop -------------------------------------------------------------------------------


class Images(Dataset):
    """CIFAR-10 as torchvision's own class gives it: PIL images, one by one."""

    def __init__(self, split, transform):
        from PIL import Image

        images, labels = split
        self.images = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.labels[index]


IN_TORCHVISION = {  # torchvision's transforms module and our settings to its transform
    "crop": lambda tv, a: tv.RandomCrop(32, padding=a.padding, padding_mode=a.padding_mode),
    "flip": lambda tv, a: tv.RandomHorizontalFlip(a.probability),
    "color_jitter": lambda tv, a: tv.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue),
    "rotation": lambda tv, a: tv.RandomRotation(a.degrees),
    "affine": lambda tv, a: tv.RandomAffine(a.degrees, a.translate, a.scale, [*a.shear]),
    "perspective": lambda tv, a: tv.RandomPerspective(a.distortion_scale, p=1),
    "gaussian_blur": lambda tv, a: tv.GaussianBlur(a.kernel_size, a.sigma),
    "grayscale": lambda tv, a: tv.Grayscale(3),
    "auto_augment": lambda tv, a: tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10),
    "rand_augment": lambda tv, a: tv.RandAugment(a.num_ops, a.magnitude),
    "trivial_augment": lambda tv, a: tv.TrivialAugmentWide(),
}


def comparable() -> list[str]:
    """The variants that the baselines can train.

    Torchvision applies all their augmentations to single images; a step is one update, without an
    average of the weights, and clips by value if at all.
    """
    recipes = {name: load_experiment(name).recipe for name in list_variants()}
    return [
        name
        for name, recipe in recipes.items()
        if {a.name for a in recipe.augment} <= set(IN_TORCHVISION)
        and not (recipe.sam or recipe.ema or (recipe.clip and recipe.clip.by == "norm"))
    ]


def torchvision_transforms(experiment: Experiment, mean, std, *, batches: bool = False):
    """The recipe's augmentations as torchvision has them, then to float and normalised."""
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    tv, to_float = (v2, v2.ToDtype(torch.float32, scale=True)) if batches else (v1, v1.ToTensor())
    steps = [IN_TORCHVISION[augment.name](tv, augment) for augment in experiment.recipe.augment]
    steps = [
        tv.RandomApply([step], augment.probability) if isinstance(augment, Sometimes) else step
        for step, augment in zip(steps, experiment.recipe.augment, strict=True)
    ]
    return tv.Compose([*steps, to_float, tv.Normalize(mean, std)])


class BaselineLoop:
    def __init__(self, experiment: Experiment, dataset):
        self.recipe = recipe = experiment.recipe
        self.device = resolve_device_settings(experiment).device
        transform = torchvision_transforms(experiment, *normalization(recipe, dataset))
        self.images = Images(dataset.train, transform)
        self.model = build_model(experiment.architecture).to(self.device)
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.parameters, recipe)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)

    def run(self, steps: int) -> float:
        """Seconds that so many steps take, once the workers have their first batch ready."""
        self.model.train()
        total = 0.0
        batch_size = self.recipe.batch_size
        passes = math.ceil(steps * batch_size / len(self.images))
        order = torch.cat([torch.randperm(len(self.images)) for _ in range(passes)])
        some = Subset(self.images, order[: steps * batch_size].tolist())
        loader = DataLoader(
            some,
            batch_size,
            shuffle=True,
            num_workers=WORKERS,
            pin_memory=self.device.type == "cuda",
        )
        batches = iter(loader)
        ahead = next(batches)
        began = time.perf_counter()
        for images, labels in itertools.chain([ahead], batches):
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = self.criterion(self.model(images), labels)
            loss.backward()
            if self.recipe.clip:
                nn.utils.clip_grad_value_(self.parameters, self.recipe.clip.limit)
            self.optimizer.step()
            total += loss.item()
        return time.perf_counter() - began


class TunedLoop:
    """Tensors on the device, transforms of whole batches, autocast, channels-last, compiled."""

    def __init__(self, experiment: Experiment, dataset):
        self.recipe = recipe = experiment.recipe
        self.settings = resolve_device_settings(experiment)
        device = self.settings.device
        self.images, self.labels = (part.to(device) for part in dataset.train)
        moments = normalization(recipe, dataset)
        self.transform = torchvision_transforms(experiment, *moments, batches=True)
        self.model = build_model(experiment.architecture)
        self.model.to(device, memory_format=self.settings.memory_format)
        self.network = torch.compile(self.model) if self.settings.compiled else self.model
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.parameters, recipe)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        float16 = self.settings.precision == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=float16)

    def run(self, steps: int) -> float:
        """Seconds that so many steps take."""
        self.model.train()
        began = time.perf_counter()
        total = torch.zeros((), device=self.settings.device)
        order = torch.randperm(len(self.labels), device=self.settings.device)
        batches = order.split(self.recipe.batch_size)
        for step in range(steps):
            batch = batches[step % (len(batches) - 1)]
            images = self.transform(self.images[batch])
            images = images.contiguous(memory_format=self.settings.memory_format)
            self.optimizer.zero_grad()
            with self.settings.autocast():
                loss = self.criterion(self.network(images), self.labels[batch])
            self.scaler.scale(loss).backward()
            if self.recipe.clip:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_value_(self.parameters, self.recipe.clip.limit)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total += loss.detach()
        total.item()  # waits for the device
        return time.perf_counter() - began


class OurLoop:
    """The steps of `Trainer.train_epoch` at one rate, without the evaluation at its end."""

    def __init__(self, experiment: Experiment, dataset):
        self.training = Trainer(experiment, dataset)
        self.training.model.train()
        self.done = 0

    def run(self, steps: int) -> float:
        """Seconds that so many steps take."""
        began = time.perf_counter()
        training = self.training
        training.model.train()
        images, labels = training.train_split
        order = torch.randperm(len(labels))
        flip_mask = epoch_flip_mask(len(labels), training.seed, 1).split(training.recipe.batch_size)
        batches = order.to(training.device_settings.device).split(training.recipe.batch_size)
        for step in range(steps):
            place = step % (len(batches) - 1)
            batch = batches[place]
            training.running_totals += training.train_step(
                images[batch], labels[batch], flip_mask[place], 1, self.done
            )
            self.done += 1
            training.progress.steps = place + 1
            training.check_divergence()
        training.running_totals.tolist()  # waits for the device
        return time.perf_counter() - began


# Measuring ---------------------------------------------------------------------------------------

LOOPS = {"baseline": BaselineLoop, "tuned": TunedLoop, "ours": OurLoop}


def worker(loop: str, variant: str, overrides: dict, keep_memory: bool) -> None:
    """Read numbers of steps on standard input; print their seconds and the peak memory."""
    experiment = load_experiment(variant, **overrides)
    dataset = load_dataset("cifar10")
    runner = LOOPS[loop](experiment, dataset)
    algorithms = deterministic_cudnn() if loop == "ours" else nullcontext()  # as in a run
    with algorithms, retain_freed_memory() if keep_memory else nullcontext():
        built = time.perf_counter()
        runner.run(1)
        print(time.perf_counter() - built, peak_memory(), flush=True)
        for line in sys.stdin:
            print(runner.run(int(line)), peak_memory(), flush=True)


def peak_memory() -> int:
    """Peak memory in bytes: of the card on CUDA, otherwise of this process."""
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    if allocated := max(map(torch.cuda.max_memory_allocated, cards), default=0):
        return allocated
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def start(loop: str, variant: str, overrides: dict, memory: str) -> subprocess.Popen:
    words = [sys.executable, __file__, variant, "--worker", loop, "--memory", memory]
    words += ["--overrides", json.dumps(overrides)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen, steps: int | None = None) -> tuple[float, int]:
    """The seconds of so many steps (None: of the start) and the peak memory of the process."""
    if steps:
        print(steps, file=process.stdin, flush=True)
    seconds, peak = process.stdout.readline().split()
    return float(seconds), int(peak)


def measure(variant: str, overrides: dict, rounds: int, memory: str) -> dict:
    """Rates, ratios and memory; in each round all loops run, in alternating order."""
    batch_size = load_experiment(variant, **overrides).recipe.batch_size
    processes, first, steps, held = {}, {}, {}, {}
    for loop in LOOPS:
        processes[loop] = start(loop, variant, overrides, memory)
        first[loop], held[loop] = answer(processes[loop])
        answer(processes[loop], 3)  # a GPU records its graph in the second step
        once = answer(processes[loop], 3)[0] / 3
        if once < SECONDS / 30:  # of three fast steps the workers have most batches ready
            once = answer(processes[loop], 30)[0] / 30
        steps[loop] = max(5, round(SECONDS / once))
    rates = {loop: [] for loop in LOOPS}
    for number in range(rounds):
        for loop in list(LOOPS)[:: 1 if number % 2 else -1]:
            taken, held[loop] = answer(processes[loop], steps[loop])
            rates[loop].append(steps[loop] * batch_size / taken)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    ratios = {
        loop: [a / b for a, b in zip(rates["ours"], rates[loop], strict=True)]
        for loop in ("baseline", "tuned")
    }
    return {"rates": rates, "ratios": ratios, "first": first["ours"], "memory": held}


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a product of two large matrices, best of ten."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(10):
        began = time.perf_counter()
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _spread(ratios: list[float], width: int) -> str:
    """The median ratio with the least and the greatest."""
    return f"{statistics.median(ratios):>{width}.2f}×{min(ratios):>6.2f}–{max(ratios):<5.2f}"


def main() -> None:
    known = comparable()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    precisions = ["auto", "float32", "bfloat16", "float16"]
    parser.add_argument("--precision", default="auto", choices=precisions)
    parser.add_argument("--compile", default="auto", choices=["auto", "true", "false"])
    parser.add_argument("--device", default="auto")
    memory = "whether our loop keeps what tensors free"
    parser.add_argument("--memory", default="kept", choices=["kept", "returned"], help=memory)
    parser.add_argument("--worker", choices=LOOPS, help=argparse.SUPPRESS)
    parser.add_argument("--overrides", default="{}", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        keep = given.worker == "ours" and given.memory == "kept"  # as `fit` does
        return worker(given.worker, given.variants[0], json.loads(given.overrides), keep)
    variants = given.variants or known
    if unknown := set(variants) - set(known):
        parser.error(f"{', '.join(unknown)}: not a variant that torchvision can augment for")
    overrides = {name: getattr(given, name) for name in ("precision", "compile", "device")}
    used = resolve_device_settings(load_experiment(variants[0], **overrides))
    rate = product_rate(used.device, used.precision)
    print(", ".join(f"{name} {value}" for name, value in used.describe().items()))
    print(f"torch {torch.__version__}; matmul of large matrices: {rate / 1e9:,.0f} GFLOP/s")
    print(
        f"{'variant':<14}{'batch':>6}{'baseline/s':>12}{'tuned/s':>10}{'ours/s':>10}"
        f"{'to baseline':>13}{'min–max':>12}{'to tuned':>10}{'min–max':>12}"
        f"{'of matmul':>12}{'first step':>12}{'projected':>11}{'MB':>23}"
    )
    for variant in variants:
        experiment = load_experiment(variant, **overrides)
        measured = measure(variant, overrides, given.rounds, given.memory)
        rates = {loop: statistics.median(measured["rates"][loop]) for loop in LOOPS}
        ours = rates["ours"]
        # Forward and backward pass are three times the forward's products, two operations each.
        share = ours * 3 * 2 * measure_size(experiment.architecture).macs / rate
        megabytes = " / ".join(f"{measured['memory'][loop] / 1e6:,.0f}" for loop in LOOPS)
        images = experiment.recipe.epochs * experiment.training_images
        print(
            f"{variant:<14}{experiment.recipe.batch_size:>6}{rates['baseline']:>12,.0f}"
            f"{rates['tuned']:>10,.0f}{ours:>10,.0f}"
            f"{_spread(measured['ratios']['baseline'], 12)}"
            f"{_spread(measured['ratios']['tuned'], 9)}"
            f"{share:>11.0%}{measured['first']:>10.1f} s"
            f"{images / ours / 60:>7.0f} min{megabytes:>23}",
            flush=True,
        )
    return None


if __name__ == "__main__":
    main()
