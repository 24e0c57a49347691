"""L: what a loss must keep."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...address import uniform
from ...types import TargetSpec
from .rules import Named, config_of, difference, finite, requirements
from .toys import noise


def check_loss(loss: Named, dim: int = 6, distance: bool = True) -> None:
    """L: float32 per query (B, M), or () if joint; finite gradients; entries that are not valid have no influence.

    distance False is for regularizers, whose value is not least where prediction and target agree.
    """
    config = config_of("losses", loss)
    must, built, shape = requirements("loss", config), config.build(TargetSpec(dim, config.discrete)), (3, 7)
    ids = (uniform(torch.arange(3), 7, 1) * dim).long()
    target = ids if config.discrete else noise(*shape, dim, seed=1)
    pred = noise(*shape, built.out_dim).requires_grad_()
    value = built(pred, target)
    expected, seen = () if config.joint else shape, tuple(value.shape)
    must(seen == expected, f"joint {config.joint} promises a value of shape {expected}, but forward gave {seen}")
    must(value.dtype == torch.float32, f"float32 stays float32, but became {value.dtype}")
    torch.autograd.backward(value.sum())
    must(finite(value) and finite(pred.grad), "value and gradient must be finite")
    must(torch.equal(built(pred, target), value), "the same prediction and target must cost the same twice")
    if config.joint:
        return
    valid = torch.arange(7).expand(3, -1) < torch.tensor([[7], [5], [3]])
    spoilt = torch.where(valid.unsqueeze(-1), pred.detach(), 1e3)
    leak = difference(built(pred, target, valid)[valid], built(spoilt, target, valid)[valid])
    must(leak < 1e-4, f"predictions that are not valid must not change the others, but do, by {leak:.2g}")
    if distance and (config.discrete or built.out_dim == dim):
        equal = 50 * F.one_hot(ids, built.out_dim).float() if config.discrete else target
        least = not (built(equal, target) > value + 1e-6).any()
        must(least, "it must be least where the prediction says the target; a regularizer passes distance=False")
