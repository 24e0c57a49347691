"""The contract of a teacher, one training step of the recipe, and the numbers of the formula."""

import math

import torch

from unimim import Geometry, View, load, plugins, testing


def test_keeps_the_contract_of_a_teacher() -> None:
    testing.check_teacher("edges")
    testing.check_teacher({"name": "edges", "num_directions": 3})


def test_trains() -> None:
    testing.check_recipe("edges-micro", ["student.depth=1"])


def test_a_ramp_of_slope_s_gives_s_times_the_cosine_to_its_direction() -> None:
    slope, height, width = 0.01, 16, 24
    ramp = (slope * torch.arange(width)).expand(1, 3, height, width)
    edges = plugins()["teachers"]["edges"].Config(num_directions=4).build(Geometry((height, width), (4, 6), dim=8))
    tokens = edges(View(ramp)).tokens.view(4, 6, 4)
    expected = slope * torch.tensor([1.0, math.sqrt(0.5), 0.0, math.sqrt(0.5)])
    assert torch.allclose(tokens[:, 1:-1], expected.expand(4, 4, 4), atol=1e-6)


def test_the_recipe_is_maskdistill_but_for_the_teacher() -> None:
    ours, paper = load("edges-micro"), load("maskdistill-micro")
    assert {key for key, value in ours.axes().items() if value != paper.axes()[key]} == {"teacher"}
    assert ours.optimization == paper.optimization
