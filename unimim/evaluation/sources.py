"""Parts of image sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor

from ..address import rng
from ..engine.data.sources import ImageSource


class Chosen:
    """The images of a source at `places`, in that order."""

    def __init__(self, source: ImageSource, places: Sequence[int]) -> None:
        self.source, self.classes, self.places = source, source.classes, list(places)

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        return self.source.name(self.places[index])

    def read(self, index: int) -> Tensor:
        return self.source.read(self.places[index])

    def label(self, index: int) -> int:
        return self.source.label(self.places[index])

    def fingerprint(self) -> str:
        whole = self.places == [*range(len(self.source))]
        chosen = hashlib.sha256(str(self.places).encode()).hexdigest()[:8]
        return self.source.fingerprint() if whole else f"{self.source.fingerprint()}-{chosen}"


def spread(source: ImageSource, count: int | None) -> Chosen:
    """At most `count` images of a source, drawn once and for all: a stride would miss classes that alternate."""
    drawn = rng(len(source)).permutation(len(source))[: count or len(source)]
    return Chosen(source, sorted(int(place) for place in drawn))
