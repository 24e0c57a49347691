"""A scaffolded plugin of every kind passes its own tests as it is; names that will not do are refused with help."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unimim.scaffold import KINDS, new_plugin

from .installed import pip_install, run


def test_every_kind_installs_and_passes_its_own_tests_at_once(tmp_path: Path) -> None:
    folders = [tmp_path / f"unimim-my-{kind}" for kind in KINDS]
    for kind, folder in zip(KINDS, folders, strict=True):
        written = new_plugin(folder.name, kind, folder)
        assert sorted(written) == sorted(path for path in folder.rglob("*") if path.is_file())
        assert all(path.read_text().isascii() and "$" not in path.read_text() for path in written)
    pip_install(tmp_path / "site", *folders)
    strict = ["-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib"]
    tests = [str(folder / "tests") for folder in folders]
    said = run("-m", "pytest", *strict, *tests, site=tmp_path / "site", cwd=tmp_path)
    assert f"{3 * len(KINDS)} passed" in said


def test_names_are_derived_as_pip_and_python_want_them(tmp_path: Path) -> None:
    paths = new_plugin("Unimim.soft-Edges", "norm", tmp_path / "new" / "folder")
    code = tmp_path / "new" / "folder" / "unimim_soft_edges" / "soft_edges.py"
    assert paths[1] == code
    assert "class SoftEdgesNorm(Norm):" in code.read_text()
    assert 'name: Literal["soft_edges"] = "soft_edges"' in code.read_text()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("unimim-waves", "techer", "unknown kind 'techer', did you mean 'teacher'?; choose one of teacher, norm,"),
        ("", "norm", "'' is no name of a distribution"),
        ("../waves", "norm", "'../waves' is no name of a distribution"),
        ("waves-", "norm", "'waves-' is no name of a distribution"),
        ("wäves", "norm", "'wäves' is no name of a distribution"),
        ("waves\n", "norm", r"'waves\n' is no name of a distribution"),
        ("3d", "norm", "makes the module '3d', which Python cannot import; try unimim-my-norm"),
        ("unimim-3d", "norm", "makes the module '3d'"),
        ("unimim-class", "norm", "makes the module 'class'"),
        ("json", "loss", "a module 'json' exists already; try unimim-json-loss"),
        ("unimim", "loss", "a module 'unimim' exists already"),
        ("unimim-pixel", "teacher", "'unimim' has a teacher 'pixel' already; try unimim-pixel-teacher"),
    ],
)
def test_a_name_that_will_not_do_is_refused_with_help(name: str, kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        new_plugin(name, kind, tmp_path / "plugin")
    assert not (tmp_path / "plugin").exists()


def test_a_folder_that_holds_anything_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="is not an empty folder; choose another"):
            new_plugin("unimim-waves", "mask", taken)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
