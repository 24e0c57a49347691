"""Components, the hooks through which they arrive, and the fields that name them.

A built-in component is a plugin that ships with the core: nothing here knows any component. This module does not import
torch, so names can be listed at once; a component's module is imported when it is first used.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import pluggy
from pydantic import BaseModel
from pydantic_core import core_schema

from .schedule import Frozen

PROJECT = "unimim"
KINDS = ("teachers", "norms", "students", "heads", "losses", "masks", "views", "recipes", "importers")
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Target = Any
"""What a hook maps a name to: the object itself, or "package.module:attribute", imported on first use."""


class Hooks:
    """What a plugin may implement. Each returns {name: target}; prefer "module:attribute", which keeps `unimim list` fast."""

    @hookspec
    def unimim_teachers(self) -> Mapping[str, Target]:
        """Teachers T: subclasses of `unimim.Teacher`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_norms(self) -> Mapping[str, Target]:
        """Normalizations N of the target: subclasses of `unimim.Norm`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_students(self) -> Mapping[str, Target]:
        """Students S: subclasses of `unimim.Student`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_heads(self) -> Mapping[str, Target]:
        """MIM heads H: subclasses of `unimim.Head`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_losses(self) -> Mapping[str, Target]:
        """Losses L: subclasses of `unimim.Loss`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_masks(self) -> Mapping[str, Target]:
        """Mask samplers: subclasses of `unimim.MaskSampler`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_views(self) -> Mapping[str, Target]:
        """View policies: subclasses of `unimim.Views`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_recipes(self) -> Mapping[str, Target]:
        """Recipes: functions without arguments that return the data of one `unimim.Recipe`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_importers(self) -> Mapping[str, Target]:
        """Importers of official checkpoints: `unimim.importers.Importer` objects."""
        raise AssertionError("a hook specification is never called")


class Component:
    """Anything a recipe can name. A subclass declares a nested `Config`, and defining it links the two."""

    class Config(Frozen):
        """Fields of the component in a recipe; `name` is a Literal with the registered name as its default."""

        name: str
        component: ClassVar[type[Any]]

        @property
        def label(self) -> str:
            """How Table 1 writes it."""
            return self.name

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in cls.__dict__:
            cls.Config.component = cls


@dataclass(frozen=True)
class Entry:
    """One registered name and where it came from."""

    name: str
    target: Target
    plugin: str

    def load(self) -> Any:
        """The object itself; imports its module when it was given as "module:attribute"."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    @property
    def module(self) -> str:
        return self.target.partition(":")[0] if isinstance(self.target, str) else self.target.__module__

    @property
    def summary(self) -> str:
        """First line of the docstring, read without importing the module where that is possible."""
        if not isinstance(self.target, str):
            return (self.target.__doc__ or "").strip().partition("\n")[0]
        module, _, attribute = self.target.partition(":")
        return _first_lines(module).get(attribute, "")


@cache
def _first_lines(module: str) -> dict[str, str]:
    """{top-level name: first docstring line} of a module, by reading its source."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return {}
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    documented = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in documented}


class Registry:
    """The names of one kind: registry["mae"] is the object, with help when the name is wrong."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.entries: dict[str, Entry] = {}

    @property
    def noun(self) -> str:
        return {"losses": "loss", "views": "view policy"}.get(self.kind, self.kind.removesuffix("s"))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.entries))

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> Any:
        if name not in self.entries:
            raise ValueError(f"unknown {self.noun} {name!r}{did_you_mean(name, self)}; registered: {', '.join(self)}")
        return self.entries[name].load()


def did_you_mean(word: str, known: Iterator[str] | Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True)
class Plugin:
    """One distribution that was asked for hooks, and what came of it."""

    name: str
    version: str
    file: str
    provides: Mapping[str, tuple[str, ...]]
    problem: str = ""
    traceback: str = ""


@dataclass
class Plugins:
    """Every registry, filled from the built-ins and then from each installed plugin, one by one under a guard."""

    registries: dict[str, Registry] = field(default_factory=lambda: {kind: Registry(kind) for kind in KINDS})
    loaded: list[Plugin] = field(default_factory=list)

    def __getitem__(self, kind: str) -> Registry:
        return self.registries[kind]

    def register(self, plugin: object, name: str, version: str = "", file: str = "") -> Plugin:
        """Add what `plugin` (a module or object with hook implementations) provides. Never raises for a bad plugin: the
        returned row says what was wrong, and what was right with it still counts."""
        problems, details, provides = [], "", {}
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(Hooks)
        try:
            manager.register(plugin, name=name)
        except Exception as error:
            problems, details = [f"{type(error).__name__}: {error}"], traceback.format_exc()
        callers = (manager.get_hookcallers(plugin) or []) if not problems else []
        for caller in callers:
            kind = caller.name.removeprefix("unimim_")
            if kind not in self.registries:
                problems.append(
                    f"unknown hook {caller.name!r}{did_you_mean(caller.name, [f'unimim_{k}' for k in KINDS])}"
                )
                continue
            try:
                found = dict(cast(Mapping[str, Target], caller()[0]))
            except Exception as error:
                problems, details = (
                    [*problems, f"{caller.name}: {type(error).__name__}: {error}"],
                    traceback.format_exc(),
                )
                continue
            provides[kind] = tuple(found)
            problems += [self._add(kind, Entry(str(key), target, name)) for key, target in found.items()]
        problems = [problem for problem in problems if problem]
        if not callers and not problems:
            problems = [f"implements no hook; expected one of unimim_{', unimim_'.join(KINDS)}"]
        file = file or str(getattr(plugin, "__file__", "") or "")
        row = Plugin(name, version, file, provides, "; ".join(problems), details)
        self.loaded.append(row)
        return row

    def _add(self, kind: str, entry: Entry) -> str:
        """Add an entry; the problem, if there is one."""
        registry = self.registries[kind]
        taken = registry.entries.get(entry.name)
        if taken:
            return f"{registry.noun} {entry.name!r} is already registered by {taken.plugin!r}; rename yours"
        if not isinstance(entry.target, str) and kind in KINDS[:7]:
            config = vars(entry.target).get("Config")
            default = config.model_fields["name"].default if config else None
            if default != entry.name:
                return f"{registry.noun} {entry.name!r}: its class needs a Config with name: Literal[{entry.name!r}] = {entry.name!r}"
        registry.entries[entry.name] = entry
        return ""

    def load_entry_point(self, point: EntryPoint) -> None:
        """Import one installed plugin and register it; an import error becomes its row."""
        distribution = point.dist.name if point.dist else point.name
        version = point.dist.version if point.dist else ""
        try:
            plugin = point.load()
        except (Exception, SystemExit) as error:
            problem = f"{type(error).__name__}: {error}"
            self.loaded.append(Plugin(distribution, version, point.value, {}, problem, traceback.format_exc()))
            return
        self.register(plugin, distribution, version)


@cache
def plugins() -> Plugins:
    """The live registries. UNIMIM_PLUGINS=none, or a list of distributions, limits which plugins are imported."""
    from . import __version__, builtin

    found = Plugins()
    found.register(builtin, "unimim", __version__)
    allowed = os.environ.get("UNIMIM_PLUGINS")
    for point in sorted(
        entry_points(group=PROJECT), key=lambda point: (point.dist.name if point.dist else "", point.name)
    ):
        if allowed is None or (point.dist and point.dist.name in allowed.split(",")):
            found.load_entry_point(point)
    return found


class _ByName:
    """Pydantic annotation: "pixel" or {"name": "pixel", ...} becomes the Config of the registered component."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def _validate(self, value: Any) -> BaseModel:
        registry = plugins()[self.kind]
        if isinstance(value, Component.Config):
            value = value.model_dump()
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, list | tuple) and self.kind == "norms":
            value = {"name": "chain", "norms": value}
        if not isinstance(value, Mapping) or "name" not in value:
            raise ValueError(
                f"expected the name of a {registry.noun} or a mapping with 'name'; registered: {', '.join(registry)}"
            )
        if not isinstance(value["name"], str):
            raise ValueError(f"the name of a {registry.noun} is text; registered: {', '.join(registry)}")
        config: type[BaseModel] = registry[value["name"]].Config
        return config.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        serialize = core_schema.wrap_serializer_function_ser_schema(lambda value, _: value.model_dump(mode="json"))
        return core_schema.no_info_plain_validator_function(self._validate, serialization=serialize)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        registry = plugins()[self.kind]
        choices = [registry[name].Config.model_json_schema(mode="validation") for name in registry]
        return {"anyOf": [{"enum": list(registry)}, *choices]}


def by_name(config: type[Component.Config], kind: str) -> Any:
    """The type of a recipe field that names a component of `kind`."""
    return Annotated[config, _ByName(kind)]
