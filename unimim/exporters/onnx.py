"""Students as ONNX graphs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Trained, compare, graph, noise

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(trained: Trained, folder: Path) -> float:
    """image (B, C, H, W) in [0, 1] -> patches (B, N, D), prefix (B, P, D), see `base.Features`, as model.onnx.

    Of the student's image size and any batch; torch's own choice of opset. Weights beyond ONNX's 2 GB stand in a file beside.
    Returns the largest difference in onnxruntime on the CPU. ValueError if it is not small, if the student cannot be
    traced, or if a package of the extra "onnx" is missing.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"export to onnx needs {', '.join(missing)}: pip install 'unimim[onnx]'")
    import onnxruntime

    path, example = folder / "model.onnx", noise(trained.student, 2)
    program = graph(trained.student)
    outputs = ["patches", "prefix"][: len(program.graph_signature.user_outputs)]
    made: Any = torch.onnx.export(
        program, (example,), dynamo=True, input_names=["image"], output_names=outputs, verbose=False
    )
    made.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def patches(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["patches"], {"image": image.numpy()})[0])

    return compare(trained.student, patches, "the ONNX graph")
