"""Training a tokenizer: contracts, the codebook's laws, several processes, resume, and the frozen teacher it becomes."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from unimim_beitv2.codebook import Codebook

from unimim import Encoded, Geometry, Objective, Penalized, Query, Rendition, View, load, plugins, testing

TOY = dict(testing.TOY)
HEAD = {"name": "vqkd", "num_codes": 16, "code_dim": 4, "dim": 8, "depth": 1, "num_heads": 2}
WORKER = Path(__file__).parent / "worker.py"


@pytest.mark.parametrize(
    ("head", "student"),
    [
        (HEAD, TOY),
        (HEAD | {"code_dim": 1, "depth": 2, "commitment_weight": 0.0}, TOY | {"class_token": False}),
        (HEAD | {"num_codes": 2000, "decay": 0.0}, TOY | {"num_registers": 1}),
    ],
    ids=["plain", "without class token", "more codes than vectors"],
)
def test_keeps_the_contract_of_a_head(head: dict[str, Any], student: dict[str, Any]) -> None:
    testing.check_head(head, student)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vqkd-micro", []),
        ("vqkd-micro", ["student.image_size=32", "student.patch_size=4", "head.num_codes=16"]),
        ("vqkd", ["student.image_size=32", "student.patch_size=8", "student.dim=16", "student.num_heads=2"]),
    ],
    ids=["64 pixels", "32 pixels", "vqkd"],
)
def test_a_recipe_trains(name: str, overrides: list[str]) -> None:
    head = [] if name == "vqkd-micro" else [f"head={HEAD}"]
    testing.check_recipe(name, ["teacher=pixel", "student.depth=2", *head, *overrides])


def test_official_sizes() -> None:
    """8192 codes of 32 numbers, a decoder of three blocks (one for DINO), peak rate 5e-5 for 128 images."""
    for name, depth, dim in (("vqkd", 3, 512), ("vqkd-dino", 1, 768)):
        recipe = load(name)
        head = recipe.terms["mim"].head
        with torch.device("meta"):
            built: Any = head.build(recipe.student.build(), dim)
        assert (head.depth, built.codebook.codes.shape) == (depth, (8192, 32))
        assert [built.predict[2].out_features, len(built.decoder.blocks)] == [dim, depth]
        assert recipe.optimization.peak(512) == pytest.approx(2e-4)


# The codebook


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def book(num_codes: int = 12, dim: int = 5, decay: float = 0.9, seed: int = 7) -> Codebook:
    made = Codebook(num_codes, dim, decay).train()
    made.codes.copy_(unit(num_codes, dim, seed=seed))
    return made


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_the_split_of_a_step_over_micro_batches_changes_no_bit(seed: int, sizes: list[int]) -> None:
    z, whole, split = unit(sum(sizes), 3, 5, seed=seed), book(), book()
    whole(z)
    for part in z.flip(0).split(sizes):
        split(part)
    for made in (whole, split):
        made.on_step_end()
    assert whole.codes.equal(split.codes)
    assert whole.cluster_size.equal(split.cluster_size)
    assert whole.report[:3].equal(split.report[:3])


def test_codes_move_to_the_mean_of_their_vectors_once_a_step() -> None:
    z, made = unit(6, 9, 5), book()
    before = made.codes.clone()
    quantized, ids, cost = made(z)
    assert made.codes.equal(before)
    made.on_step_end()
    for k in range(12):
        own = z[ids == k].double()
        moved = 0.9 * before[k] + 0.1 * F.normalize(own.mean(0), dim=0) if len(own) else before[k].double()
        assert_close(made.codes[k].double(), F.normalize(moved, dim=0), rtol=0, atol=1e-6)
        assert made.cluster_size[k].item() == pytest.approx(0.1 * len(own))
    assert_close(quantized, before[ids])
    assert_close(cost, (before[ids] - z).square().mean(-1))
    made.on_step_start()
    sizes = made.cluster_size.clone()
    made.on_step_end()  # a step without vectors: the sizes fade
    assert_close(made.cluster_size, 0.9 * sizes)


def test_nothing_moves_but_in_training() -> None:
    z, made = unit(6, 9, 5), book()
    with torch.no_grad():
        made(z)
    made.eval()(z)
    assert made.seen.eq(0).all()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_one_vector_that_is_not_finite_keeps_the_codebook_as_it_was(wrong: float) -> None:
    z, made = unit(6, 9, 5), book()
    before = made.codes.clone()
    z[2, 3, 1] = wrong
    made(z)
    made.on_step_end()
    assert made.codes.equal(before)
    assert made.cluster_size.eq(0).all()
    made.on_step_start()
    made(unit(6, 9, 5))
    made.on_step_end()
    assert not made.codes.equal(before)
    assert made.codes.isfinite().all()


def test_health_tells_used_and_dead_codes() -> None:
    """Three codes, vectors at two of them, 3 to 1; a code is dead once 100 steps at decay 0.99 have passed it by."""
    made = Codebook(3, 3, 0.99).train()
    made.codes.copy_(torch.eye(3))
    health = made.health
    made(torch.eye(3)[None, [0, 0, 0, 1]])
    made.on_step_end()
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert [health[name].item() for name in ("used", "perplexity", "dead")] == pytest.approx(
        [2 / 3, math.exp(entropy), 1 / 3]
    )
    assert health["commitment"] == 0
    dead = []
    for _ in range(101):
        made.on_step_start()
        made(torch.eye(3)[None, [0]])
        made.on_step_end()
        dead.append(health["dead"].item())
    assert dead[:98] == pytest.approx([1 / 3] * 98)
    assert dead[-1] == pytest.approx(2 / 3)


def test_the_start_is_k_means_and_what_vectors_cannot_fill_is_random() -> None:
    z = unit(40, 5)
    full, spare = Codebook(8, 5, 0.9), Codebook(50, 5, 0.9)
    assert full.needs_fit
    with pytest.raises(ValueError, match="head vqkd has no codes yet"):
        full(z[None])
    for made in (full, spare):
        made.fit(z)
        assert not made.needs_fit
        assert_close(made.codes.norm(dim=1), torch.ones(len(made.codes)))
    random = Codebook(8, 5, 0.9)
    random.codes.copy_(unit(8, 5, seed=3))
    assert full.eval()(z[None])[2].mean() < 0.8 * random.eval()(z[None])[2].mean()
    assert full(z[None])[1].unique().numel() == 8
    assert spare.eval()(z[None])[2].max() < 1e-12  # forty codes are the forty vectors, ten are random
    assert spare(z[None])[1].unique().numel() == 40
    again = Codebook(50, 5, 0.9)
    torch.manual_seed(5)
    again.fit(z)
    assert again.codes.equal(spare.codes)


# The head


def made(head: dict[str, Any] = HEAD, out_dim: int = 5) -> tuple[Any, Encoded]:
    student = plugins()["students"]["vit"].Config(**TOY | {"masking": "none"}).build().eval()
    encoded = student(View(torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))))
    built: Any = plugins()["heads"]["vqkd"].Config(**head).build(student, out_dim)
    built.fit([encoded])
    return built, encoded


def test_predictions_depend_on_the_codes_alone() -> None:
    """Vectors that keep their codes change no prediction; the gradient flows as if the codes were the vectors."""
    head, encoded = made()
    query = Query(torch.arange(24).expand(2, -1))
    head.eval()
    z = head.encode(encoded)
    nearer = torch.lerp(z, head.codebook(z)[0], 0.3)
    moved = {"z": z, "nearer": F.normalize(nearer, dim=-1)}
    ids = [head.codebook(value)[1] for value in moved.values()]
    assert ids[0].equal(ids[1])
    said = []
    for value in moved.values():
        head.encode = lambda _, value=value: value
        said.append(head(encoded, query))
    assert_close(said[0].preds, said[1].preds, rtol=0, atol=1e-5)
    assert said[1].penalty.mean() < said[0].penalty.mean()


def test_the_penalty_is_weighted_and_alone_where_it_is_asked() -> None:
    (one, encoded), query = made(), Query(torch.tensor([[3, 0], [5, 23]]))
    two, _ = made(HEAD | {"commitment_weight": 0.25})
    two.load_state_dict(one.state_dict())
    whole, part, image = (one(encoded, q) for q in (Query(torch.arange(24).expand(2, -1)), query, Query(None)))
    assert isinstance(part, Penalized)
    assert part.penalty.equal(whole.penalty.gather(1, query.index))
    assert_close(image.penalty, whole.penalty.mean(1, keepdim=True))
    assert_close(two(encoded, query).penalty, 0.25 * part.penalty)


def test_codes_are_chosen_in_float32_under_autocast() -> None:
    head, encoded = made()
    query = Query(torch.arange(24).expand(2, -1))
    with torch.autocast("cpu", torch.bfloat16):
        z, said = head.encode(encoded), head(encoded, query)
    assert z.dtype == said.penalty.dtype == torch.float32
    assert z.equal(head.encode(encoded))
    assert said.preds.dtype == torch.bfloat16


def test_fields() -> None:
    with pytest.raises(ValidationError, match="does not divide"):
        plugins()["heads"]["vqkd"].Config(dim=10, num_heads=4)
    with pytest.raises(ValueError, match="student 'vit' has none there"):
        load("vqkd-micro", ["student.masking=drop", "mask={name: random}"])


# Processes and runs


@pytest.mark.slow
def test_two_processes_are_one_with_and_without_micro_batches(tmp_path: Path) -> None:
    worker = runpy.run_path(str(WORKER))
    testing.in_processes(WORKER, tmp_path)
    one = [worker["step"](worker["objective"](), parts=parts) for parts in (1, 2)]
    two = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for found in (one[1], *two[0], *two[1]):
        assert {*found} == {*one[0]}
        for name, value in one[0].items():
            assert_close(found[name], value, rtol=1e-5, atol=2e-7, msg=lambda text, name=name: f"{name}: {text}")
    assert one[0]["report"].equal(one[0]["report/objective"])  # what is logged is of the step, not of the one before
    for wrong in ("codes", "cluster_size"):
        assert not one[0][wrong].equal(worker["objective"]().state_dict()[f"branches.mim.head.codebook.{wrong}"])


SIZES = ("student.depth=1", "student.image_size=32", "student.patch_size=8", "student.dim=32", "student.num_heads=2")
TINY = (
    *("head={name: vqkd, num_codes: 32, code_dim: 8, dim: 16, depth: 1, num_heads: 2}",),
    *("teacher=pixel", "batch=8", "epochs=1", "precision=float32"),
)


def unimim(folder: Path, *words: str, code: int = 0) -> None:
    command = [sys.executable, "-m", "unimim", "train", *words, "--device", "cpu", "--log-every", "1", "--workers", "0"]
    done = subprocess.run(
        [*command, "--data", "shapes:train=48,val=8", "--out", str(folder)], capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr[-2000:] + done.stdout[-2000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps."""
    folder: Path = tmp_path_factory.mktemp("runs") / "whole"
    unimim(folder, "vqkd-micro", *SIZES, *TINY)
    return folder


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(trained: Path, tmp_path: Path) -> None:
    unimim(tmp_path / "part", "vqkd-micro", *SIZES, *TINY, "run.stop_after=3", code=75)
    unimim(tmp_path / "part", "vqkd-micro", *SIZES, *TINY)
    one, two = (load_file(folder / "weights" / "objective.safetensors") for folder in (trained, tmp_path / "part"))
    assert [name for name, tensor in one.items() if not tensor.equal(two[name])] == []
    assert any(name.endswith("codebook.codes") for name in one)
    rows = [metrics(folder) for folder in (trained, tmp_path / "part")]
    kept = [name for name in rows[0][-1] if name.startswith(("loss", "head/", "grad"))]
    assert {f"head/mim/{name}" for name in ("used", "perplexity", "dead", "commitment")} <= {*kept}
    assert [[row[name] for name in kept] for row in rows[0]] == [[row[name] for name in kept] for row in rows[1]]
    assert 0 < rows[0][-1]["head/mim/used"] <= 1


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def frozen(folder: Path, geometry: Geometry, **fields: Any) -> Any:
    sizes = {"patch_size": 8, "dim": 32, "depth": 1, "num_heads": 2, "num_codes": 32, "code_dim": 8}
    given = {"name": "vqkd", "checkpoint": str(folder)} | sizes | fields
    teacher = plugins()["teachers"]["vqkd"].Config(**given).build(geometry)
    teacher.freeze()
    return teacher


GRID = Geometry((32, 32), (4, 4), 16)


def test_the_frozen_tokenizer_says_what_the_trained_head_says(trained: Path) -> None:
    objective = Objective(load(trained / "weights" / "recipe.yaml")).eval()
    objective.load_training_state(load_file(trained / "weights" / "objective.safetensors"))
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    teacher, head = frozen(trained / "weights", GRID), objective.terms["mim"].head
    assert teacher.rendition == Rendition((32, 32), "bicubic")
    with torch.no_grad():
        ids = head.codebook(head.encode(objective.student(View(images))))[1]
    assert teacher(View(torch.zeros(1), {teacher.rendition: images})).tokens.equal(ids)
    assert ids.unique().numel() > 4
    testing.check_teacher(
        teacher.config, TOY | {"image_size": 16, "patch_size": 4}
    )  # four times four patches, as its own student


def test_beit_v2_trains_on_a_tokenizer_by_path(trained: Path) -> None:
    sizes = "patch_size: 8, dim: 32, depth: 1, num_heads: 2, num_codes: 32, code_dim: 8"
    teacher = f"teacher={{name: vqkd, checkpoint: {trained / 'weights'}, {sizes}}}"
    small = ("student.image_size=32", "student.depth=2", "head.early=0", "head.last=1", "mask.min_block=2")
    testing.check_recipe("beitv2-micro", [teacher, *small])
    built = Objective(load("beitv2-micro", [teacher, *small]))
    assert not [name for name in built.training_state() if name.startswith("teachers.")]


@pytest.mark.parametrize(
    ("fields", "geometry", "match"),
    [
        ({"dim": 64, "num_codes": 16}, GRID, r"set teacher\.dim=32 teacher\.num_codes=32$"),
        ({"num_heads": 4}, GRID, r"set teacher\.num_heads=2$"),
        ({}, replace(GRID, grid=(8, 2)), r"16 positions \(4, 4\), but the student 16 patches \(8, 2\)"),
    ],
)
def test_weights_of_other_sizes(trained: Path, fields: dict[str, Any], geometry: Geometry, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        frozen(trained / "weights", geometry, **fields)


def test_folders_without_a_tokenizer(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no VQ-KD tokenizer: .* has no recipe\.yaml"):
        frozen(trained, GRID)
    (tmp_path / "recipe.yaml").write_text(load("beitv2-micro", ["teacher=pixel", "loss=l2"]).yaml())
    (tmp_path / "objective.safetensors").write_bytes((trained / "weights" / "objective.safetensors").read_bytes())
    with pytest.raises(ValueError, match="trained no vit with the head vqkd; train recipe vqkd"):
        frozen(tmp_path, GRID)
