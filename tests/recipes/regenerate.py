"""Write tests/recipes/golden anew, after a deliberate change: python tests/recipes/regenerate.py, then read the diff."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["UNIMIM_PLUGINS"] = "none"

from unimim import load, plugins

GOLDEN = Path(__file__).parent / "golden"

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.yaml"):
        old.unlink()
    for name in plugins()["recipes"]:
        (GOLDEN / f"{name}.yaml").write_text(load(name).yaml(), encoding="utf-8")
