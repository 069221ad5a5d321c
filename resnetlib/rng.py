"""Every random draw of a run as a pure function of (seed, stream, epoch, step).

A stream is what the draw is for, such as "init", "split", "order", "augment" or "flip". No draw
depends on how many were made before it. torch's generator on the CPU uses 32 bits of a seed, so two
of a long run's 100,000 draws may coincide. scikit-learn (splits, t-SNE, PCA) draws with a seed too.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch


def derive_seed(seed: int, stream: str, epoch: int = 0, step: int = 0) -> int:
    """A 63-bit seed for this draw: BLAKE2b of the four coordinates."""
    key = f"{seed}/{stream}/{epoch}/{step}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def generator(seed: int, stream: str, epoch: int = 0, step: int = 0) -> torch.Generator:
    """A fresh generator on the CPU, for this draw alone."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, epoch, step))


def seeding(device: torch.device) -> Callable[[int], object]:
    """What seeds the generator that dropout and stochastic depth draw from on this device.

    `torch.manual_seed` asks after every kind of device: a third of a millisecond a step.
    """
    if device.type == "cpu":
        return torch.default_generator.manual_seed
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index].manual_seed
    return torch.manual_seed


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Where draws and new tensors are of float32 and on the CPU, whatever the caller's defaults."""
    before = torch.get_default_dtype()
    on_cpu = torch.get_default_device().type == "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with nullcontext() if on_cpu else torch.device("cpu"):  # which slows every call
            yield
    finally:
        torch.set_default_dtype(before)
