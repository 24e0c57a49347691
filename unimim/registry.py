"""Components, the registries that plugins fill, and the fields that name them.

A built-in component is a plugin that ships with the core: nothing here knows any component. This module does not import
torch, so names can be listed at once; a component's module is imported when it is first used.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import re
import reprlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pluggy
from pydantic import BaseModel
from pydantic_core import core_schema

from .hooks import AXES, KINDS, PROJECT, Hooks, Target
from .loggers import Logger
from .releases import Release
from .schedule import Frozen

PLACE = "x-component"
"""Key that marks, in the JSON Schema of a Config, where a component of a kind stands; `unimim.schema` resolves it."""


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
            if "component" in vars(cls.Config):
                raise TypeError(
                    f"{cls.__qualname__} needs a Config of its own; this one is {cls.Config.component.__qualname__}'s"
                )
            cls.Config.component = cls


class ForeignError(Exception):
    """What plugin code raised, as "Type: message"."""


@contextmanager
def foreign_code() -> Iterator[None]:
    """Whatever is raised inside becomes a ForeignError, also sys.exit() and the like; Ctrl-C stays what it is."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ForeignError(f"{type(error).__name__}: {error}") from error


class TooSlow(BaseException):
    """A plugin took longer than it may; no Exception, so that it cannot be swallowed on the way."""


def patience() -> float:
    """Seconds a plugin may take to import, and each of its hooks to answer: UNIMIM_PLUGIN_SECONDS; 0 for no limit."""
    text = os.environ.get("UNIMIM_PLUGIN_SECONDS", "60")
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        raise ValueError(
            f"UNIMIM_PLUGIN_SECONDS is {text!r}, not a number of seconds; unset it, or give 0 for no limit"
        )
    return float(text)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TooSlow once `seconds` have passed (0: never).

    The alarm rings in the main thread, so plugins are still imported there. There is no limit in other threads, where
    somebody else's alarm is set, on systems without SIGALRM, and inside C code that does not return.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not (in_main and hasattr(signal, "setitimer")) or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise TooSlow(f"not done after {seconds:g} seconds (UNIMIM_PLUGIN_SECONDS)")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Entry:
    """One registered name and where it came from."""

    kind: str
    name: str
    target: Target
    plugin: str

    def load(self) -> Any:
        """The object itself; imports its module when it was given as "module:attribute".

        Raises ValueError, which names the plugin, if that fails or brings something else than the kind wants.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        who = f"{noun(self.kind)} {self.name!r} of plugin {self.plugin!r}"
        try:
            with foreign_code():
                found = getattr(importlib.import_module(module), attribute)
        except ForeignError as error:
            raise ValueError(f"{who}: {self.target} cannot be imported: {error}") from error
        misfit = self.misfit(found)
        if misfit:
            raise ValueError(f"{who}: {self.target} {misfit}")
        return found

    def misfit(self, found: Any) -> str:
        """Why `found` cannot stand under this name; empty if it can."""
        if self.kind == "recipes":
            return "" if callable(found) else "must be a function that returns the recipe's data"
        if self.kind == "loggers":
            good = isinstance(found, type) and issubclass(found, Logger)
            return "" if good else "must be a subclass of unimim.Logger"
        if self.kind == "releases":
            return "" if isinstance(found, Release) else "must be a unimim.Release"
        if self.kind not in AXES:
            return ""
        axis = AXES[self.kind]
        bases = (
            [base.__name__ for base in found.__mro__ if Component in base.__bases__] if isinstance(found, type) else []
        )
        if bases != [axis]:
            return f"must be a subclass of unimim.{axis}"
        config = vars(found).get("Config")
        linked = isinstance(config, type) and issubclass(config, Component.Config)
        names = config.model_fields["name"].default if linked else None
        if names != self.name:
            says = f"has {names!r}" if isinstance(names, str) else "has none"
            return f"must have a Config(unimim.{axis}.Config) with name: Literal[{self.name!r}] = {self.name!r}, but {says}"
        return ""

    @property
    def module(self) -> str:
        return self.target.partition(":")[0] if isinstance(self.target, str) else self.target.__module__

    @property
    def summary(self) -> str:
        """First line of the docstring, read without importing the module where that is possible."""
        if isinstance(self.target, Release):
            return self.target.about
        if not isinstance(self.target, str):
            written = self.target.__doc__
            return written.strip().partition("\n")[0] if isinstance(written, str) else ""
        module, _, attribute = self.target.partition(":")
        return _first_lines(module).get(attribute, "")


@cache
def _first_lines(module: str) -> dict[str, str]:
    """{top-level name: first docstring line} of a module, by reading its source; nothing if that cannot be read."""
    try:
        with foreign_code():  # finding a.b imports a
            spec = importlib.util.find_spec(module)
            body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body if spec and spec.origin else []
    except ForeignError:
        return {}
    documented = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in documented}


def noun(kind: str) -> str:
    """One of a kind: "teacher", "loss", "view policy"."""
    return {"losses": "loss", "views": "view policy"}.get(kind, kind.removesuffix("s"))


class Registry:
    """The names of one kind: registry["mae"] is the object, with help when the name is wrong."""

    def __init__(self, kind: str, loaded: Sequence[Plugin] = ()) -> None:
        self.kind = kind
        self.entries: dict[str, Entry] = {}
        self._loaded = loaded

    @property
    def noun(self) -> str:
        return noun(self.kind)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.entries))

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> Any:
        if name not in self.entries:
            bad = ", ".join(plugin.name for plugin in self._loaded if plugin.problem)
            hint = f" (problems in {bad}: see `unimim plugins`)" if bad else ""
            raise ValueError(
                f"unknown {self.noun} {name!r}{did_you_mean(name, self)}; registered: {', '.join(self)}{hint}"
            )
        return self.entries[name].load()

    def configs(self) -> list[type[BaseModel]]:
        """The Configs of all components that can be loaded: one that cannot is no reason to forget the others."""
        found = []
        for entry in self.entries.values():
            with suppress(ValueError):
                found.append(entry.load().Config)
        return found


def did_you_mean(word: str, known: Iterator[str] | Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


@dataclass(frozen=True)
class Plugin:
    """One distribution that was asked for hooks, and what came of it.

    provides: {kind: names that were registered}.  problem: empty if all is well.  traceback: of an exception it raised.
    """

    name: str
    version: str
    file: str
    provides: Mapping[str, tuple[str, ...]]
    problem: str = ""
    traceback: str = ""


class Plugins:
    """Every registry, filled from the built-ins and then from each installed plugin, one by one under a guard."""

    def __init__(self) -> None:
        self.patience = patience()
        self.loaded: list[Plugin] = []
        self.registries = {kind: Registry(kind, self.loaded) for kind in KINDS}

    def __getitem__(self, kind: str) -> Registry:
        return self.registries[kind]

    def register(self, plugin: object, name: str, version: str = "", file: str = "") -> Plugin:
        """Add what `plugin` (a module or object with hook implementations) provides. Never raises for a bad plugin: the
        returned row says what was wrong, and what was right with it still counts."""
        problems: list[str] = []
        provides: dict[str, tuple[str, ...]] = {}
        details = ""
        try:
            hooks = _hooks(plugin)
        except ForeignError as error:
            hooks, problems, details = [], [str(error)], traceback.format_exc()
        for hook in hooks:
            kind = hook.name.removeprefix("unimim_")
            if kind not in self.registries:
                problems.append(f"unknown hook {hook.name!r}{did_you_mean(hook.name, [f'unimim_{k}' for k in KINDS])}")
                continue
            try:
                with foreign_code(), time_limit(self.patience):
                    found = _mapping(hook())
            except ForeignError as error:
                problems.append(f"{hook.name}: {error}")
                details = traceback.format_exc()
                continue
            said = {key: self._add(Entry(kind, key, target, name)) for key, target in found.items()}
            provides[kind] = tuple(key for key, problem in said.items() if not problem)
            problems += [problem for problem in said.values() if problem]
        file = file or str(getattr(plugin, "__file__", "") or "")
        row = Plugin(name, version, file, provides, "; ".join(problems), details)
        self.loaded.append(row)
        return row

    def _add(self, entry: Entry) -> str:
        """Add an entry; the problem, if there is one."""
        registry = self.registries[entry.kind]
        who = f"{registry.noun} {_shown(entry.name)}"
        if not isinstance(entry.name, str):
            return f"{who}: a name is text"
        taken = registry.entries.get(entry.name)
        if taken:
            return f"{who} is already registered by {taken.plugin!r}; rename yours"
        if isinstance(entry.target, str):
            misfit = "" if re.fullmatch(r"[\w.]+:\w+", entry.target) else 'is not "package.module:attribute"'
        else:
            misfit = entry.misfit(entry.target)
        if misfit:
            return f"{who}: {_shown(entry.target)} {misfit}"
        registry.entries[entry.name] = entry
        return ""

    def load_entry_point(self, point: EntryPoint, name: str, version: str) -> None:
        """Import one installed plugin and register it; an import error becomes its row."""
        file = _file(point)
        try:
            with foreign_code(), time_limit(self.patience):
                plugin = point.load()
        except ForeignError as error:
            self.loaded.append(Plugin(name, version, file, {}, str(error), traceback.format_exc()))
            return
        self.register(plugin, name, version, file)

    def discover(self) -> None:
        """Register the built-ins, then what is installed and allowed by UNIMIM_PLUGINS."""
        from . import __version__, builtin

        self.register(builtin, "unimim", __version__)
        allowed = os.environ.get("UNIMIM_PLUGINS")
        names = None if allowed is None else {_canonical(name) for name in allowed.split(",")} - {"none", ""}
        installed = sorted((*_distribution(point), point) for point in entry_points(group=PROJECT))
        found: set[str] = set()
        for name, version, point in installed:
            called = {_canonical(name), _canonical(point.name)}
            if names is None or called & names:
                self.load_entry_point(point, name, version)
            found |= called
        for name in sorted((names or set()) - found):
            self.loaded.append(Plugin(name, "", "", {}, "UNIMIM_PLUGINS names it, but no such plugin is installed"))


def _shown(value: object) -> str:
    """A short repr, also of what cannot give its own."""
    return f"{value!r:.60}" if isinstance(value, str | type) else reprlib.repr(value)


def _hooks(plugin: object) -> list[pluggy.HookCaller]:
    """The hooks `plugin` implements, in a manager of their own, so that a call asks this plugin and no other."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    with foreign_code():
        manager.register(plugin)
        hooks = manager.get_hookcallers(plugin)
        if not hooks:
            raise TypeError(f"no function is marked @unimim.hookimpl; expected one of unimim_{', unimim_'.join(KINDS)}")
    return hooks


def _mapping(answers: list[Any]) -> dict[str, Target]:
    """What a hook returned; pluggy gives a list of the answers that are not None."""
    found = answers[0] if answers else None
    if not isinstance(found, Mapping):
        raise TypeError(f'returned {type(found).__name__}, not a mapping {{name: "package.module:attribute"}}')
    return dict(found)


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """(name, version) of the distribution; the name of the entry point if its metadata cannot be read."""
    try:
        with foreign_code():
            return (point.dist.name or point.name, point.dist.version or "") if point.dist else (point.name, "")
    except ForeignError:
        return point.name, ""


def _file(point: EntryPoint) -> str:
    """Where the module of an entry point lies, found without importing it; what the entry point says if nowhere."""
    file = None
    try:
        with foreign_code():
            top, *rest = point.module.split(".")
            spec, name = importlib.util.find_spec(top), top
            for part in rest:
                name = f"{name}.{part}"
                spec = PathFinder.find_spec(name, spec.submodule_search_locations) if spec else None
            file = spec.origin if spec else None
    except ForeignError:
        pass
    return file or point.value


def _canonical(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


_live: Plugins | None = None


def plugins() -> Plugins:
    """The live registries. UNIMIM_PLUGINS=none, or a list of distributions or entry points, limits what is imported.

    A plugin that asks while it is being loaded gets what is registered so far.
    """
    global _live
    if _live is None:
        _live = Plugins()
        try:
            _live.discover()
        except BaseException:  # Ctrl-C while a plugin is imported: do not keep half of them
            _live = None
            raise
    return _live


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
        return {PLACE: self.kind}


def by_name(config: type[Component.Config], kind: str) -> Any:
    """The type of a recipe field that names a component of `kind`."""
    return Annotated[config, _ByName(kind)]
