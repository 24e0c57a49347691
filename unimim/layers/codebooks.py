"""Codebooks: the nearest of K codes, and k-means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROOM = 2**24
"""Distances held at once while fitting."""


def nearest(x: Tensor, codes: Tensor) -> Tensor:
    """argmin_k ||x_n - c_k||^2 = argmin_k (||c_k||^2 - 2 x_n c_k): x (n, D), codes (K, D) -> ids (n,) int64."""
    return torch.addmm(codes.square().sum(1), x, codes.T, alpha=-2).argmin(1)


def seed_codes(x: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each next code is a token drawn in proportion to the squared distance
    to the codes so far. x (n, D) -> (num_codes, D)."""
    chosen = torch.randint(len(x), (1,), generator=generator, device=x.device)
    codes, distance = [x[chosen]], torch.full((len(x),), torch.inf, device=x.device)
    while len(codes) < num_codes:
        distance = torch.minimum(distance, (x - codes[-1]).square().sum(1))
        chance = distance.clamp_min(
            torch.finfo(x.dtype).tiny
        )  # all zero when there are fewer distinct tokens than codes
        codes.append(x[chance.multinomial(1, generator=generator)])
    return torch.cat(codes)


def assign(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """ids (n,) of the nearest codes and squared distances (n,) to them, chunk by chunk."""
    ids = torch.cat([nearest(part, codes) for part in torch.split(x, max(1, _ROOM // len(codes)))])
    return ids, (x - codes[ids]).square().sum(1)


def lloyd_step(x: Tensor, codes: Tensor, normalize: bool) -> Tensor:
    """One Lloyd step: each code moves to the mean of its tokens (on the unit sphere if `normalize`), and a code without
    tokens to the token farthest from its own code, so the inertia never rises. The same bits on every run."""
    ids, distance = assign(x, codes)
    sums, counts = torch.zeros_like(codes), torch.zeros(len(codes), device=x.device)
    every = torch.arange(len(codes), device=x.device)
    rows = max(1, _ROOM // len(codes))
    for part, own in zip(torch.split(x, rows), torch.split(ids, rows), strict=True):
        member = (own.unsqueeze(1) == every).to(x.dtype)  # a product, because index_add_ on CUDA sums in any order
        sums, counts = sums.addmm_(member.T, part), counts + member.sum(0)
    dead = counts == 0
    means = sums / counts.clamp_min(1).unsqueeze(1)
    means = F.normalize(means, dim=1) if normalize else means
    far = distance.topk(len(codes)).indices
    return torch.where(dead.unsqueeze(1), x[far[(dead.cumsum(0) - 1).clamp_min(0)]], means)
