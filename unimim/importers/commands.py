"""What `unimim convert` and `unimim export` do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from .. import weights
from ..axes import Student
from ..engine.checkpoint import Checkpoints
from ..foreign import choose, read_parts
from ..recipe import Recipe, load
from ..registry import did_you_mean, plugins
from .base import Importer
from .timm import export_timm

EXPORTS = {"timm": export_timm}


@dataclass(frozen=True)
class Conversion:
    """What `convert` did; as text, its report."""

    source: Path
    kind: str
    folder: Path
    recipe: Recipe
    loaded: Mapping[str, str]
    ignored: Mapping[str, str]
    fresh: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.source} ({self.kind}) -> {self.folder}",
            f"recipe   {self.recipe.name} ({self.recipe.hash}), student {_sizes(self.recipe)}",
            f"loaded   {len(self.loaded)} tensors",
            f"ignored  {len(self.ignored)}",
            *(f"  {key}: {reason}" for key, reason in self.ignored.items()),
            f"missing  {len(self.fresh)}" + (", which start afresh:" if self.fresh else ""),
            *(f"  {name}" for name in self.fresh),
            *(f"note     {note}" for note in self.notes),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Export:
    """What `export` did; as text, its report."""

    source: Path
    to: str
    folder: Path
    difference: float

    def __str__(self) -> str:
        return (
            f"{self.source} -> {self.folder}\n"
            f"reloaded in {self.to}: patch features differ by at most {self.difference:.2g}\n"
            f'load it  timm.create_model("local-dir:{self.folder}", pretrained=True)'
        )


def convert(
    path: Path,
    kind: str,
    out: Path,
    overrides: Sequence[str] = (),
    key: str | None = None,
    allow_missing_head: bool = False,
) -> Conversion:
    """Official checkpoint `path` of importer `kind` -> weights folder `out`.

    overrides: key=value assignments to the recipe.  key: which part of the file (default: model, model_state,
    state_dict, module, model_ema, or the file itself). ValueError says what is wrong with the file, and nothing is written.
    """
    importer: Importer = plugins()["importers"][kind]()
    parts = read_parts(path)
    momentum = parts.get(importer.momentum, {}) if importer.momentum else {}
    beside = {} if importer.part is None else parts.get("", {})
    state = choose(parts, key or importer.part, path) | beside
    state |= {f"{importer.momentum}.{name}": tensor for name, tensor in momentum.items()}
    try:
        imported = importer.read(state, overrides, allow_missing_head)
        objective = imported.objective()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    weights.save(objective, out)
    return Conversion(
        path, kind, out, imported.recipe, imported.loaded, imported.ignored, imported.fresh, imported.notes
    )


def export(source: Path, to: str, out: Path) -> Export:
    """The student of a weights folder or a run folder, in the format `to`; written, loaded again and compared."""
    if to not in EXPORTS:
        raise ValueError(f"cannot export to {to!r}{did_you_mean(to, EXPORTS)}; formats: {', '.join(EXPORTS)}")
    return Export(source, to, out, EXPORTS[to](_student(source), out))


def _student(source: Path) -> Student:
    """From a weights folder; from a run folder that is done; or from the newest checkpoint of one that is not."""
    if (source / "weights").is_dir():
        return weights.load_student(source / "weights")
    if not (source / "checkpoints").is_dir():
        return weights.load_student(source)
    found = Checkpoints(source / "checkpoints").newest()
    if found is None:
        raise ValueError(f"{source} has no checkpoint yet; train it further")
    tensors = {f"student.{name}": tensor for name, tensor in load_file(found.path / "student.safetensors").items()}
    return weights.student_of(load(source / "config.yaml"), tensors, found.path)


def _sizes(recipe: Recipe) -> str:
    geometry = recipe.student.geometry
    image, grid = ("x".join(map(str, size)) for size in (geometry.image, geometry.grid))
    return f"{recipe.student.label} of {recipe.student.num_blocks} blocks, {geometry.dim} wide, {image} pixels, {grid} patches"
