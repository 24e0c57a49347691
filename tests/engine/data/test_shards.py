"""Tar shards: the folder they were made of, and never more than bytes at a place."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from unimim.engine.data import BadImage, open_source
from unimim.engine.data.files import Folder, Zip
from unimim.engine.data.shards import Shards, write_shards

from .test_sources import Reads, labels, names, numbered, picture, tree, zipped


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return path


def sharded(root: str, per_shard: int = 7) -> Path:
    out = Path(f"{root}-shards")
    write_shards(Folder(Path(root)), out, per_shard)
    return out


KINDS = {
    "splits": [f"{split}/{kind}/é{n}.png" for split in ("train", "val") for kind in "ab" for n in "123456789"],
    "wrapped": [f"data/train/{kind}/{n}.PNG" for kind in "ab" for n in range(20)],
    "held out": numbered("cat/", 30) + numbered("dog/", 30),
    "flat": numbered("", 40),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_equal_the_folder(tmp_path: Path, kind: str, split: str) -> None:
    root = tree(tmp_path / "set", *KINDS[kind])
    out = sharded(root)
    folder, packed = open_source(root, split), open_source(str(out), split)  # type: ignore[arg-type]
    assert len(packed) == len(folder) > 0
    assert packed.classes == folder.classes
    assert packed.fingerprint() == folder.fingerprint(), "so that a run of the folder goes on with the shards"
    for index in range(len(folder)):
        assert packed.label(index) == folder.label(index)
        assert torch.equal(packed.read(index), folder.read(index))
        assert packed.name(index).startswith(f"{out}/000")


def test_bytes_are_copied_and_nothing_is_left_behind(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", *KINDS["splits"])
    with zipped_store(root) as store:
        written = write_shards(store, tmp_path / "out", 10)
    assert (written.num_images, written.num_shards, written.left_out) == (36, 4, ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set", "set.zip"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"0000{n}.tar" for n in range(4)),
        "index.npz",
    ]
    members = {}
    for path in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(path) as file:
            members |= {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]
    for name in KINDS["splits"]:
        assert members[name] == picture(name)
        assert members[name.replace(".png", ".cls")] == (b"0" if "/a/" in name else b"1")


class zipped_store:  # noqa: N801
    def __init__(self, root: str) -> None:
        self.store = Zip(Path(zipped(root)))

    def __enter__(self) -> Zip:
        return self.store

    def __exit__(self, *error: object) -> None:
        self.store._archive.close()


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", *KINDS["splits"])
    (tmp_path / "set/train/a/é3.png").write_bytes(b"no image")
    written = write_shards(Folder(Path(root)), tmp_path / "out")
    assert [bad.name for bad in written.left_out] == [f"{root}/train/a/é3.png"]
    assert (tmp_path / "out/left_out.txt").read_text().startswith(f"{root}/train/a/é3.png\tnot an image")
    assert len(open_source(str(tmp_path / "out"))) == 17


def test_a_folder_in_use_is_refused_and_leavings_are_replaced(tmp_path: Path) -> None:
    store = Folder(Path(tree(tmp_path / "set", *KINDS["splits"])))
    tree(tmp_path / ".tmp-out", "half.png")
    (tmp_path / "out").mkdir()
    write_shards(store, tmp_path / "out")
    assert not (tmp_path / ".tmp-out").exists()
    with pytest.raises(ValueError, match="out exists: give a new folder, or remove it"):
        write_shards(store, tmp_path / "out")


@pytest.mark.parametrize("prefix", ["", "./", "/", "../../"])
def test_a_members_name_is_only_a_name(tmp_path: Path, prefix: str) -> None:
    paths = [f"train/{kind}/{n}.png" for kind in "ab" for n in "12"] + ["val/a/1.png"]
    path = tar(tmp_path / "in" / "set.tar", *((prefix + name, picture(name)) for name in paths))
    before = sorted(tmp_path.rglob("*"))
    source = open_source(str(path))
    assert labels(source) == ["a", "a", "b", "b"]
    assert names(source, str(path)) == [name for name in paths if name.startswith("train")]
    assert source.read(3)[0, 0, 0] == sum(paths[3].encode()) % 256
    assert sorted({*tmp_path.rglob("*")} - {*before}) == [tmp_path / "in" / "set.tar.index.npz"]


@pytest.mark.parametrize("form", ["numbers", "names", "json"])
def test_webdataset_labels(tmp_path: Path, form: str) -> None:
    for shard, count in (("set-train-0.tar", 3), ("set-train-1.tar", 2), ("set-validation-0.tar", 2)):
        members = []
        for number in range(count):
            key = f"{shard[-5]}{number:05d}"
            label = number if form == "numbers" else "xyz"[number]
            tag = ("json", json.dumps({"label": label}).encode()) if form == "json" else ("cls", f"{label}\n".encode())
            members += [(f"{key}.{tag[0]}", tag[1]), (f"{key}.png", picture(key))]
        tar(tmp_path / shard, *members)
    train, val = (open_source(f"shards:{tmp_path}", split) for split in ("train", "val"))  # type: ignore[arg-type]
    assert train.classes == val.classes == (("0", "1", "2") if form == "numbers" else ("x", "y", "z"))
    assert [train.label(index) for index in range(len(train))] == [0, 1, 2, 0, 1]
    assert [val.label(index) for index in range(len(val))] == [0, 1]


def test_equal_keys_in_two_shards_are_two_images(tmp_path: Path) -> None:
    for number in "12":
        tar(tmp_path / f"{number}-train.tar", ("a.png", picture(number)))
    tar(tmp_path / "val.tar", ("a.png", picture("3")))
    source = open_source(f"shards:{tmp_path}")
    assert [int(source.read(index)[0, 0, 0]) for index in range(2)] == [ord("1"), ord("2")]


def test_some_labels_missing_is_an_error(tmp_path: Path) -> None:
    tar(tmp_path / "train.tar", ("a.png", picture("a")), ("a.cls", b"1"), ("b.png", picture("b")))
    tar(tmp_path / "val.tar", ("a.png", picture("a")))
    with pytest.raises(ValueError, match=r"train/b\.png has no class beside it"):
        open_source(f"shards:{tmp_path}")


def test_the_index_is_made_anew_when_shards_change_or_it_is_damaged(tmp_path: Path) -> None:
    root = tmp_path / "set"
    tar(root / "train-0.tar", ("1.png", picture("1")))
    tar(root / "val-0.tar", ("1.png", picture("1")))
    assert len(open_source(f"shards:{root}")) == 1
    tar(root / "train-1.tar", ("2.png", picture("2")))
    assert len(open_source(str(root))) == 2
    whole = (root / "index.npz").read_bytes()
    for damage in (b"", whole[:-30], whole[:200] + bytes(50) + whole[250:]):
        (root / "index.npz").write_bytes(damage)
        assert len(open_source(str(root))) == 2
        assert (root / "index.npz").read_bytes() == whole


def test_a_folder_that_cannot_be_written_keeps_its_index_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar(tmp_path / "train.tar", ("1.png", picture("1")))
    tar(tmp_path / "val.tar", ("1.png", picture("1")))
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse_writing(Path.open))
        assert open_source(f"shards:{tmp_path}").read(0).shape == (3, 4, 4)
    assert sorted(tmp_path.iterdir()) == before


def refuse_writing(original):  # type: ignore[no-untyped-def]
    def opened(path: Path, mode: str = "r", *more: object, **options: object) -> object:
        if "w" in mode:
            raise PermissionError("a read-only folder")
        return original(path, mode, *more, **options)

    return opened


@pytest.mark.parametrize("cut", [512 + 20, 1024 + 512, 1024 + 700])
def test_a_cut_or_damaged_shard_is_refused(tmp_path: Path, cut: int) -> None:
    path = tar(tmp_path / "set.tar", *((f"{n}.png", picture(str(n))) for n in range(5)))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"set\.tar: not a whole tar file .*: copy it again"):
        Shards(path)
    path.write_bytes(whole[:1100] + bytes([whole[1100] ^ 1]) + whole[1101:])  # in the second header
    with pytest.raises(ValueError, match=r"set\.tar: not a whole tar file"):
        Shards(path)


def test_a_shard_that_is_damaged_later_makes_bad_images(tmp_path: Path) -> None:
    out = sharded(tree(tmp_path / "set", *KINDS["splits"]), per_shard=18)
    source = open_source(str(out))
    shard = next(path for path in sorted(out.glob("*.tar")) if source.name(0).startswith(str(path)))
    whole = shard.read_bytes()
    first = whole.index(b"\x89PNG")
    shard.write_bytes(whole[:first] + b"overwritten" + whole[first + 11 :])
    with pytest.raises(BadImage, match=r"train/a/é1\.png: not an image"):
        source.read(0)
    shard.write_bytes(whole[: first + 8])
    with pytest.raises(BadImage, match=r"train/a/é2\.png: cannot be read .*the shard ends .* too early"):
        source.read(1)


def test_workers_and_copies_read_the_same(tmp_path: Path) -> None:
    source = open_source(str(sharded(tree(tmp_path / "set", *numbered("train/", 100), "val/1.png"))))
    expected = [source.read(index) for index in range(len(source))]
    for index, forked in enumerate(DataLoader(Reads(source), batch_size=None, num_workers=2)):
        assert torch.equal(source.read(index), expected[index])
        assert torch.equal(forked, expected[index])
    copy = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    assert all(torch.equal(copy.read(index), expected[index]) for index in order)


def test_no_shards_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.tar files"):
        open_source(f"shards:{tmp_path}")
    tar(tmp_path / "a.tar", ("1.png", picture("1")))
    with pytest.raises(ValueError, match=r"no images .*tar files: shards:DIR"):
        open_source(str(tmp_path))
    shutil.copy(tmp_path / "a.tar", tmp_path / "b.zip")
    with pytest.raises(ValueError, match="not a readable zip"):
        open_source(str(tmp_path / "b.zip"))
