"""A training step of one convolution, as torch computes it and as one matrix product.

    python benchmarks/convolutions.py
    python benchmarks/convolutions.py --threads 1 --turns 9

Where the product is faster decides `FEW_PIXELS` of `resnetlib/blocks.py`, and the processors that
use it (`DeviceSettings.place`). Forward and backward pass are compiled, with a ReLU before and
behind, as in a network; both kinds alternate in one process.
"""

import argparse
import statistics
import time

import torch

from resnetlib import blocks
from resnetlib.blocks import Conv2d
from resnetlib.device import DeviceSettings, has_native_bfloat16, retain_freed_memory

# Input channels, output channels, side of the input, kernel, stride: of the networks' last stages.
LAYERS = [
    (512, 512, 4, 3, 1),
    (256, 512, 8, 3, 2),
    (256, 512, 8, 1, 2),
    (128, 128, 4, 3, 1),
    (64, 64, 4, 3, 1),
    (256, 256, 8, 3, 1),
    (128, 256, 16, 3, 2),
    (128, 128, 8, 3, 1),
    (64, 64, 8, 3, 1),
]


def steps(layer: tuple[int, ...], batch_size: int, settings: DeviceSettings):
    """Two functions that run a forward and backward pass: torch's, and as a product."""
    in_channels, out_channels, side, kernel, stride = layer
    layout = settings.memory_format
    images = torch.randn(batch_size, in_channels, side, side).to(memory_format=layout)
    images.requires_grad_()

    def step_of(as_product: bool):
        conv = Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        conv.to(memory_format=layout).as_product = as_product

        @torch.compile(dynamic=False)
        def forward(images):
            with settings.autocast():
                return conv(images.relu()).relu()

        def step() -> float:
            began = time.perf_counter()
            out = forward(images)
            torch.autograd.grad(out, [images, conv.weight], torch.ones_like(out))
            return time.perf_counter() - began

        return step

    return step_of(False), step_of(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    blocks.FEW_PIXELS = 32 * 32  # of any output
    torch._dynamo.config.recompile_limit = 2 * len(LAYERS)
    device = torch.device("cpu")
    precision = torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    settings = DeviceSettings(device, precision, torch.channels_last, True, given.threads)
    print(", ".join(f"{name} {value}" for name, value in settings.describe().items()))
    print(f"torch {torch.__version__}")
    print(
        f"{'channels':>11}{'image':>7}{'kernel':>8}{'stride':>8}{'torch':>11}{'product':>11}{'ratio':>8}"
    )
    with retain_freed_memory():
        for layer in LAYERS:
            both = steps(layer, given.batch_size, settings)
            for step in both * 2:  # compiles
                step()
            seconds = [[step() for step in both] for _ in range(given.turns)]
            torchs, products = (1000 * statistics.median(s) for s in zip(*seconds, strict=True))
            ratio = statistics.median(a / b for a, b in seconds)
            before, behind, side, kernel, stride = layer
            print(
                f"{before:>5} → {behind:<3}{side:>5}×{side:<2}{kernel:>6}×{kernel}{stride:>6}"
                f"{torchs:>10.1f} ms{products:>8.1f} ms{ratio:>7.2f}×",
                flush=True,
            )


if __name__ == "__main__":
    main()
