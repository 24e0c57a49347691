"""A training step of VQ-KD and its quantizer alone against microsoft/unilm @ 768a3c8, beit2, from stored weights and images.

UNIMIM_GOLDENS names another folder of files of the same form; every size is read from them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close
from unimim_beitv2.codebook import Codebook

from unimim import Batch, Progress, View, plugins
from unimim.importers import Imported, convert
from unimim.layers import lloyd_step, nearest
from unimim.testing import Golden, check_gradients

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))
STEP = Progress(0, 1, 1)


def goldens(kind: str) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob(f"{kind}*.npz"))]


def clip(golden: Golden, folder: Path) -> dict[str, Any]:
    """The official CLIP of the training file, as a folder that open_clip reads; its own module names are the same."""
    sizes = golden.config["clip"]
    image = {"image_size": sizes["image_resolution"], "layers": sizes["vision_layers"], "width": sizes["vision_width"]}
    image |= {"patch_size": sizes["vision_patch_size"], "head_width": 64}
    text = {key: sizes[key] for key in ("context_length", "vocab_size")}
    text |= {key: sizes[f"transformer_{key}"] for key in ("width", "heads", "layers")}
    model = {"embed_dim": sizes["embed_dim"], "quick_gelu": True, "vision_cfg": image, "text_cfg": text}
    pixels = {key: golden[f"state/scaling_layer.{kind}"].flatten().tolist() for key, kind in CLIP_PIXELS.items()}
    described = {"model_cfg": model, "preprocess_cfg": pixels | {"interpolation": "bicubic"}}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file(golden.under("state/teacher_model."), folder / "open_clip_model.safetensors")
    return {"name": "open_clip", "model": f"local-dir:{folder}", "feature": "projected"}


CLIP_PIXELS = {"mean": "shift", "std": "scale"}


def overrides(golden: Golden, folder: Path) -> list[str]:
    config = golden.config
    assert config["process_type"] == "default"  # pixels in [-1, 1], as the recipe has them
    return [
        f"teacher={clip(golden, folder / 'clip')}",
        f"student.num_heads={config['num_heads']}",
        f"student.eps={config['norm_eps']}",
        f"head.num_heads={config['dec_num_heads']}",
        f"head.decay={config['decay']}",
    ]


def prepared(path: Path, folder: Path) -> tuple[Golden, Imported, Any, Batch]:
    golden = Golden(path)
    found = plugins()["importers"]["vqkd"]().read(golden.under("state/"), overrides(golden, folder))
    tokens = golden["encoded"].shape[:2]
    return golden, found, found.objective().train(), golden.batch(torch.zeros(tokens, dtype=torch.bool))


def test_files_are_there() -> None:
    assert goldens("vqkd")
    assert goldens("piece_norm_ema_quantizer")


@pytest.mark.parametrize("path", goldens("vqkd"))
def test_every_tensor_is_loaded_or_left_out_by_a_rule(path: Path, tmp_path: Path) -> None:
    golden, found, objective, _ = prepared(path, tmp_path)
    assert {*found.loaded.values(), *found.ignored} == {*golden.under("state/")}
    left = {"teacher_model", "scaling_layer"}
    assert {name.partition(".")[0] for name in found.ignored} - {"quantize"} == left
    assert not [reason for reason in found.ignored.values() if reason.startswith("unknown")]
    sizes = objective.recipe.terms["mim"].head
    config = golden.config
    assert [sizes.num_codes, sizes.code_dim, sizes.dim, sizes.depth] == [
        config[key] for key in ("n_embed", "code_dim", "dec_embed_dim", "dec_depth")
    ]


@pytest.mark.parametrize("path", goldens("vqkd"))
def test_a_training_step(path: Path, tmp_path: Path) -> None:
    golden, found, objective, batch = prepared(path, tmp_path)
    (step,) = objective.predictions(batch)["mim"]
    head, config = objective.terms["mim"].head, golden.config
    assert_close(step.target, golden["target"], rtol=0, atol=1e-4)
    assert_close(step.preds[0], golden["pred"], rtol=0, atol=1e-4)
    assert step.penalty.mean().item() == pytest.approx(golden["loss_quantize"].item(), rel=1e-5)
    rec = objective.terms["mim"].distances(step.preds[0], step.target, None).mean()
    assert rec.item() == pytest.approx(golden["loss_rec"].item(), rel=1e-5)
    features = head.project(objective.student(batch.views["main"]).tokens)
    assert_close(features, golden["encoded"], rtol=0, atol=1e-4)
    assert head.codebook.eval()(F.normalize(features, dim=-1))[1].equal(golden["token_ids"])
    head.codebook.train()

    objective.on_step_start(STEP)
    loss = objective(batch)["loss"]
    loss.backward()
    objective.on_step_end(STEP)
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-5)
    check_gradients(objective, found.loaded, golden.under("grad/"))
    assert_close(head.codebook.codes, golden["state_after/quantize.embedding.weight"], rtol=0, atol=1e-6)
    assert_close(head.codebook.cluster_size, golden["state_after/quantize.cluster_size"], rtol=1e-6, atol=1e-6)
    unused = (1 - objective.health["head/mim/used"]) * config["n_embed"]
    assert round(unused.item()) == golden["unused_codes"]
    assert objective.health["head/mim/commitment"].item() == pytest.approx(golden["loss_quantize"].item(), rel=1e-5)


@pytest.mark.parametrize("path", goldens("vqkd"))
def test_converts_a_training_file(path: Path, tmp_path: Path) -> None:
    """And what it wrote is a tokenizer with the official ids."""
    golden = Golden(path)
    torch.save({"model": golden.under("state/") | {"loss.weight": torch.zeros(1)}, "epoch": 3}, tmp_path / "vqkd.pth")
    done = convert(tmp_path / "vqkd.pth", "vqkd", tmp_path / "out", overrides(golden, tmp_path))
    assert done.ignored["loss.weight"] == "no part of the network"
    assert "do not go on training" in str(done)
    student, head = done.recipe.student, done.recipe.terms["mim"].head
    sizes = {key: getattr(student, key) for key in ("patch_size", "dim", "depth", "num_heads")}
    sizes |= {key: getattr(head, key) for key in ("num_codes", "code_dim")}
    given = {"name": "vqkd", "checkpoint": str(tmp_path / "out")} | sizes
    teacher = plugins()["teachers"]["vqkd"].Config(**given).build(student.geometry)
    view = View(torch.zeros(1), {teacher.rendition: golden["images"]})
    assert teacher(view).tokens.equal(golden["token_ids"])


def test_the_teacher_is_known_by_the_width_of_its_features() -> None:
    """768: DINO. An official file of those sizes, in names and shapes alone."""
    found = plugins()["importers"]["vqkd"]().infer(
        {
            **{
                f"{part}.{name}": torch.zeros(shape)
                for part in ("encoder", "decoder")
                for name, shape in SHAPES.items()
            },
            "decoder.patch_embed.proj.weight": torch.zeros(768, 32, 1, 1),
            "quantize.embedding.weight": torch.zeros(8192, 32),
            "decode_task_layer.2.bias": torch.zeros(768),
        }
    )
    assert found["terms.mim.teacher"]["model"] == "vit_base_patch16_224.dino"
    head = {"dim": 768, "depth": 1, "num_heads": 12, "num_codes": 8192, "code_dim": 32}
    assert {key.removeprefix("terms.mim.head."): value for key, value in found.items() if ".head." in key} == head


SHAPES: dict[str, tuple[int, ...]] = {
    "cls_token": (1, 1, 768),
    "pos_embed": (1, 197, 768),
    "patch_embed.proj.weight": (768, 3, 16, 16),
    "blocks.0.mlp.fc1.weight": (3072, 768),
    "blocks.0.attn.qkv.weight": (2304, 768),
    "blocks.0.attn.q_bias": (768,),
}


def vectors(z: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, N, C)."""
    return z.flatten(2).mT


@pytest.mark.parametrize("path", goldens("piece_norm_ema_quantizer"))
def test_the_quantizer_alone(path: Path) -> None:
    """Three steps: quantized vectors, loss, ids, gradients, codes and their sizes."""
    golden = Golden(path)
    weight = golden["in/weight"]
    book = Codebook(*weight.shape, float(golden["in/decay"])).train()
    book.codes.copy_(weight)
    last = len(golden["in/z"]) - 1
    for number, z in enumerate(golden["in/z"]):
        own = {name: golden[f"step{number}/{name}"] for name in STEP_ARRAYS}
        z = z.clone().requires_grad_()
        book.on_step_start()
        quantized, ids, cost = book(F.normalize(vectors(z), dim=-1))
        assert_close(quantized, vectors(own["zq"]), rtol=0, atol=1e-6)
        assert ids.flatten().equal(own["ids"])
        assert cost.mean().item() == pytest.approx(own["loss"].item(), rel=1e-5)
        (cost.mean() + quantized.square().sum()).backward()
        gradient = own["grad_z_of_loss_plus_sumsq"]
        assert z.grad is not None
        assert (z.grad - gradient).abs().max() <= 1e-4 * gradient.abs().max()
        book.on_step_end()
        # Where all steps hold the arrays of the last one, the ids of the next step tell whether the codes moved as they should.
        if number == last or not own["weight_after"].equal(golden[f"step{last}/weight_after"]):
            assert_close(book.codes, own["weight_after"], rtol=0, atol=1e-6)
            assert_close(book.cluster_size, own["cluster_size_after"], rtol=1e-6, atol=1e-6)


STEP_ARRAYS = ("zq", "loss", "ids", "weight_after", "cluster_size_after", "grad_z_of_loss_plus_sumsq")


@pytest.mark.parametrize("path", goldens("piece_norm_ema_quantizer"))
def test_k_means_from_the_official_seeds(path: Path) -> None:
    """The first K of a random permutation as seeds, ten steps: the same centres, where no code is without a vector."""
    golden = Golden(path)
    z = F.normalize(vectors(golden["in/z"][0]).flatten(0, 1), dim=-1)
    codes = z[golden["in/kmeans_perm"][: len(golden["kmeans_centers"])]]
    for _ in range(10):
        bins = torch.bincount(nearest(z, codes), minlength=len(codes))
        codes = lloyd_step(z, codes, normalize=True)
    assert bins.equal(golden["kmeans_bins"])
    assert bins.min() > 0
    assert_close(codes, golden["kmeans_centers"], rtol=0, atol=1e-6)
