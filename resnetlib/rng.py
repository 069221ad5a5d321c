"""Every random draw as a pure function of (seed, stream, epoch, step).

A stream is what the draw is for: "init", "split", "order", "augment", "dropout". Two streams
never share numbers, and no draw depends on how many were made before it.
"""

import hashlib

import torch


def derive_seed(seed: int, stream: str, epoch: int = 0, step: int = 0) -> int:
    """A 63-bit seed for this draw: BLAKE2b of the four coordinates."""
    key = f"{seed}/{stream}/{epoch}/{step}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def generator(
    seed: int, stream: str, epoch: int = 0, step: int = 0, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A fresh generator on the device, for this draw alone."""
    return torch.Generator(device).manual_seed(derive_seed(seed, stream, epoch, step))
