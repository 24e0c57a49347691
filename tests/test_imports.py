"""The import direction of the house: low layers know nothing of high ones, siblings nothing of each other."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "unimim"
BASE = {
    "types",
    "schedule",
    "address",
    "world",
    "provenance",
    "plain",
    "terminal",
    "hooks",
    "loggers",
    "foreign",
    "releases",
}
FAMILIES = {"students", "teachers", "norms", "heads", "losses", "masks", "views"}
COMPOSED = BASE | {"registry", "axes", "layers", "targets", "recipe", "drift", "health", "objective", "sampling"}
JOINED = COMPOSED | FAMILIES | {"engine", "weights", "training"}
MAY_IMPORT: dict[str, set[str]] = {
    **{part: set() for part in BASE},
    "registry": {"schedule", "hooks", "loggers", "releases"},
    "axes": {"registry", "types", "schedule"},
    "layers": {"types", "world"},
    **{family: {"axes", "layers", "registry", *BASE} for family in FAMILIES},
    "targets": {"types"},
    "recipes": {"provenance"},
    "builtin": {"hooks", "recipes", "releases", "teachers"},
    "fetching": {"releases"},
    "recipe": {"registry", "axes", "schedule", "types", "targets", "provenance", "plain", "hooks"},
    "drift": {"recipe"},
    "sampling": {"recipe", "axes", "types", "address"},
    "health": {"recipe", "types"},
    "objective": {"health", "recipe", "targets", "axes", "layers", "registry", "types", "address"},
    "schema": {"registry", "recipe", "hooks"},
    "scaffold": {"registry"},
    "engine": {"types", "targets", "schedule", "world", "address", "loggers", "terminal"},
    "weights": COMPOSED | {"engine"},
    "training": COMPOSED | {"engine", "weights"},
    "replay": COMPOSED | {"engine", "training"},
    "evaluation": COMPOSED | {"engine", "views", "weights"},
    "importers": JOINED,
    "exporters": JOINED | {"provenance", "report"},
    "report": set(),
    "runs": JOINED | {"evaluation", "report"},
    "comparison": JOINED | {"evaluation", "report", "runs"},
    "sweep": COMPOSED | {"engine", "weights", "training", "evaluation", "plain"},
    "testing": COMPOSED,
    "cli": JOINED
    | {
        "evaluation",
        "report",
        "comparison",
        "runs",
        "sweep",
        "importers",
        "exporters",
        "schema",
        "scaffold",
        "replay",
        "recipes",
        "releases",
        "fetching",
    },
    "__main__": {"cli"},
}
"""What each module or folder of unimim may import of the others; itself, and the version, always."""
MAY_IMPORT_LATE = {"registry": {"builtin"}}
"""Inside a function: plugins() is where the built-ins arrive."""


def part_of(name: str) -> str:
    """The part of unimim.engine.loop is engine; the package itself has none."""
    return name.split(".")[1] if "." in name else ""


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(absolute name, whether it is inside a function) of everything a file imports."""
    module = ["unimim", *path.relative_to(ROOT).with_suffix("").parts]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = module[: len(module) - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield (f"{base}.{alias.name}" if base == "unimim" else base, id(node) in inside)


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def owner(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_part_has_a_place_in_the_table() -> None:
    parts = {owner(path) for path in FILES}
    assert parts == {*MAY_IMPORT}, "give each new module a row in MAY_IMPORT, and each gone one none"


def test_the_table_has_no_cycle() -> None:
    order = [*graphlib.TopologicalSorter(MAY_IMPORT).static_order()]
    assert order.index("types") < order.index("axes") < order.index("objective") < order.index("cli")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_lies_below_it(path: Path) -> None:
    part = owner(path)
    for name, late in imports(path):
        assert name.split(".")[0] not in {"plugins", "experiments", "tests"}, f"{path} imports {name}"
        if name.split(".")[0] != "unimim" or part_of(name) in ("", "__version__", part):
            continue
        allowed = MAY_IMPORT[part] | (MAY_IMPORT_LATE.get(part, set()) if late else set())
        assert part_of(name) in allowed, f"unimim/{path.relative_to(ROOT)} must not import {name}"


def test_the_report_needs_no_torch() -> None:
    for path in (ROOT / "report").glob("*.py"):
        assert not [name for name, _ in imports(path) if name.split(".")[0] in ("torch", "torchvision", "timm")], path


@pytest.mark.parametrize(
    "code",
    [
        "import unimim",
        "import unimim.registry",
        "import unimim.builtin",
        "from unimim import hookimpl, plugins, official; [entry.summary for entry in plugins()['teachers'].entries.values()]",
        "from unimim import plugins; [function() for function in map(plugins()['recipes'].__getitem__, plugins()['recipes'])]",
        "import unimim.report",
    ],
)
def test_names_are_listed_without_torch(code: str) -> None:
    heavy = "sorted({'torch', 'torchvision', 'timm', 'open_clip'} & {*sys.modules})"
    command = [sys.executable, "-c", f"{code}\nimport sys; print({heavy})"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
