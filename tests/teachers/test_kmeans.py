"""The k-means tokenizer: laws of the assignment and of Lloyd's algorithm, and the life of its codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from unimim import Geometry, View
from unimim.layers import codebooks
from unimim.layers.codebooks import assign, lloyd_step, nearest, seed_codes
from unimim.teachers.kmeans import KMeans

GEOMETRY = Geometry((32, 32), (4, 4), 16)


def make(**config: Any) -> KMeans:
    teacher = KMeans(KMeans.Config(**{"teacher": "pixel", "num_codes": 6, "iterations": 5, **config}), GEOMETRY)
    teacher.freeze()
    return teacher


def images(count: int, seed: int = 0) -> View:
    return View(torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))


def points(seed: int, count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


sizes = given(seed=st.integers(0, 10**6), count=st.integers(1, 60), dim=st.integers(1, 8), num_codes=st.integers(1, 12))


@sizes
def test_the_code_is_the_nearest(seed: int, count: int, dim: int, num_codes: int) -> None:
    x, codes = points(seed, count, dim), points(seed + 1, num_codes, dim)
    distances = torch.cdist(x.double(), codes.double()).square()
    found = distances.gather(1, nearest(x, codes).unsqueeze(1)).squeeze(1)
    assert_close(found, distances.min(1).values, rtol=1e-4, atol=1e-4)


@sizes
def test_chunks_change_nothing(seed: int, count: int, dim: int, num_codes: int) -> None:
    x, codes = points(seed, count, dim), points(seed + 1, num_codes, dim)
    ids, distance = assign(x, codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codebooks, "_ROOM", 7 * num_codes)
        again, near = assign(x, codes)
        moved = lloyd_step(x.repeat(num_codes, 1), codes, False)
    assert again.equal(ids)
    assert_close(near, distance)
    assert_close(moved, lloyd_step(x.repeat(num_codes, 1), codes, False))


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(12, 80),
    dim=st.integers(1, 6),
    num_codes=st.integers(2, 12),
    normalize=st.booleans(),
    start=st.sampled_from(["plus_plus", "far", "same"]),
)
def test_inertia_never_rises(seed: int, count: int, dim: int, num_codes: int, normalize: bool, start: str) -> None:
    x = points(seed, count, dim)
    x = torch.nn.functional.normalize(x) if normalize else x
    codes = seed_codes(x, num_codes, torch.Generator().manual_seed(seed))
    if start == "far":  # all but one code without tokens
        codes[1:] += 100
    if start == "same":
        codes[1:] = codes[0]
    before = float("inf")
    for _ in range(6):
        after = float(assign(x, codes)[1].double().sum())
        assert after <= before * (1 + 1e-5) + 1e-5
        before, codes = after, lloyd_step(x, codes, normalize)


def test_separate_clusters_are_found() -> None:
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    x = (centers.repeat(50, 1, 1) + 0.1 * points(0, 200, 2).view(50, 4, 2)).flatten(0, 1)
    codes = seed_codes(x, 4, torch.Generator().manual_seed(3))
    for _ in range(3):
        codes = lloyd_step(x, codes, False)
    assert_close(codes[nearest(centers, codes)], x.view(50, 4, 2).mean(0))


def test_a_dead_code_is_revived_at_the_farthest_token() -> None:
    x = torch.tensor([[0.0], [1.0], [7.0]])
    assert_close(lloyd_step(x, torch.tensor([[0.0], [99.0]]), False), torch.tensor([[8 / 3], [7.0]]))


def test_repeated_tokens_make_codes_all_the_same() -> None:
    x = torch.ones(10, 2)
    codes = lloyd_step(x, seed_codes(x, 4, torch.Generator().manual_seed(0)), False)
    assert_close(codes, torch.ones(4, 2))


def test_targets_are_ids_of_the_nearest_codes() -> None:
    teacher = make()
    teacher.fit([images(4), images(4, 1)])
    view = images(3, 2)
    tokens = teacher(view).tokens
    pixels = teacher.teacher(view).tokens
    assert teacher.spec.discrete
    assert tokens.dtype == torch.int64
    assert tokens.shape == (3, 16)
    assert tokens.equal(torch.cdist(pixels, teacher.codes).argmin(-1))
    order = torch.tensor([2, 0, 1])
    assert teacher(View(view.image[order])).tokens.equal(tokens[order])


def test_normalized_codes_are_compared_by_cosine() -> None:
    teacher = make(normalize=True)
    teacher.fit([images(4)])
    assert_close(teacher.codes.norm(dim=1), torch.ones(6))
    pixels = teacher.teacher(images(2, 5)).tokens
    cosine = torch.cosine_similarity(pixels.unsqueeze(2), teacher.codes, dim=-1)
    assert teacher(images(2, 5)).tokens.equal(cosine.argmax(-1))


def test_the_same_seed_gives_the_same_codes() -> None:
    first, second, other = make(), make(), make(seed=1, iterations=0)
    for teacher in (first, second, other):
        teacher.fit([images(6)])
    assert first.codes.equal(second.codes)
    assert not first.codes.equal(other.codes)


def test_no_more_tokens_are_read_than_asked() -> None:
    few, all_of_them = make(max_tokens=40), make(max_tokens=48)
    few.fit([images(1), images(1, 1), images(1, 2)])
    all_of_them.fit([images(1), images(1, 1), images(1, 2)])
    assert not few.codes.equal(all_of_them.codes)

    def views() -> Any:
        yield images(3)
        raise AssertionError("asked for more")

    make(max_tokens=48).fit(views())


def test_unfitted_teacher_says_so() -> None:
    teacher = make()
    assert teacher.needs_fit
    with pytest.raises(ValueError, match=r"no codes yet: call fit\(views\)"):
        teacher(images(1))
    with pytest.raises(ValueError, match="0 tokens cannot make 6 codes"):
        teacher.fit([])
    with pytest.raises(ValueError, match="16 tokens cannot make 20 codes; fit on more images"):
        make(num_codes=20).fit([images(1)])


def test_codes_travel_with_the_state() -> None:
    fitted, loaded = make(), make()
    fitted.fit([images(4)])
    loaded.load_state_dict(fitted.state_dict())
    assert not loaded.needs_fit
    assert loaded(images(2, 1)).tokens.equal(fitted(images(2, 1)).tokens)


def test_autocast_changes_nothing() -> None:
    teacher = make()
    teacher.fit([images(4)])
    with torch.autocast("cpu", torch.bfloat16):
        inside = teacher(images(2, 1)).tokens
    assert inside.equal(teacher(images(2, 1)).tokens)


def test_fields() -> None:
    config = KMeans.Config(teacher={"name": "pixel"})
    assert config.discrete
    assert config.label == "k-means(Pixel)"
    assert KMeans.Config.model_validate(config.model_dump()) == config
    with pytest.raises(ValidationError, match="frozen teacher of vectors over the whole image, not 'dvae'"):
        make(teacher="dvae")
    with pytest.raises(ValidationError, match="not 'self'"):
        make(teacher={"name": "self", "weights": "live", "region": "hidden"})
