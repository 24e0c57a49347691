"""docs/axes.md is what the registries say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_axes_page_is_current() -> None:
    code = "import sys; sys.path.insert(0, 'docs'); import generate; sys.stdout.write(generate.text())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout == (ROOT / "docs" / "axes.md").read_text(encoding="utf-8"), "run python docs/generate.py"
