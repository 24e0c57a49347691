"""What `unimim convert` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import weights
from ..foreign import choose, read_parts
from ..recipe import Recipe
from ..registry import plugins
from .base import Importer


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


def _sizes(recipe: Recipe) -> str:
    geometry = recipe.student.geometry
    image, grid = ("x".join(map(str, size)) for size in (geometry.image, geometry.grid))
    return f"{recipe.student.label} of {recipe.student.num_blocks} blocks, {geometry.dim} wide, {image} pixels, {grid} patches"
