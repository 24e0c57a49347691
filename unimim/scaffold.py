"""A new plugin: a distribution with one working component, its hook and its tests, to change from there."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from .registry import did_you_mean, plugins

TEMPLATES = files("unimim") / "templates" / "plugin"


@dataclass(frozen=True)
class Kind:
    """What the templates say of one axis: its registry, the key it has in a recipe, and a recipe to try it in."""

    registry: str
    axis: str
    recipe: str


KINDS = {
    "teacher": Kind("teachers", "teacher", "mae-micro"),
    "norm": Kind("norms", "norm", "mae-micro"),
    "loss": Kind("losses", "loss", "mae-micro"),
    "head": Kind("heads", "head", "data2vec-micro"),
    "mask": Kind("masks", "mask", "mae-micro"),
}


def new_plugin(name: str, kind: str, folder: Path) -> list[Path]:
    """Write the distribution `name` with one component of `kind` into `folder`; the files, in the order to read them.

    name: as on PyPI, e.g. unimim-waves, which makes the package unimim_waves and the component waves.
    Raises ValueError if the name cannot be a distribution, package and component, or is taken; if there is no such
    kind; if the folder holds anything.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}{did_you_mean(kind, KINDS)}; choose one of {', '.join(KINDS)}")
    words = _words(name, kind)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder; choose another, so that nothing is overwritten")
    package, component = words["package"], words["name"]
    sources = {
        "pyproject.toml": "pyproject.toml",
        f"{package}/{component}.py": f"{kind}.py",
        f"{package}/__init__.py": "__init__.py",
        f"tests/test_{component}.py": f"test_{kind}.py",
        "README.md": "README.md",
    }
    for path, source in sources.items():
        template = Template((TEMPLATES / f"{source}.txt").read_text(encoding="utf-8"))
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(template.substitute(words), encoding="utf-8")
    return [folder / path for path in sources]


def _words(name: str, kind: str) -> dict[str, str]:
    """What the templates leave open. Raises ValueError for a name that will not do."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise ValueError(
            f"{name!r} is no name of a distribution: letters, digits and inner hyphens only, e.g. unimim-waves"
        )
    package = re.sub(r"[-_.]+", "_", name).lower()
    component = package.removeprefix("unimim_")
    for word in (package, component):
        if not word.isidentifier() or keyword.iskeyword(word):
            raise ValueError(f"{name!r} makes the module {word!r}, which Python cannot import; try unimim-my-{kind}")
    if package in sys.stdlib_module_names or importlib.util.find_spec(package):
        raise ValueError(f"a module {package!r} exists already; try unimim-{component.replace('_', '-')}-{kind}")
    about = KINDS[kind]
    taken = plugins()[about.registry].entries.get(component)
    if taken:
        raise ValueError(f"{taken.plugin!r} has a {kind} {component!r} already; try {name}-{kind}")
    return {
        "distribution": name,
        "package": package,
        "name": component,
        "cls": "".join(part.capitalize() for part in component.split("_")) + kind.capitalize(),
        "kind": kind,
        "kinds": about.registry,
        "axis": about.axis,
        "recipe": about.recipe,
    }
