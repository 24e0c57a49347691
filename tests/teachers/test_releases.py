"""Released teachers: what the table says of each is what the teacher does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch

from unimim import Geometry, load, plugins
from unimim.teachers import open_clip as clip
from unimim.teachers.dvae import DVae
from unimim.teachers.releases import RELEASES
from unimim.teachers.timm import Timm

GEOMETRY = Geometry((224, 224), (14, 14), 16)
STATISTICS = {"ImageNet": (0.485, 0.456, 0.406), "0.5": (0.5,) * 3, "CLIP": (0.48145466, 0.4578275, 0.40821073)}
LABELS = {"clip": "CLIP", "slip": "SLIP", "simclr": "SimCLR", "dino": "DINO", "mae": "MAE", "beit": "BEiT"} | {
    "beitv2": "BEiT v2", "deit": "DeiT", "mocov3": "MoCov3", "resnet50": "ResNet", "dvae": "dVAE"
}  # fmt: skip


def test_files_tell_releases_apart() -> None:
    assert len({release.file for release in RELEASES.values()}) == len(RELEASES)
    assert {*plugins()["releases"]} == {*RELEASES}


@pytest.mark.parametrize("name", RELEASES)
def test_a_recipe_takes_it_and_the_teacher_sees_what_is_said(name: str) -> None:
    release = RELEASES[name]
    words = release.words(Path("weights") / release.file)
    config: Any = load("beit" if name == "dvae" else "maskdistill", words).terms["mim"].teacher
    assert config.label == LABELS[name.partition("-")[0]]
    assert config.reloads
    side, kind = release.pixels.replace(",", "").split()[:2]
    if isinstance(config, clip.OpenClip.Config):
        assert (
            clip._plan(config.model, config.model_copy(update={"pretrained": "openai"}), GEOMETRY) == (int(side),) * 2
        )
        trained = open_clip.get_pretrained_cfg(config.model, "openai")
        assert (trained["interpolation"], trained["mean"]) == (kind, STATISTICS["CLIP"])
        assert release.source.startswith(f"hub:{trained['hf_hub']}")
        return
    change = (
        {"checkpoint": None, "prefix": "", "pretrained": False}
        if isinstance(config, Timm.Config)
        else {"weights": None}
    )
    with torch.device("meta"):
        teacher = type(config).component(config.model_copy(update=change), GEOMETRY)
    assert teacher.rendition.size == (int(side),) * 2
    assert teacher.rendition.interpolation == kind.lower()
    if not isinstance(teacher, DVae):
        said = STATISTICS[release.pixels.rpartition(", ")[2]]
        assert tuple(config.mean or teacher.model.pretrained_cfg["mean"]) == said
        trained = timm.get_pretrained_cfg(config.model)
        on_hub = release.source == f"hub:{trained.hf_hub_id}/model.safetensors"
        assert on_hub or config.prefix or release.source == trained.url
