"""For the tests of a plugin: the contracts of the axes, and stored steps of an official implementation.

    from unimim import testing

    def test_my_teacher() -> None:
        testing.check_teacher({"name": "mine", "width": 8})

Needs no test framework; what does not hold raises AssertionError with the rule and what was seen.
"""

from __future__ import annotations

from .contracts import (
    TOY,
    check_head,
    check_loss,
    check_mask,
    check_norm,
    check_recipe,
    check_student,
    check_teacher,
    check_views,
)
from .parity import Golden, check_gradients
from .processes import check_processes, in_processes
from .static import absent_gpu, check_static_step

__all__ = [
    "TOY",
    "Golden",
    "absent_gpu",
    "check_gradients",
    "check_head",
    "check_loss",
    "check_mask",
    "check_norm",
    "check_processes",
    "check_recipe",
    "check_static_step",
    "check_student",
    "check_teacher",
    "check_views",
    "in_processes",
]
