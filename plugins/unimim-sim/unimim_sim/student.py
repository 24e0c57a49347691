"""SIM's student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from unimim import Encoded, Geometry, Mask, Student, Tap, View, plugins
from unimim.layers import check_patches, check_pixels


class SIM(Student):
    """S(I_masked) = ViT(visible patches): the core's `vit` without a final norm, its patch embedding never trained.

    The embedding keeps its start values (xavier-uniform, the trick of MoCo v3), so it gets neither gradient nor weight decay
    and a momentum copy of it never moves. Positions are sin-cos, row first; hidden patches are left out. Follows
    OpenGVLab/Siamese-Image-Modeling @ bbdec30, models_sim.py.
    """

    class Config(Student.Config):
        """mean, std: pixel statistics of [0, 1] RGB; the rest are the ViT's sizes."""

        name: Literal["sim"] = "sim"
        image_size: int | tuple[int, int] = 224
        patch_size: int | tuple[int, int] = 16
        channels: int = Field(3, gt=0, le=1024)
        dim: int = Field(768, gt=0, le=2**16, multiple_of=4)
        depth: int = Field(12, gt=0, le=1024)
        num_heads: int = Field(12, gt=0, le=2**16)
        mlp_ratio: float = Field(4.0, gt=0, le=64)
        eps: float = Field(1e-6, gt=0)
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)

        @model_validator(mode="after")
        def _divides(self) -> SIM.Config:
            check_patches(self.image_size, self.patch_size)
            check_pixels(self.channels, self.mean, self.std)
            if self.dim % self.num_heads:
                raise ValueError(f"dim {self.dim} does not divide into num_heads {self.num_heads}")
            return self

        @property
        def vit(self) -> Any:
            """The Config of the ViT inside."""
            fixed = {"masking": "drop", "positions": "sincos_row", "init": "xavier", "final_norm": False}
            return plugins()["students"]["vit"].Config(**self.model_dump(exclude={"name"}), **fixed)

        @property
        def geometry(self) -> Geometry:
            geometry: Geometry = self.vit.geometry
            return geometry

        @property
        def dense(self) -> bool:
            return False

        @property
        def num_blocks(self) -> int:
            return self.depth

        @property
        def num_prefix(self) -> int:
            return 1

        @property
        def label(self) -> str:
            return "ViT"

    def __init__(self, config: SIM.Config) -> None:
        super().__init__()
        self.config, self.geometry, self.dim = config, config.geometry, config.dim
        self.vit = config.vit.build()
        self.vit.patch_embed.requires_grad_(False)

    def forward(self, view: View, mask: Mask | None = None, taps: Sequence[Tap] = ()) -> Encoded:
        """view.image (B, C, H, W) of the configured size -> Encoded, of visible patches under a mask."""
        encoded: Encoded = self.vit(view, mask, taps)
        return encoded

    def layer_of(self, parameter: str) -> int:
        layer: int = self.vit.layer_of(parameter.removeprefix("vit."))
        return layer
