"""Fourier spectra of images, cut into the patch grid."""

from __future__ import annotations

import torch
from torch import Tensor

from unimim.layers import patchify, unpatchify

Size = tuple[int, int]


def spectrum(image: Tensor, patch: Size) -> Tensor:
    """image (B, C, H, W) -> (B, N, p q 2 C): F = DFT_2(image) / sqrt(H W), channel by channel, in float32.

    F is laid out as an image of 2 C channels, the C real parts before the C imaginary parts, zero frequency at the top left,
    and cut by `patchify`: inside a token row, column, channel. A token is a block of frequencies, not a place.
    """
    with torch.autocast(image.device.type, enabled=False):
        transformed = torch.fft.fft2(image.float(), norm="ortho")
    return patchify(torch.cat([transformed.real, transformed.imag], 1), patch)


def image_of(tokens: Tensor, grid: Size, patch: Size) -> Tensor:
    """The inverse of `spectrum`, of its real part: (B, N, p q 2 C) -> (B, C, H, W)."""
    real, imaginary = unpatchify(tokens.float(), grid, patch).chunk(2, 1)
    with torch.autocast(tokens.device.type, enabled=False):
        image: Tensor = torch.fft.ifft2(torch.complex(real.contiguous(), imaginary.contiguous()), norm="ortho").real
    return image
