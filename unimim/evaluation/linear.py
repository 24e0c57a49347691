"""The linear probe."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..address import rng
from .features import Features, Reading, standardize
from .protocol import Protocol, Setting, Subject
from .score import Score, accuracy

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Candidates for the L2 penalty."""
HELD_OUT = 0.1
"""Share of the training features on which the penalty is chosen."""


def fit_logistic(x: Tensor, labels: Tensor, num_classes: int, penalty: float, iterations: int = 100) -> nn.Linear:
    """argmin over W, b of mean cross-entropy(W x + b) + penalty / 2 |W|^2, from zero, by L-BFGS."""
    layer = nn.Linear(x.shape[1], num_classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=iterations, line_search_fn="strong_wolfe", history_size=10
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), labels) + penalty / 2 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer


def linear_probe(train: Features, test: Features, seed: int = 0) -> Score:
    """Top-1 of multinomial logistic regression on standardized features.

    The penalty is chosen on a held-out tenth of the training features, never on the test images.
    """
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    x, x_test = standardize(train.values, test.values)
    order = torch.from_numpy(rng(seed, len(x)).permutation(len(x)))
    held, kept = order[: int(len(x) * HELD_OUT)], order[int(len(x) * HELD_OUT) :]

    def held_out_accuracy(penalty: float) -> float:
        layer = fit_logistic(x[kept], train.labels[kept], num_classes, penalty)
        return float((layer(x[held]).argmax(1) == train.labels[held]).float().mean())

    best = max(PENALTIES, key=held_out_accuracy)
    layer = fit_logistic(x, train.labels, num_classes, best)
    correct = int((layer(x_test).argmax(1) == test.labels).sum())
    protocol = f"{train.described}, standardized; logistic regression, L2 penalty chosen on a held-out tenth"
    return accuracy("linear", correct, len(test.labels), protocol, train.metric("top-1"))


class Linear(Protocol):
    """`linear_probe` of frozen features: minutes on a CPU. Not comparable with published linear probes; `linear-mae` is."""

    task: ClassVar[str] = "linear"

    features: Reading = Reading()
    seed: int = Field(0, ge=0, lt=2**32)

    def check(self, subject: Subject, setting: Setting) -> None:
        self.features.check(subject.recipe)

    def measure(self, subject: Subject, setting: Setting) -> list[Score]:
        return [linear_probe(*setting.features(subject, self.features), self.seed)]
