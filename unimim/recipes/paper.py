"""Table 1 as the paper prints it: 25 methods and their five cells, with l for its script letter."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One line. method is what `Recipe.row` says; MaskFeat has two lines, told apart by the teacher."""

    method: str
    teacher: str
    student: str
    head: str
    norm: str
    loss: str


TABLE1 = (
    Row("ViT (Dosovitskiy et al., 2020)", "Pixel", "ViT", "FC", "/", "N/A"),
    Row("MAE (He et al., 2022)", "Pixel", "ViT", "Decoder", "LayerNorm", "l2"),
    Row("SimMIM (Liu et al., 2022b)", "Pixel", "Swin", "FC", "/", "l1"),
    Row("MaskFeat (Wei et al., 2021)", "HOG", "ViT", "FC", "/", "l2"),
    Row("Ge2-AE (Liu et al., 2022a)", "Pixel & Frequency", "ViT", "Decoders", "/", "l2"),
    Row("ConvMAE (Gao et al., 2022)", "Pixel", "Hybrid ViT", "Decoder", "LayerNorm", "l2"),
    Row("HiViT (Zhang et al., 2022)", "Pixel", "HiViT", "Decoder", "LayerNorm", "l2"),
    Row("GreenMIM (Huang et al., 2022)", "Pixel", "Swin", "Decoder", "LayerNorm", "l2"),
    Row("BEiT (Bao et al., 2022)", "dVAE", "ViT", "FC", "/", "CrossEntropy"),
    Row("CAE (Chen et al., 2022a)", "dVAE", "ViT", "Decoder", "/", "CrossEntropy"),
    Row("SplitMask (El-Nouby et al., 2021)", "dVAE", "ViT", "Decoder", "/", "InfoNCE & CrossEntropy"),
    Row("PeCo (Dong et al., 2021)", "VQGAN", "ViT", "FC", "/", "CrossEntropy"),
    Row("BEiT v2 (Peng et al., 2022)", "VQ-KD", "ViT", "FC", "/", "CrossEntropy"),
    Row("MaskFeat (Wei et al., 2021)", "DINO", "ViT", "FC", "(l2)", "Cosine"),
    Row("MVP (Wei et al., 2022a)", "CLIP", "ViT", "FC", "(l2)", "Cosine"),
    Row("MILAN (Hou et al., 2022)", "CLIP", "ViT", "Decoders", "l2-Norm", "l2"),
    Row("MimCo (Zhou et al., 2022)", "MoCov3", "ViT", "FC", "/", "InfoNCE"),
    Row("data2vec (Baevski et al., 2022)", "EMA", "ViT", "FC", "LayerNorm", "Smooth-l1"),
    Row("MSN (Assran et al., 2022)", "EMA", "ViT", "FC", "/", "CrossEntropy"),
    Row("SIM (Tao et al., 2022)", "EMA", "ViT", "Decoder", "BatchNorm", "UniGrad"),
    Row("SdAE (Chen et al., 2022b)", "EMA", "ViT", "Decoder", "LayerNorm", "Cosine"),
    Row("ConMIM (Yi et al., 2022)", "EMA", "ViT", "FC", "BatchNorm", "InfoNCE"),
    Row("ExtreMA (Wu et al., 2022)", "EMA", "ViT", "CrossAtt", "LayerNorm", "Cosine"),
    Row("BootMAE (Dong et al., 2022)", "EMA & Pixel", "ViT", "Decoders", "LayerNorm", "l2"),
    Row("MaskDistill (Peng et al., 2023)", "CLIP", "ViT", "FC", "LayerNorm", "Smooth-l1"),
)


def place(method: str, teacher: str) -> int:
    """The number of the line of `method`, told apart by the teacher where there are two; after the last for others."""
    lines = [number for number, row in enumerate(TABLE1) if row.method == method]
    exact = [number for number in lines if TABLE1[number].teacher == teacher]
    return next(iter([*exact, *lines]), len(TABLE1))
