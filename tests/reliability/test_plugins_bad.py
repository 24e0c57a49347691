"""Every kind of bad plugin, each in a process of its own beside a good one: named, contained, and nothing else lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

GOOD = """
import unimim
@unimim.hookimpl
def unimim_norms():
    return {"good": "zz_good:Good"}
"""
HOOK = "import unimim\n@unimim.hookimpl\ndef unimim_norms({}):\n    {}\n"
LIST_AND_PLUGINS = """
import json, sys
from unimim.cli import main
code = main(["list", "--json"]) or main(["plugins"])
sys.exit(code)
"""
USE = """
from unimim import plugins
try: plugins()["norms"]["bad"]
except ValueError as error: print("refused:", error)
"""


@dataclass(frozen=True)
class Bad:
    """Code of the plugin, and what must be said of it.  late: it shows when the component is used, not before."""

    code: str
    said: str
    late: bool = False


NAMELESS = """
from unimim import Norm
class Bad(Norm):
    class Config(Norm.Config):
        pass
"""
CASES = {
    "raises": Bad("raise RuntimeError('no license')", "RuntimeError: no license"),
    "exits": Bad("raise SystemExit(3)", "SystemExit: 3"),
    "lacks a module": Bad("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    "wrong signature": Bad(HOOK.format("batch", "return {}"), "PluginValidationError"),
    "hangs": Bad("import time\ntime.sleep(600)", "TooSlow: not done after 1 seconds"),
    "recursion in a hook": Bad(HOOK.format("", "return unimim_norms()"), "unimim_norms: RecursionError"),
    "raise in a hook": Bad(HOOK.format("", "raise KeyError('x')"), "unimim_norms: KeyError: 'x'"),
    "same entry point": Bad(HOOK.format("", "return {'bad': 3}"), "norm 'bad': 3 must be a subclass of unimim.Norm"),
    "same component": Bad(
        HOOK.format("", "return {'layer': 'bad:Layer'}"), "norm 'layer' is already registered by 'unimim'"
    ),
    "no hooks": Bad("def unimim_norms(): return {}", "TypeError: no function is marked @unimim.hookimpl"),
    "misspelt hook": Bad(
        HOOK.format("", "return {}").replace("unimim_norms", "unimim_norm"),
        "unknown hook 'unimim_norm', did you mean 'unimim_norms'?",
    ),
    "no component": Bad(
        HOOK.format("", "return {'bad': 'bad:Bad'}") + NAMELESS, "must have a Config(unimim.Norm.Config)", late=True
    ),
    "garbage": Bad(HOOK.format("", "return [object()]"), "unimim_norms: TypeError: returned list, not a mapping"),
}


def install(site: Path, name: str, point: str, code: str) -> Path:
    """What pip leaves behind of a distribution of one module; the module."""
    module = site / f"{name.replace('-', '_')}.py"
    info = site / f"{module.stem}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[unimim]\n{point} = {module.stem}\n")
    module.write_text(code)
    return module


def python(site: Path, code: str, **chosen: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("UNIMIM_")}
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | chosen
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_every_kind_of_bad_plugin_is_contained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alive, usable, named, conflicts, wrong = 0, 0, 0, 0, []
    for number, (kind, case) in enumerate(CASES.items()):
        site = tmp_path / str(number)
        module = install(site, "bad", "plugin", case.code)
        install(site, "zz-good", "plugin" if kind == "same entry point" else "good", GOOD)
        ran = python(site, LIST_AND_PLUGINS, UNIMIM_PLUGIN_SECONDS="1" if kind == "hangs" else "60")
        alive += ran.returncode == 0
        listed, _, report = ran.stdout.partition("\n]\n")
        rows = [row for row in json.loads(listed + "]") if row["kind"] == "norms"]
        usable += any(row["name"] == "good" and row["plugin"] == "zz-good" for row in rows)
        conflicts += kind == "same component" and [row["plugin"] for row in rows if row["name"] == "layer"] != [
            "unimim"
        ]
        conflicts += kind == "same entry point" and not ("bad 1.0" in report and "zz-good 1.0" in report)
        if case.late:
            report += python(site, USE).stdout
        row = report[report.index("bad 1.0") :]
        found = str(module) in row and case.said in row and (not case.late or "of plugin 'bad'" in row)
        named += found
        wrong += [] if found and ran.returncode == 0 else [(kind, ran.stdout[-600:], ran.stderr[-600:])]

    blocked = tmp_path / "blocked"
    install(blocked, "bad", "bad-point", f"open({str(tmp_path / 'imported')!r}, 'w')")
    install(blocked, "zz-good", "good", GOOD)
    for allowed in ("none", "", "zz-good", "good", "nothing-like-it"):
        ran = python(blocked, LIST_AND_PLUGINS, UNIMIM_PLUGINS=allowed)
        assert ran.returncode == 0, ran.stderr
        assert ("zz-good 1.0" in ran.stdout) == (allowed in ("zz-good", "good"))
    imported = (tmp_path / "imported").exists()
    python(blocked, LIST_AND_PLUGINS, UNIMIM_PLUGINS="Bad_Point")
    assert (tmp_path / "imported").exists()

    total = len(CASES)
    with capsys.disabled():
        print(
            f"\nbad plugins {total}, host alive {alive}, good plugins still usable {usable}/{total}, "
            f"named in the report {named}, silent conflicts {conflicts}; blocked imported {int(imported)}"
        )
    assert not wrong
    assert (total, alive, usable, named, conflicts, imported) == (13, 13, 13, 13, 0, False)


def test_a_plugin_that_swallows_everything_it_can_is_still_given_up(tmp_path: Path) -> None:
    stubborn = "import time\nwhile True:\n    try: time.sleep(600)\n    except Exception: pass\n"
    install(tmp_path, "bad", "bad", stubborn)
    ran = python(tmp_path, LIST_AND_PLUGINS, UNIMIM_PLUGIN_SECONDS="0.5")
    assert ran.returncode == 0
    assert "TooSlow: not done after 0.5 seconds" in ran.stdout


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan", ""])
def test_a_limit_that_is_no_number_is_refused(seconds: str, tmp_path: Path) -> None:
    ran = python(
        tmp_path, "import sys; from unimim.cli import main; sys.exit(main(['plugins']))", UNIMIM_PLUGIN_SECONDS=seconds
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"error: UNIMIM_PLUGIN_SECONDS is {seconds!r}, not a number of seconds")


def test_a_recipe_that_cannot_be_made_names_its_plugin(tmp_path: Path) -> None:
    recipes = (
        "import unimim\n@unimim.hookimpl\ndef unimim_recipes():\n    return {'bad': 'bad:make', 'odd': 'bad:odd'}\n"
    )
    install(tmp_path, "bad", "bad", recipes + "def make(): raise SystemExit(0)\ndef odd(): return 7\n")
    show = "import sys; from unimim.cli import main; sys.exit(main(['list', 'recipes']) or main(['show', {!r}]))"
    for name, problem in {"bad": "SystemExit: 0", "odd": "TypeError: 'int' object is not iterable"}.items():
        ran = python(tmp_path, show.format(name))
        assert ran.returncode == 2
        assert "broken (SystemExit: 0)" in ran.stdout
        assert ran.stderr.strip() == f"error: {name}: recipe {name!r} of plugin 'bad' cannot be made: {problem}"
