"""What tests share: core components only, reproducible hypothesis runs, and components that live for one test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from open_clip.model import CLIP
from safetensors.torch import save_file

from unimim.hooks import hookimpl
from unimim.registry import Plugin, plugins

with pytest.MonkeyPatch.context() as patched:  # what else is installed must not change a result
    patched.setenv("UNIMIM_PLUGINS", "none")
    plugins()

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=40, print_blob=True)
settings.load_profile("tests")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first, so that no process is left alone with one at the end (with --maxschedchunk 1)."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


Register = Callable[..., Plugin]


@pytest.fixture
def register() -> Iterator[Register]:
    """register(teachers={"mine": Mine}, ...) adds components to the live registries until the test ends."""
    live, before = plugins(), len(plugins().loaded)

    def add(**kinds: dict[str, Any]) -> Plugin:
        hooks = {f"unimim_{kind}": hookimpl(lambda targets=targets: targets) for kind, targets in kinds.items()}
        row = live.register(SimpleNamespace(**hooks), "a test")
        assert row.problem == "", row.problem
        return row

    yield add
    for row in live.loaded[before:]:
        for kind, names in row.provides.items():
            for name in names:
                del live[kind].entries[name]
    del live.loaded[before:]


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as open_clip saves it: a random two-block CLIP, 16 wide, of 8-pixel patches."""
    folder = tmp_path_factory.mktemp("clip")
    image = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    pixels = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    described = {"model_cfg": {"embed_dim": 8, "vision_cfg": image, "text_cfg": text}, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    save_file(CLIP(8, image, text).state_dict(), folder / "open_clip_model.safetensors")
    return folder
