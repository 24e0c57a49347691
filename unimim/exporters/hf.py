"""Students as folders for the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from ..engine.checkpoint import write_text
from .base import Trained
from .card import card
from .timm import export_timm


def export_hf(trained: Trained, folder: Path) -> float:
    """What `export_timm` writes, which is what the hub's timm models are, and the model card README.md.

    Returns the largest difference of the model loaded again. ValueError as from `export_timm`, and if the run's records
    cannot be read.
    """
    difference = export_timm(trained, folder)
    write_text(folder / "README.md", card(trained, difference))
    return difference
