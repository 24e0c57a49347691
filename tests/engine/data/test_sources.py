"""What a spec opens: names, labels, splits and pixels, the same from a folder and a zip, in any process."""

from __future__ import annotations

import io
import pickle
import re
import shutil
import struct
import sys
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from unimim.engine.data import BadImage, ImageSource, files, in_memory, memory, open_source

Split = Literal["train", "val"]


def picture(path: str, side: int = 4) -> bytes:
    """A PNG whose colour depends on its path."""
    file = io.BytesIO()
    seed = sum(path.encode())
    Image.new("RGB", (side, side), (seed % 256, seed * 7 % 256, 0)).save(file, "PNG")
    return file.getvalue()


def tree(root: Path, *paths: str) -> str:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(path))
    return str(root)


def zipped(root: str, inside: str = "") -> str:
    target = Path(f"{root}.zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(Path(root).rglob("*")):
            file.write(path, inside + path.relative_to(root).as_posix())
    return str(target)


def numbered(folder: str, count: int) -> list[str]:
    return [f"{folder}{index:04d}.png" for index in range(count)]


def names(source: ImageSource, root: str) -> list[str]:
    return [source.name(index).removeprefix(f"{root}/") for index in range(len(source))]


def labels(source: ImageSource) -> list[str]:
    return [source.classes[source.label(index)] for index in range(len(source))]


def test_class_folders_become_labels(tmp_path: Path) -> None:
    root = tree(
        tmp_path, "train/cat/1.png", "train/cat/deep/2.PNG", "train/ant/b.jpeg", "val/cat/9.png", "val/eel/3.png"
    )
    train, val = open_source(root, "train"), open_source(root, "val")
    assert train.classes == val.classes == ("ant", "cat", "eel")  # one numbering, though each split lacks a class
    assert names(train, root) == ["train/ant/b.jpeg", "train/cat/1.png", "train/cat/deep/2.PNG"]
    assert labels(train) == ["ant", "cat", "cat"]
    assert labels(val) == ["cat", "eel"]
    assert torch.equal(
        train.read(1)[:, 0, 0], torch.tensor(Image.open(f"{root}/train/cat/1.png").getpixel((0, 0))).byte()
    )


@pytest.mark.parametrize(
    ("folders", "train", "val"),
    [
        (("train", "val", "test"), "train", "val"),
        (("train", "test"), "train", "test"),
        (("training", "validation"), "training", "validation"),
        (("train", "valid", "extra"), "train", "valid"),
    ],
)
def test_split_folders(tmp_path: Path, folders: tuple[str, ...], train: str, val: str) -> None:
    root = tree(tmp_path, *(f"{folder}/{name}/1.png" for folder in folders for name in ("a", "b")))
    assert names(open_source(root, "train"), root) == [f"{train}/a/1.png", f"{train}/b/1.png"]
    assert names(open_source(root, "val"), root) == [f"{val}/a/1.png", f"{val}/b/1.png"]


def test_train_among_other_folders_is_a_class(tmp_path: Path) -> None:
    root = tree(tmp_path, *numbered("car/", 30), *numbered("train/", 30))
    assert open_source(root).classes == ("car", "train")


def test_ade20k_trees_give_their_images(tmp_path: Path) -> None:
    paths = [f"{kind}/{split}/1.png" for kind in ("images", "annotations") for split in ("training", "validation")]
    root = tree(tmp_path, *paths)
    assert names(open_source(root, "train"), root) == ["images/training/1.png"]
    assert names(open_source(root, "val"), root) == ["images/validation/1.png"]


@pytest.mark.parametrize("folder", ["", "train/"])
@pytest.mark.parametrize("kinds", [("",), ("a/", "b/")])
def test_without_a_val_folder_a_tenth_is_held_out(tmp_path: Path, folder: str, kinds: tuple[str, ...]) -> None:
    paths = [name for kind in kinds for name in numbered(folder + kind, 400 // len(kinds))]
    root = tree(tmp_path, *paths)
    train, val = (set(names(open_source(root, split), root)) for split in ("train", "val"))
    assert train | val == set(paths)
    assert not train & val
    assert 20 <= len(val) <= 60
    tree(tmp_path, *(f"{folder}{kind}new.png" for kind in kinds))
    assert train <= set(names(open_source(root, "train"), root))
    assert val <= set(names(open_source(root, "val"), root))
    whole = open_source(root, "val", hold_out=False)
    assert len(whole) == len(paths) + len(kinds), "for data that are only tested on"
    assert set(whole.classes) == {kind.strip("/") for kind in kinds if kind}


def test_a_val_folder_stays_val_when_nothing_is_held_out(tmp_path: Path) -> None:
    root = tree(tmp_path, *numbered("train/", 20), *numbered("val/", 3))
    assert len(open_source(root, "val", hold_out=False)) == 3


def test_flat_folders_are_unlabelled(tmp_path: Path) -> None:
    source = open_source(tree(tmp_path, *numbered("", 20)))
    assert source.classes == ()
    assert {source.label(index) for index in range(len(source))} == {-1}


def test_only_visible_images_count(tmp_path: Path) -> None:
    shown = numbered("a/", 20) + numbered("b/", 20)
    root = tree(tmp_path, *shown, ".cache/a/0.png", "a/.hidden.png", "__MACOSX/a/._0.png", "a/notes.txt", "a/noending")
    both = names(open_source(root, "train"), root) + names(open_source(root, "val"), root)
    assert sorted(both) == shown


@pytest.mark.parametrize("inside", ["", "data/", "deep/er/"])
def test_a_zip_equals_its_folder(tmp_path: Path, inside: str) -> None:
    root = tree(
        tmp_path / "set", *(f"{split}/{kind}/é{n}.png" for split in ("train", "val") for kind in "ab" for n in "12")
    )
    folder, packed = open_source(root), open_source(zipped(root, inside))
    assert packed.classes == folder.classes
    assert names(packed, f"{root}.zip") == [inside + name for name in names(folder, root)]
    assert packed.fingerprint() == folder.fingerprint()
    for index in range(len(folder)):
        assert packed.label(index) == folder.label(index)
        assert torch.equal(packed.read(index), folder.read(index))


def test_fingerprints_tell_data_apart(tmp_path: Path) -> None:
    root = tree(tmp_path / "one", *numbered("train/a/", 5), *numbered("val/a/", 5))
    shutil.copytree(root, tmp_path / "two")
    before = open_source(root).fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", before)
    assert open_source(str(tmp_path / "two")).fingerprint() == before
    assert open_source(root, "val").fingerprint() != before
    (tmp_path / "one/train/a/0001.png").write_bytes(picture("0001", side=40))
    assert open_source(root).fingerprint() != before
    (tmp_path / "two/train/a/0001.png").rename(tmp_path / "two/train/a/x.png")
    assert open_source(str(tmp_path / "two")).fingerprint() != before


class Reads(Dataset[torch.Tensor]):
    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.source.read(index)


@pytest.mark.parametrize("held", [False, True])
def test_workers_and_copies_read_the_same(tmp_path: Path, held: bool) -> None:
    source = open_source(zipped(tree(tmp_path / "set", *numbered("train/", 300), *numbered("val/", 2))))
    source = in_memory(source) if held else source
    expected = [source.read(index) for index in range(len(source))]  # opens the zip before the fork
    for index, forked in enumerate(DataLoader(Reads(source), batch_size=None, num_workers=1)):
        assert torch.equal(source.read(index), expected[index])  # while the worker reads the same file
        assert torch.equal(forked, expected[index])
    copy = pickle.loads(pickle.dumps(source))
    assert all(torch.equal(copy.read(index), expected[index]) for index in range(len(copy)))
    assert names(copy, "") == names(source, "")


def test_bad_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "set", *numbered("train/a/", 4), "val/a/1.png")
    (tmp_path / "set/train/a/0000.png").write_bytes(b"not an image")
    source = open_source(root)
    (tmp_path / "set/train/a/0001.png").unlink()
    with pytest.raises(BadImage, match=r"set/train/a/0000\.png: not an image"):
        source.read(0)
    with pytest.raises(BadImage, match=r"set/train/a/0001\.png: cannot be read .*FileNotFoundError"):
        source.read(1)
    monkeypatch.setattr(files, "MAX_FILE", 10)
    with pytest.raises(BadImage, match=r"set/train/a/0002\.png: .* too much for one image"):
        source.read(2)


def test_bad_zip_members_are_named(tmp_path: Path) -> None:
    path = zipped(tree(tmp_path / "set", *numbered("train/", 3), "val/1.png"))
    whole = bytearray(Path(path).read_bytes())
    whole[whole.index(b"train/0001.png") + 20] ^= 0xFF  # inside the member's data
    Path(path).write_bytes(whole)
    source = open_source(path)
    with pytest.raises(BadImage, match=r"set\.zip/train/0001\.png: cannot be read"):
        source.read(1)
    assert source.read(2).shape == (3, 4, 4)


def open_both(spec: str) -> None:
    open_source(spec, "train")
    open_source(spec, "val")


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    for spec, reason in [
        ("empty", r"empty: no images in it or its folders, looked for \.bmp .*\.webp: check the path"),
        ("bad.zip", r"bad\.zip: not a readable zip"),
        ("missing", "a folder, a .zip or .tar, .*torchvision:NAME .*, or shapes"),
        (tree(tmp_path / "mixed", "a/1.png", "b/1.png", "2.png"), r"mixed: 2\.png lies beside the class folders"),
        (tree(tmp_path / "no_train", "val/a/1.png", "test/a/1.png"), "has val/ but no train/"),
        (tree(tmp_path / "one", "1.png"), r"too few images to hold out a tenth"),
    ]:
        with pytest.raises(ValueError, match=reason):
            open_both(str(tmp_path / spec))
    with pytest.raises(ValueError, match="'train' or 'val'"):
        open_source("shapes", "test")  # type: ignore[arg-type]


@pytest.mark.parametrize(("spec", "package"), [("parquet:x.parquet", "pyarrow"), ("hf:x", "datasets")])
def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, spec: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"the package {package} .*pip install \"unimim\[hf\]\""):
        open_source(spec)


def test_shapes_takes_options() -> None:
    assert (len(open_source("shapes")), len(open_source("shapes", "val"))) == (20_000, 2_000)
    small = open_source("shapes:size=32,train=10,val=5,seed=3")
    assert (len(small), small.read(0).shape, small.name(0)) == (10, (3, 32, 32), "shapes/train/0")
    assert open_source("shapes:val=5,split=sketch", "val").name(0) == "shapes/sketch/0"
    for wrong in ("shapes:colour=1", "shapes:size=big", "shapes:size", "shapes:split=night", "shapes:size=2"):
        with pytest.raises(ValueError, match="shapes"):
            open_source(wrong)


@pytest.fixture
def torchvision_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIMIM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_torchvision_with_named_splits(torchvision_root: Path) -> None:
    paths = [f"{split}/{code}/1.jpg" for split in ("train", "valid", "test") for code in ("AD", "AE")]
    tree(torchvision_root / "country211", *paths)
    train, val = open_source("torchvision:Country211"), open_source("torchvision:Country211", "val")
    assert train.classes == ("AD", "AE")
    assert [train.label(0), train.label(1)] == [0, 1]
    assert train.read(0)[0, 0, 0] == sum(b"train/AD/1.jpg") % 256
    assert val.read(1)[0, 0, 0] == sum(b"valid/AE/1.jpg") % 256
    assert train.fingerprint() != val.fingerprint()
    copy = pickle.loads(pickle.dumps(val))
    assert (copy.name(1), copy.label(1)) == ("torchvision:Country211/val/1", 1)
    (torchvision_root / "country211/train/AE/1.jpg").write_bytes(b"broken")
    with pytest.raises(BadImage, match="torchvision:Country211/train/1: cannot be read"):
        train.read(1)


def test_torchvision_with_a_train_flag(torchvision_root: Path) -> None:
    raw = torchvision_root / "MNIST/raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 3), ("t10k", 2)):
        digits = np.arange(count, dtype=np.uint8)
        images = np.broadcast_to(digits[:, None, None] * 50, (count, 28, 28))
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + digits.tobytes())
    train, val = open_source("torchvision:MNIST"), open_source("torchvision:MNIST", "val")
    assert (len(train), len(val)) == (3, 2)
    assert train.read(2).unique().tolist() == [100]
    assert train.classes[train.label(2)] == "2 - two"


def test_torchvision_without_splits_holds_out_a_tenth(torchvision_root: Path) -> None:
    tree(torchvision_root / "eurosat/2750", *numbered("Forest/", 50), *numbered("River/", 50))
    train, val = open_source("torchvision:EuroSAT"), open_source("torchvision:EuroSAT", "val")
    assert len(train) + len(val) == 100
    assert 1 <= len(val) <= 20
    assert {name.rpartition("/")[2] for name in names(train, "") + names(val, "")} == {str(n) for n in range(100)}
    assert labels(train).count("Forest") + labels(val).count("Forest") == 50
    assert len(open_source("torchvision:EuroSAT", "val", hold_out=False)) == 100


def test_torchvision_failures_say_what_to_do(torchvision_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(ValueError, match=r"CIFAR10 cannot be opened in .*data \(URLError.*UNIMIM_DATA"):
        open_source("torchvision:CIFAR10")
    with pytest.raises(ValueError, match="did you mean CIFAR10"):
        open_source("torchvision:CIFAR11")
    with pytest.raises(ValueError, match="no data set 'FakeData' that is kept in a folder"):
        open_source("torchvision:FakeData")


def test_in_memory_holds_the_same_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, *numbered("train/a/", 5), *numbered("train/b/", 5), "val/a/1.png")
    (tmp_path / "train/a/0001.png").write_bytes(picture("wide", side=9))
    (tmp_path / "train/a/0002.png").write_bytes(b"broken")
    source = open_source(root)
    held = in_memory(source)
    assert (len(held), held.classes, held.fingerprint()) == (len(source), source.classes, source.fingerprint())
    assert (names(held, ""), labels(held)) == (names(source, ""), labels(source))
    for index in {*range(10)} - {2}:
        assert torch.equal(held.read(index), source.read(index))
    with pytest.raises(BadImage, match=r"train/a/0002\.png: not an image"):
        held.read(2)
    held.read(0).zero_()
    assert torch.equal(held.read(0), source.read(0))  # what a reader does to its copy stays there
    monkeypatch.setattr(memory, "MAX_MEMORY", 3 * 16 * 9)
    with pytest.raises(ValueError, match="kept in memory: read them from disk"):
        in_memory(source)


def test_in_memory_holds_a_source_of_bad_images_alone(tmp_path: Path) -> None:
    tree(tmp_path, "train/1.png", "val/1.png")
    (tmp_path / "train/1.png").write_bytes(b"broken")
    with pytest.raises(BadImage):
        in_memory(open_source(str(tmp_path))).read(0)
