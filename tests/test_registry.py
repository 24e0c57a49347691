"""Bad plugins become rows that say what is wrong, and everything good stays usable."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from unimim import Norm, Recipe, RecipeError, hookimpl, load, plugins
from unimim.hooks import KINDS
from unimim.norms import Identity
from unimim.registry import Plugin, Plugins
from unimim.schema import schema


class Double(Norm):
    """N(x) = 2 x."""

    class Config(Norm.Config):
        name: Literal["double"] = "double"

    def forward(self, x: Any) -> Any:
        return 2 * x


class Nameless(Norm):
    def forward(self, x: Any) -> Any:
        return x


def hook(**answers: Any) -> Any:
    """A plugin whose hooks return these values, or raise them if they are exceptions."""

    def implement(answer: Any) -> Callable[[], Any]:
        def hooked() -> Any:
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return hookimpl(hooked)

    return SimpleNamespace(**{f"unimim_{name}": implement(answer) for name, answer in answers.items()})


class Greedy:
    @hookimpl
    def unimim_norms(self, everything: Any) -> Any:
        return {}


@pytest.fixture
def fresh() -> Plugins:
    """Registries of their own, with one good plugin."""
    live = Plugins()
    assert live.register(hook(norms={"double": Double}), "good", "1.0") == Plugin(
        "good", "1.0", "", {"norms": ("double",)}
    )
    return live


BAD = {
    "no hooks": (SimpleNamespace(), r"no function is marked @unimim.hookimpl; expected one of unimim_teachers"),
    "misspelt": (hook(norm={"half": Double}), r"unknown hook 'unimim_norm', did you mean 'unimim_norms'"),
    "wrong signature": (Greedy(), "everything"),
    "raises": (hook(norms=RuntimeError("no licence")), "unimim_norms: RuntimeError: no licence"),
    "exits": (hook(norms=SystemExit(3)), "unimim_norms: SystemExit: 3"),
    "not a mapping": (hook(norms=["double"]), "returned list, not a mapping"),
    "nothing": (hook(norms=None), "returned NoneType, not a mapping"),
    "taken": (hook(norms={"double": Double}), "norm 'double' is already registered by 'good'; rename yours"),
    "other name": (
        hook(norms={"twice": Double}),
        r"norm 'twice': .* with name: Literal\['twice'\] = 'twice', but has 'double'",
    ),
    "no config": (hook(norms={"nameless": Nameless}), r"norm 'nameless': .* with name: Literal\['nameless'\]"),
    "other axis": (hook(losses={"double": Double}), "loss 'double': .* must be a subclass of unimim.Loss"),
    "not a class": (hook(norms={"seven": 7}), "norm 'seven': 7 must be a subclass of unimim.Norm"),
    "not a function": (hook(recipes={"mine": 7}), "recipe 'mine': 7 must be a function"),
    "not a release": (hook(releases={"mine": {}}), "release 'mine': {} must be a unimim.Release"),
    "no address": (hook(norms={"far": "somewhere"}), "norm 'far': .* is not \"package.module:attribute\""),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_plugin_is_a_row_with_its_problem(case: str, fresh: Plugins) -> None:
    plugin, problem = BAD[case]
    row = fresh.register(plugin, "bad")
    assert fresh.loaded[-1] is row
    assert row.name == "bad"
    assert re.search(problem, row.problem), row.problem
    assert not any(row.provides.values())
    assert [*fresh["norms"]] == ["double"]
    assert fresh["norms"]["double"] is Double


def test_what_is_right_with_a_plugin_counts_beside_what_is_wrong(fresh: Plugins) -> None:
    mixed = hook(norms={"double": Double}, losses=KeyError("x"), masks={"random": "unimim.masks:Random"}, view={})
    row = fresh.register(mixed, "mixed")
    assert row.provides == {"norms": (), "masks": ("random",)}
    assert fresh["masks"]["random"].__name__ == "Random"
    for part in ("already registered", "KeyError", "unknown hook 'unimim_view'"):
        assert part in row.problem
    assert "Traceback" in row.traceback


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("absent_module:Norm", "cannot be imported: ModuleNotFoundError"),
        ("unimim.norms:Absent", "cannot be imported: AttributeError"),
        ("unimim.losses:L1", "must be a subclass of unimim.Norm"),
        ("unimim.norms:L2", "but has 'l2'"),
    ],
)
def test_a_lazy_target_that_is_wrong_is_told_when_it_is_used(target: str, problem: str, fresh: Plugins) -> None:
    assert fresh.register(hook(norms={"lazy": target}), "lazy plugin").problem == ""
    with pytest.raises(ValueError, match=f"norm 'lazy' of plugin 'lazy plugin': .*{problem}"):
        fresh["norms"]["lazy"]
    assert [config.model_fields["name"].default for config in fresh["norms"].configs()] == ["double"]


SOURCES = {
    "fine": "from unimim import hookimpl\n@hookimpl\ndef unimim_norms():\n    return {'double': 'other:Double'}\n",
    "broken": "import nothing_of_that_name\n",
    "quits": "raise SystemExit('no GPU here')\n",
    "fails": "1 / 0\n",
    "syntax": "def (\n",
}


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("broken", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("quits", "SystemExit: no GPU here"),
        ("fails", "ZeroDivisionError"),
        ("syntax", "SyntaxError"),
        ("absent", "ModuleNotFoundError"),
        ("fine:nothing", "AttributeError"),
        ("fine", "'double' is already registered by 'good'"),
    ],
)
def test_an_entry_point_that_does_not_load_is_a_row(
    module: str, problem: str, fresh: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, source in SOURCES.items():
        (tmp_path / f"h_{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    fresh.load_entry_point(EntryPoint("theirs", f"h_{module}", "unimim"), "their-plugin", "2.0")
    row = fresh.loaded[-1]
    assert (row.name, row.version) == ("their-plugin", "2.0")
    assert problem in row.problem
    assert module == "absent" or row.file == str(tmp_path / f"h_{module.partition(':')[0]}.py")
    assert fresh["norms"]["double"] is Double
    for name in [name for name in sys.modules if name.startswith("h_")]:
        del sys.modules[name]


def test_ctrl_c_is_not_a_problem_of_the_plugin(fresh: Plugins) -> None:
    with pytest.raises(KeyboardInterrupt):
        fresh.register(hook(norms=KeyboardInterrupt()), "interrupted")


def test_an_unknown_name_is_answered_with_the_nearest_and_with_plugins_in_trouble(fresh: Plugins) -> None:
    fresh.register(hook(norms=RuntimeError("x")), "troubled")
    with pytest.raises(ValueError, match=r"unknown norm 'duble', did you mean 'double'.*registered: double.*troubled"):
        fresh["norms"]["duble"]


def test_a_config_belongs_to_one_class() -> None:
    with pytest.raises(TypeError, match="needs a Config of its own"):

        class Borrowed(Norm):
            Config = Identity.Config


def test_every_built_in_loads_and_says_what_it_is() -> None:
    (row,) = [row for row in plugins().loaded if row.name == "unimim"]
    assert row.problem == ""
    assert {*row.provides} == {*KINDS}
    for kind in KINDS:
        for name in plugins()[kind]:
            entry = plugins()[kind].entries[name]
            assert entry.load() is not None
            assert entry.summary, f"{kind} {name} needs a docstring"
            assert entry.module.startswith("unimim.")


def test_a_registered_component_works_by_name_in_a_recipe(register: Any) -> None:
    register(norms={"double": Double})
    recipe = load("mae-micro", ["norm=double"])
    assert recipe.terms["mim"].norm == Double.Config()
    assert recipe.terms["mim"].norm.build()(3) == 6
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert load("mae-micro", ["norm=[layer, double]"]).axes()["norm"] == "LayerNorm + double"


def test_a_component_leaves_with_its_test() -> None:
    with pytest.raises(RecipeError, match="unknown norm 'double'"):
        load("mae-micro", ["norm=double"])


def test_the_schema_knows_every_registered_name(register: Any) -> None:
    register(norms={"double": Double})
    text = str(schema())
    for kind in KINDS[:7]:
        for name in plugins()[kind]:
            assert f"'{name}'" in text, f"{kind} {name}"
