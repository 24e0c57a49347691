"""The hooks a plugin may implement, and the kinds of things they bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pluggy

PROJECT = "unimim"
AXES = {
    "teachers": "Teacher",
    "norms": "Norm",
    "students": "Student",
    "heads": "Head",
    "losses": "Loss",
    "masks": "MaskSampler",
    "views": "Views",
}
"""The base class in `unimim` of each kind of component."""
KINDS = (*AXES, "recipes", "importers", "loggers", "releases")
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Target = Any
"""What a hook maps a name to: the object itself, or "package.module:attribute", imported on first use."""


class Hooks:
    """What a plugin may implement. Each returns {name: target}; prefer "module:attribute", which keeps `unimim list` fast."""

    @hookspec
    def unimim_teachers(self) -> Mapping[str, Target]:
        """Teachers T: subclasses of `unimim.Teacher`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_norms(self) -> Mapping[str, Target]:
        """Normalizations N of the target: subclasses of `unimim.Norm`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_students(self) -> Mapping[str, Target]:
        """Students S: subclasses of `unimim.Student`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_heads(self) -> Mapping[str, Target]:
        """MIM heads H: subclasses of `unimim.Head`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_losses(self) -> Mapping[str, Target]:
        """Losses L: subclasses of `unimim.Loss`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_masks(self) -> Mapping[str, Target]:
        """Mask samplers: subclasses of `unimim.MaskSampler`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_views(self) -> Mapping[str, Target]:
        """View policies: subclasses of `unimim.Views`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_recipes(self) -> Mapping[str, Target]:
        """Recipes: functions without arguments that return the data of one `unimim.Recipe`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_importers(self) -> Mapping[str, Target]:
        """Importers of official checkpoints: subclasses of `unimim.importers.Importer`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_loggers(self) -> Mapping[str, Target]:
        """Where scalars go beside metrics.jsonl: subclasses of `unimim.Logger`."""
        raise AssertionError("a hook specification is never called")

    @hookspec
    def unimim_releases(self) -> Mapping[str, Target]:
        """Released weights of teachers: each a `unimim.Release`."""
        raise AssertionError("a hook specification is never called")
