"""Plugins as users have them: installed distributions, found by a fresh process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def pip_install(site: Path, *sources: Path) -> None:
    """Build and install distributions into the folder `site`, from copies, because a build writes into its source."""
    copies = [
        shutil.copytree(source, site.parent / "sources" / source.name, ignore=shutil.ignore_patterns("*.egg-info"))
        for source in sources
    ]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    run("-m", "pip", "install", *quiet, "--target", str(site), *map(str, copies))


def write(site: Path, name: str, files: dict[str, str], value: str = "", metadata: bool = True) -> Path:
    """What pip leaves behind: {file: text} of the package of distribution `name`, and its metadata. The package's folder.

    value: of its entry point; the package itself by default.
    """
    package = site / name.replace("-", "_")
    for file, text in files.items():
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(text)
    info = site / f"{package.name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(f"[unimim]\nplugin = {value or package.name}\n")
    if metadata:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    return package


def run(*arguments: str, site: Path | None = None, allowed: str | None = None, cwd: Path | None = None) -> str:
    """What `python ARGUMENTS` prints, with the distributions in `site`; allowed is UNIMIM_PLUGINS."""
    kept = {key: value for key, value in os.environ.items() if key not in ("UNIMIM_PLUGINS", "PYTHONPATH")}
    chosen = {"PYTHONPATH": str(site)} if site else {}
    chosen |= {"UNIMIM_PLUGINS": allowed} if allowed is not None else {}
    environment = {**kept, **chosen, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
