"""The components that ship with the core, registered like any plugin's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .hooks import hookimpl
from .recipes import Data, maskdistill, table1
from .releases import Release
from .teachers.releases import RELEASES


@hookimpl
def unimim_teachers() -> Mapping[str, str]:
    return {
        "pixel": "unimim.teachers.pixel:Pixel",
        "self": "unimim.teachers.self:SelfTeacher",
        "open_clip": "unimim.teachers.open_clip:OpenClip",
        "timm": "unimim.teachers.timm:Timm",
        "dvae": "unimim.teachers.dvae:DVae",
        "kmeans": "unimim.teachers.kmeans:KMeans",
    }


@hookimpl
def unimim_norms() -> Mapping[str, str]:
    return {
        "identity": "unimim.norms:Identity",
        "layer": "unimim.norms:Layer",
        "instance": "unimim.norms:Instance",
        "batch": "unimim.norms:Batch",
        "l2": "unimim.norms:L2",
        "chain": "unimim.norms:Chain",
    }


@hookimpl
def unimim_students() -> Mapping[str, str]:
    return {"vit": "unimim.students.vit:ViT", "swin": "unimim.students.swin:Swin"}


@hookimpl
def unimim_heads() -> Mapping[str, str]:
    return {"fc": "unimim.heads.fc:FC", "decoder": "unimim.heads.decoder:Decoder"}


@hookimpl
def unimim_losses() -> Mapping[str, str]:
    return {
        "l1": "unimim.losses:L1",
        "l2": "unimim.losses:L2",
        "smooth_l1": "unimim.losses:SmoothL1",
        "cosine": "unimim.losses:Cosine",
        "cross_entropy": "unimim.losses:CrossEntropy",
        "info_nce": "unimim.losses:InfoNCE",
        "variance": "unimim.losses:Variance",
        "sum": "unimim.losses:Sum",
    }


@hookimpl
def unimim_masks() -> Mapping[str, str]:
    return {
        "none": "unimim.masks:NoMask",
        "random": "unimim.masks:Random",
        "block": "unimim.masks:Block",
        "split": "unimim.masks:Split",
    }


@hookimpl
def unimim_views() -> Mapping[str, str]:
    return {
        "crop": "unimim.views:Crop",
        "center": "unimim.views:Center",
        "pair": "unimim.views:Pair",
        "multi_crop": "unimim.views:MultiCrop",
    }


@hookimpl
def unimim_recipes() -> Mapping[str, Callable[[], Data]]:
    return {**table1.RECIPES, **maskdistill.RECIPES}


@hookimpl
def unimim_importers() -> Mapping[str, str]:
    return {
        "mae": "unimim.importers.mae:MAE",
        "beit": "unimim.importers.beit:BEiT",
        "data2vec": "unimim.importers.data2vec:Data2vec",
        "simmim": "unimim.importers.simmim:SimMIM",
        "simmim-vit": "unimim.importers.simmim:SimMIMViT",
    }


@hookimpl
def unimim_loggers() -> Mapping[str, str]:
    return {"tensorboard": "unimim.loggers:TensorBoard"}


@hookimpl
def unimim_releases() -> Mapping[str, Release]:
    return RELEASES
