"""Reports of comparisons: what they say (`data`), what follows from it (`verdict`), and how it is shown."""

from unimim.report.data import (
    Axes,
    Cost,
    Curve,
    Entry,
    Panel,
    Picture,
    Provenance,
    Report,
    Score,
    Skipped,
)
from unimim.report.html import render, write
from unimim.report.tables import csv, leaderboard, markdown
from unimim.report.verdict import Verdict, verdict

__all__ = [
    "Axes",
    "Cost",
    "Curve",
    "Entry",
    "Panel",
    "Picture",
    "Provenance",
    "Report",
    "Score",
    "Skipped",
    "Verdict",
    "csv",
    "leaderboard",
    "markdown",
    "render",
    "verdict",
    "write",
]
