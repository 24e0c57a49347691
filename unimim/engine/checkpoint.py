"""Checkpoints that are whole or absent, in one protocol for one process or many, written beside the training.

A checkpoint is a folder step-NNNNNNNN:

    state/*.safetensors     what `training_state` gives, in shards of torch.distributed.checkpoint, one a process
    student.safetensors     the student alone, whole
    manifest.json           step, meta, size and SHA-256 of every file, and its own SHA-256

It is written under a hidden name, synced to disk, renamed, and only then named in LATEST. Loading trusts nothing but a
verified manifest, and takes any number of processes, whatever number wrote it. Nothing in it is pickled (DCP's own metadata
would be), so no checkpoint can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.tensor import DTensor

from ..world import host_group, rank, world_size

# A single process has no process group, on purpose; DCP warns about it at every call.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class CheckpointError(OSError):
    """A checkpoint could not be written; older ones stay."""


class Found(NamedTuple):
    """A whole checkpoint: its folder, the step it holds, its meta, and what was wrong with newer ones."""

    path: Path
    step: int
    meta: dict[str, Any]
    warnings: list[str]


class Checkpoints:
    """The checkpoints of one run folder; of the whole ones the last `keep` stay, and the one with the lowest loss."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep
        self._group = host_group()
        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._damaged: set[Path] = set()

    def save(
        self, step: int, state: Mapping[str, Tensor], student: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> None:
        """Begin to write the checkpoint of `step`. The tensors are copied before this returns; the rest goes on beside it.

        Every process calls it. state: plain tensors, the same on every process, or DTensors; student: plain tensors, read
        on rank 0. meta: plain data; "loss", if given, decides which checkpoint is the best. Waits for a checkpoint still
        being written, and raises CheckpointError if that one failed.
        """
        self.wait()
        sharded = {name: tensor for name, tensor in state.items() if isinstance(tensor, DTensor)}
        staged: dict[str, Any] = {name: _copy(tensor) for name, tensor in state.items() if name not in sharded}
        staged.update(self._stager.stage(sharded))  # type: ignore[arg-type]
        export = {name: _copy(tensor) for name, tensor in student.items()} if rank() == 0 else {}
        self._pending = self._thread.submit(self._write, step, staged, export, dict(meta))

    def wait(self) -> None:
        """Until nothing is being written: what was begun now survives a crash of the machine. Raises CheckpointError."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish what is being written, well or not, and end the thread that writes."""
        with suppress(CheckpointError):
            self.wait()
        self._thread.shutdown()

    def newest(self) -> Found | None:
        """The newest whole checkpoint, the same on every process; None if the folder holds none at all.

        Raises ValueError if there are checkpoints and not one is whole.
        """
        found: list[Any] = [self._newest() if rank() == 0 else None]
        if self._group is not None:
            dist.broadcast_object_list(found, 0, self._group)
        if isinstance(found[0], ValueError):
            raise found[0]
        return found[0]  # type: ignore[no-any-return]

    def names(self, found: Found) -> set[str]:
        """The tensors a checkpoint holds."""
        return {*HuggingFaceStorageReader(str(found.path / "state")).read_metadata().state_dict_metadata}

    def load(self, found: Found, state: Mapping[str, Tensor]) -> None:
        """Fill the tensors of `state`, which may be a part of the checkpoint's, in place."""
        reader = HuggingFaceStorageReader(str(found.path / "state"))
        load_shards(dict(state), storage_reader=reader, process_group=self._group, no_dist=self._group is None)

    def paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _newest(self) -> Found | ValueError | None:
        damaged: list[str] = []
        for path in self.paths():
            problem = verify(path)
            if not problem:
                manifest = _manifest(path)
                return Found(path, manifest["step"], manifest["meta"], damaged)
            self._damaged.add(path)
            damaged.append(f"{path}: {problem}; trying an older one")
        if not damaged:
            return None
        listed = "\n  ".join(damaged)
        return ValueError(
            f"no whole checkpoint is left; use another folder, or remove these to begin anew:\n  {listed}"
        )

    def _write(self, step: int, state: dict[str, Tensor], student: dict[str, Tensor], meta: dict[str, Any]) -> None:
        final, hidden = self.folder / f"step-{step:08d}", self.folder / f".tmp-step-{step:08d}"
        try:
            self._on_rank_0(partial(_empty, hidden))
            writer = HuggingFaceStorageWriter(str(hidden / "state"), save_distributed=True)
            save_shards(state, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
            self._on_rank_0(partial(save_file, student, hidden / "student.safetensors"))
            files = self._everywhere(partial(_seal, hidden))
            self._on_rank_0(partial(self._publish, hidden, final, {"step": step, "files": files, "meta": meta}))
        except (Exception, CheckpointException) as error:  # torch's own is no Exception
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder} ({_reason(error)}); "
                f"older checkpoints stay; make room and start the same command again"
            ) from error

    def _publish(self, hidden: Path, final: Path, manifest: Mapping[str, Any]) -> None:
        write_text(hidden / "manifest.json", json.dumps({**manifest, "sha256": _seal_of(manifest)}, indent=1))
        if final.exists():
            _remove(final)
        hidden.rename(final)
        sync(self.folder)
        self._damaged.discard(final)
        write_text(self.folder / "LATEST", final.name)
        self._prune()

    def _prune(self) -> None:
        whole = [path for path in self.paths() if path not in self._damaged and not verify(path, contents=False)]
        losses = {path: _manifest(path)["meta"].get("loss") for path in whole}
        rated = {path: loss for path, loss in losses.items() if loss is not None}
        kept = {*whole[: self.keep], *([min(rated, key=rated.__getitem__)] if rated else [])}
        for path in whole:
            if path not in kept:
                _remove(path)

    def _on_rank_0(self, work: Callable[[], None]) -> None:
        def alone() -> dict[str, Any]:
            if rank() == 0:
                work()
            return {}

        self._everywhere(alone)

    def _everywhere(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` gives on every process, together. An error on one is raised on all, so that none waits for it."""
        results: list[Any]
        try:
            results = [work()]
        except Exception as error:
            results = [error]
        if self._group is not None:
            gathered: list[Any] = [None] * world_size()
            failed = results[0] if isinstance(results[0], Exception) else None
            dist.all_gather_object(gathered, str(failed) if failed else results[0], self._group)
            results = [failed, *gathered]
        for result in results:
            if isinstance(result, Exception):
                raise result
            if isinstance(result, str):
                raise OSError(result)
        return {name: value for result in results if result for name, value in result.items()}


def verify(path: Path, contents: bool = True) -> str:
    """What is wrong with a checkpoint folder; empty if it is whole."""
    try:
        files = _manifest(path)["files"]
        for name, expected in files.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != expected["bytes"]:
                return f"{name} has another size than its manifest says"
            if contents and _digest(path / name) != expected["sha256"]:
                return f"{name} differs from its checksum"
        strays = sorted({str(shard.relative_to(path)) for shard in (path / "state").iterdir()} - {*files})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json, or a file it names, is unreadable ({type(error).__name__}: {error})"
    return f"{strays[0]} is not in its manifest" if strays else ""


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


def _copy(tensor: Tensor) -> Tensor:
    """On the host, contiguous, sharing memory with nothing."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _empty(folder: Path) -> None:
    """The folder to write into, new; what crashes left of others before it goes away."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    sync(folder.parent.parent)
    for left in folder.parent.glob(".tmp-*step-*"):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir()
    (folder / "state").mkdir()


def _remove(folder: Path) -> None:
    """Hidden first, so that a crash leaves no half of it in sight."""
    gone = folder.with_name(f".tmp-gone-{folder.name}")
    folder.rename(gone)
    shutil.rmtree(gone)


def _seal(folder: Path) -> dict[str, Any]:
    """Sync this process's share of the files and folders; their sizes and checksums."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())[rank() :: world_size()]
    for path in [*files, folder / "state", folder]:
        sync(path)
    return {str(path.relative_to(folder)): {"sha256": _digest(path), "bytes": path.stat().st_size} for path in files}


def _reason(error: BaseException) -> str:
    """The innermost cause in a line; torch says of a full disk only that a position is not the expected one."""
    text = " ".join(str(error).split())
    full = any(sign in text for sign in ("No space left", "os error 28", "File too large", "unexpected pos"))
    return "the disk is full or the file too large" if full else f"{type(error).__name__}: {text[-300:]}"


def _manifest(path: Path) -> dict[str, Any]:
    """Raises OSError or ValueError if it is not what was written."""
    manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _seal_of(manifest):
        raise ValueError("manifest.json differs from its own checksum")
    return manifest


def _seal_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
