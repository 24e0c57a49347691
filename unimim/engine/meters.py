"""What a run logs of its steps, summed on the device between two readings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..world import all_gather, all_reduce_sum, rank, world_size


class Meters:
    """Losses and gradient norms of sound steps, kept on the device until they are read."""

    def __init__(self, state: Mapping[str, Any] | None, device: torch.device) -> None:
        """state: what `state` gave when a run stopped between two readings.

        Each process goes on with its own sums, so that the next reading adds in the same order and has the same bits;
        where there were more or fewer processes, with the mean.
        """
        shares = state["sums"] if state else {}
        self.sums: dict[str, Tensor] = {
            name: torch.tensor(share[rank()] if len(share) == world_size() else sum(share) / len(share), device=device)
            for name, share in shares.items()
        }
        self.steps: int = state["steps"] if state else 0

    def state(self) -> dict[str, Any]:
        """{"sums": {name: [of each process]}, "steps"}: what a checkpoint keeps of the time since the last reading; asks all."""
        if not self.sums:
            return {"sums": {}, "steps": 0}
        shares = all_gather(torch.stack([*self.sums.values()])[None]).T.tolist()
        return {"sums": dict(zip(self.sums, shares, strict=True)), "steps": self.steps}

    def _reduced(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        if not values:
            return {}
        means = (all_reduce_sum(torch.stack([value.float() for value in values.values()])) / world_size()).tolist()
        return dict(zip(values, means, strict=True))

    def add(self, losses: Mapping[str, Tensor], grad_norm: Tensor, good: Tensor) -> None:
        terms = {f"loss/{name}": value for name, value in losses.items() if name != "loss"}
        values = {"loss": losses["loss"], **(terms if len(terms) > 1 else {}), "grad_norm": grad_norm.detach()}
        kept = {name: torch.where(good, value.float(), 0.0) for name, value in values.items()} | {"good": good.float()}
        self.sums = {name: self.sums[name] + value if self.sums else value for name, value in kept.items()}
        self.steps += 1

    def read(self, health: Mapping[str, Tensor]) -> dict[str, float]:
        """Means since the last reading, losses over all processes; then start anew. "skipped", if any, counts steps.

        health: scalars of the last step, which are read with them.
        """
        named = self._reduced({**self.sums, **health})
        good = named.pop("good")
        means = {n: v if n in health else v / good if good else float("nan") for n, v in named.items()}
        skipped = {"skipped": self.steps - round(good)} if round(good) < self.steps else {}
        self.sums, self.steps = {}, 0
        return means | skipped
