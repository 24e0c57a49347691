"""Images with their class ids: from folders, zips and `shapes`; what is wrong names its file."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimim.engine.data import BadImage, Shapes, in_memory
from unimim.engine.data.annotated import open_annotated
from unimim.engine.data.decode import decode_ids

Files = dict[str, bytes]


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def ids(seed: int, size: tuple[int, int] = (6, 8), mode: str = "L") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 12, size).astype(np.uint8)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([255 - n // 3 for n in range(768)])
    return image


def dataset() -> Files:
    files = {}
    for split, count in (("training", 3), ("validation", 2)):
        for number in range(count):
            picture = Image.new("RGB", (8, 6), (number, 2, 3))
            files[f"ade/images/{split}/{number}.png"] = png(picture)
            files[f"ade/annotations/{split}/{number}.png"] = png(ids(number, mode="P" if number else "L"))
    files["ade/objectInfo150.txt"] = b"text"
    return files


def folder(root: Path, files: Files) -> str:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return str(root)


def zipped(root: Path, files: Files) -> str:
    with zipfile.ZipFile(root / "ade.zip", "w") as file:
        for path, data in files.items():
            file.writestr(path, data)
    return str(root / "ade.zip")


@pytest.mark.parametrize("place", [folder, zipped])
def test_a_tree_gives_pixels_and_ids_of_both_splits(place: object, tmp_path: Path) -> None:
    spec = place(tmp_path, dataset())  # type: ignore[operator]
    train, val = open_annotated(spec, "train"), open_annotated(spec, "val")
    assert (len(train), len(val)) == (3, 2)
    for source in (train, pickle.loads(pickle.dumps(train)), in_memory(train)):
        found = source.read(1)
        assert found.dtype == torch.uint8
        assert found[:3].flatten(1)[:, 0].tolist() == [1, 2, 3]
        assert np.array_equal(found[3], np.asarray(ids(1))), "the ids, not the colours of the palette"
    assert train.name(1).endswith("ade/images/training/1.png")
    assert train.fingerprint() != val.fingerprint()


def test_a_folder_and_its_zip_are_the_same_data_and_other_annotations_are_not(tmp_path: Path) -> None:
    first = open_annotated(folder(tmp_path / "a", dataset()))
    assert first.fingerprint() == open_annotated(zipped(tmp_path, dataset())).fingerprint()
    longer = dataset() | {"ade/annotations/training/0.png": dataset()["ade/annotations/training/0.png"] + b"\0"}
    assert first.fingerprint() != open_annotated(folder(tmp_path / "b", longer)).fingerprint()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(ids(0, (6, 7))), "7 x 6 class ids for an image of 8 x 6"),
        (png(ids(0))[:60], "damaged"),
        (b"", "empty"),
        (png(Image.new("RGB", (8, 6))), "not one class id"),
        (png(Image.new("L", (8, 6)), "JPEG"), "not an image that can be read"),
        (png(Image.fromarray(np.full((6, 8), 300, np.uint16))), "the class id 300"),
    ],
)
def test_a_bad_annotation_is_a_bad_image_that_names_it(data: bytes, reason: str, tmp_path: Path) -> None:
    spec = folder(tmp_path, dataset() | {"ade/annotations/training/2.png": data})
    with pytest.raises(BadImage, match=reason) as caught:
        open_annotated(spec).read(2)
    assert caught.value.name.endswith("annotations/training/2.png")


def test_missing_annotations_and_other_layouts_are_refused(tmp_path: Path) -> None:
    files = dataset()
    del files["ade/annotations/validation/1.png"]
    spec = folder(tmp_path, files)
    assert len(open_annotated(spec, "train")) == 3
    with pytest.raises(ValueError, match=r"1 images have no class ids, the first ade/annotations/validation/1\.png"):
        open_annotated(spec, "val")
    with pytest.raises(ValueError, match="no images with class ids"):
        open_annotated(folder(tmp_path / "flat", {"a/1.png": png(ids(0)), "b/1.png": png(ids(0))}))


def test_sixteen_bits_hold_ids_too() -> None:
    image = Image.fromarray(np.asarray(ids(3)).astype(np.uint16))
    assert np.array_equal(decode_ids(png(image), "a.png"), np.asarray(ids(3)))


def test_shapes_are_figures_on_the_ground() -> None:
    source = open_annotated("shapes:size=32,train=20", "train")
    found = source.read(13)
    assert torch.equal(found[:3], Shapes("train", 20, 32).read(13))
    assert found[3].unique().tolist() == [0, 4]
    assert source.classes[4] == "star" == Shapes.classes[13 % 10]
    assert source.fingerprint() != Shapes("train", 20, 32).fingerprint()
