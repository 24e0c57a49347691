"""unimim teachers list, fetch and verify."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unimim import Release, plugins
from unimim.cli import console

from ..test_fetching import BODY, SHA256, Served, served
from .conftest import Unimim
from .test_listing import QUICK

__all__ = ["served"]


@pytest.fixture
def offer(register: Any, served: Served) -> Any:
    """offer(name, file=..., sha256=...) makes the server's file a release."""

    def add(name: str, **given: Any) -> Release:
        use = "teacher=timm teacher.checkpoint={file} teacher.mean=[0.5,0.5,0.5]"
        release = served.release(file=f"{name}.pth", use=use, **given)
        register(releases={name: release})
        return release

    return add


def test_list_fits_a_narrow_terminal_and_tells_everything_as_json(
    unimim: Unimim, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = json.loads(unimim("teachers", "list", "--json").out)
    assert [row["name"] for row in rows] == [*plugins()["releases"].entries]
    assert all(row["source"] and "{file}" in row["use"] for row in rows)
    assert rows[-1]["name"] == "dvae"
    assert (rows[-1]["size"], rows[-1]["sha256"]) == (None, "")
    monkeypatch.setattr(console, "console", lambda stderr=False: Console(width=100, highlight=False))
    lines = unimim("teachers", "list").out.splitlines()
    assert max(map(len, lines)) <= 100
    assert all(any(line.startswith(f"{row['name']} ") for line in lines) for row in rows)
    assert "0676ba61" in " ".join(lines)


def test_a_release_that_cannot_be_loaded_hides_no_other(unimim: Unimim, register: Any) -> None:
    register(releases={"lost": "unimim.nowhere:LOST"})
    ran = unimim("teachers", "list", "--json")
    assert ran.code == 0
    assert len(json.loads(ran.out)) == len(plugins()["releases"].entries) - 1
    assert ran.err.startswith("left out: release 'lost' of plugin 'a test': unimim.nowhere:LOST cannot be imported")


@pytest.mark.parametrize(
    "command", [["list"], ["list", "--json"], ["--help"], ["fetch", "--help"], ["verify", "--help"]]
)
def test_nothing_heavy_is_imported(command: list[str]) -> None:
    environment = {**os.environ, "UNIMIM_PLUGINS": "none"}
    words = [sys.executable, "-c", QUICK, "teachers", *command]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.stderr.split() == ["0"]


def test_fetch_says_what_was_checked_and_how_to_use_it(unimim: Unimim, offer: Any, tmp_path: Path) -> None:
    offer("sure", sha256=SHA256)
    offer("unsure")
    ran = unimim("teachers", "fetch", "sure", "unsure", "--to", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"{tmp_path}/sure.pth: matches what was published",
        f"use it: teacher=timm teacher.checkpoint={tmp_path}/sure.pth 'teacher.mean=[0.5,0.5,0.5]'",
        f"{tmp_path}/unsure.pth: recorded in unsure.pth.sha256 and not checked, for its authors publish no sha256: {SHA256}",
        f"use it: teacher=timm teacher.checkpoint={tmp_path}/unsure.pth 'teacher.mean=[0.5,0.5,0.5]'",
    ]
    again = unimim("teachers", "fetch", "unsure", "--to", tmp_path)
    assert again.out.startswith(f"{tmp_path}/unsure.pth: already there, matches what was recorded\n")


def test_without_a_network_it_says_what_to_do(unimim: Unimim, offer: Any, tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{bound.getsockname()[1]}"
        offer("far", source=f"http://{host}/far.pth")
        offer("near")
        ran = unimim("teachers", "fetch", "far", "near", "--to", tmp_path / "new")
    assert ran.code == 1
    assert ran.err == (
        f"error: cannot reach {host} ([Errno 111] Connection refused); nothing was kept. On a machine that can, fetch\n"
        f"  http://{host}/far.pth\nthen put it at {tmp_path}/new/far.pth and check it:\n"
        f"  unimim teachers verify {tmp_path}/new/far.pth\n"
    )
    assert (tmp_path / "new" / "near.pth").read_bytes() == BODY
    assert not list((tmp_path / "new").glob("*far*"))


def test_wrong_names_and_folders_are_refused_before_anything_is_fetched(
    unimim: Unimim, offer: Any, served: Served, tmp_path: Path
) -> None:
    offer("wrong", sha256="0" * 64)
    ran = unimim("teachers", "fetch", "wrong", "dino-b61")
    assert ran.code == 2
    assert "unknown release 'dino-b61', did you mean 'dino-b16'?" in ran.err
    assert "--to is missing: the folder for the files" in ran.err
    assert served.asked == []
    ran = unimim("teachers", "fetch", "wrong", "--to", tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"error: {served.url} was fetched, but its sha256 is {SHA256}, not {'0' * 64}; nothing was kept\n"
    assert not any(tmp_path.iterdir())


def test_verify_knows_files_by_name_and_by_record(unimim: Unimim, offer: Any, tmp_path: Path) -> None:
    offer("published", sha256=SHA256[:8])
    offer("silent")
    offer("alone")
    unimim("teachers", "fetch", "published", "silent", "--to", tmp_path)
    for name in ("alone.pth", "other.bin"):
        (tmp_path / name).write_bytes(BODY)
    ran = unimim("teachers", "verify", tmp_path)
    assert ran.code == 0
    assert ran.out.splitlines() == [
        f"{tmp_path}/alone.pth: cannot be checked: its authors publish no sha256, and none was recorded",
        f"{tmp_path}/other.bin: not a known release",
        f"{tmp_path}/published.pth: matches what was published",
        f"{tmp_path}/silent.pth: matches what was recorded",
    ]
    (tmp_path / "silent.pth").write_bytes(BODY[1:])
    ran = unimim("teachers", "verify", tmp_path / "silent.pth", tmp_path / "published.pth")
    assert ran.code == 1
    assert ran.out.splitlines()[0] == f"{tmp_path}/silent.pth: DAMAGED"
    assert ran.err == (
        f"error: {tmp_path}/silent.pth is damaged: its sha256 is {hashlib.sha256(BODY[1:]).hexdigest()}, not {SHA256}\n"
    )
    assert unimim("teachers", "verify", tmp_path / "gone").err == f"error: no file {tmp_path}/gone\n"
