"""The codebook of VQ-KD: unit codes that follow the mean of the vectors nearest to them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimim import all_reduce_sum
from unimim.layers import lloyd_step, nearest, seed_codes

ITERATIONS = 10
SCALE = 2.0**32
"""Sums are of whole multiples of 1 / SCALE, which add up to the same bits in any order: whatever the split of a batch
over micro-batches and processes, and whatever the order of a device's atomic additions."""
HEALTH = ("used", "perplexity", "dead", "commitment")


class Codebook(nn.Module):
    """q(z) = c_k, k = argmin_j |z - c_j|^2, for z on the unit sphere; its gradient is that of z (straight through).

    A step in which V_k are the vectors nearest to c_k, of all micro-batches and processes, moves the codes once:

        c_k <- u(d c_k + (1 - d) u(sum of V_k)), or u(c_k) if V_k is empty;  s_k <- d s_k + (1 - d) |V_k|;  u(x) = x / |x|.

    Follows microsoft/unilm @ 768a3c8, beit2/norm_ema_quantizer.py (NormEMAVectorQuantizer). Deviations: codes move once
    a step and not in every forward; outside training, where the official s_k goes on changing, nothing does; s_k, which
    is a statistic only, is not set to zero at every epoch; the k-means start has k-means++ seeds, leaves no code without a
    vector, and is the same for all processes; a step with a vector that is not finite moves nothing.
    """

    codes: Tensor
    cluster_size: Tensor
    seen: Tensor
    report: Tensor

    def __init__(self, num_codes: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codes", torch.zeros(num_codes, dim))
        self.register_buffer("cluster_size", torch.zeros(num_codes))
        # [sum of V_k | |V_k|] of this step in whole numbers; the last row counts vectors that are not finite
        self.register_buffer("seen", torch.zeros(num_codes + 1, dim + 1, dtype=torch.int64), persistent=False)
        self.register_buffer("report", torch.zeros(len(HEALTH)), persistent=False)
        self._known = False  # `needs_fit` as last read: once false, no step waits for the device to ask again

    @property
    def needs_fit(self) -> bool:
        """No code was set yet: all are zero, which unit vectors are not."""
        self._known = self._known or bool(self.codes.any())
        return not self._known

    @torch.no_grad()
    def fit(self, z: Tensor) -> None:
        """Cosine k-means of z (n, dim), unit vectors; codes beyond n are random unit vectors."""
        generator = torch.Generator(z.device).manual_seed(0)
        codes = seed_codes(z, min(len(self.codes), len(z)), generator)
        for _ in range(ITERATIONS):
            codes = lloyd_step(z, codes, normalize=True)
        rest = torch.randn(len(self.codes) - len(codes), z.shape[1], generator=generator, device=z.device)
        self.codes.copy_(torch.cat([codes, F.normalize(rest, dim=1)]))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, N, dim) float32, unit vectors -> q(z) (B, N, dim), ids k (B, N) int64, mean over dim of (q(z) - z)^2
        (B, N), whose gradient is that of z. ValueError before `fit` or a checkpoint has set the codes."""
        if self.needs_fit:
            raise ValueError("head vqkd has no codes yet: call fit(...), or load a checkpoint that holds them")
        flat = z.flatten(0, 1)
        ids = nearest(flat.detach(), self.codes)
        codes = self.codes[ids]
        cost = (codes - flat).square().mean(1)
        if self.training and torch.is_grad_enabled():
            self._count(flat.detach(), ids)
            self.report[3] = cost.detach().mean()
        quantized = flat + (codes - flat).detach()
        return quantized.view_as(z), ids.view(z.shape[:2]), cost.view(z.shape[:2])

    def _count(self, z: Tensor, ids: Tensor) -> None:
        row = torch.where(z.isfinite().all(1), ids, len(self.codes))
        whole = torch.cat([(z * SCALE).round().long(), torch.ones_like(ids).unsqueeze(1)], 1)
        self.seen.index_add_(0, row, whole)

    def on_step_start(self) -> None:
        self.seen.zero_()

    @torch.no_grad()
    def on_step_end(self) -> None:
        seen, d = all_reduce_sum(self.seen), self.decay
        counts, sound = seen[:-1, -1].float(), seen[-1, -1] == 0
        sums = seen[:-1, :-1].float() / SCALE
        means = F.normalize(sums / counts.clamp_min(1).unsqueeze(1), dim=1)
        means = torch.where(counts.unsqueeze(1) > 0, means, self.codes)
        codes = F.normalize(d * self.codes + (1 - d) * means, dim=1)
        self.codes.copy_(torch.where(sound, codes, self.codes))
        self.cluster_size.copy_(torch.where(sound, d * self.cluster_size + (1 - d) * counts, self.cluster_size))
        shares = counts / counts.sum().clamp_min(1)
        self.report[0] = (counts > 0).float().mean()
        self.report[1] = torch.special.entr(shares).sum().exp()
        self.report[2] = (self.cluster_size < (1 - d) / math.e).float().mean()

    @property
    def health(self) -> Mapping[str, Tensor]:
        """Of the last step, over all processes: used, codes that a vector was nearest to, as a share of all;
        perplexity exp(-sum_k p_k log p_k) of the shares p of the codes; dead, the share of codes with less in s_k than one
        vector leaves there after 1 / (1 - d) steps, e.g. 100. commitment, of this process's last forward: mean of the cost.

        Views of one buffer, because who logs them asks for them in the forward, before the step's counts are complete.
        """
        return dict(zip(HEALTH, self.report.unbind(), strict=True))
