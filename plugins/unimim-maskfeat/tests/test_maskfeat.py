"""The target against the official one, its laws on images whose answer is known, and the official checkpoints' layout."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from unimim import Batch, Geometry, Mask, Objective, Target, View, load, plugins, testing
from unimim.importers import convert
from unimim.testing import Golden

FOLDER = Path(os.environ.get("UNIMIM_GOLDENS", Path(__file__).parent / "data"))
FILES = sorted(FOLDER.glob("piece_hog*.npz"))
SMALL = ["student.dim=16", "student.depth=2", "student.num_heads=2"]
TOY = [*SMALL, "student.image_size=32", "student.patch_size=4"]
seeds = st.integers(0, 2**31)


def hog(image: tuple[int, int], patch: int, channels: int = 3, **fields: Any) -> Any:
    geometry = Geometry(image, (image[0] // patch, image[1] // patch), 8, channels)
    return plugins()["teachers"]["hog"].Config(**fields).build(geometry)


def answer(teacher: Any, image: Tensor) -> Tensor:
    """Tokens (B, h, w, C, K, rows, columns of cells)."""
    target: Target = teacher(View(image))
    (height, width), (rows, columns), cell = teacher.geometry.patch, teacher.geometry.grid, teacher.config.cell
    return target.tokens.view(
        len(image), rows, columns, image.shape[1], teacher.config.num_bins, height // cell, width // cell
    )


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Whole 256ths, so that sums and shifts by more of them are exact."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float() / 256


# Against the official code


@pytest.fixture(params=FILES or ["piece_hog"], ids=lambda path: Path(path).stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    if not FILES:
        pytest.fail(f"no piece_hog*.npz in {FOLDER}; UNIMIM_GOLDENS names the folder")
    return Golden(request.param)


def objective_of(golden: Golden) -> Objective:
    """A small student on the stored images' grid, taught by cells and bins of the stored sizes."""
    side, (num_bins, cells) = golden["in/images"].shape[-1], golden["hog_map"].shape[2:4]
    sizes = {
        "student.image_size": side,
        "student.patch_size": side // int(golden["in/feat_size"]),
        "teacher.cell": side // cells,
        "teacher.num_bins": num_bins,
        "mask.min_block": 2,
        "mask.count": 4,
    }
    return Objective(load("maskfeat", [*SMALL, *(f"{key}={value}" for key, value in sizes.items())]))


def test_target_and_loss_are_the_official_ones(golden: Golden) -> None:
    """Of every token and of the hidden ones; the loss of the stored predictions, and its gradient."""
    objective, mask = objective_of(golden), Mask.from_hidden(golden["in/mask"])
    images = golden["in/images"]
    batch = Batch({"main": View(images)}, {"main": (mask,)}, torch.arange(len(images)))
    (step,) = objective.predictions(batch)["mim"]
    valid = torch.ones_like(mask.hidden_index, dtype=torch.bool) if mask.hidden_valid is None else mask.hidden_valid
    assert_close(step.dense, golden["target_all"], rtol=0, atol=1e-5)
    assert_close(step.target[valid], golden["target"], rtol=0, atol=1e-5)
    pred = golden["in/pred"].requires_grad_()
    loss = objective.terms["mim"].distances(pred[None], step.target[valid][None], None).mean()
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, pred)
    assert_close(gradient, golden["grad/pred"], rtol=0, atol=1e-4 * float(golden["grad/pred"].abs().max()))


def test_cells_are_those_of_the_official_map(golden: Golden) -> None:
    """Where each cell goes inside a token: the stored map is (B, C, K, rows of cells, columns of cells)."""
    images, cells = golden["in/images"], golden["hog_map"]
    side = images.shape[-1]
    teacher = hog(
        (side, side), side // int(golden["in/feat_size"]), cell=side // cells.shape[3], num_bins=cells.shape[2]
    )
    assert_close(as_map(answer(teacher, images)), cells, rtol=0, atol=1e-5)


def as_map(tokens: Tensor) -> Tensor:
    """(B, h, w, C, K, r, c) -> (B, C, K, h r, w c)."""
    batch, rows, columns, channels, num_bins, inner_rows, inner_columns = tokens.shape
    return tokens.permute(0, 3, 4, 1, 5, 2, 6).reshape(
        batch, channels, num_bins, rows * inner_rows, columns * inner_columns
    )


# Laws


@pytest.mark.parametrize("fields", [{"cell": 4}, {"cell": 2}, {"cell": 1, "num_bins": 6}])
def test_keeps_the_contract_of_a_teacher(fields: dict[str, Any]) -> None:
    testing.check_teacher({"name": "hog", **fields})


def test_keeps_the_contract_on_oblong_patches() -> None:
    testing.check_teacher({"name": "hog", "cell": 4}, {**testing.TOY, "patch_size": (8, 4), "channels": 1} | GRAY)


GRAY = {"mean": (0.5,), "std": (0.5,)}


@pytest.mark.parametrize(("x", "y", "expected"), [(1, 0, 4), (0, 1, 0), (1, 1, 2), (1, -1, 6)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_ramp_falls_in_the_bin_of_its_direction_whichever_way_it_climbs(
    x: int, y: int, expected: int, sign: int
) -> None:
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    ramp = 0.5 + sign * (x * columns + y * rows) / 256
    histograms = answer(hog((32, 48), 16), ramp.expand(1, 3, -1, -1))
    inner = as_map(histograms)[:, :, :, 1:-1, 1:-1].movedim(2, -1)  # the border's reflection hides one direction
    assert inner.equal(torch.eye(9)[expected].expand_as(inner))


def test_no_bin_depends_on_the_sign_of_the_gradient() -> None:
    """Every gradient that an 8-bit image can have, in steps of 1 / 255: none falls on the other side of an edge."""
    from unimim_maskfeat.hog import orientations

    steps = torch.arange(-1020.0, 1021.0)
    gx, gy = torch.meshgrid(steps, steps, indexing="ij")
    bins = orientations(gx, gy, 9)
    assert bins.equal(orientations(-gx, -gy, 9))
    assert bins.unique().tolist() == [*range(9)]


def naive(image: np.ndarray[Any, Any], cell: int, num_bins: int) -> np.ndarray[Any, Any]:
    """(C, H, W) -> (C, K, H / cell, W / cell) in float64, pixel by pixel from the formula."""
    channels, height, width = image.shape
    histograms = np.zeros((channels, num_bins, height // cell, width // cell))
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    across = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    for channel, row, column in np.ndindex(image.shape):
        around = padded[channel, row : row + 3, column : column + 3]
        gx, gy = (around * across).sum(), (around * across.T).sum()
        number = math.floor(math.atan2(gx, gy) / math.pi * num_bins) % num_bins
        histograms[channel, number, row // cell, column // cell] += math.hypot(gx, gy)
    length = np.sqrt((histograms**2).sum(1, keepdims=True))
    return histograms / np.maximum(length, 1e-12)


@pytest.mark.parametrize("levels", [256, 4])
@pytest.mark.parametrize(
    ("size", "patch", "channels", "cell", "num_bins"),
    [((12, 24), 6, 2, 3, 9), ((16, 8), 8, 3, 2, 7), ((8, 8), 4, 1, 4, 9)],
)
def test_every_size_follows_the_formula(
    size: tuple[int, int], patch: int, channels: int, cell: int, num_bins: int, levels: int
) -> None:
    """On 8-bit images, also those of four levels, where every tenth gradient is zero or lies on the edge of a bin."""
    image = torch.randint(
        0, levels, (2, channels, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    cells = as_map(answer(hog(size, patch, channels, cell=cell, num_bins=num_bins), image))
    expected = np.stack([naive(each.double().numpy(), cell, num_bins) for each in image])
    assert_close(cells, torch.from_numpy(expected).float(), rtol=0, atol=1e-6)


@given(seeds, st.lists(st.tuples(st.integers(-64, 64), st.integers(0, 3)), min_size=3, max_size=3))
def test_brightness_and_contrast_of_a_channel_change_nothing(seed: int, changes: list[tuple[int, int]]) -> None:
    """Shifts by whole 256ths and gains of 1, 1/2, 1/4, 1/8, which float32 holds exactly, so nothing at all changes."""
    image, teacher = noise(1, 3, 16, 24, seed=seed), hog((16, 24), 8, cell=4)
    shift, gain = (torch.tensor(each).view(3, 1, 1) for each in zip(*changes, strict=True))
    changed = image * 0.5**gain + shift / 256
    assert answer(teacher, changed).equal(answer(teacher, image))


def test_the_statistics_of_the_pixels_do_not_matter() -> None:
    """The official code shows its target normalized images; here ones without ties, which rounding would decide."""
    image, teacher = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), hog((32, 32), 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert_close(answer(teacher, (image - mean) / std), answer(teacher, image), rtol=0, atol=1e-5)


@given(seeds)
def test_a_shift_by_a_patch_shifts_the_target(seed: int) -> None:
    """But for the outermost tokens, whose pixels see the reflected border."""
    wide, teacher = noise(1, 3, 24, 32, seed=seed), hog((24, 24), 8, cell=4)
    here, there = answer(teacher, wide[..., :24]), answer(teacher, wide[..., 8:])
    assert there[:, :, 0, ..., 1:].equal(here[:, :, 1, ..., 1:])
    assert there[:, :, 1, ..., :1].equal(here[:, :, 2, ..., :1])


@pytest.mark.parametrize("value", [0.0, 0.3, 118 / 255, 1.0])
def test_a_flat_cell_is_all_zeros(value: float) -> None:
    """Exactly, so that no rounding is blown up to length one."""
    image = noise(1, 3, 32, 32)
    image[:, 1, 7:17, 7:17] = value
    cells = as_map(answer(hog((32, 32), 16), image))
    assert not cells[0, 1, :, 1, 1].any()
    lengths = cells.square().sum(2)
    lengths[0, 1, 1, 1] = 1
    assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_bins", [9, 5])
def test_saying_zero_costs_one_over_the_number_of_bins(num_bins: int) -> None:
    objective = Objective(load("maskfeat-micro", [*TOY, f"teacher.num_bins={num_bins}"]))
    torch.nn.init.zeros_(objective.terms["mim"].head.proj.weight)
    mask = Mask.from_hidden(torch.arange(64).expand(2, -1) % 5 < 2)
    batch = Batch({"main": View(noise(2, 3, 32, 32))}, {"main": (mask,)}, torch.arange(2))
    assert objective(batch)["loss"].item() == pytest.approx(1 / num_bins, rel=1e-5)


def test_autocast_does_not_reach_the_target() -> None:
    image, teacher = noise(2, 3, 32, 32), hog((32, 32), 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = answer(teacher, image)
    assert inside.dtype == torch.float32
    assert inside.equal(answer(teacher, image))


def test_a_patch_that_is_not_whole_cells_is_refused() -> None:
    with pytest.raises(ValueError, match=r"patch of 8x12 .* whole cells of 8x8; teacher.cell may be 1, 2, 4$"):
        plugins()["teachers"]["hog"].Config().build(Geometry((32, 48), (4, 4), 8))


# Recipes


@pytest.mark.parametrize("overrides", [[], ["student.image_size=32", "student.patch_size=4"]])
def test_trains(overrides: list[str]) -> None:
    testing.check_recipe("maskfeat-micro", [*SMALL, *overrides])


@pytest.mark.parametrize(("name", "dim"), [("maskfeat", 768), ("maskfeat-large", 1024)])
def test_the_recipe_is_the_row_of_table_1_with_the_official_rates(name: str, dim: int) -> None:
    recipe = load(name)
    assert recipe.axes() == {"teacher": "HOG", "student": "ViT", "head": "FC", "norm": "/", "loss": "l2"}
    assert recipe.student.geometry.dim == dim
    policy, total = recipe.optimization, 1600 * 600
    rates = [policy.rate(step, total, 600, recipe.batch) for step in (0, 30 * 600, total)]
    assert rates == pytest.approx([8e-6, 1.6e-3, 8e-6])


# Official checkpoints


def official(objective: Objective) -> dict[str, Tensor]:
    """Under the names of the published files."""
    renamed = {"branches.mim.head.proj": "pred_head.projections.0", "student.norm": "pred_head.transforms.0.0"}
    state = {}
    for name, tensor in objective.state_dict().items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        state[name.removeprefix("student.").replace("prefix", "cls_token")] = tensor
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]).expand(3, 1, 3, 3)
    return state | {"hogs.0.weight_x": sobel.clone(), "hogs.0.weight_y": sobel.mT.clone()}


def read(state: Mapping[str, Tensor]) -> Any:
    return plugins()["importers"]["maskfeat"]().read(state, ["student.num_heads=2"])


@pytest.mark.parametrize("sizes", [[], ["student.patch_size=8"], ["student.depth=3", "teacher.cell=16"]])
def test_a_checkpoint_tells_its_recipe_and_comes_back_whole(sizes: list[str]) -> None:
    objective = Objective(load("maskfeat", [*SMALL, *sizes]))
    state = official(objective)
    found = read(state)
    assert found.recipe.student == objective.recipe.student
    assert found.recipe.terms == objective.recipe.terms
    assert {*found.loaded.values()} == {*state} - {"hogs.0.weight_x", "hogs.0.weight_y"}
    ours = found.objective().state_dict()
    assert all(tensor.equal(ours[name]) for name, tensor in objective.state_dict().items())


def test_the_base_recipe_has_as_many_parameters_as_the_published_file() -> None:
    """85.882 million, tokens, positions and the head among them."""
    with torch.device("meta"):
        objective = Objective(load("maskfeat"))
    assert sum(parameter.numel() for parameter in objective.parameters()) == pytest.approx(85.882e6, abs=500)


def test_a_published_file_is_converted(tmp_path: Path) -> None:
    """A .pyth file: weights under model_state, beside the configuration as text."""
    state = official(Objective(load("maskfeat", SMALL)))
    optimizer = {"state": {0: {"exp_avg": torch.zeros(1)}}, "param_groups": [{"lr": 0.1}]}
    content = {"epoch": 1599, "model_state": state, "optimizer_state": optimizer, "cfg": "TASK: ssl"}
    torch.save(content, tmp_path / "in1k_VIT_B_MaskFeat_PT_epoch_01600.pyth")
    (path,) = tmp_path.glob("*.pyth")
    report = convert(path, "maskfeat", tmp_path / "weights", ["student.num_heads=2"])
    assert len(report.loaded) == len(state) - 2
    assert set(report.ignored) == {"hogs.0.weight_x", "hogs.0.weight_y"}


def test_other_targets_and_other_filters_are_refused() -> None:
    state = official(Objective(load("maskfeat", SMALL)))
    with pytest.raises(ValueError, match=r"hogs.0.weight_x is not the fixed table"):
        read(state | {"hogs.0.weight_x": -state["hogs.0.weight_x"]})
    with pytest.raises(ValueError, match="predictions of 768 numbers are not histograms of 9 bins of 3 channels"):
        read(state | {"pred_head.projections.0.bias": torch.zeros(768)})
    with pytest.raises(ValueError, match="no tensors of the head; fine-tuned files have none"):
        read({name: tensor for name, tensor in state.items() if "projections" not in name})
