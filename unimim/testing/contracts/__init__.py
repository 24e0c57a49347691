"""The conformance kit: whether a component keeps the contract of its axis, a file an axis.

A check takes a registered component as a name, a mapping or a Config, builds it beside a toy student and raises
AssertionError with the rule and what was seen.
"""

from __future__ import annotations

from .heads import check_head
from .losses import check_loss
from .masks import check_mask
from .norms import check_norm
from .recipes import check_recipe
from .students import check_student
from .teachers import check_teacher
from .toys import TOY
from .views import check_views

__all__ = [
    "TOY",
    "check_head",
    "check_loss",
    "check_mask",
    "check_norm",
    "check_recipe",
    "check_student",
    "check_teacher",
    "check_views",
]
