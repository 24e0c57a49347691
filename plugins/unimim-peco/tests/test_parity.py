"""The tokenizer against CompVis/taming-transformers @ 3ba01b2, from stored weights and images.

UNIMIM_GOLDENS names another folder of files of the same form; every size is read from them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from unimim import Geometry, View, plugins
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))
GOLDENS = [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob("vqgan*.npz"))]


def prepared(path: Path, folder: Path) -> tuple[Golden, Any, View]:
    """The stored step, and the teacher that reads its weights from a file, as the official code would have written it."""
    golden = Golden(path)
    torch.save({"epoch": 1, "global_step": 2, "state_dict": golden.under("state/")}, folder / "last.ckpt")
    sizes = golden.config["ddconfig"]
    levels = range(len(sizes["ch_mult"]))
    config = plugins()["teachers"]["vqgan"].Config(
        checkpoint=str(folder / "last.ckpt"),
        dim=sizes["ch"],
        multipliers=tuple(sizes["ch_mult"]),
        num_res_blocks=sizes["num_res_blocks"],
        attention=tuple(level for level in levels if sizes["resolution"] >> level in sizes["attn_resolutions"]),
        latent_dim=sizes["z_channels"],
        num_codes=golden.config["n_embed"],
        code_dim=golden.config["embed_dim"],
    )
    height, width = golden["images"].shape[-2:]
    grid = height // config.stride, width // config.stride
    built = config.build(Geometry((height, width), grid, 16))
    return golden, built, View(torch.zeros(1), {built.rendition: (golden["images"] + 1) / 2})


def as_map(z: Tensor, like: Tensor) -> Tensor:
    return z.transpose(1, 2).reshape(like.shape)


@pytest.mark.parametrize("path", GOLDENS)
def test_encoder_latents_and_ids(path: Path, tmp_path: Path) -> None:
    golden, built, view = prepared(path, tmp_path)
    assert_close(built.encoder(golden["images"]), golden["encoded"], rtol=0, atol=5e-5)
    assert_close(as_map(built.features(view), golden["pre_quant"]), golden["pre_quant"], rtol=0, atol=5e-5)
    ids = built(view).tokens
    assert ids.flatten().equal(golden["token_ids"].flatten())
    assert_close(as_map(built.codes[ids], golden["quantized"]), golden["quantized"], rtol=0, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert built(view).tokens.equal(ids)


@pytest.mark.parametrize("path", GOLDENS)
def test_gradients_of_the_codebook_loss(path: Path, tmp_path: Path) -> None:
    """|sg c - z|^2 + 1/4 |c - sg z|^2, whose weight is on the other term than in the paper: the official form."""
    golden, built, view = prepared(path, tmp_path)
    z, codes = built.features(view), built.codes.clone().requires_grad_()
    chosen = codes[built(view).tokens]
    loss = F.mse_loss(z, chosen.detach()) + 0.25 * F.mse_loss(chosen, z.detach())
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-5)
    loss.backward()
    stored = golden.under("grad/")
    of_codes = stored.pop("quantize.embedding.weight")
    check_gradients(built, {name: name for name in stored}, stored)
    assert codes.grad is not None
    assert (codes.grad - of_codes).abs().max() <= 1e-4 * of_codes.abs().max()
