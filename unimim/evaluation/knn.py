"""k nearest neighbours."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .features import Features, Reading
from .protocol import Protocol, Setting, Subject
from .score import Score, accuracy


def votes(train: Features, test: Tensor, num_classes: int, k: int, temperature: float, chunk: int = 1024) -> Tensor:
    """(n, num_classes): v_c = sum over the k nearest of class c of exp(cos / temperature).

    Follows facebookresearch/dino @ 7c446df, eval_knn.py, for any number of test images.
    """
    bank = F.normalize(train.values, dim=1)
    result = []
    for part in test.split(chunk):
        similarity, nearest = (F.normalize(part, dim=1) @ bank.T).topk(min(k, len(bank)), dim=1)
        weight = (similarity / temperature).exp()
        found = torch.zeros(len(part), num_classes)
        result.append(found.scatter_add_(1, train.labels[nearest], weight))
    return torch.cat(result)


def knn(train: Features, test: Features, k: int = 20, temperature: float = 0.07) -> Score:
    """Top-1 of the weighted vote."""
    return knn_scores(train, test, (k,), temperature)[0]


def knn_scores(train: Features, test: Features, counts: tuple[int, ...], temperature: float) -> list[Score]:
    """Top-1 and top-5 for every k (of at most k classes, as DINO counts); the first k is not named in the metric."""
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    scores = []
    for place, k in enumerate(counts):
        best = votes(train, test.values, num_classes, k, temperature).sort(1, descending=True).indices[:, : min(5, k)]
        hit = best == test.labels.unsqueeze(1)
        words, more = f"{train.described}; k = {k}, T = {temperature}, cosine", f", k = {k}" if place else ""
        scores += [
            accuracy("k-NN", int(hit[:, 0].sum()), len(hit), words, train.metric(f"top-1{more}")),
            accuracy("k-NN", int(hit.any(1).sum()), len(hit), words, train.metric(f"top-5{more}")),
        ]
    return scores


class KNN(Protocol):
    """DINO's weighted vote of the k nearest training images, for several k; the first is the headline."""

    task: ClassVar[str] = "knn"

    features: Reading = Reading()
    k: tuple[int, ...] = (20, 10, 100, 200)
    temperature: float = Field(0.07, gt=0)

    def check(self, subject: Subject, setting: Setting) -> None:
        self.features.check(subject.recipe)

    def measure(self, subject: Subject, setting: Setting) -> list[Score]:
        return knn_scores(*setting.features(subject, self.features), self.k, self.temperature)
