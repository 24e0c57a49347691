"""unimim data check and shard."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Unimim, draw


def make(folder: Path) -> Path:
    draw(folder / "train", 16, seed=1)
    draw(folder / "val", 4, seed=2)
    return folder


def test_check_tells_what_a_data_set_holds(unimim: Unimim, tmp_path: Path) -> None:
    ran = unimim("data", "check", make(tmp_path / "set"), "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    train = found["train"]
    assert (train["images"], train["unreadable"], found["val"]["images"]) == (16, [], 4)
    assert train["classes"] == {"bright": 8, "dark": 8}
    assert train["widths"] == train["heights"] == [16] * 5
    assert train["images_per_s"] > 0
    ran = unimim("data", "check", tmp_path / "set")
    assert "2, of 8 to 8 images" in ran.out
    assert "images/s a worker" in ran.out


def test_check_lists_unreadable_files_and_fails(unimim: Unimim, tmp_path: Path) -> None:
    bad = make(tmp_path / "set") / "train" / "dark" / "[b]bad.png"
    bad.write_bytes(b"<html>")
    for workers in (0, 1):
        ran = unimim("data", "check", tmp_path / "set", "--workers", workers)
        assert ran.code == 1
        assert ran.err.startswith("error: 1 of 21 images cannot be read:\n")
        assert f"{bad}: not an image that can be read" in ran.err
    ran = unimim("data", "check", tmp_path / "set", "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["train"]["unreadable"][0]["name"] == str(bad)


def test_shard_packs_what_train_reads(unimim: Unimim, tmp_path: Path) -> None:
    make(tmp_path / "set")
    (tmp_path / "set" / "train" / "dark" / "bad.png").write_bytes(b"")
    ran = unimim("data", "shard", tmp_path / "set", "--out", tmp_path / "out", "--per-shard", 8)
    assert ran.code == 0
    assert f"20 images in 3 shards: {tmp_path / 'out'}" in ran.out
    assert "left out: 1 unreadable images" in ran.out
    assert "bad.png: the file is empty" in ran.err
    ran = unimim("data", "check", tmp_path / "out", "--json")
    assert json.loads(ran.out)["train"]["classes"] == {"bright": 8, "dark": 8}
    ran = unimim("data", "shard", tmp_path / "set", "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "")
    assert "give a new folder" in ran.err


def test_wrong_commands_are_refused(unimim: Unimim, tmp_path: Path) -> None:
    ran = unimim("data", "shard", "shapes")
    assert ran.code == 2
    assert "--out is missing" in ran.err
    assert "cannot open images from 'shapes'" in ran.err
    assert unimim("data", "check", tmp_path / "nowhere").code == 2
    assert "check" in unimim("data").out
