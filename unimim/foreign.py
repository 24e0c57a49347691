"""Reading checkpoints that other projects wrote, without ever running code from them."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

PARTS = ("model", "model_state", "state_dict", "module", "model_ema")
"""Keys under which training scripts keep their weights, the first that is there being the default."""


class _Callback:
    """Stands for a class of Lightning, whose checkpoints keep the state of callbacks under their classes."""


_HARMLESS: list[Any] = [
    argparse.Namespace,
    (PurePosixPath, "pathlib.PosixPath"),
    (_Callback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]
"""What may be built beside tensors and plain values; a path only as a name, a callback as nothing."""


def read_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """{part: {name: tensor}} of a .safetensors or torch file, on the CPU; a bare state dict is the part "".

    Torch files are read with weights_only: tensors, plain values, the `args` of the official scripts, an argparse.Namespace
    with paths in it, and the name of Lightning's ModelCheckpoint are all they may hold. ValueError for anything else, and for
    files without tensors.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}")
    content = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds {type(content).__name__}, not a state dict")
    nested = {str(key): _tensors(value) for key, value in content.items() if isinstance(value, Mapping)}
    parts = {key: tensors for key, tensors in nested.items() if tensors}
    bare = _tensors(content)
    if bare:
        parts[""] = bare
    if not parts:
        raise ValueError(f"{path} holds no state dict; its keys are {', '.join(map(str, content))}")
    return parts


def read_checkpoint(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The weights in a checkpoint: part `key`, or else the first of PARTS it has, or the file itself as a state dict."""
    return choose(read_parts(path), key, path)


def choose(parts: Mapping[str, dict[str, Tensor]], key: str | None, path: Path) -> dict[str, Tensor]:
    """One part of a checkpoint that was read from `path`."""
    for name in (*PARTS, "") if key is None else (key,):
        if name in parts:
            return parts[name]
    wanted = f"no part {key!r}" if key is not None else f"none of {', '.join(PARTS)}"
    raise ValueError(f"{path} has {wanted}; choose one of its own parts (key): {', '.join(map(repr, parts))}")


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The named tensors of a mapping, without the `module.` that DataParallel puts before every name."""
    found = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from None


def _torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # a plain pickle; its refusal is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted reader raises whatever a damaged file leads it to
        refused = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused is None:
            raise ValueError(
                f"{path} is damaged or not a torch file of tensors and plain values; nothing was run"
            ) from error
        raise ValueError(
            f"{path} refused: beside tensors it holds {refused[1]}, and loading that could run code. If you trust the file, "
            f"load it yourself and save only its state dict with torch.save or safetensors"
        ) from None
