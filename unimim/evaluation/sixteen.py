"""The 16 everyday categories in which people and classifiers are asked alike, by their classes of ImageNet-1k.

Source: bethgelab/model-vs-human @ 79ed7cd, modelvshuman/helper/human_categories.py: the lists of indices, which leave out
the categories' WordNet ids that are no class of ILSVRC 2012. 207 of the 1000 classes belong to a category.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_INDICES = {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898-899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385-386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}


def _numbers(text: str) -> tuple[int, ...]:
    runs = [[int(end) for end in part.split("-")] for part in text.split()]
    return tuple(number for run in runs for number in range(run[0], run[-1] + 1))


SIXTEEN = {category: _numbers(text) for category, text in _INDICES.items()}
"""{category: indices among the 1000 classes, which are sorted by WordNet id}."""

_ANCHORS = {0: "n01440764", 404: "n02690373", 999: "n15075141"}


def is_imagenet_1k(classes: Sequence[str]) -> bool:
    """Whether these are the 1000 WordNet ids of ILSVRC 2012 in the order that SIXTEEN counts in (tested by three of them)."""
    return (
        len(classes) == 1000
        and all(re.fullmatch(r"n\d{8}", name) for name in classes)
        and list(classes) == sorted(classes)
        and all(classes[index] == name for index, name in _ANCHORS.items())
    )
