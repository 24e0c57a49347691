"""Checkpoints that are whole or absent.

A checkpoint is a folder step-NNNNNNNN with state.pt and a manifest of sizes and SHA-256 sums. It is written under a hidden
name, synced to disk, renamed, and only then named in LATEST. Loading trusts nothing but a verified manifest, and state.pt
holds tensors and plain values only (weights_only).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class Checkpoints:
    """The checkpoints of one run folder; the last `keep` whole ones stay."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `step`; when this returns it survives a crash of the machine."""
        self.folder.mkdir(parents=True, exist_ok=True)
        final, hidden = self.folder / f"step-{step:08d}", self.folder / f".tmp-step-{step:08d}"
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        torch.save(dict(state), hidden / "state.pt")
        digest, size = _digest(hidden / "state.pt")
        manifest = {"step": step, "files": {"state.pt": {"sha256": digest, "bytes": size}}, "meta": dict(meta)}
        (hidden / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in (hidden / "state.pt", hidden / "manifest.json", hidden):
            sync(path)
        if final.exists():
            shutil.rmtree(final)
        hidden.rename(final)
        sync(self.folder)
        write_text(self.folder / "LATEST", final.name)
        self._prune()
        return final

    def load(self, device: torch.device) -> tuple[dict[str, Any], dict[str, Any], list[str]] | None:
        """(state, meta, warnings) of the newest whole checkpoint; None if the folder holds none at all.

        Raises ValueError if there are checkpoints and not one is whole.
        """
        damaged: list[str] = []
        for path in self.paths():
            problem = verify(path)
            if not problem:
                state = torch.load(path / "state.pt", map_location=device, weights_only=True)
                return state, json.loads((path / "manifest.json").read_text())["meta"], damaged
            damaged.append(f"{path}: {problem}; trying an older one")
        if damaged:
            raise ValueError("no whole checkpoint is left:\n  " + "\n  ".join(damaged))
        return None

    def paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _prune(self) -> None:
        whole = [path for path in self.paths() if not verify(path, contents=False)]
        for path in whole[self.keep :]:
            shutil.rmtree(path)


def verify(path: Path, contents: bool = True) -> str:
    """What is wrong with a checkpoint folder; empty if it is whole."""
    try:
        files = json.loads((path / "manifest.json").read_text())["files"]
        for name, expected in files.items():
            if (path / name).stat().st_size != expected["bytes"]:
                return f"{name} has another size than its manifest says"
            if contents and _digest(path / name)[0] != expected["sha256"]:
                return f"{name} differs from its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable manifest ({type(error).__name__}: {error})"
    return ""


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    hidden = path.with_name(f".tmp-{path.name}")
    hidden.write_text(text, encoding="utf-8")
    sync(hidden)
    hidden.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
