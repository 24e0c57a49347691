"""What every importer does: describe the network, rename its tensors, and account for all of them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..objective import Objective
from ..recipe import Recipe, load, override
from ..registry import plugins
from ..training import build
from ..types import TargetSpec
from ..weights import check

STUDENT, HEAD, COPY = "student.", "branches.mim.head.", "teachers.mim.copy."
"""Where the student, and the head and momentum copy of the term `mim`, stand in an objective's state dict. Further terms
of a recipe may bring no tensors of their own."""

UNTOLD = object()
"""The value of a recipe key that tensors cannot tell and an override must."""


@dataclass(frozen=True)
class Imported:
    """What an importer made of official tensors.

    recipe: what builds them.  state: {name in Objective.state_dict(): tensor}.  loaded: {that name: official name}.
    ignored: {official name: why it was left out}.  fresh: names that keep their start values.  notes: what the tensors
    do not tell, for a person to check.
    """

    recipe: Recipe
    state: dict[str, Tensor]
    loaded: dict[str, str]
    ignored: dict[str, str]
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def objective(self) -> Objective:
        """The objective with these tensors; everything else has the start values of the recipe's seed."""
        objective = build(self.recipe)
        own = objective.state_dict()
        check({name: own[name] for name in own if name in self.state}, self.state, f"recipe {self.recipe.name!r}")
        objective.load_state_dict({**own, **self.state})
        return objective


class Importer(ABC):
    """Official checkpoints of one method, as tables; the first line of its docstring is its summary.

    recipe: the registered recipe that says everything the tensors do not; its variant of their width is taken where
    there is one.  rules: {official name, a regular expression: name in Objective.state_dict()}.  ignored: {official
    name, a regular expression: reason}.  prediction: official name of the vector as wide as the predictions.  complete:
    where the head is to be found if the file has none.  momentum: the part of the file that holds the momentum teacher;
    its tensors arrive as "<momentum>.<name>" and follow the same rules.  momentum_head: that part holds the copy of the head
    as well (`Head.momentum_copy`).
    """

    name: ClassVar[str]
    recipe: ClassVar[str]
    rules: ClassVar[Mapping[str, str]]
    ignored: ClassVar[Mapping[str, str]] = {}
    prediction: ClassVar[str]
    complete: ClassVar[str] = ""
    momentum: ClassVar[str] = ""
    momentum_head: ClassVar[bool] = False
    notes: ClassVar[tuple[str, ...]] = ()

    @property
    def summary(self) -> str:
        return (type(self).__doc__ or "").partition("\n")[0]

    def adapt(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The official tensors, under their official names, laid out as ours are: axes in our order, nothing else changed.

        Also of a part of them: gradients are laid out by the same rule.
        """
        return state

    def place(self, name: str, recipe: Recipe) -> str:
        """Where this recipe keeps what `rules` call `name`: elsewhere if an override put a part inside another."""
        return name

    @abstractmethod
    def infer(self, state: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """{dotted recipe key: value} that the tensors tell, "student.dim" among them; UNTOLD where an override must."""

    def fixed(self, recipe: Recipe) -> Mapping[str, Tensor]:
        """{official name, a regular expression: what it must hold}, for tables that unimim computes."""
        return {}

    def read(
        self, state: Mapping[str, Tensor], overrides: Sequence[str] = (), allow_missing_head: bool = False
    ) -> Imported:
        """Official tensors -> Imported.

        overrides: key=value assignments to the recipe, e.g. student.num_heads=4. allow_missing_head: take a file of the
        encoder alone. ValueError if a tensor is missing, misshapen or unknown to the recipe, or a fixed table differs.
        """
        state = self.adapt(state)
        loaded, ignored = self._rename(state)
        headless = not any(name.startswith(HEAD) for name in loaded)
        if headless and loaded and not allow_missing_head:
            hint = f"; {self.complete}" if self.complete else ""
            raise ValueError(f"no tensors of the head{hint}; or allow a missing head, which then starts afresh")
        recipe = self._describe(state, overrides)
        loaded = {self.place(name, recipe): key for name, key in loaded.items()}
        tensors = {name: state[key].contiguous() for name, key in loaded.items()}
        notes = self.notes
        wanted = self._wanted(recipe, 1 if headless else self._width(state))
        if self.momentum and not any(name.startswith(COPY) for name in loaded):
            live = {name: _live(name) for name in wanted if name.startswith(COPY)}
            tensors |= {name: tensors[source] for name, source in live.items() if source in tensors}
            notes += (f"the file has no {self.momentum}: the momentum teacher starts as a copy of the student",)
        fresh = tuple(name for name in wanted if headless and _live(name).startswith(HEAD))
        given = {name: wanted[name] for name in wanted if name not in fresh}
        check(given, tensors, f"not a checkpoint of {recipe.name!r}")
        return Imported(recipe, tensors, loaded, ignored | self._compare(state, recipe), fresh, notes)

    def _rename(self, state: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, str]]:
        """{our name: official name} and {official name: reason}; every official name is in one of them."""
        loaded, ignored = {}, {}
        for key in state:
            copied = bool(self.momentum) and key.startswith(f"{self.momentum}.")
            bare = key.removeprefix(f"{self.momentum}.") if copied else key
            name = apply(self.rules, bare)
            if name is None:
                ignored[key] = apply(self.ignored, bare) or f"unknown to importer {self.name!r}"
            elif not copied:
                loaded[name] = key
            elif name.startswith(STUDENT):
                loaded[f"{COPY}{name}"] = key
            elif self.momentum_head:
                loaded[f"{COPY}head.{name.removeprefix(HEAD)}"] = key
            else:
                ignored[key] = "the momentum teacher is a copy of the student alone"
        return loaded, ignored

    def _describe(self, state: Mapping[str, Tensor], overrides: Sequence[str]) -> Recipe:
        """The recipe whose network has these tensors."""
        inferred = self.infer(state)
        data = load(self._sized(inferred["student.dim"])).data()
        for path, value in inferred.items():
            part, key = _part(data, path)
            if value is UNTOLD:
                del part[key]
            elif part[key] != value:
                part[key] = value
                data["provenance"][path] = "official checkpoint: shapes of its tensors"
        names = {path: _part(data, path)[0].get("name") for path in inferred}
        data = override(data, overrides)
        short = "terms.mim." if len(data["terms"]) == 1 else ""  # a key names the only term's part by itself
        untold = [path.removeprefix(short) for path, name in names.items() if not _given(data, path, name)]
        if untold:
            raise ValueError(
                f"the tensors do not tell {', '.join(untold)}; give {' '.join(f'{path}=...' for path in untold)}"
            )
        return load(data)

    def _sized(self, dim: int) -> str:
        """The registered recipe, or that of its sizes whose student has this width."""
        sizes = [name for name in plugins()["recipes"] if name.rpartition("-")[0] == self.recipe]
        names = [name for name in (self.recipe, *sizes) if not name.endswith("-micro")]
        return next((name for name in names if load(name).data()["student"]["dim"] == dim), self.recipe)

    def _width(self, state: Mapping[str, Tensor]) -> int:
        need(state, self.prediction)
        return len(state[self.prediction])

    def _wanted(self, recipe: Recipe, width: int) -> dict[str, Tensor]:
        """The objective's tensors that a checkpoint should hold, as shapes: student, head, and the momentum copy."""
        term = recipe.terms["mim"]
        with torch.device("meta"):
            student = recipe.student.build()
            loss = term.loss.build(TargetSpec(width, term.teacher.discrete))
            head = term.head.build(student, loss.out_dim)
        wanted = {STUDENT + name: tensor for name, tensor in student.state_dict().items()}
        copied = {COPY + name: tensor for name, tensor in wanted.items()} if self.momentum else {}
        if self.momentum_head:
            copied |= {f"{COPY}head.{name}": tensor for name, tensor in head.momentum_copy().state_dict().items()}
        return wanted | {HEAD + name: tensor for name, tensor in head.state_dict().items()} | copied

    def _compare(self, state: Mapping[str, Tensor], recipe: Recipe) -> dict[str, str]:
        """{official name: reason} of the fixed tables, after checking that they are ours."""
        reasons = {}
        for pattern, table in self.fixed(recipe).items():
            for key in (key for key in state if re.fullmatch(pattern, key)):
                given = state[key]
                if given.shape != table.shape:
                    raise ValueError(
                        f"{key} has shape {tuple(given.shape)}, but the recipe's fixed table {tuple(table.shape)}"
                    )
                difference = float((given.double() - table.double()).abs().max())
                if difference > 1e-5:
                    raise ValueError(
                        f"{key} is not the fixed table of this method (largest difference {difference:.2g}): the file comes "
                        f"from another implementation or position code, and its student would see other positions here"
                    )
                reasons[key] = f"fixed table, computed by unimim (largest difference {difference:.1g})"
        return reasons


def _live(name: str) -> str:
    """The tensor that one of the momentum copy follows; others as they are."""
    bare = name.removeprefix(COPY)
    return HEAD + bare.removeprefix("head.") if bare != name and bare.startswith("head.") else bare


def apply(rules: Mapping[str, str], name: str) -> str | None:
    """The first rule that matches the whole name, filled in."""
    for pattern, result in rules.items():
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(result)
    return None


def _part(data: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The mapping that a dotted path ends in, and the last key."""
    *parents, last = path.split(".")
    for parent in parents:
        data = data[parent]
    return data, last


def _given(data: dict[str, Any], path: str, name: str | None) -> bool:
    """The key is there, or belongs to a component `name` that an override replaced by another."""
    part, key = _part(data, path)
    return isinstance(part, str) or key in part or part.get("name") != name


def need(state: Mapping[str, Tensor], *names: str) -> None:
    """ValueError if tensors that tell the sizes are not there."""
    missing = [name for name in names if name not in state]
    if missing:
        found = ", ".join([*state][:5])
        raise ValueError(
            f"not the expected kind of checkpoint: it has no {', '.join(missing)}; its tensors are {found}, ..."
        )
