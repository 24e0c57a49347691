"""N: what a normalization must keep."""

from __future__ import annotations

import torch

from .rules import Named, config_of, finite, requirements
from .toys import noise, weighted


def check_norm(norm: Named) -> None:
    """N: (B, N, D) -> (B, N, D), float32, no parameters, pure; value and gradient finite on constant tokens too."""
    config = config_of("norms", norm)
    must, built = requirements("norm", config), config.build()
    owned = [name for name, _ in built.named_parameters()]
    must(not owned, f"a normalization of the target has no parameters, but this one owns {owned}")
    for kind, x in {
        "random": noise(3, 24, 8),
        "constant": torch.ones(3, 24, 8),
        "zero": torch.zeros(3, 24, 8),
    }.items():
        given = x.clone().requires_grad_()
        out = built(given)
        must(out.shape == x.shape, f"it keeps the shape {tuple(x.shape)}, but gave {tuple(out.shape)}")
        must(out.dtype == torch.float32, f"float32 stays float32, but became {out.dtype}")
        must(finite(out), f"{kind} tokens give values that are not finite; add eps")
        torch.autograd.backward(weighted(out))
        must(finite(given.grad), f"{kind} tokens give a gradient that is not finite; keep sqrt away from zero")
        must(torch.equal(given.detach(), x), "it must not write into its input")
        must(torch.equal(built(x), out), "the same tokens must give the same result twice")
