"""The tokenizers that microsoft/unilm @ 768a3c8 released, beit2/TOKENIZER.md; its code checks the sums in their names."""

from __future__ import annotations

from unimim import Release


def _vqkd(about: str, file: str, sha256: str) -> Release:
    return Release(
        about=about,
        license="MIT",
        source=f"https://github.com/addf400/files/releases/download/BEiT-v2/{file}-{sha256}.pth",
        file=f"{file}-{sha256}.pth",
        use="teacher=vqkd teacher.checkpoint={file}",
        pixels="224 bicubic, 2 x - 1",
        sha256=sha256,
    )


RELEASES = {
    "vqkd": _vqkd("VQ-KD of CLIP, decoder of 3 blocks", "vqkd_encoder_base_decoder_3x768x12_clip", "d5036aa7"),
    "vqkd-1x": _vqkd("VQ-KD of CLIP, decoder of 1 block", "vqkd_encoder_base_decoder_1x768x12_clip", "d93179da"),
    "vqkd-dino": _vqkd("VQ-KD of DINO, decoder of 1 block", "vqkd_encoder_base_decoder_1x768x12_dino", "663c55d7"),
}
