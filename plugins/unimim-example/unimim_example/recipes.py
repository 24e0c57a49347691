"""MaskDistill with this plugin's teacher. A recipe is plain data, so deriving one is replacing what differs."""

from typing import Any

from unimim import ours, plugins


def edges_micro() -> dict[str, Any]:
    """MaskDistill at micro size, taught by edge strengths."""
    return {
        **plugins()["recipes"]["maskdistill-micro"](),
        "title": "Edges",
        "paper": "",
        "teacher": ours("edges", "the question this plugin asks"),
    }
