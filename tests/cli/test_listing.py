"""Commands that only look."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from unimim import __version__
from unimim.hooks import AXES
from unimim.recipe import load
from unimim.registry import Plugin, plugins

from .conftest import Unimim

QUICK = """
import sys
from unimim.cli import main
code = main(sys.argv[1:])
sys.stdout.flush()
print(code, *sorted({"torch", "torchvision", "timm", "numpy", "PIL"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("command", [["--help"], ["list"], ["list", "--json"], ["train", "--help"], ["plugins"]])
def test_help_and_lists_import_nothing_heavy(command: list[str]) -> None:
    environment = {**os.environ, "UNIMIM_PLUGINS": "none"}
    done = subprocess.run([sys.executable, "-c", QUICK, *command], capture_output=True, text=True, env=environment)
    assert done.stderr.split() == ["0"]


def test_without_arguments_it_says_what_it_can_do(unimim: Unimim) -> None:
    ran = unimim()
    assert ran.code == 0
    assert "unimim train mae-micro --data shapes --out runs/mae" in " ".join(ran.out.split())


def test_every_command_has_a_help_text_with_an_example(unimim: Unimim) -> None:
    for command in ("list", "show", "table1", "train", "compare", "eval", "convert", "export", "schema", "doctor"):
        ran = unimim(command, "--help")
        assert ran.code == 0
        assert f"Example: unimim {command}" in ran.out


def test_list_shows_every_registered_name_with_its_plugin(unimim: Unimim) -> None:
    rows = json.loads(unimim("list", "--json").out)
    assert {(row["kind"], row["name"]) for row in rows} == {
        (kind, name) for kind, registry in plugins().registries.items() for name in registry
    }
    text = unimim("list").out
    assert all(row["summary"] and row["summary"] in text for row in rows)
    assert {row["plugin"] for row in rows} == {"unimim"}
    assert {row["name"]: row["status"] for row in rows if row["kind"] == "recipes"}["mae"] == "verified"


def test_list_of_an_unknown_kind(unimim: Unimim) -> None:
    ran = unimim("list", "recips")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "error: unknown kind 'recips', did you mean 'recipes'?; kinds: teachers, norms, students, heads, losses, masks, "
        "views, recipes, importers, loggers, releases\n"
    )


def test_a_recipe_that_cannot_be_read_does_not_hide_the_others(unimim: Unimim, register: Any) -> None:
    def crash() -> dict[str, Any]:
        """Crashes."""
        raise RuntimeError("no [bold]data\x1b[31m")

    register(recipes={"crash": crash})
    ran = unimim("list", "recipes")
    assert ran.code == 0
    assert "broken (RuntimeError: no [bold]data\ufffd[31m)" in ran.out
    assert "mae-micro" in ran.out


def test_show_prints_a_recipe_file_with_its_axes_on_top(unimim: Unimim, tmp_path: Path) -> None:
    ran = unimim("show", "mae", "loss=l1", "student.depth=3")
    assert ran.out.splitlines()[:7] == [
        "# MAE   He et al., 2022, Masked Autoencoders Are Scalable Vision Learners",
        "# verified against official code, but changed: terms.mim.loss, student.depth; "
        f"hash {load('mae', ['loss=l1', 'student.depth=3']).hash}",
        "#   T  Teacher        Pixel",
        "#   S  Student        ViT",
        "#   H  MIM Head       Decoder",
        "#   N  Normalization  LayerNorm",
        "#   L  Loss Function  l1",
    ]
    file = tmp_path / "mine.yaml"
    file.write_text(ran.out)
    assert load(file) == load("mae", ["loss=l1", "student.depth=3"])


def test_show_as_json(unimim: Unimim) -> None:
    shown = json.loads(unimim("show", "beit", "--json").out)
    assert shown["hash"] == load("beit").hash
    assert load(shown["recipe"]) == load("beit")
    assert {
        "setting": "batch",
        "value": 2048,
        "source": "official code: microsoft/unilm @ 768a3c8, beit, README",
    } in shown["sources"]


def test_provenance_names_the_source_of_every_value(unimim: Unimim) -> None:
    lines = unimim("show", "maskdistill", "epochs=7", "--provenance").out.splitlines()
    sources = {line.split()[0]: line for line in lines if line and not line.startswith("#")}
    assert "paper: Table 11" in sources["optimization.lr"]
    assert "ours: not stated; torch's default" in sources["terms.mim.loss.beta"]
    assert "command line" in sources["epochs"]


def test_difference_of_two_recipes_by_axis_and_value(unimim: Unimim) -> None:
    found = json.loads(unimim("show", "mae", "loss=l1", "batch=8", "--diff", "mae", "--json").out)
    assert found["axes"] == [{"axis": "Loss Function", "before": "l2", "after": "l1"}]
    assert found["settings"] == [
        {"setting": "terms.mim.loss.name", "before": "l2", "after": "l1"},
        {"setting": "batch", "before": 4096, "after": 8},
    ]
    assert unimim("show", "mae", "--diff", "mae").out == f"mae computes the same as mae ({load('mae').hash})\n"


def test_show_reports_every_problem_at_once(unimim: Unimim) -> None:
    ran = unimim("show", "mae", "student.dpeth=2", "lr=3", "loss=l9", "epochs=-1", "oops", "--diff", "mea")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        "error: 6 problems",
        "  mae: 'oops' is not key=value, e.g. student.depth=6",
        "  mae: student.dpeth: unknown field, did you mean 'depth'?",
        "  mae: terms.mim.loss: unknown loss 'l9', did you mean 'l2'?; registered: " + ", ".join(plugins()["losses"]),
        "  mae: epochs: input should be greater than 0, got -1",
        "  mae: lr: unknown field, did you mean 'optimization.lr'?",
        "  mea: unknown recipe 'mea', did you mean 'mae'?; registered: " + ", ".join(plugins()["recipes"]),
    ]


def test_text_of_a_recipe_file_cannot_act_on_the_terminal(unimim: Unimim, tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    data = load("mae-micro").data() | {"title": "[red]\x1b[2Jred\u202e", "paper": "[/]"}
    file.write_text(yaml.safe_dump(data))
    ran = unimim("show", file)
    assert ran.code == 0
    assert ran.out.splitlines()[0] == "# [red]\ufffd[2Jred\ufffd   [/]"
    missing = unimim("show", "\x1b[31mm[b]ae.yaml")
    assert missing.err == "error: \ufffd[31mm[b]ae.yaml: no file \ufffd[31mm[b]ae.yaml\n"


def test_table1_is_the_same_in_every_format(unimim: Unimim) -> None:
    rows = json.loads(unimim("table1", "--json").out)
    assert rows[0] == {
        "method": "MAE (He et al., 2022)",
        "teacher": "Pixel",
        "student": "ViT",
        "head": "Decoder",
        "norm": "LayerNorm",
        "loss": "l2",
        "recipe": "mae",
        "status": "verified",
    }
    assert [row["recipe"] for row in rows] == [
        "mae",
        "simmim",
        "beit",
        "maskfeat-dino",
        "mvp",
        "data2vec",
        "maskdistill",
    ]
    cells = [list(row.values()) for row in rows]
    assert list(csv.reader(io.StringIO(unimim("table1", "--csv").out)))[1:] == cells
    markdown = unimim("table1", "--md").out.splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown[2:]] == cells
    assert markdown[0].startswith(
        "| Methods | Teacher T | Student S | MIM Head H | Normalization N | Loss Function L |"
    )
    assert all(row["method"] in unimim("table1").out for row in rows)
    assert unimim("table1", "--md", "--csv").err == "error: give one of --md, --csv, --json\n"


@pytest.fixture
def bad_plugin() -> Iterator[Plugin]:
    row = Plugin(
        "unimim-bad", "0.3", "/site/bad.py", {}, "ImportError: no [red]torch\x1b", "Traceback ...\nImportError"
    )
    plugins().loaded.append(row)
    yield row
    plugins().loaded.remove(row)


def test_plugins_shows_what_is_wrong_and_succeeds(unimim: Unimim, bad_plugin: Plugin) -> None:
    ran = unimim("plugins")
    assert ran.code == 0
    assert ran.out.splitlines()[-4:] == [
        "unimim-bad 0.3",
        "  file      /site/bad.py",
        "  provides  nothing",
        "  problem   ImportError: no [red]torch\ufffd",
    ]
    assert "Traceback ..." in unimim("plugins", "-v").out
    assert json.loads(unimim("plugins", "--json").out)[-1]["problem"] == bad_plugin.problem
    assert "problems in unimim-bad: see unimim plugins" in unimim("list", "losses").out


def test_a_new_plugin_is_written_once(unimim: Unimim, tmp_path: Path) -> None:
    ran = unimim("plugins", "new", "unimim-depth", "--kind", "norm", "--out", tmp_path / "new")
    assert ran.code == 0
    assert (tmp_path / "new" / "pyproject.toml").is_file()
    assert all(Path(line).is_file() for line in ran.out.splitlines())
    again = unimim("plugins", "new", "unimim-depth", "--kind", "norm", "--out", tmp_path / "new")
    assert again.code == 2
    assert again.err.startswith(f"error: {tmp_path / 'new'} is not an empty folder")
    assert unimim("plugins", "new", "unimim-depth", "--kind", "nrom").err.startswith(
        "error: unknown kind 'nrom', did you mean"
    )


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if "$ref" in node else [])
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from references(item)


def test_schema_knows_every_component_and_closes_over_its_references(unimim: Unimim, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    assert unimim("schema", "--out", file).code == 0
    schema = json.loads(file.read_text())
    assert schema == json.loads(unimim("schema").out)
    assert {reference.removeprefix("#/$defs/") for reference in references(schema)} <= set(schema["$defs"])
    for kind in AXES:
        assert schema["$defs"][kind]["anyOf"][0]["enum"] == list(plugins()[kind].entries)
    assert schema["properties"]["loss"]["$ref"] == "#/$defs/losses"
    assert "x-component" not in file.read_text()


def test_usage_errors_are_short_and_without_traceback(unimim: Unimim) -> None:
    ran = unimim("shwo")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: No such command 'shwo'. Did you mean 'show'?\nsee unimim --help\n"
    ran = unimim("train", "mae", "--dat", "x")
    assert ran.code == 2
    assert ran.err.startswith("error: No such option: --dat")
    assert ran.err.endswith("see unimim train --help\n")
    assert unimim("teachers").code == 0
    assert "train-clip" in unimim("teachers").out
    assert unimim("--version").out == f"{__version__}\n"


def test_a_traceback_can_be_asked_for(unimim: Unimim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIMIM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unknown kind 'recips'"):
        unimim("list", "recips")
