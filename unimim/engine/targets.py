"""What frozen teachers say of replayed crops, kept in files for this run and others.

DIR/<key>/ holds one teacher's targets for one view: `targets`, rows of equal length at index * crops + crop; `sums`, the
CRC-32 of each row as uint32, 0 where there is none; `cache.json`, what the key stands for. A row whose sum is wrong is a row
that is not there: the teacher is asked again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..targets import Layout, Replayed
from ..types import Batch, Target
from .checkpoint import write_text
from .data.loader import Sampler
from .run import Plan, Run

GB = 10**9
KEY = 16
"""Hex digits of a folder's name."""


class Replaying(Protocol):
    """What the cache sees of an objective."""

    student: Any

    def replayed(self) -> Mapping[str, Replayed]: ...
    def ask(self, batch: Batch) -> dict[str, Target]: ...


@dataclass(frozen=True)
class Rows:
    """The rows of one folder. It keeps no file open, so loader workers can have it too."""

    folder: Path
    layout: Layout

    def read(self, numbers: Sequence[int]) -> Target | None:
        """The target of the images at these rows; None unless every row is there and whole."""
        found = np.empty((len(numbers), self.layout.num_bytes), dtype=np.uint8)
        try:
            with self._open("targets", "rb") as targets, self._open("sums", "rb") as sums:
                for number, row in zip(numbers, found, strict=True):
                    wanted = int.from_bytes(os.pread(sums.fileno(), 4, 4 * number), "little")
                    if not wanted or os.preadv(targets.fileno(), [row.data], number * row.size) < row.size:
                        return None
                    if _sum(row) != wanted:
                        return None
        except OSError:
            return None
        return self.layout.unpack(torch.from_numpy(found))

    def write(self, numbers: Sequence[int], target: Target) -> None:
        """Raises OSError. Not through mmap, where a full disk ends the process."""
        packed = self.layout.pack(target).cpu().numpy()
        with self._open("targets", "r+b") as targets, self._open("sums", "r+b") as sums:
            for number, row in zip(numbers, packed, strict=True):
                _write(targets.fileno(), row.data, number * row.size)
                _write(sums.fileno(), _sum(row).to_bytes(4, "little"), 4 * number)

    def present(self) -> int:
        """Rows that have a sum."""
        return int(np.count_nonzero(np.fromfile(self.folder / "sums", dtype=np.uint32)))

    def _open(self, name: str, mode: str) -> Any:
        return (self.folder / name).open(mode, buffering=0)


@dataclass
class TargetCache:
    """The caches of a run by the name of their targets in a batch; without any it does nothing."""

    rows: Mapping[str, Rows] = field(default_factory=dict)
    crops: int = 1
    ask: Callable[[Batch], dict[str, Target]] = lambda batch: {}
    say: Callable[[str], None] = lambda message: None

    @property
    def read(self) -> Reader:
        """What loader workers do to a batch."""
        return Reader(self.rows, self.crops)

    def complete(self, batch: Batch) -> Batch:
        """The batch with all targets: those that it lacks are asked for, and written unless that has failed before."""
        lacking = {*self.rows} - {*batch.targets}
        if not lacking:
            return batch
        targets = self.ask(batch)
        try:
            for name in sorted(lacking):
                self.rows[name].write(_numbers(batch, self.crops), targets[name])
        except OSError as error:
            self.say(f"target cache not written: {error}; training goes on without")
            self.rows = {}
        return replace(batch, targets=targets)


@dataclass(frozen=True)
class Reader:
    """Puts the targets that are there into a batch."""

    rows: Mapping[str, Rows]
    crops: int

    def __call__(self, batch: Batch) -> Batch:
        found = {name: rows.read(_numbers(batch, self.crops)) for name, rows in self.rows.items()}
        return replace(batch, targets={name: target for name, target in found.items() if target is not None})


@contextmanager
def open_cache(
    objective: Any,
    fingerprint: Callable[[], str],
    sampling: Sampler,
    plan: Plan,
    run: Run,
    device: torch.device,
    say: Callable[[str], None],
) -> Iterator[TargetCache]:
    """The cache in run.target_cache for the targets that `objective` replays; one that does nothing if there are none.

    Every process opens it for itself, one after the other on a host: the first makes what is missing. Raises ValueError if
    teachers are sharded, or if it cannot fit, with its size. A folder that cannot be written is said.
    """
    replaying: Replaying = objective
    replayed = {} if run.target_cache is None else replaying.replayed()
    if run.target_cache is None or not replayed:
        yield TargetCache()
        return

    def ask(batch: Batch) -> dict[str, Target]:
        with torch.autocast(device.type, torch.bfloat16, plan.precision == "bfloat16"):
            return replaying.ask(batch)

    def layout(name: str) -> Layout:
        geometry = replaying.student.geometry
        blank = torch.zeros(geometry.channels, *geometry.image, dtype=torch.uint8)
        target = ask(sampling.collate([sampling(blank, 0, 0)]).to(device))[name]
        return Layout.of(target, replayed[name].precision, replayed[name].vocabulary)

    images, rows = fingerprint(), dict[str, Rows]()
    abouts = {
        name: {**wanted.about, "weights": _digest(wanted.teacher), "images": images}
        for name, wanted in replayed.items()
    }
    with ExitStack() as held:
        try:
            run.target_cache.mkdir(parents=True, exist_ok=True)
            with _locked(run.target_cache / ".lock", fcntl.LOCK_EX):
                for name, wanted in replayed.items():
                    folder = run.target_cache / _key(abouts[name])
                    count = plan.num_images * wanted.crops
                    rows[name] = _claim(folder, abouts[name], count, run.target_cache_gb, partial(layout, name), say)
                    held.enter_context(_locked(folder / "lock", fcntl.LOCK_SH))
        except OSError as error:
            say(f"target cache not opened: {error}; training goes on without")
            rows = {}
        yield TargetCache(rows, next(iter(replayed.values())).crops, ask, say)


def _claim(
    folder: Path, about: Any, count: int, limit: float, layout: Callable[[], Layout], say: Callable[[str], None]
) -> Rows:
    """The rows of a folder that holds what `about` says, made (anew) if it does not."""
    known = _read(folder, about, count)
    rows = Rows(folder, known or layout())
    size = count * (rows.layout.num_bytes + 4)
    told = f"target cache {folder}: {count} targets of {rows.layout.num_bytes} bytes = {size / GB:.3g} GB"
    _make_room(folder, size, limit, told, say)
    if known is None:
        folder.mkdir(exist_ok=True)
        for name in ("cache.json", "targets", "sums"):
            (folder / name).unlink(missing_ok=True)
        for name, length in (("targets", count * rows.layout.num_bytes), ("sums", count * 4)):
            with (folder / name).open("wb") as file:
                file.truncate(length)
        described = {"targets": about, "rows": count, "row_bytes": rows.layout.num_bytes, "layout": asdict(rows.layout)}
        write_text(folder / "cache.json", json.dumps(described, indent=1))
    os.utime(folder / "cache.json")
    say(f"{told}; {rows.present()} present, {shutil.disk_usage(folder).free / GB:.3g} GB free on the disk")
    return rows


def _read(folder: Path, about: Any, count: int) -> Layout | None:
    """How the rows of a folder lie; None if its cache.json does not say, or says that they are others."""
    try:
        told = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
        layout = Layout(**{**told["layout"], "tokens": tuple(told["layout"]["tokens"])})
        agrees = (told["targets"], told["rows"], told["row_bytes"]) == (_plain(about), count, layout.num_bytes)
        return layout if agrees and (folder / "targets").exists() and (folder / "sums").exists() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _make_room(folder: Path, size: int, limit: float, told: str, say: Callable[[str], None]) -> None:
    """Remove caches that no run has open, those opened longest ago first, until `size` fits into limit and disk.

    ValueError, and nothing is removed, if it never will.
    """
    others = [path.parent for path in folder.parent.glob(f"{'[0-9a-f]' * KEY}/lock") if path.parent != folder]
    idle = sorted((other for other in others if not _in_use(other)), key=_opened)
    missing = size - _taken(folder)
    total, free = size + sum(map(_size, others)), shutil.disk_usage(folder.parent).free
    least, most = total - sum(map(_size, idle)), free + sum(map(_taken, idle))
    if least > limit * GB or missing > most:
        why = f"run.target_cache_gb={limit:g} allows {limit - (least - size) / GB:.3g}"
        why = why if least > limit * GB else f"the disk has {most / GB:.3g} left"
        raise ValueError(
            f"{told} does not fit: {why}; raise the limit, lower replay.crops, or set replay.precision=int8 (the recipe's "
            f"fields change the result)"
        )
    for other in idle:
        if total <= limit * GB and missing <= free:
            return
        say(f"target cache {other} makes room: {_size(other) / GB:.3g} GB")
        total, free = total - _size(other), free + _taken(other)
        shutil.rmtree(other)


def _in_use(folder: Path) -> bool:
    try:
        with _locked(folder / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except OSError:
        return True


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Hold a lock that the system forgets when the process, and every worker it has, is gone."""
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, how)
        yield


def _opened(folder: Path) -> float:
    path = folder / "cache.json"
    return path.stat().st_mtime if path.exists() else 0.0


def _size(folder: Path) -> int:
    """Bytes of a cache when it is full."""
    return sum(path.stat().st_size for path in folder.glob("*"))


def _taken(folder: Path) -> int:
    """Bytes it takes of the disk now."""
    return sum(path.stat().st_blocks * 512 for path in folder.glob("*"))


def _numbers(batch: Batch, crops: int) -> list[int]:
    return [int(index) * crops + batch.crop for index in batch.index.tolist()]


def _sum(row: np.ndarray[Any, np.dtype[np.uint8]]) -> int:
    """CRC-32, never 0."""
    return zlib.crc32(row.data) or 1


def _write(file: int, data: bytes | memoryview, at: int) -> None:
    written = os.pwrite(file, data, at)
    if written < len(data):
        raise OSError(f"{written} of {len(data)} bytes written")


def _plain(about: Any) -> Any:
    return json.loads(json.dumps(about))


def _key(about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:KEY]


def _digest(teacher: nn.Module) -> str:
    """SHA-256 of its parameters and buffers with their names. ValueError if this process holds a part of them only."""
    digest = hashlib.sha256()
    tensors: list[tuple[str, Tensor]] = [*teacher.named_parameters(), *teacher.named_buffers()]
    for name, tensor in tensors:
        if hasattr(tensor, "full_tensor"):
            raise ValueError(
                "run.target_cache: a teacher that is sharded must be asked by all processes at once; use run.parallel=ddp, or "
                "run.shard_teachers=false for teachers whose weights are loaded"
            )
        digest.update(f"{name} {tensor.dtype} {[*tensor.shape]};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
