"""Tensors out of files that torch.save wrote from a whole module, without running anything the file asks for.

`torch.load` of such a file imports the module's classes and calls what the pickle names. Here nothing is imported: only
tensors and plain containers are built, classes of networks become inert records, and any other name is refused.
Both formats of torch.save are read: the zip archive (torch 1.6 and later) and the older stream of pickles.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_NETWORKS = ("torch.nn.modules.", "dall_e.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """{name: tensor} of a module or state dict saved by torch.save, names as in `state_dict()`.

    Raises ValueError if the file is damaged, or names anything but tensors, containers and classes of networks.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            saved = _read_zip(file) if zipped else _read_stream(file, path.stat().st_size)
        return dict(_tensors(saved))
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"cannot read weights from {path}: {error}") from error


class _Record:
    """Stands for an object of the file: keeps its state and has no behavior."""

    state: Mapping[str, Any] = {}

    def __init__(self, *arguments: object) -> None:
        """Accepts what the real class was called with."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """An unpickler to which every name is a tensor builder, a container or a `_Record`.

    storage: (key, dtype, number of elements) -> (elements,) tensor.
    """

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__(file)
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if full == "torch._utils._rebuild_tensor_v2":
            return self._tensor  # a bound method, whose attributes a hostile pickle cannot set
        if full == "torch._utils._rebuild_parameter":
            return self._parameter
        if full == "collections.OrderedDict":
            return OrderedDict
        if full in ("builtins.set", "__builtin__.set"):
            return set
        if full == "torch.device" or module.startswith(_NETWORKS):
            return _Record
        raise ValueError(f"it names {full}, which weights have no use for; the file may be hostile, nothing was run")

    def persistent_load(self, pid: Any) -> Any:
        kind, *rest = pid
        if kind == "module":  # (class, source file, source text): what old files say of a container
            return rest[0]
        if kind != "storage" or (len(rest) > 4 and rest[4] is not None):
            raise ValueError(f"unsupported reference {pid!r}")
        return self.storage(str(rest[1]), rest[0], int(rest[3]))

    def _tensor(self, storage: Tensor, offset: int, size: Any, stride: Any, *rest: object) -> Tensor:
        return storage.as_strided(size, stride, offset)

    def _parameter(self, data: Tensor, *rest: object) -> Tensor:
        return data


def _read_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            return torch.frombuffer(bytearray(archive.read(f"{root}data/{key}")), dtype=dtype, count=count)

        with archive.open(f"{root}data.pkl") as pickled:
            return _Reader(pickled, storage).load()


def _read_stream(file: IO[bytes], size: int) -> Any:
    """Magic number, version, system facts, the object, the keys of its storages, then the storages themselves."""
    storages: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in storages:
            if count * dtype.itemsize > size:
                raise ValueError(f"it claims {count} numbers, more than the file can hold")
            storages[key] = torch.empty(count, dtype=dtype)
        return storages[key]

    magic, _version, _system, saved, keys = (_Reader(file, storage).load() for _ in range(5))
    if magic != _LEGACY_MAGIC:
        raise ValueError("torch.save did not write it")
    for key in keys:
        values = storages[str(key)]
        count = int.from_bytes(file.read(8), "little")
        if count != len(values):
            raise ValueError(f"storage {key} has {count} numbers where {len(values)} were announced")
        values.copy_(torch.frombuffer(bytearray(file.read(count * values.itemsize)), dtype=values.dtype, count=count))
    return saved


def _tensors(node: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Named tensors of a saved module, or of a state dict, alone or under "state_dict"."""
    if isinstance(node, _Record):
        state = node.state
        for name, value in [*state.get("_parameters", {}).items(), *state.get("_buffers", {}).items()]:
            if isinstance(value, Tensor):
                yield prefix + name, value
        for name, child in state.get("_modules", {}).items():
            yield from _tensors(child, f"{prefix}{name}.")
    elif isinstance(node, Mapping):
        node = node.get("state_dict", node)
        yield from ((str(name), value) for name, value in node.items() if isinstance(value, Tensor))
    else:
        raise ValueError(f"it holds a {type(node).__name__}, neither a module nor a state dict")
