"""Bad plugins, all installed at once between two good ones: each is named with its file and problem, none costs a thing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unimim.hooks import KINDS
from unimim.registry import plugins

from .installed import run, write


def hook(targets: str, kind: str = "teachers") -> str:
    return f"import unimim\n@unimim.hookimpl\ndef unimim_{kind}():\n    return {targets}\n"


@dataclass(frozen=True)
class Case:
    """One bad plugin: its code, what is said of it, the value of its entry point, and the file the code is in."""

    code: str
    problem: str
    value: str = ""
    file: str = "__init__.py"


CASES = {
    "raises": Case("raise RuntimeError('no license')", "RuntimeError: no license"),
    "exits": Case("import sys\nsys.exit('bye')", "SystemExit: bye"),
    "stops": Case("class Stop(BaseException): pass\nraise Stop('here')", "Stop: here"),
    "lacks": Case("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "syntax": Case("def broken(:", "SyntaxError: "),
    "deep": Case("def broken(:", "SyntaxError: ", "bad_deep.inner.hooks", "inner/hooks.py"),
    "gone": Case("", "ModuleNotFoundError: No module named 'bad_nowhere'", "bad_nowhere"),
    "value": Case("", "AttributeError: ", "bad value!"),
    "attribute": Case("", "AttributeError: module 'bad_attribute' has no attribute 'hooks'", "bad_attribute:hooks"),
    "misspelt": Case(hook("{}", "teacher"), "unknown hook 'unimim_teacher', did you mean 'unimim_teachers'?"),
    "argument": Case(hook("{}").replace("()", "(batch)"), "PluginValidationError: "),
    "unmarked": Case("def unimim_teachers(): return {}", "TypeError: no function is marked @unimim.hookimpl"),
    "sequence": Case(hook("['x']"), "unimim_teachers: TypeError: returned list, not a mapping"),
    "nothing": Case(hook("None"), "unimim_teachers: TypeError: returned NoneType, not a mapping"),
    "hook_raises": Case(hook("1 / 0"), "unimim_teachers: ZeroDivisionError: division by zero"),
    "hook_exits": Case(hook("exit(3)"), "unimim_teachers: SystemExit: 3"),
    "number": Case(hook("{'x': 3}"), "teacher 'x': 3 must be a subclass of unimim.Teacher"),
    "dots": Case(hook("{'x': 'a.b.X'}"), "teacher 'x': 'a.b.X' is not \"package.module:attribute\""),
    "key": Case(hook("{7: 'a:X'}"), "teacher 7: a name is text"),
    "data": Case(hook("{'x': {}}", "recipes"), "recipe 'x': {} must be a function that returns the recipe's data"),
    "taken": Case(hook("{'pixel': 'a:X'}"), "teacher 'pixel' is already registered by 'unimim'; rename yours"),
    "twin": Case(hook("{'first': 'a:X'}", "norms"), "norm 'first' is already registered by 'a-first'; rename yours"),
}
GOOD = """
import pathlib, unimim
pathlib.Path(__file__).with_name("imported").touch()
@unimim.hookimpl
def unimim_norms():
    assert "pixel" in unimim.plugins()["teachers"]  # asked while plugins are being loaded
    return {{"{name}": "{package}:Good"}}
"""
REPORT = """
import json, sys
from unimim.registry import plugins
rows = [vars(row) | {"provides": dict(row.provides)} for row in plugins().loaded]
names = {kind: list(registry) for kind, registry in plugins().registries.items()}
print(json.dumps({"rows": {row["name"]: row for row in rows}, "names": names, "torch": "torch" in sys.modules}))
"""


def report(site: Path, allowed: str | None = None) -> Any:
    return json.loads(run("-c", REPORT, site=site, allowed=allowed))


def imported(site: Path) -> list[str]:
    """The good plugins that were imported since the last time this was asked."""
    markers = sorted(site.glob("*/imported"))
    for marker in markers:
        marker.unlink()
    return [marker.parent.name for marker in markers]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    for name, case in CASES.items():
        write(site, f"bad-{name}", {"__init__.py": "", "inner/__init__.py": "", case.file: case.code}, case.value)
    for name, package in {"first": "a_first", "last": "z_last"}.items():
        write(site, package.replace("_", "-"), {"__init__.py": GOOD.format(name=name, package=package)})
    return site


@pytest.fixture(scope="module")
def seen(site: Path) -> Any:
    return report(site)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_plugin_is_named_with_its_file_and_its_problem(name: str, site: Path, seen: Any) -> None:
    case, row = CASES[name], seen["rows"][f"bad-{name}"]
    assert row["problem"].startswith(case.problem)
    assert row["version"] == "1.0"
    assert not any(row["provides"].values())
    nowhere = name in ("gone", "value")
    assert row["file"] == (case.value if nowhere else str(site / f"bad_{name}" / case.file))
    raised = case.problem.partition(":")[0].endswith(("Error", "Exit", "Stop"))
    assert ("Traceback" in row["traceback"]) == (raised or ": TypeError: " in case.problem or "hook_" in name)


def test_bad_plugins_cost_neither_the_core_nor_good_plugins_anything(seen: Any) -> None:
    for kind in KINDS:
        assert set(plugins()[kind]) <= set(seen["names"][kind])
    assert {"first", "last"} <= set(seen["names"]["norms"])
    good = [seen["rows"][name] for name in ("unimim", "a-first", "z-last")]
    assert [row["problem"] for row in good] == ["", "", ""]
    assert good[2]["provides"] == {"norms": ["last"]}
    assert not seen["torch"]


def test_what_is_right_with_a_bad_plugin_still_counts(tmp_path: Path) -> None:
    code = (
        hook("{'pixel': 'half:Pixel', 'mine': 'half:Mine'}") + hook("None", "heads") + hook("{'m': 'half:M'}", "masks")
    )
    write(tmp_path, "half", {"__init__.py": code})
    row = report(tmp_path)["rows"]["half"]
    assert row["provides"] == {"teachers": ["mine"], "masks": ["m"]}
    assert "teacher 'pixel' is already registered" in row["problem"]
    assert "unimim_heads: TypeError" in row["problem"]


def test_metadata_that_cannot_be_read_are_no_reason_to_stop(tmp_path: Path) -> None:
    write(tmp_path, "torso", {"__init__.py": hook("{'mine': 'torso:Mine'}")}, metadata=False)
    seen = report(tmp_path)
    assert "mine" in seen["names"]["teachers"]
    assert seen["rows"]["plugin"]["file"] == str(tmp_path / "torso" / "__init__.py")


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [("none", []), ("", []), ("a-first", ["a_first"]), (" Z_Last,a.first", ["a_first", "z_last"])],
)
def test_a_plugin_that_is_not_allowed_is_never_imported(allowed: str, expected: list[str], site: Path) -> None:
    imported(site)
    seen = report(site, allowed)
    assert imported(site) == expected
    assert [name for name in seen["rows"] if name != "unimim"] == [name.replace("_", "-") for name in expected]
    assert all(row["problem"] == "" for row in seen["rows"].values())


def test_an_allowed_plugin_that_is_not_installed_is_said(site: Path) -> None:
    row = report(site, "a-first,a-frist")["rows"]["a-frist"]
    assert row["problem"] == "UNIMIM_PLUGINS names it, but no such plugin is installed"


TEACHER = """
from typing import Literal
from unimim import Norm, Teacher
from unimim.teachers.pixel import Pixel
class {base}Mine({base}):
    class Config({base}.Config):
        name: Literal["{name}"] = "{name}"
"""
USED = {
    "mismatch": (TEACHER.format(base="Teacher", name="other"), "TeacherMine"),
    "axis": (TEACHER.format(base="Norm", name="x"), "NormMine"),
    "inherits": (TEACHER.format(base="Pixel", name="x") + "class Bare(PixelMine): pass\n", "Bare"),
    "stolen": (TEACHER.format(base="Teacher", name="x") + "class Thief(Pixel): Config = Pixel.Config\n", "Thief"),
    "absent": (TEACHER.format(base="Teacher", name="x"), "Mine"),
    "exits": ("exit('no graphics card')", "Mine"),
    "right": (TEACHER.format(base="Teacher", name="right"), "TeacherMine"),
}
USE = """
import json
from unimim import plugins
from unimim.teachers.pixel import Pixel
teachers, said = plugins()["teachers"], {}
for name in teachers:
    try:
        said[name] = teachers[name].__name__
    except ValueError as error:
        said[name] = str(error)
said["configs"] = sorted(config.__qualname__ for config in teachers.configs() if "Mine" in config.__qualname__)
said["pixel"] = Pixel.Config.component.__name__
said["rows"] = {row.name: row.problem for row in plugins().loaded}
print(json.dumps(said))
"""


def test_a_component_that_fails_when_it_is_used_is_named_with_its_plugin(tmp_path: Path) -> None:
    """Given as "module:attribute" a class is imported, and so checked, on first use; given as a class, at once."""
    for name, (code, attribute) in USED.items():
        lazy = hook(f"{{'{name}': 'late_{name}.code:{attribute}'}}")
        write(tmp_path, f"late-{name}", {"__init__.py": lazy, "code.py": code})
    write(tmp_path, "eager", {"__init__.py": USED["mismatch"][0] + hook("{'eager': TeacherMine}")})
    said = json.loads(run("-c", USE, site=tmp_path))
    must = "must have a Config(unimim.Teacher.Config) with name: Literal[{0!r}] = {0!r}, but has {1}"
    expected = {
        "mismatch": f"late_mismatch.code:TeacherMine {must.format('mismatch', repr('other'))}",
        "axis": "late_axis.code:NormMine must be a subclass of unimim.Teacher",
        "inherits": f"late_inherits.code:Bare {must.format('inherits', 'none')}",
        "stolen": "cannot be imported: TypeError: Thief needs a Config of its own; this one is Pixel's",
        "absent": "cannot be imported: AttributeError: module 'late_absent.code' has no attribute 'Mine'",
        "exits": "cannot be imported: SystemExit: no graphics card",
    }
    for name, problem in expected.items():
        assert said[name].startswith(f"teacher {name!r} of plugin 'late-{name}': late_{name}.code:")
        assert said[name].endswith(problem)
    assert said["right"] == "TeacherMine"
    assert said["configs"] == ["TeacherMine.Config"]
    assert said["pixel"] == "Pixel"
    assert said["rows"]["eager"].endswith(must.format("eager", repr("other")))


def test_an_unknown_name_points_at_plugins_with_problems(tmp_path: Path) -> None:
    write(tmp_path, "mine", {"__init__.py": "import no_such_library"})
    code = "import unimim\ntry: unimim.plugins()['teachers']['mine']\nexcept ValueError as error: print(error)"
    assert run("-c", code, site=tmp_path).strip().endswith("(problems in mine: see `unimim plugins`)")
