"""What `unimim export` does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file

from .. import weights
from ..engine.checkpoint import Checkpoints
from ..recipe import load
from . import format_of
from .base import Trained


@dataclass(frozen=True)
class Export:
    """What `export` did; as text, its report."""

    source: Path
    to: str
    folder: Path
    files: tuple[str, ...]
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.source} -> {self.folder} ({', '.join(self.files)})\n"
            f"reloaded from {self.to}: patch features differ by at most {self.difference:.2g}\n"
            f"load it  {format_of(self.to).load.format(folder=self.folder)}"
        )


def export(source: Path, to: str, out: Path) -> Export:
    """The student of a weights folder or a run folder, in the format `to`.

    Written beside, loaded again and compared, and only then moved into `out`, where it replaces files of the same names.
    """
    function, trained = find(to), read(source)
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".tmp-export-", dir=out) as made:
            difference = function(trained, Path(made))
            files = sorted(Path(made).iterdir())
            for file in files:
                file.replace(out / file.name)
    except BaseException:
        if new:
            with suppress(OSError):
                out.rmdir()
        raise
    return Export(source, to, out, tuple(file.name for file in files), difference)


def find(to: str) -> Callable[[Trained, Path], float]:
    """The function of a format. ValueError if there is none of that name."""
    module, _, name = format_of(to).function.partition(":")
    function: Callable[[Trained, Path], float] = getattr(import_module(module), name)
    return function


def read(source: Path) -> Trained:
    """From a weights folder; from a run folder that is done; or from the newest checkpoint of one that is not."""
    folder = source / "weights" if (source / "weights").is_dir() else source
    if folder == source and (source / "checkpoints").is_dir():
        found = Checkpoints(source / "checkpoints").newest()
        if found is None:
            raise ValueError(f"{source} has no checkpoint yet; train it further")
        recipe = load(source / "config.yaml")
        state = load_file(found.path / "student.safetensors")
        tensors = {f"student.{name}": tensor for name, tensor in state.items()}
        return Trained(source, recipe, weights.student_of(recipe, tensors, found.path).eval())
    return Trained(source, weights.read_recipe(folder), weights.load_student(folder).eval())
