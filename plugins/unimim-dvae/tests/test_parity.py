"""The encoder, split into student and head, against openai/DALL-E @ 5be4b23, from stored weights and images.

UNIMIM_GOLDENS names another folder of files of the same form; every size is read from them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from unimim import Geometry, View, plugins
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))


@pytest.fixture
def golden() -> Golden:
    return Golden(FOLDER / "dvae.npz")


@pytest.fixture
def parts(golden: Golden) -> tuple[Any, Any]:
    """Student and head with the official encoder's weights, under their own names."""
    config, size = golden.config, tuple(golden["images_01"].shape[-2:])
    sizes = {"num_hidden": config["n_hid"], "blocks_per_group": config["n_blk_per_group"]}
    student = plugins()["students"]["dvae_encoder"].Config(image_size=size, **sizes).build()
    small = {"num_init": 8, "num_hidden": 4, "blocks_per_group": 1}
    head = plugins()["heads"]["gumbel"].Config(vocab_size=config["vocab_size"], **small).build(student, 192)
    state = golden.under("state/")
    output = {name.rpartition(".")[2]: state.pop(name) for name in [*state] if name.startswith("blocks.output.")}
    student.load_state_dict(state)
    head.output.load_state_dict(output)
    return student, head


def test_tokens_through_the_output_convolution_are_the_official_logits(golden: Golden, parts: tuple[Any, Any]) -> None:
    student, head = parts
    logits = head.logits(student(View(golden["images_01"])))
    assert_close(logits, golden["logits"], rtol=0, atol=1e-4)
    assert logits.argmax(1).equal(golden["token_ids"])
    assert_close(logits.softmax(1), golden["probs"], rtol=0, atol=1e-5)


def test_gradients(golden: Golden, parts: tuple[Any, Any]) -> None:
    student, head = parts
    loss = head.logits(student(View(golden["images_01"]))).square().mean()
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-5)
    loss.backward()
    stored = golden.under("grad/")
    own = {name: stored.pop(name) for name in [*stored] if name.startswith("blocks.output.")}
    check_gradients(student, {name: name for name, _ in student.named_parameters()}, stored)
    check_gradients(head.output, {name.rpartition(".")[2]: name for name in own}, own)


def test_the_pixel_teacher_of_the_recipe_maps_and_unmaps_as_the_official_code() -> None:
    golden = Golden(FOLDER / "piece_dalle_pixels.npz")
    x = golden["in/x"]
    size = tuple(x.shape[-2:])
    teacher = (
        plugins()["teachers"]["pixel"].Config(mean=(-0.125,) * 3, std=(1.25,) * 3).build(Geometry(size, (2, 2), 8))
    )
    tokens = teacher(View(x)).tokens
    patch = (size[0] // 2, size[1] // 2)
    mapped = golden["mapped"].unfold(2, patch[0], patch[0]).unfold(3, patch[1], patch[1])
    assert_close(tokens, mapped.permute(0, 2, 3, 4, 5, 1).reshape(tokens.shape), rtol=0, atol=1e-6)
    assert_close(teacher.picture(tokens).clamp(0, 1), golden["unmapped"], rtol=0, atol=1e-6)


def test_official_sizes() -> None:
    """53,786,240 parameters of the official encoder, counted in its class."""
    student_config = plugins()["students"]["dvae_encoder"].Config()
    with torch.device("meta"):
        student = student_config.build()
        head = plugins()["heads"]["gumbel"].Config().build(student, 192)
    assert sum(p.numel() for part in (student, head.output) for p in part.parameters()) == 53_786_240
    assert student_config.geometry == Geometry((112, 112), (14, 14), 2048)
    assert head.codes.w.shape == (128, 8192, 1, 1)
    assert [tuple(head.decoder.blocks[group].block_1.id_path.w.shape[:2]) for group in range(4)] == [
        (2048, 128),
        (1024, 2048),
        (512, 1024),
        (256, 512),
    ]
    assert [conv.w.shape[-1] for conv in head.decoder.blocks[0].block_1.res_path[1::2]] == [1, 3, 3, 3]
