"""Batch normalization of tokens, over one process or all of them, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..world import all_reduce_sum, world_size


class BatchNorm(nn.BatchNorm1d):
    """y = g (x - m) / sqrt(v + eps) + b, channel by channel over every other axis, in float32.

    In training m and v (biased) are the batch's, of all processes with `world`, and move the running ones; in eval mode
    they are the running ones. Parameters and buffers have torch's names. torch's own SyncBatchNorm runs on GPUs only.
    Every process must bring the same number of tokens.
    """

    def __init__(
        self, dim: int, affine: bool = True, world: bool = False, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__(dim, eps, momentum, affine)
        self.rate, self.world = momentum, world

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> the same shape and type."""
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.float().flatten(0, -2)
            if self.training and self.world and world_size() > 1:
                y = self._over_all(tokens)
            else:
                y = F.batch_norm(
                    tokens,
                    self.running_mean,
                    self.running_var,
                    self.weight,
                    self.bias,
                    self.training,
                    self.rate,
                    self.eps,
                )
        return y.view(x.shape).to(x.dtype)

    def _over_all(self, tokens: Tensor) -> Tensor:
        count = len(tokens) * world_size()
        mean = all_reduce_sum(tokens.sum(0)) / count
        variance = all_reduce_sum((tokens - mean).square().sum(0)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            self.running_mean.lerp_(mean, self.rate)
            self.running_var.lerp_(variance * count / (count - 1), self.rate)
        y = (tokens - mean) * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias, y, self.weight) if self.affine else y
