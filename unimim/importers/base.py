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

STUDENT, HEADS = "student.", "branches."
"""Where the student and the heads and losses of all terms stand in an objective's state dict."""

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
    name, a regular expression: reason}.  prediction: official name of the vector as wide as the predictions of the term
    `mim`, or {term: that name} of every term whose head has tensors.  complete: where the head is to be found if the file
    has none.  part: the part of the file that holds the student, if it is none of the usual ones; tensors beside it come
    along.  momentum: the part of the file that holds the momentum teacher; its tensors arrive as "<momentum>.<name>"
    and follow the same rules, after rules for such a name itself. Where they stand among the others instead, rules name
    them as the objective does, teachers.<term>.copy.  taught: the term whose teacher that is.
    """

    name: ClassVar[str]
    recipe: ClassVar[str]
    rules: ClassVar[Mapping[str, str]]
    ignored: ClassVar[Mapping[str, str]] = {}
    prediction: ClassVar[str | Mapping[str, str]]
    complete: ClassVar[str] = ""
    part: ClassVar[str | None] = None
    momentum: ClassVar[str] = ""
    taught: ClassVar[str] = "mim"
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
        headless = not any(name.startswith(HEADS) for name in loaded)
        if headless and loaded and not allow_missing_head:
            hint = f"; {self.complete}" if self.complete else ""
            raise ValueError(f"no tensors of the head{hint}; or allow a missing head, which then starts afresh")
        recipe = self._describe(state, overrides)
        loaded = {self.place(name, recipe): key for name, key in loaded.items()}
        wanted = self._wanted(recipe, dict.fromkeys(self._predictions, 1) if headless else self._widths(state))
        for name in [name for name in loaded if name.startswith(f"{self._copy}head.") and name not in wanted]:
            ignored[loaded.pop(name)] = "the momentum teacher does without it"
        tensors = {name: state[key].contiguous() for name, key in loaded.items()}
        notes = self.notes
        followed = {name: self._followed(name) for name in wanted if name.startswith(self._copy)}
        if followed and not any(name.startswith(self._copy) for name in loaded):
            tensors |= {name: tensors[source] for name, source in followed.items() if source in tensors}
            part = self.momentum or "momentum teacher"
            notes += (f"the file has no {part}: the momentum teacher starts as a copy of the student",)
        fresh = tuple(name for name in wanted if headless and followed.get(name, name).startswith(HEADS))
        given = {name: wanted[name] for name in wanted if name not in fresh}
        check(given, tensors, f"not a checkpoint of {recipe.name!r}")
        return Imported(recipe, tensors, loaded, ignored | self._compare(state, recipe), fresh, notes)

    def _rename(self, state: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, str]]:
        """{our name: official name} and {official name: reason}; every official name is in one of them."""
        loaded, ignored, head = {}, {}, f"{HEADS}{self.taught}.head."
        for key in state:
            copied = bool(self.momentum) and key.startswith(f"{self.momentum}.")
            bare = key.removeprefix(f"{self.momentum}.") if copied else key
            name = (apply(self.rules, key) if copied else None) or apply(self.rules, bare)
            if name is None:
                ignored[key] = apply(self.ignored, bare) or f"unknown to importer {self.name!r}"
            elif not copied or name.startswith(self._copy):
                loaded[name] = key
            elif name.startswith((STUDENT, head)):
                loaded[f"{self._copy}{name.replace(head, 'head.')}"] = key
            else:
                ignored[key] = "the momentum teacher does without it"
        return loaded, ignored

    @property
    def _copy(self) -> str:
        """Where the momentum copy stands in an objective's state dict."""
        return f"teachers.{self.taught}.copy."

    def _followed(self, name: str) -> str:
        """The tensor that one of the momentum copy follows."""
        part = name.removeprefix(self._copy)
        return part if part.startswith(STUDENT) else f"{HEADS}{self.taught}.{part}"

    @property
    def _predictions(self) -> Mapping[str, str]:
        return {"mim": self.prediction} if isinstance(self.prediction, str) else self.prediction

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

    def _widths(self, state: Mapping[str, Tensor]) -> dict[str, int]:
        need(state, *self._predictions.values())
        return {term: len(state[name]) for term, name in self._predictions.items()}

    def _wanted(self, recipe: Recipe, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """The objective's tensors that a checkpoint should hold, as shapes: student, heads, and the momentum copy."""
        taught = any(rule.startswith(self._copy) for rule in self.rules.values()) or bool(self.momentum)
        with torch.device("meta"):
            student = recipe.student.build()
            wanted = {STUDENT + name: tensor for name, tensor in student.state_dict().items()}
            for name, width in widths.items():
                term = recipe.terms[name]
                loss = term.loss.build(TargetSpec(width, term.teacher.discrete))
                head = term.head.build(student, loss.out_dim)
                for kind, owner in (("head", head), ("loss", loss)):
                    wanted |= {f"{HEADS}{name}.{kind}.{part}": tensor for part, tensor in owner.state_dict().items()}
                if taught and name == self.taught and not term.teacher.reloads:
                    teacher = term.teacher.build(student.geometry)
                    teacher.bind(student, head)
                    held = {f"teachers.{name}.{part}": tensor for part, tensor in teacher.state_dict().items()}
                    wanted |= {part: tensor for part, tensor in held.items() if part.startswith(self._copy)}
        return wanted

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
