"""Files and names made to run code or to reach outside of their folder: each would leave a mark, none does."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributed.checkpoint.api import CheckpointException  # a BaseException

from unimim import load, weights
from unimim.cli import main
from unimim.engine.checkpoint import Checkpoints
from unimim.engine.data.decode import BadImage
from unimim.engine.data.sources import open_source
from unimim.recipe import RecipeError
from unimim.registry import plugins
from unimim.types import Geometry

from .test_plugins_bad import GOOD, LIST_AND_PLUGINS, install, python

GEOMETRY = Geometry((16, 16), (2, 2), 16)


class Evil:
    """Unpickled, it writes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.mark), "w")


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def torch_files(folder: Path, mark: Path) -> None:
    """A malicious .pt in every place that takes weights, as a file of torch.save and as a plain pickle."""
    zipped, plain = folder / "zipped.pt", folder / "plain.pt"
    torch.save({"model": {"w": torch.zeros(2)}, "args": Evil(mark)}, zipped)
    plain.write_bytes(pickle.dumps({"model": Evil(mark)}))
    for file in (zipped, plain):
        for kind in plugins()["importers"]:
            assert main(["convert", str(file), "--as", kind, "--out", str(folder / "out")]) == 2
        teachers: list[dict[str, Any]] = [
            {"name": "dvae", "weights": str(file)},
            {"name": "timm", "model": "vit_tiny_patch16_224", "checkpoint": str(file)},
            {"name": "open_clip", "model": "ViT-B-32", "pretrained": str(file)},
        ]
        for library, config, names in (
            ("timm", {"architecture": "vit_tiny_patch16_224"}, ("pytorch_model.bin",)),
            ("open_clip", {}, ("open_clip_pytorch_model.bin", "open_clip_model.pth")),
        ):
            for name in names:
                local = folder / f"{library}-{file.stem}-{Path(name).suffix[1:]}"
                local.mkdir()
                shutil.copy(file, local / name)
                (local / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {}}))
                tower = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
                text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
                described = {"model_cfg": {"embed_dim": 8, "vision_cfg": tower, "text_cfg": text}, "preprocess_cfg": {}}
                (local / "open_clip_config.json").write_text(json.dumps(described))
                teachers.append({"name": library, "model": f"local-dir:{local}"})
        for teacher in teachers:
            config = plugins()["teachers"][teacher["name"]].Config(**teacher)
            with pytest.raises(ValueError, match=r"teacher (timm|open_clip): cannot|cannot read weights from"):
                config.build(GEOMETRY)
        saved = folder / f"weights-{file.stem}"
        saved.mkdir()
        (saved / "recipe.yaml").write_text(load("mae-micro").yaml())
        shutil.copy(file, saved / "objective.safetensors")
        with pytest.raises(ValueError, match="is damaged"):
            weights.load_student(saved)


def checkpoint_metadata(folder: Path, mark: Path) -> None:
    """`.metadata` of torch.distributed.checkpoint is a pickle; nothing of a checkpoint folder may be unpickled."""
    checkpoint(folder, {".metadata": pickle.dumps(Evil(mark)), "state/.metadata": pickle.dumps(Evil(mark))})


def checkpoint_bytes(folder: Path, mark: Path) -> None:
    """Files that stand where tensors would, under a manifest that vouches for them."""
    saved = io.BytesIO()
    torch.save({"objective": {"w": torch.zeros(2)}, "x": Evil(mark)}, saved)
    names = ("state.pt", "state/__0_0.distcp", "state/model.safetensors", "student.safetensors")
    for number, content in enumerate((saved.getvalue(), pickle.dumps(Evil(mark)))):
        checkpoint(folder / str(number), dict.fromkeys(names, content))


def checkpoint(folder: Path, files: dict[str, bytes]) -> None:
    """A run folder with one checkpoint of these files, opened in every way there is."""
    step = folder / "run" / "checkpoints" / "step-00000001"
    (step / "state").mkdir(parents=True)
    for name, content in files.items():
        (step / name).write_bytes(content)
    listed = {name: {"sha256": sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    (step / "manifest.json").write_text(json.dumps({"step": 1, "meta": {}, "files": listed}))
    (step.parent / "LATEST").write_text(step.name)
    (folder / "run" / "config.yaml").write_text(load("mae-micro").yaml())
    checkpoints = Checkpoints(step.parent)
    with suppress(Exception, CheckpointException):  # how it is refused is for the tests of checkpoints
        found = getattr(checkpoints, "newest", lambda: torch.device("cpu"))()
        checkpoints.load(found, *([{"student.norm.weight": torch.zeros(128)}] if hasattr(found, "path") else []))
    with suppress(Exception, CheckpointException):
        main(["export", str(folder / "run"), "--out", str(folder / "exported")])
    assert not (folder / "exported").exists()


def tar(folder: Path, mark: Path) -> None:
    """Members that climb out of the folder, stand at an absolute path, or are links."""
    path = folder / "images.tar"
    with tarfile.open(path, "w") as archive:
        for name in (f"../{mark.name}", str(mark), "train/a/0.png", "train/b/1.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture())
            archive.addfile(member, io.BytesIO(picture()))
        for name, target in (("train/a/link.png", "/etc/passwd"), ("train/a/up", "../../..")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    read_all(path)


def archive(folder: Path, mark: Path) -> None:
    """The same in a zip."""
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (f"../{mark.name}", str(mark), "train/a/0.png", "train/b/1.png", "train/c/../../../x.png"):
            archive.writestr(name, picture())
    read_all(path)


def read_all(path: Path) -> None:
    before = {*path.parent.parent.rglob("*")}
    index = path.with_name(f"{path.name}.index.npz")  # what a tar is opened by, beside it
    # Refusing the file, or an image of it, is right; what counts is what is written.
    with suppress(ValueError):
        source = open_source(str(path), "train")
        for place in range(len(source)):
            with suppress(BadImage):
                source.read(place)
    assert {*path.parent.parent.rglob("*")} - {index} == before


def yaml_tags(folder: Path, mark: Path) -> None:
    """Tags that call a function, in a file and on the command line."""
    for tag in ("!!python/object/apply:builtins.open", "!!python/object/new:builtins.open", "!!python/name:os.system"):
        value = f"{tag} [{mark}, w]" if "name" not in tag else tag
        (folder / "recipe.yaml").write_text(f"name: {value}\n")
        with pytest.raises(RecipeError, match="could not determine a constructor"):
            load(folder / "recipe.yaml")
        with pytest.raises(RecipeError, match="could not determine a constructor"):
            load("mae-micro", [f"name={value}"])


def run_name(folder: Path, mark: Path) -> None:
    """A recipe's name becomes a folder of a comparison."""
    images = folder / "images"
    for label in "ab":
        (images / label).mkdir(parents=True)
        for number in range(20):
            (images / label / f"{number}.png").write_bytes(picture())
    for name in ("../../x", f"{mark}", "..", "a/b", "a\\\\b", "", "a\\0b", "\\e[2J", "\\u202e", ".hidden", "x" * 200):
        path = folder / "mine.yaml"
        path.write_text(load("mae-micro").yaml().replace("name: mae-micro", f'name: "{name}"', 1))
        words = ["compare", str(path), "--data", str(images), "--out", str(folder / "inner" / "out"), "--workers", "0"]
        assert main(words) == 2
        assert main(["compare", "mae-micro", *words[2:], 'mae-micro:name="' + name + '"']) == 2
    assert not (folder / "inner").exists()


def symlinks(folder: Path, mark: Path) -> None:
    """Links to a secret, to themselves, and back to a folder around them."""
    secret, images = folder / "secret.txt", folder / "images"
    secret.write_text("the secret")
    images.mkdir()
    (images / "ok.png").write_bytes(picture())
    for number in range(30):
        (images / f"{number}.png").write_bytes(picture())
    (images / "secret.png").symlink_to(secret)
    (images / "self.png").symlink_to(images / "self.png")
    refused = []
    for source in (open_source(str(images), "train"), open_source(str(images), "val")):
        for index in range(len(source)):
            try:
                source.read(index)
            except BadImage as error:
                refused.append(str(error))
    assert len(refused) == 2
    assert "the secret" not in "".join(refused)
    for target in (images, folder, Path("/")):
        for name in ("one", "two"):
            (images / name).symlink_to(target)
        with pytest.raises(ValueError, match="a link to a folder around itself: remove it"):
            open_source(str(images), "train")
        for name in ("one", "two"):
            (images / name).unlink()
    (images / "a").mkdir()
    (images / "b").mkdir()
    (images / "a" / "to").symlink_to(images / "b")
    (images / "b" / "to").symlink_to(images / "a")
    with pytest.raises(ValueError, match="a link to a folder around itself: remove it"):
        open_source(str(images), "train")


def entry_points(folder: Path, mark: Path) -> None:
    """Names and values of entry points that climb, draw or are no module."""
    site = folder / "site"
    install(site, "zz-good", "good", GOOD)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    info = site / "bad-1.0.dist-info"
    info.mkdir()
    name = "[red]\x1b]0;t\x07\x1b[2J../../x"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: \x1b[2J[/b]\n")
    points = [
        "../../evil = ../../evil",
        f"{name} = ..evil",
        "[b] = /evil.py",
        f"<b> = {folder}/evil",
        "x = os:system()",
    ]
    (info / "entry_points.txt").write_text("[unimim]\n" + "\n".join(points) + "\n")
    ran = python(site, LIST_AND_PLUGINS)
    assert ran.returncode == 0, ran.stderr
    assert "zz-good 1.0" in ran.stdout
    assert "[red]" in ran.stdout
    assert not {"\x1b", "\x07"} & {*ran.stdout, *ran.stderr}
    ran = python(site, LIST_AND_PLUGINS, UNIMIM_PLUGINS="none")
    assert "[red]" not in ran.stdout


PAYLOADS: list[Callable[[Path, Path], None]] = [
    torch_files,
    checkpoint_metadata,
    checkpoint_bytes,
    tar,
    archive,
    yaml_tags,
    run_name,
    symlinks,
    entry_points,
]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:torch.distributed is disabled")
@pytest.mark.slow
def test_no_payload_runs_or_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, here = tmp_path, tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    control = place / "control"
    pickle.loads(pickle.dumps(Evil(control))).close()  # the payload is live
    assert control.exists()
    escaped = []
    for payload in PAYLOADS:
        mark = place / f"{payload.__name__}.png"
        folder = place / "in" / payload.__name__
        folder.mkdir(parents=True)
        before = {*place.iterdir(), *here.iterdir()}
        payload(folder, mark)
        if {*place.iterdir(), *here.iterdir()} != before:
            escaped.append(payload.__name__)
    said = capsys.readouterr()
    assert not {"\x1b", "\x07"} & {*said.out, *said.err}
    with capsys.disabled():
        print(f"\npayloads {len(PAYLOADS)}, executed or escaped {len(escaped)}")
    assert len(PAYLOADS) == 9
    assert escaped == []
