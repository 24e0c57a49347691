"""Where a student looks: the attention weights of its last block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..axes import Student
from ..layers.blocks import Attention, attend
from ..types import View


@dataclass(frozen=True)
class Attended:
    """weights (B, N): the share of attention each patch gets, and in words who pays it."""

    weights: Tensor
    asked: str


@torch.no_grad()
def attention(student: Student, view: View) -> Attended | None:
    """mean over heads of softmax(q k^T / sqrt(d) + bias) of the class token over the patches; without a class token, the
    mean over the patches' queries. Shares of the patches do not add up to 1 where prefix tokens take some.

    Of the last attention layer, if it is a plain `Attention` over the whole image; None for others, such as windows.
    """
    layers = [module for module in student.modules() if isinstance(module, Attention)]
    if (
        not layers or type(layers[-1]) is not Attention
    ):  # a kind of its own adds biases and orders that are not known here
        return None
    given: list[tuple[Any, ...]] = []
    hook = layers[-1].register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    try:
        encoded = student(view)
    finally:
        hook.remove()
    x, bias = (*given[-1], None)[:2]
    num_prefix, num_tokens = encoded.prefix.shape[1], student.geometry.num_tokens
    if x.shape[1] != num_prefix + num_tokens:
        return None
    q, k, _ = layers[-1].split(x)
    everyone = torch.eye(x.shape[1], device=x.device, dtype=q.dtype).expand(*q.shape[:3], -1)
    weights = attend(q, k, everyone, bias, 0.0).mean(1)[:, :, num_prefix:].float()
    if num_prefix:
        return Attended(weights[:, 0], "of the class token")
    return Attended(weights.mean(1), "mean of the patches' queries")
