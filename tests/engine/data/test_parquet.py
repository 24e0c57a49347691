"""Rows of Parquet files and of Hugging Face data sets as images; needs the packages of unimim[hf]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from unimim.engine.data import BadImage, open_source
from unimim.engine.data.shards import write_shards
from unimim.engine.data.sources import open_store

from .test_sources import Reads, picture

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def written(folder: Path, struct: bool = True) -> Path:
    """Seven rows for training in two files and groups of two, and three for validation."""
    folder.mkdir()
    number = 0
    for name, count in (("train-0-of-2", 4), ("train-1-of-2", 3), ("validation-0-of-1", 3)):
        images: list[Any] = [picture(f"{number + row}") for row in range(count)]
        if struct:
            images = [{"bytes": image, "path": f"{row}.PNG"} for row, image in enumerate(images)]
        table = pyarrow.table({"image": images, "label": [(number + row) % 3 for row in range(count)]})
        parquet.write_table(table, folder / f"{name}.parquet", row_group_size=2)
        number += count
    return folder


def red(image: torch.Tensor) -> int:
    return int(image[0, 0, 0])


@pytest.mark.parametrize("struct", [True, False])
def test_rows_are_images_in_any_order(tmp_path: Path, struct: bool) -> None:
    root = written(tmp_path / "set", struct)
    train, val = open_source(f"parquet:{root}"), open_source(f"parquet:{root}", "val")
    assert (len(train), len(val), train.classes) == (7, 3, ("0", "1", "2"))
    for index in (5, 0, 6, 3, 1):
        assert (red(train.read(index)), train.label(index)) == (sum(str(index).encode()), index % 3)
    assert red(val.read(2)) == sum(b"9")
    assert train.name(4) == f"{root}/train/train-1-of-2-00000000{'.png' if struct else '.jpg'}"
    for index, forked in enumerate(DataLoader(Reads(train), batch_size=None, num_workers=1)):
        assert torch.equal(forked, train.read(index))


def test_bad_rows_and_files_are_named(tmp_path: Path) -> None:
    table = pyarrow.table({"image": [picture("a"), b"no image", None]})
    for split in ("train", "val"):
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    source = open_source(f"parquet:{tmp_path}")
    assert source.classes == ()
    with pytest.raises(BadImage, match=r"train-00000001\.jpg: not an image"):
        source.read(1)
    with pytest.raises(BadImage, match=r"train-00000002\.jpg: cannot be read .*no bytes"):
        source.read(2)
    parquet.write_table(pyarrow.table({"picture": [1]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"no column image or .*, only picture"):
        open_source(f"parquet:{tmp_path}")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"train\.parquet: not a whole Parquet file"):
        open_source(f"parquet:{tmp_path}")
    with pytest.raises(ValueError, match=r"no \.parquet file"):
        open_source(f"parquet:{tmp_path / 'nowhere'}")


def test_shards_of_parquet_hold_the_same_images(tmp_path: Path) -> None:
    root = written(tmp_path / "set")
    write_shards(open_store(f"parquet:{root}"), tmp_path / "out", 4)
    rows, packed = open_source(f"parquet:{root}"), open_source(str(tmp_path / "out"))
    assert packed.classes == rows.classes
    for index in range(len(rows)):
        assert torch.equal(packed.read(index), rows.read(index))
        assert packed.label(index) == rows.label(index)


def test_a_hugging_face_data_set_is_read_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    pytest.importorskip("datasets")
    root = written(tmp_path / "set")
    source, val = open_source(f"hf:{root}"), open_source(f"hf:{root}", "val")
    assert (len(source), len(val), source.classes) == (7, 3, ("0", "1", "2"))
    for index in (5, 0, 6):
        assert (red(source.read(index)), source.label(index)) == (sum(str(index).encode()), index % 3)
    with pytest.raises(ValueError, match=r"hf:no-such/data-set cannot be opened .*parquet:DIR"):
        open_source("hf:no-such/data-set")
