"""Trained students for other libraries: one function a format, which loads what it wrote and compares.

    export_FORMAT(trained, folder) -> largest difference of the patch features of the student and of the loaded model

It raises ValueError where the format cannot hold the student, or holds another function than the student's.
"""

from __future__ import annotations

from typing import NamedTuple

from ..registry import did_you_mean


class Format(NamedTuple):
    """What --to names: where its function is ("module:attribute"), and how what it wrote at {folder} is loaded."""

    function: str
    load: str


TIMM = 'timm.create_model("local-dir:{folder}", pretrained=True)'
FORMATS = {
    "timm": Format("unimim.exporters.timm:export_timm", TIMM),
    "hf": Format("unimim.exporters.hf:export_hf", TIMM + ' here, "hf-hub:OWNER/NAME" once it is uploaded'),
    "onnx": Format("unimim.exporters.onnx:export_onnx", 'onnxruntime.InferenceSession("{folder}/model.onnx")'),
    "torch": Format("unimim.exporters.torch:export_torch", 'torch.export.load("{folder}/model.pt2").module()'),
}


def format_of(name: str) -> Format:
    """The format of that name. ValueError if there is none."""
    if name not in FORMATS:
        raise ValueError(f"cannot export to {name!r}{did_you_mean(name, FORMATS)}; formats: {', '.join(FORMATS)}")
    return FORMATS[name]
