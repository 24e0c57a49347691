"""S: what a student must keep."""

from __future__ import annotations

from typing import Any

import torch

from ...types import Encoded, Mask, Tap, View, gather, sequence_rows
from .rules import Must, Named, check_trained, config_of, difference, finite, requirements
from .toys import as_float, disturbed, stirred, toy_mask, toy_masks, toy_view, weighted

INDEX = {"visible": "mask.visible_index", "hidden": "mask.hidden_index", "all": "both, visible patches first"}


def check_student(student: Named) -> None:
    """S: the shapes its Config promises; hidden pixels without influence; every parameter trained by masked images."""
    config = config_of("students", student)
    must, built, geometry = requirements("student", config), stirred(config.build()).eval(), config.geometry
    must(built.config == config, "its __init__ must keep its Config: self.config = config")
    must(built.geometry == geometry, f"Config says {geometry}, but the built student {built.geometry}")
    must(built.dim == geometry.dim, f"dim {built.dim} differs from its geometry's {geometry.dim}")
    view = toy_view(geometry)
    whole = built(view).tokens
    must(torch.equal(built(view).tokens, whole), "in eval mode the same view must give the same tokens twice")
    must(
        torch.equal(built(as_float(view)).tokens, whole),
        "uint8 and float views must give one result; read view.pixels()",
    )
    for mask in [None, *toy_masks(config)]:
        _check_encoded(must, built(view, mask), config, view, mask)
        _check_taps(must, built, view, mask)
        if mask is not None:
            check_blind(must, built, view, mask)
            if config.can_narrow:
                _check_narrow(must, built, view, mask)
    nothing = Mask.from_hidden(torch.zeros(2, geometry.num_tokens, dtype=torch.bool), 0)
    idle = built(view, nothing).tokens if config.can_hide else whole
    other = geometry.masked is not None  # tokens of a masked image are another part's
    same = other or idle.shape != whole.shape or difference(idle, whole) < 1e-4
    must(same, "a mask that hides nothing must change nothing; look for positions that move when patches are dropped")
    encoded = built.train()(view, toy_mask(geometry) if config.can_hide else None)
    torch.autograd.backward(weighted(encoded.tokens) + weighted(encoded.prefix))
    check_trained(must, built)
    _check_layers(must, built)


def _check_narrow(must: Must, student: Any, view: View, mask: Mask) -> None:
    """Asked for some positions, it says of them, and of the prefix, what it says when all are asked for."""
    last = [Tap(student.config.num_blocks - 1, point) for point in ("block", "mlp")]
    index, num_prefix = mask.hidden_index, student.config.num_prefix
    whole, narrow = student(view, mask, last), student(view, mask, last, index)
    must(narrow.index is index, "its Config says can_narrow, so Encoded.index must be the positions asked")
    pairs = {"tokens": (narrow.tokens, whole.at(index)), "prefix": (narrow.prefix, whole.prefix)}
    for tap in last:
        pairs[f"tap {tap}"] = narrow.taps[tap], gather(whole.taps[tap], sequence_rows(index, num_prefix))
    for name, (seen, wanted) in pairs.items():
        same = seen.shape == wanted.shape and difference(seen, wanted) < 1e-4
        must(same, f"narrowed to the positions asked, {name} must stay what they are")


def _check_encoded(must: Must, encoded: Encoded, config: Any, view: View, mask: Mask | None) -> None:
    geometry, batch = config.geometry, len(view.image)
    how = "of the whole image" if mask is None else "of a masked image"
    if mask is None or config.dense:
        must(encoded.index is None, f"token j {how} sits at position j, so index must be None")
    else:
        seen, unseen = mask.visible_index, mask.hidden_index
        index = {"visible": seen, "hidden": unseen, "all": torch.cat([seen, unseen], 1)}[config.answers]
        right = encoded.index is not None and torch.equal(encoded.index, index)
        must(right, f"not dense, it answers for {config.answers} patches, so index must be {INDEX[config.answers]}")
    dim = geometry.dim if mask is None else geometry.masked_dim
    shape = batch, geometry.num_tokens if encoded.index is None else encoded.index.shape[1], dim
    must(encoded.tokens.shape == shape, f"tokens {how} must be {shape}, not {tuple(encoded.tokens.shape)}")
    must(finite(encoded.tokens) and finite(encoded.prefix), f"tokens {how} must be finite")
    prefix, shape = tuple(encoded.prefix.shape), (batch, config.num_prefix, dim)
    must(prefix == shape, f"num_prefix {config.num_prefix} promises a prefix of {shape}, not {prefix}")
    must(encoded.grid == geometry.grid, f"grid must be {geometry.grid}, not {encoded.grid}")
    must(encoded.box is view.box and encoded.flip is view.flip, "it must hand on box and flip of the view")


def _check_taps(must: Must, student: Any, view: View, mask: Mask | None) -> None:
    """Every block can be tapped at both points, and asking for taps changes nothing."""
    asked = [tap for block in range(student.config.num_blocks) for tap in (Tap(block), Tap(block, "mlp"))]
    plain, tapped = student(view, mask), student(view, mask, asked)
    must(torch.equal(plain.tokens, tapped.tokens), "asking for taps must not change the tokens")
    missing = [tap for tap in asked if tap not in tapped.taps]
    must(not missing, f"num_blocks promises these taps, but they are missing: {missing}")
    geometry = student.geometry
    seen = geometry.num_tokens if mask is None or student.config.dense else mask.visible_index.shape[1]
    shape = len(view.image), plain.prefix.shape[1] + seen, geometry.dim
    wrong = {tap: tuple(tapped.taps[tap].shape) for tap in asked if tapped.taps[tap].shape != shape}
    must(not wrong, f"a tap holds prefix and tokens, {shape}, but these do not: {wrong}")


def check_blind(must: Must, student: Any, view: View, mask: Mask) -> None:
    """What an unseen patch shows has no influence at all; what a visible one shows has some."""
    seen, blind = student(view, mask), student(disturbed(view, mask.unseen, student.geometry), mask)
    leak = max(difference(seen.tokens, blind.tokens), difference(seen.prefix, blind.prefix))
    must(leak == 0.0, f"hidden pixels must not reach the student's output, but changed it by {leak:.2g}")
    other = student(disturbed(view, ~mask.hidden, student.geometry), mask)
    must(difference(seen.tokens, other.tokens) > 0, "visible pixels do not reach the student's output")


def _check_layers(must: Must, student: Any) -> None:
    """layer_of answers for every parameter, or for none."""
    layers, refused = {}, []
    for name, _ in student.named_parameters():
        try:
            layers[name] = student.layer_of(name)
        except ValueError:
            refused.append(name)
    must(not (layers and refused), f"layer_of answers for some parameters, but not for {refused}")
    last = student.config.num_layers + 1
    wrong = {name: layer for name, layer in layers.items() if not 0 <= layer <= last}
    must(not wrong, f"layer_of must lie in [0, num_layers + 1] = [0, {last}], but says {wrong}")
