"""Recipes that somebody got wrong: every field of every shipped recipe, and YAML made to hurt, end in a message or a recipe."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from unimim.cli import main
from unimim.plain import MAX_CHARACTERS, MAX_DEPTH, read_yaml
from unimim.recipe import DESCRIPTION, Recipe, RecipeError, leaves, load
from unimim.registry import plugins

NUMBERS = [
    *(".nan", ".inf", "-.inf", "1e400", "-1", "0", "1000000000", "-1000000000", "9" * 26, "9" * 5000, "2147483648"),
    *("0x7fffffffffffffff", "1e-320", "1.0e-320", "1.0e+300", "-1.0e+300", "0.5", "7", "'7'", "!!float inf"),
]
TYPES = [
    *("null", "true", "text", "''", "[]", "{}", "[1, 2, 3]", "[.nan, .nan]", "[[]]", "{name: 1}", "{unknown: 1}"),
    *("{name: vit}", "{7: 7}", "{? [a]: 1}", "2020-01-01", "2020-13-45", "!!binary aGk=", "!!set {a, b}", "!!bool x"),
]
HOSTILE = [
    *("../../x", "/etc/passwd", '"\\0"', '"\\e[2J"', "x" * 5000, "<script>", "[b]x[/c]", "{{ x }}", "&a [*a]", "*a"),
    *("!!python/object/apply:os.system [exit 9]", "!!python/name:os.system", "[" * 5000, "{a: " * 20 + "1" + "}" * 20),
]
EVERYWHERE = 3
"""Values that each field of each recipe gets; each different field gets all of them once."""


def refused_with_path(error: RecipeError, path: str) -> bool:
    """A problem begins with the field's path, or with that of the part around it and then names the field."""
    leaf = path.rpartition(".")[2]
    for problem in "; ".join(error.problems).split("; "):
        where = problem.partition(":")[0]
        inside = where == path or where.startswith(f"{path}.")
        around = path.startswith(f"{where}.") and (leaf == "name" or re.search(rf"\b{leaf}\b", problem))
        if inside or around:
            return True
    return False


def use(recipe: Recipe) -> None:
    """What is accepted works as far as it can be asked without building a network."""
    assert load(recipe.data()).hash == recipe.hash
    assert Recipe.model_validate(read_yaml(recipe.yaml())) == recipe
    assert recipe.student.geometry.num_tokens <= 2**16
    for step in (0, 1, 10):
        assert recipe.optimization.rate(step, 11, 2, recipe.batch) >= 0


@pytest.mark.slow
def test_every_field_of_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    rng, said, unnamed, broken = random.Random(0), Counter[str](), [], []
    recipes = {name: load(name) for name in plugins()["recipes"]}
    fields = [(name, path) for name, recipe in recipes.items() for path in [*dict(leaves(recipe)), *DESCRIPTION[:-1]]]
    values = [*NUMBERS, *TYPES, *HOSTILE]
    seen: set[str] = set()
    for name, path in fields:
        for value in rng.sample(values, EVERYWHERE) if path in seen else values:
            try:
                use(load(name, [f"{path}={value}"]))
                said["accepted"] += 1
            except RecipeError as error:
                said["refused"] += 1
                if refused_with_path(error, path):
                    said["named"] += 1
                else:
                    unnamed.append((name, path, value[:40], error.problems))
            except Exception as error:
                broken.append((name, path, value[:40], repr(error)[:200]))
        seen.add(path)
    tried = said["accepted"] + said["refused"] + len(broken)
    with capsys.disabled():
        print(
            f"\nfields {len(fields)}, values {tried}, refused {said['refused']}, with their path {said['named']}, "
            f"accepted {said['accepted']}, tracebacks {len(broken)}"
        )
    assert not broken
    assert not unnamed
    assert said["accepted"] > 100


@pytest.mark.parametrize(
    "assignment",
    [
        *("student.depth=1000000000", "student.dim=1000000000", "student.num_registers=1000000000", "batch=1000000000"),
        *("student.image_size=1000000000", "student.patch_size=1000000000", "student.patch_size=0", "seed=4294967296"),
        *("student.mlp_ratio=1.0e+9", "head.dim=1000000000", "head.depth=1000000000", "epochs=1.0e+9"),
        *(
            "teacher={name: dvae, vocab_size: 1000000000}",
            "teacher={name: kmeans, teacher: pixel, num_codes: 10000000}",
        ),
        *(
            "views.ratio=[1.0e-300, 1.0]",
            "views.ratio=[0.1, 1.0e+300]",
            "mask={name: block, ratio: 0.4, min_aspect: 0.001}",
        ),
    ],
)
def test_what_no_machine_can_hold_is_refused_before_it_is_built(assignment: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("mae-micro", [assignment])
    key = assignment.partition("=")[0].removeprefix("mask").partition(".")[0]
    assert key in str(caught.value)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
FILES = {
    "bomb": (BOMB, "its aliases unfold to more than"),
    "loop": ("name: &a [*a]", "or without end"),
    "merge": ("a: &a {b: 1}\n" + "<<: [" + "*a, " * 30_000 + "*a]", "its aliases unfold to more than"),
    "deep flow": ("name: " + "[" * 50_000, f"line 1, column {MAX_DEPTH + 6}: more than {MAX_DEPTH} levels deep"),
    "deep block": ("".join(f"{' ' * n}a:\n" for n in range(400)), f"more than {MAX_DEPTH} levels deep"),
    "large": ("name: " + "x" * MAX_CHARACTERS, "characters, more than"),
    "twice": ("name: a\nstudent: {depth: 1,\n  depth: 2}", "line 3, column 3: 'depth' is given twice"),
    "python": (
        "name: !!python/object/apply:os.system ['exit 9']",
        "line 1, column 7: could not determine a constructor",
    ),
    "tag": ("name: !!bool maybe", "a value does not fit its tag"),
    "unclosed": ("name: [1,\nstudent: {", "line 2, column"),
    "control": ("name: \x1b[2J", "special characters are not allowed"),
    "two documents": ("name: a\n---\nname: b", "expected a single document"),
    "list": ("- name", "holds list, not the fields of a recipe"),
    "nothing": ("", "holds NoneType, not the fields of a recipe"),
    "numbers as keys": ("1: 2", "1: keys should be strings"),
    "unknown": ("name: a\nmodel: b", "model: unknown field"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_hostile_file_is_refused_with_its_place(case: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text, problem = FILES[case]
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_and_a_file_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="is not a recipe in YAML: 'utf-8' codec"):
        load(path)
    endless = tmp_path / "endless.yaml"
    endless.symlink_to("/dev/zero")
    with pytest.raises(RecipeError, match="no file"):
        load(endless)


def test_what_is_shared_in_a_file_may_be_written_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = load("mae-micro").yaml().replace("betas:", "betas: &pair", 1)
    assert "&pair" in text
    path.write_text(text)
    assert load(path).hash == load("mae-micro").hash


def test_data_and_keys_nested_without_end_are_refused() -> None:
    data: dict[str, object] = {}
    for _ in range(sys.getrecursionlimit()):
        data = {"student": data}
    with pytest.raises(RecipeError, match="recursion"):
        load(data)
    with pytest.raises(RecipeError, match="levels deep"):
        load("mae-micro", ["student" + ".a" * 5000 + "=1"])


def test_the_command_line_refuses_all_of_it_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (text, problem) in enumerate(FILES.values()):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert main(["show", str(path)]) == 2
        assert problem in capsys.readouterr().err
    train = ["train", "mae-micro", "--data", "shapes:train=8,val=8", "--out", str(tmp_path / "out")]
    for assignment in ("student.depth=1000000000", "optimization.lr=.nan", "student.hue=1", "name=../../x"):
        assert main([*train, assignment]) == 2
        path_of_field = assignment.partition("=")[0]
        assert f"mae-micro: {path_of_field}: " in capsys.readouterr().err
    for seeds in ("1000000000000", "0,4294967296", "9" * 5000):
        assert (
            main(
                [
                    "compare",
                    "mae-micro",
                    "--data",
                    "shapes:train=8,val=8",
                    "--out",
                    str(tmp_path / "out"),
                    "--seeds",
                    seeds,
                ]
            )
            == 2
        )
        assert "--seeds: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
