"""Recipes: every masked image modeling method as one value that can be shown, compared, hashed and crossed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_serializer, field_validator, model_validator

from .axes import HeadConfig, LossConfig, MaskConfig, NormConfig, StudentConfig, TeacherConfig, ViewsConfig
from .hooks import KINDS
from .plain import MAX_CHARACTERS, MAX_DEPTH, read_yaml
from .provenance import uncite
from .registry import ForeignError, did_you_mean, foreign_code, plugins
from .schedule import Frozen, Optimization, Schedule
from .targets import Precision
from .types import Size

Where = Literal["hidden", "visible", "all", "all+class", "image"]
DESCRIPTION = ("name", "title", "paper", "status", "row", "provenance")
"""Fields that describe a recipe and do not change what it computes."""


class Term(Frozen):
    """weight * L(N(T(I)), H(S(I_masked))): one row of Table 1.

    where: the positions it is averaged over.  view: the view the teacher sees.  weight: a number or a Schedule.
    """

    teacher: TeacherConfig
    norm: NormConfig = Field("identity", validate_default=True)
    head: HeadConfig
    loss: LossConfig
    where: Where = "hidden"
    view: str = "main"
    weight: Schedule = Field(1.0, validate_default=True)

    @field_serializer("weight")
    def _bare_number(self, weight: Schedule) -> Any:
        return weight.bare()


class Replay(Frozen):
    """Crops that come again, so that what frozen teachers say of them can be kept; masks are drawn anew every epoch.

    crops: epoch e sees each image in the crop of epoch e mod crops.
    precision: what their vectors are rounded to, kept or not; "int8" by vector, round(127 x / max |x|).
    """

    crops: int = Field(ge=1, le=2**20)
    precision: Precision = "bfloat16"


class Recipe(Frozen):
    """Everything that may change the result. How it is run (devices, workers, files) is the engine's `Run`.

    student sees the views named in `masks`, each with its mask sampler; `terms` are summed. A recipe with one term may be
    written flat: teacher, norm, head, loss, where, view, weight beside student, and `mask` for masks.main.
    reduction: a term is the mean over all queried tokens of the global batch ("tokens"), or the mean over images of the
    mean over their tokens ("images"); they differ only where the mask count varies.
    batch: images per optimizer step over all processes and micro-batches.  row: how the paper's Table 1 names the method,
    for the recipe that is that row.
    """

    name: str
    title: str = ""
    paper: str = ""
    status: Literal["verified", "unverified"] = "unverified"
    row: str = ""
    student: StudentConfig
    views: ViewsConfig = Field("crop", validate_default=True)
    masks: dict[str, MaskConfig] = Field(min_length=1)
    terms: dict[str, Term] = Field(min_length=1)
    reduction: Literal["tokens", "images"] = "tokens"
    optimization: Optimization
    batch: int = Field(gt=0, le=2**20)
    epochs: float = Field(gt=0, le=1e6)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    replay: Replay | None = Field(None, exclude_if=lambda replay: replay is None)
    seed: int = Field(0, ge=0, lt=2**32)
    provenance: dict[str, str] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not (name.isprintable() and 0 < len(name.encode()) <= 128) or name.startswith(".") or {*name} & {*"/\\"}:
            raise ValueError(
                f"{name!r:.80} cannot name a folder; give 1 to 128 printable bytes, no slash, no dot first"
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        return expand(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        problems = [*_student_problems(self)]
        for name, term in self.terms.items():
            problems += [f"terms.{name}: {problem}" for problem in _term_problems(self, term)]
        if self.replay and not any(term.teacher.cacheable for term in self.terms.values()):
            names = ", ".join(dict.fromkeys(term.teacher.name for term in self.terms.values()))
            problems.append(
                f"replay: nothing to replay: {names} says something else every time, or costs nothing to ask"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def data(self) -> dict[str, Any]:
        """Plain data: JSON and YAML round-trip through it."""
        return self.model_dump(mode="json")

    def yaml(self) -> str:
        return yaml.safe_dump(self.data(), sort_keys=False, width=120)

    @property
    def hash(self) -> str:
        """12 hex digits of the SHA-256 of canonical JSON, over everything that may change the result."""
        method = {key: value for key, value in self.data().items() if key not in DESCRIPTION}
        canonical = json.dumps(method, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def grid_of(self, view: str) -> Size:
        """Rows and columns of patches of a view. ValueError if the student cannot take its size."""
        geometry = self.student.geometry
        size = self.views.size_of(view, geometry.image)
        if size == geometry.image:
            return geometry.grid
        height, width = geometry.patch
        if not self.student.can_resize:
            raise ValueError(f"it has {size} pixels, but student {self.student.name!r} takes {geometry.image} only")
        if size[0] % height or size[1] % width:
            raise ValueError(f"its {size} pixels are not whole patches of {height}x{width}")
        return size[0] // height, size[1] // width

    def hides(self, view: str) -> bool:
        """The view's sampler hides at least one patch of it."""
        try:
            return self.masks[view].num_hidden(self.grid_of(view)) != 0
        except ValueError:
            return True  # reported as a problem of its own

    def axes(self) -> dict[str, str]:
        """The five columns of Table 1: T, S, H, N, L."""
        terms = list(self.terms.values())

        def column(labels: Sequence[str]) -> str:
            return " & ".join(dict.fromkeys(labels))

        return {
            "teacher": column([term.teacher.label for term in terms]),
            "student": self.student.label,
            "head": column([term.head.label for term in terms]),
            "norm": column([term.norm.label for term in terms]),
            "loss": column([term.loss.label for term in terms]),
        }


def leaves(recipe: Recipe) -> list[tuple[str, Any]]:
    """(dotted path, value) of everything that may change the result."""

    def walk(value: Any, path: str) -> list[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            return [leaf for key, item in value.items() for leaf in walk(item, f"{path}.{key}")]
        return [(path, value)]

    return [leaf for key, item in recipe.data().items() if key not in DESCRIPTION for leaf in walk(item, key)]


def _student_problems(recipe: Recipe) -> list[str]:
    student, problems = recipe.student, []
    for view, mask in recipe.masks.items():
        if view not in recipe.views.names:
            problems.append(
                f"masks.{view}: views {recipe.views.name!r} make no such view, only {', '.join(recipe.views.names)}"
            )
            continue
        try:
            varies = mask.num_hidden(recipe.grid_of(view)) is None
        except ValueError as error:
            problems.append(f"masks.{view}: {error}")
            continue
        if recipe.hides(view) and not student.can_hide:
            problems.append(
                f"masks.{view}: mask {mask.name!r} hides patches, but student {student.name!r} cannot (masking: none)"
            )
        if mask.substitutes and not student.can_substitute:
            problems.append(
                f"masks.{view}: mask {mask.name!r} shows other patches in place of hidden ones, but student "
                f"{student.name!r} cannot; use masking: replace"
            )
        if varies and not student.dense:
            problems.append(
                f"masks.{view}: student {student.name!r} drops hidden patches and needs the same count in every image, "
                f"but {mask.name!r} varies; use an exact count (exact: true)"
            )
    if student.can_hide and not problems and not any(map(recipe.hides, recipe.masks)):
        problems.append(
            f"masks hide nothing, so what student {student.name!r} keeps for hiding never trains; masking: none"
        )
    return problems


def _term_problems(recipe: Recipe, term: Term) -> list[str]:
    student, problems = recipe.student, []
    if term.view not in recipe.views.names:
        problems.append(
            f"view {term.view!r} is not made by views {recipe.views.name!r}, only {', '.join(recipe.views.names)}"
        )
    asked = term.where.removesuffix("+class")
    if term.head.needs_dense and asked != "image" and student.answers not in (asked, "all"):
        missing = "visible" if student.answers == "hidden" else "hidden"
        problems.append(
            f"head {term.head.name!r} reads the student's tokens at {missing} positions, but student {student.name!r} has "
            f"none there; use a head with mask tokens of its own (decoder) or a student that answers for all (masking: replace)"
        )
    if term.loss.discrete != term.teacher.discrete:
        wants, gives = ("ids" if flag else "vectors" for flag in (term.loss.discrete, term.teacher.discrete))
        problems.append(f"loss {term.loss.name!r} compares {wants}, but teacher {term.teacher.name!r} returns {gives}")
    if term.teacher.discrete and term.norm.name != "identity":
        problems.append(
            f"norm {term.norm.name!r} cannot normalize the ids of teacher {term.teacher.name!r}; use identity"
        )
    if term.where in ("image", "all+class"):
        if term.teacher.discrete:
            problems.append(
                f"where: {term.where} needs vectors, but teacher {term.teacher.name!r} returns ids of patches"
            )
        if term.head.needs_class and not student.num_prefix:
            problems.append(f"head {term.head.name!r} reads the class token, but student {student.name!r} has none")
    if not any(map(recipe.hides, recipe.masks)):
        if term.where == "hidden":
            problems.append("nothing is hidden, so where: hidden is empty; use where: all")
        if term.teacher.needs_mask:
            problems.append(f"teacher {term.teacher.name!r} reads the mask, but nothing is hidden; use region: full")
    views, size = recipe.views, student.geometry.image
    if term.view in views.names and views.size_of(term.view, size) != size:
        problems.append(
            f"view {term.view!r} is {views.size_of(term.view, size)}, but teachers see whole views of {size}"
        )
    small = [view for view in recipe.masks if views.size_of(view, size) != size]
    if small and term.where != "image":
        problems.append(f"masks.{small[0]}: a view of another size answers for the image only (where: image)")
    if term.teacher.reads_folds:
        single = [view for view, mask in recipe.masks.items() if mask.num_folds < 2]
        problems += [
            f"teacher {term.teacher.name!r} reads the student's other mask folds, but masks.{view} draws one mask an image"
            for view in single
        ]
    problems += _loss_problems(recipe, term)
    for part, taps in (("teacher", term.teacher.taps), ("head", term.head.taps)):
        wrong = [tap.block for tap in taps if not 0 <= tap.block < student.num_blocks]
        if wrong:
            problems.append(
                f"{part} reads blocks {wrong}, but student {student.name!r} has blocks 0 to {student.num_blocks - 1}"
            )
    return problems


def _loss_problems(recipe: Recipe, term: Term) -> list[str]:
    """What the loss asks of the masks."""
    problems = []
    if term.loss.contrasts and term.where == "image":
        problems.append(f"loss {term.loss.name!r} compares patches of one image with each other; negatives: world")
    if term.loss.num_groups is not None:
        if term.where != "hidden":
            problems.append(f"loss {term.loss.name!r} takes hidden patches group by group; use where: hidden")
        problems += [
            f"loss {term.loss.name!r} takes {term.loss.num_groups} groups of hidden patches, but mask {mask.name!r} deals "
            f"them to {mask.num_groups}; give both the same number"
            for mask in recipe.masks.values()
            if mask.num_groups != term.loss.num_groups
        ]
    if term.loss.world and term.where in ("hidden", "visible") and _count_varies(recipe):
        problems.append(
            f"loss {term.loss.name!r} gathers the queries of all processes, which needs the same count in every image; "
            f"use an exact count (exact: true)"
        )
    if term.loss.joint and any(mask.weighs for mask in recipe.masks.values()):
        problems.append(
            f"loss {term.loss.name!r} is one number of all queries, and the mask weighs each; turn weights off"
        )
    return problems


def _count_varies(recipe: Recipe) -> bool:
    try:
        return any(mask.num_hidden(recipe.grid_of(view)) is None for view, mask in recipe.masks.items())
    except ValueError:
        return False  # reported as a problem of its own


def expand(data: Mapping[str, Any]) -> dict[str, Any]:
    """The one-term flat form, and `mask`, written out as `terms` and `masks`."""
    data = dict(data)
    if "mask" in data:
        if "masks" in data:
            raise ValueError("give either mask (for the view main) or masks, not both")
        data["masks"] = {"main": data.pop("mask")}
    flat = [key for key in Term.model_fields if key in data]
    if flat:
        if "terms" in data:
            raise ValueError(f"{', '.join(flat)} belong inside terms.<name> when terms is given")
        data["terms"] = {"mim": {key: data.pop(key) for key in flat}}
    return data


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`data` with key=value assignments: dotted keys, YAML values. Naming another component drops the old one's fields.

    The keys of the only term may leave out `terms.<name>.`, and `mask` means masks.main. ValueError that lists every
    assignment that cannot be made.
    """
    result, problems = _override(data, assignments)
    if problems:
        raise ValueError("\n".join(problems))
    return result


def _override(data: Mapping[str, Any], assignments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    result, problems = deepcopy(expand(data)), []
    for assignment in assignments:
        try:
            path, value = _parse(assignment, result)
            _assign(result, path, value)
        except ValueError as error:
            problems.append(str(error))
            continue
        if isinstance(result.get("provenance"), dict):
            whole = ".".join(path).removesuffix(".name")
            cited = result["provenance"].items()
            kept = {key: source for key, source in cited if not str(key).startswith(f"{whole}.")}
            result["provenance"] = kept | {".".join(path): "command line"}
    return result, problems


def _parse(assignment: str, data: Mapping[str, Any]) -> tuple[list[str], Any]:
    """key=value as the full path in `data` and the value."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise ValueError(f"{assignment!r} is not key=value, e.g. student.depth=6")
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"{key:.80}: {text!r:.80} is not a YAML value ({error})") from None
    return full_path(key, data).split("."), value


def full_path(key: str, data: Mapping[str, Any]) -> str:
    """The dotted path in `data` that `key` is short for: loss is terms.mim.loss where mim is the only term."""
    path, terms = key.split("."), data.get("terms")
    if len(path) > MAX_DEPTH:
        raise ValueError(f"{key:.80}: more than {MAX_DEPTH} levels deep")
    if path[0] == "mask":
        path[:1] = ["masks", "main"]
    if path[0] in Term.model_fields and isinstance(terms, dict) and len(terms) == 1:
        path[:0] = ["terms", next(iter(terms))]
    return ".".join(path)


def _assign(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    node = data
    for part in path[:-1]:
        if isinstance(node.get(part), str):  # a bare component name grows fields
            node[part] = {"name": node[part]}
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ValueError(f"{'.'.join(path)}: {part!r} is a value and has no fields")
    if path[-1] == "name" and len(path) > 1 and node.get("name") != value:
        node.clear()
    node[path[-1]] = value


def load(source: str | Path | Mapping[str, Any], assignments: Sequence[str] = ()) -> Recipe:
    """The recipe of a registered name, a YAML file or plain data, with key=value assignments applied.

    Raises RecipeError that lists every problem with its full path.
    """
    where = str(source) if isinstance(source, str | Path) else "recipe"
    try:
        data, problems = _override(_read(source), assignments)
    except (ValueError, RecursionError) as error:
        raise RecipeError(where, [str(error)]) from None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(where, [*problems, *(_explain(item, data) for item in error.errors())]) from None
    if problems:
        raise RecipeError(where, problems)
    return recipe


def _read(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        data, provenance = uncite(expand(source))
        own = data.get("provenance", {})
        return {**data, "provenance": {**provenance, **own} if isinstance(own, Mapping) else own}
    if str(source).endswith((".yaml", ".yml", ".json")):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"no file {path}")
        try:
            with path.open(encoding="utf-8") as file:
                data = read_yaml(file.read(MAX_CHARACTERS + 1))
        except ValueError as error:
            raise ValueError(f"{path} is not a recipe in YAML: {error}") from None
        if not isinstance(data, dict):
            raise ValueError(f"{path} holds {type(data).__name__}, not the fields of a recipe")
        return data
    name = str(source)
    function: Callable[[], Mapping[str, Any]] = plugins()["recipes"][name]
    try:
        with foreign_code():
            made = dict(function())
    except ForeignError as error:
        plugin = plugins()["recipes"].entries[name].plugin
        raise ValueError(f"recipe {name!r} of plugin {plugin!r} cannot be made: {error}") from error
    return _read({"name": name, **made})


def _explain(item: Any, data: Mapping[str, Any]) -> str:
    """One pydantic error as: path: what was wrong."""
    path = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = "unknown field" + _near_field(item["loc"], data)
    elif item["type"] == "missing":
        message = "is missing"
    elif item["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, got {item['input']!r:.80}"
    return f"{path}: {message}" if path else message


def _near_field(loc: tuple[str | int, ...], data: Mapping[str, Any]) -> str:
    """What the last part of `loc` may have meant: a field of its mapping or, at the top, of a part of the recipe."""
    *parents, name = loc
    known = sorted(_fields_at(parents, data))
    if not parents:
        inside = {field: part for part in ("student", "optimization") for field in _fields_at([part], data)}
        if name in inside:
            return f", did you mean '{inside[str(name)]}.{name}'?"
    return did_you_mean(str(name), known) or (f"; known: {', '.join(known)}" if known else "")


_KINDS = {"student": "students", "teacher": "teachers", "norm": "norms", "head": "heads", "loss": "losses"}


def _fields_at(parents: Sequence[str | int], data: Mapping[str, Any]) -> Iterable[str]:
    """Names of the fields that may stand under `parents`, given what stands there."""
    if not parents:
        return [*Recipe.model_fields, *Term.model_fields, "mask"]
    if parents == ["optimization"]:
        return Optimization.model_fields
    if parents[0] == "terms" and len(parents) == 2:
        return Term.model_fields
    node: Any = data
    for part in parents:
        node = node.get(part) if isinstance(node, Mapping) else None
    name = node.get("name", "") if isinstance(node, Mapping) else node
    kinds = [_KINDS.get(str(part), str(part)) for part in reversed(parents)]
    registry = next((plugins()[kind] for kind in kinds if kind in KINDS), None)
    if registry is not None and isinstance(name, str) and name in registry:
        with suppress(ValueError):  # a component of a broken plugin: reported where it stands
            return list(registry[name].Config.model_fields)
    return Schedule.model_fields if name == "" else ()


class RecipeError(ValueError):
    """A recipe that cannot be built: `problems` lists every one, with full paths."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.where, self.problems = where, problems
        super().__init__(f"{where}:" + "".join(f"\n  {problem}" for problem in problems))
