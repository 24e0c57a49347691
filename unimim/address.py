"""Random numbers by address: every draw is a pure function of (seed, epoch or step, image, purpose).

No generator state exists that a checkpoint would have to save, and neither the number of processes nor of workers
changes a draw.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # splitmix64, as int64


def rng(*address: int) -> np.random.Generator:
    """A generator for one address of non-negative integers, e.g. (seed, epoch, image, purpose)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(address)))


def uniform(index: Tensor, count: int, *address: int) -> Tensor:
    """(B, count) float32 in [0, 1) on the device of index (B,) int64: one row for each image at that address.

    Row b, column j is splitmix64 of (address, index[b], j), whatever else is in the batch.
    """
    state = torch.zeros_like(index)
    for part in address:
        state = _splitmix(state + part)
    rows = _splitmix(state + index)
    columns = torch.arange(count, device=index.device)
    bits = _splitmix(rows.unsqueeze(1) + columns)
    return ((bits >> 40) & 0xFFFFFF).float() / (1 << 24)


def _splitmix(x: Tensor) -> Tensor:
    """One round of splitmix64 on int64 with wrap-around."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
