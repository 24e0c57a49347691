"""Weights folders: a recipe and everything an objective learned, as two files that anyone can read.

recipe.yaml says what to build; objective.safetensors holds Objective.training_state(). Neither can run code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from .axes import Student
from .engine.checkpoint import sync, write_text
from .objective import Objective
from .recipe import Recipe
from .recipe import load as load_recipe
from .world import rank, whole

RECIPE, TENSORS = "recipe.yaml", "objective.safetensors"


def save(objective: Objective, folder: Path) -> None:
    """Write the weights folder of `objective`, replacing one that is there.

    Each file is written under a hidden name, synced and renamed; recipe.yaml comes last, so a folder that holds it is
    whole. A folder that was written for another recipe loses its recipe.yaml first. With several processes all call it,
    since parts may be spread over them, and the first writes.
    """
    tensors = {name: whole(tensor) for name, tensor in objective.training_state().items()}
    if rank() != 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    recipe, text = folder / RECIPE, objective.recipe.yaml()
    if recipe.is_file() and recipe.read_text(encoding="utf-8") != text:
        recipe.unlink()
        sync(folder)
    write_tensors(folder / TENSORS, tensors)
    write_text(recipe, text)


def load(folder: Path) -> Objective:
    """The objective that `save` wrote, on the CPU. ValueError if a file is missing or damaged, or a tensor does not fit."""
    objective, tensors = Objective(read_recipe(folder)), read_tensors(folder)
    check(objective.training_state(), tensors, f"{folder / TENSORS} does not fit its {RECIPE}")
    objective.load_training_state(tensors)
    return objective


def load_student(folder: Path, momentum: bool = False) -> Student:
    """The student alone, without building (or having) its teachers; for evaluation and export.

    momentum: its momentum copy instead. ValueError if the recipe keeps none.
    """
    recipe, tensors = read_recipe(folder), read_tensors(folder)
    return student_of(recipe, _momentum(recipe, tensors) if momentum else tensors, folder / TENSORS)


def _momentum(recipe: Recipe, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the momentum copy, named as the student's own."""
    for term in recipe.terms:
        prefix = f"teachers.{term}.copy.student."
        found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if found:
            return {f"student.{name}": tensor for name, tensor in found.items()}
    raise ValueError(f"recipe {recipe.name!r} keeps no momentum copy of the student; leave out --momentum")


def student_of(recipe: Recipe, tensors: Mapping[str, Tensor], source: Path) -> Student:
    """The student of a recipe with the tensors of an objective, which were read from `source`."""
    student = recipe.student.build()
    own = {name.removeprefix("student."): tensor for name, tensor in tensors.items() if name.startswith("student.")}
    check(student.state_dict(), own, f"{source} does not fit the student of recipe {recipe.name!r}")
    student.load_state_dict(own)
    return student


def read_weights(folder: Path) -> tuple[Recipe, dict[str, Tensor]]:
    """The recipe and the tensors (CPU) of a weights folder that unimim wrote, for teachers that another run trained.

    Nothing is built. ValueError if a file is missing or damaged.
    """
    return read_recipe(folder), read_tensors(folder)


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a weights folder."""
    if not (folder / RECIPE).is_file():
        raise ValueError(f"{folder} is not a whole weights folder: it has no {RECIPE}; save the weights again")
    return load_recipe(folder / RECIPE)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a weights folder, on the CPU."""
    path = folder / TENSORS
    if not path.is_file():
        raise ValueError(f"{folder} is not a whole weights folder: it has no {TENSORS}; save the weights again")
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); save or copy the weights again") from None


def check(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], problem: str) -> None:
    """ValueError that lists every tensor of `given` that is missing, left over or misshapen."""
    shapes = {name: (tuple(given[name].shape), tuple(wanted[name].shape)) for name in wanted if name in given}
    misfits = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [f"{name} {has}, wanted {needs}" for name, (has, needs) in shapes.items() if has != needs],
    }
    lines = [f"{len(names)} {kind}: {shorten(names)}" for kind, names in misfits.items() if names]
    if lines:
        raise ValueError("\n  ".join([f"{problem}:", *lines]))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Replace a .safetensors file as a whole."""
    hidden = path.with_name(f".tmp-{path.name}")
    hidden.touch()
    mode = hidden.stat().st_mode  # safetensors would leave the file to its owner alone
    save_file(separate(tensors), hidden, metadata or None)
    hidden.chmod(mode)
    sync(hidden)
    hidden.replace(path)
    sync(path.parent)


def separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors needs them; a tensor with two names is copied."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() > tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        apart[name] = tensor
    return apart


def shorten(names: Iterable[str], most: int = 8) -> str:
    """The first names and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
