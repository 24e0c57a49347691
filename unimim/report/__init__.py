"""Reports of comparisons: what they say (`data`), what follows from it (`verdict`), and how it is shown."""

from unimim.report.data import (
    Axes,
    Cost,
    Curve,
    Entry,
    Figure,
    Panel,
    Picture,
    Provenance,
    Report,
    Score,
    Series,
    Skipped,
)
from unimim.report.figures import shape_bias
from unimim.report.html import render, write
from unimim.report.tables import csv, leaderboard, markdown
from unimim.report.verdict import Verdict, verdict

__all__ = [
    "Axes",
    "Cost",
    "Curve",
    "Entry",
    "Figure",
    "Panel",
    "Picture",
    "Provenance",
    "Report",
    "Score",
    "Series",
    "Skipped",
    "Verdict",
    "csv",
    "leaderboard",
    "markdown",
    "render",
    "shape_bias",
    "verdict",
    "write",
]
