"""docs/tutorial-teacher.md shows the files of plugins/unimim-example, commands that work and messages that are said."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from unimim import load, testing
from unimim.cli import main
from unimim.registry import Entry, Plugins

from ..conftest import Register

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "plugins" / "unimim-example"
TEXT = (ROOT / "docs" / "tutorial-teacher.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: title=\"(.+?)\")?\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for kind, _, body in BLOCKS if kind == "console" for line in body.splitlines()]
COMMANDS = [line.removeprefix("$ ") for line in LINES if line.startswith("$ ")]
MESSAGES = [body.strip() for kind, _, body in BLOCKS if kind == "text"]
Changed = Callable[[str, str, str], ModuleType]


@pytest.fixture
def edges(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example, registered in this process."""
    monkeypatch.syspath_prepend(EXAMPLE)
    example = importlib.import_module("unimim_example")
    register(teachers=example.unimim_teachers(), recipes=example.unimim_recipes())


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Changed:
    """changed(file, old, new): that module of the example with a mistake in it, and no other."""

    def make(file: str, old: str, new: str) -> ModuleType:
        source = (EXAMPLE / "unimim_example" / file).read_text()
        assert old in source
        module = ModuleType("unimim_example" if file == "__init__.py" else f"unimim_example.{Path(file).stem}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(source.replace(old, new), file, "exec"), vars(module))
        return module

    return make


def test_it_shows_every_file_as_it_is() -> None:
    shown = {title: body for _, title, body in BLOCKS if title}
    files = [path for pattern in ("*.toml", "*/*.py") for path in EXAMPLE.glob(pattern)]
    assert shown == {path.relative_to(ROOT).as_posix(): path.read_text() for path in files}


def test_the_teacher_has_30_lines() -> None:
    source = (EXAMPLE / "unimim_example" / "edges.py").read_text()
    assert len([line for line in source[source.index("class Edges") :].splitlines() if line.strip()]) <= 30


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("unimim ")])
@pytest.mark.usefixtures("edges")
def test_a_command_works(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = command.split()[1:]
    costly = words[0] in ("train", "compare") and "--dry-run" not in words
    assert main([*words, *(["--dry-run"] if costly else [])]) == 0
    assert not list(tmp_path.iterdir())


def test_other_commands_name_folders_that_exist() -> None:
    others = [command for command in COMMANDS if not command.startswith("unimim ")]
    assert len(others) == 2
    assert all((ROOT / command.split()[-1]).is_dir() for command in others)


@pytest.mark.usefixtures("edges")
@pytest.mark.parametrize("assignment", ["teacher=egdes", "teacher.num_directoins=4", "teacher.num_directions=0"])
def test_a_mistake_in_a_recipe_says_what_the_tutorial_says(assignment: str) -> None:
    with pytest.raises(ValueError, match="maskdistill-micro") as caught:
        load("maskdistill-micro", ["teacher=edges", assignment])
    assert f"`{assignment}`" in TEXT
    assert any(message in str(caught.value) for message in MESSAGES)


@pytest.mark.parametrize(
    ("old", "new"),
    [("unimim_teachers()", "unimim_teacher()"), ("from unimim import", "import no_such_library\nfrom unimim import")],
)
def test_a_mistake_in_a_plugin_says_what_the_tutorial_says(old: str, new: str, changed: Changed) -> None:
    try:
        problem = Plugins().register(changed("__init__.py", old, new), "unimim-example").problem
    except ModuleNotFoundError as error:
        problem = f"ModuleNotFoundError: {error}"
    assert problem in MESSAGES


def test_a_second_edges_says_what_the_tutorial_says(changed: Changed) -> None:
    live, example = Plugins(), changed("__init__.py", "", "")
    live.register(example, "unimim-example")
    assert MESSAGES[-1] in live.register(example, "unimim-other").problem


@pytest.mark.parametrize(
    ("old", "new"),
    [("class Edges(", "class Edgy("), ('name: Literal["edges"] = "edges"', 'name: Literal["edge"] = "edge"')],
)
def test_a_class_that_does_not_fit_its_hook_says_what_the_tutorial_says(old: str, new: str, changed: Changed) -> None:
    attribute = "Edge" if "class" in old else "Edges"
    changed("edges.py", old, new)
    with pytest.raises(ValueError, match="of plugin 'unimim-example'") as caught:
        Entry("teachers", "edges", f"unimim_example.edges:{attribute}", "unimim-example").load()
    assert any(str(caught.value).endswith(message) for message in MESSAGES)


@pytest.mark.parametrize(("old", "new"), [(".mT", ""), ("view.pixels()", "view.image.float()")])
def test_a_wrong_target_is_told_by_the_kit_as_the_tutorial_says(
    old: str, new: str, changed: Changed, register: Register
) -> None:
    register(teachers={"edges": changed("edges.py", old, new).Edges})
    with pytest.raises(AssertionError) as caught:
        testing.check_teacher("edges")
    assert str(caught.value) in MESSAGES


def test_every_message_is_provoked_by_a_test_here() -> None:
    assert len(set(MESSAGES)) == 3 + 2 + 1 + 2 + 2
