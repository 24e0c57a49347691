"""Students as graphs: torch.export and ONNX, loaded again without unimim."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import pytest
import torch
from torch import Tensor, nn

from unimim import View
from unimim.axes import Student
from unimim.exporters import onnx as exporter
from unimim.exporters.base import Trained, compare
from unimim.exporters.onnx import export_onnx
from unimim.exporters.torch import export_torch
from unimim.types import Encoded, Geometry, Mask, Tap

ALONE = """
import sys
sys.modules["unimim"] = sys.modules["timm"] = None
import torch
model = torch.export.load(sys.argv[1]).module()
torch.save(model(torch.load(sys.argv[2])), sys.argv[2])
"""


def test_the_program_is_the_student(trained: Any, tmp_path: Path) -> None:
    """Without unimim; and it does not name a file of the machine that wrote it."""
    made = trained(depth=1, num_registers=2, drop_path=0.5)
    assert export_torch(made, tmp_path) < 1e-5
    image = torch.rand(4, 3, 32, 32)
    torch.save(image, tmp_path / "seen.pt")
    command = [sys.executable, "-W", "error", "-c", ALONE, str(tmp_path / "model.pt2"), str(tmp_path / "seen.pt")]
    subprocess.run(command, check=True, cwd=tmp_path)
    theirs = torch.load(tmp_path / "seen.pt")
    with torch.no_grad():
        ours = made.student.eval()(View(image))
    torch.testing.assert_close(theirs, {"patches": ours.tokens, "prefix": ours.prefix})
    assert ours.prefix.shape[1] == 3
    with ZipFile(tmp_path / "model.pt2") as archive:
        here = str(Path(__file__).parents[2]).encode()
        assert not [name for name in archive.namelist() if here in archive.read(name)]


def test_the_program_of_shifted_windows(trained: Any, tmp_path: Path) -> None:
    made = trained("swin", depths=[2], num_heads=[2])
    assert export_torch(made, tmp_path) < 1e-5
    image = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        ours = made.student.eval()(View(image)).tokens
    theirs = torch.export.load(tmp_path / "model.pt2").module()(image)
    torch.testing.assert_close(theirs, {"patches": ours})


class Whimsical(Student):
    """Its last step depends on the pixels, which no graph holds."""

    class Config(Student.Config):
        name: Literal["whimsical"] = "whimsical"

        @property
        def geometry(self) -> Geometry:
            return Geometry((8, 8), (2, 2), 48)

    def __init__(self, config: Whimsical.Config) -> None:
        super().__init__()
        self.config, self.geometry = config, config.geometry
        self.proj = nn.Linear(48, 48)

    def forward(self, view: View, mask: Mask | None = None, taps: Sequence[Tap] = ()) -> Encoded:
        tokens: Tensor = self.proj(view.image.reshape(-1, 4, 48))
        return Encoded(-tokens if tokens.mean() > 0 else tokens, tokens[:, :0], self.geometry.grid)


def test_a_student_that_cannot_be_traced_is_refused(trained: Any, tmp_path: Path) -> None:
    made = Trained(Path("weights"), trained().recipe, Whimsical.Config().build())
    with pytest.raises(ValueError, match=r"cannot trace student 'whimsical' \(.*by the values of tensors"):
        export_torch(made, tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x: x + 2e-4 * x.abs().max(), "differs from the student by"),
        (lambda x: x * float("nan"), "differs from the student by nan"),
        (lambda x: x.flip(1), "differs from the student by"),
        (lambda x: x[:, 1:], r"has features \(1, 15, 32\), the student \(1, 16, 32\)"),
    ],
)
def test_what_is_no_student_is_refused(trained: Any, wrong: Any, said: str) -> None:
    student = trained().student
    assert compare(student, lambda image: student(View(image)).tokens, "it") == 0
    with pytest.raises(ValueError, match=said):
        compare(student, lambda image: wrong(student(View(image)).tokens), "it")


def test_the_onnx_graph_is_the_student(trained: Any, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = trained(depth=1)
    assert export_onnx(made, tmp_path) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    image = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        ours = made.student.eval()(View(image))
    patches, prefix = map(torch.from_numpy, session.run(["patches", "prefix"], {"image": image.numpy()}))
    torch.testing.assert_close((patches, prefix), (ours.tokens, ours.prefix))
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "model.onnx").read_bytes()


def test_onnx_tells_what_to_install(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(ValueError, match=r"needs no_such_package: pip install 'unimim\[onnx\]'"):
        export_onnx(trained(), tmp_path)
