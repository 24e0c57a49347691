"""What this distribution adds to unimim. Names point at "module:attribute", so listing them does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unimim import Release, hookimpl

from .recipes import RECIPES


@hookimpl
def unimim_teachers() -> Mapping[str, str]:
    return {"vqgan": "unimim_peco.vqgan:VQGAN"}


@hookimpl
def unimim_recipes() -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    return RECIPES


@hookimpl
def unimim_releases() -> Mapping[str, Release]:
    return {
        "vqgan-f16": Release(
            about="VQGAN of taming-transformers, ImageNet, 1024 codes: not PeCo's, which was not published",
            license="MIT",
            source="https://heibox.uni-heidelberg.de/f/140747ba53464f49b476/?dl=1",
            file="vqgan_imagenet_f16_1024.ckpt",
            use="teacher=vqgan teacher.checkpoint={file} teacher.num_codes=1024",
            pixels="224 bicubic, 2 x - 1",
        )
    }
