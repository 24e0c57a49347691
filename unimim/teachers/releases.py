"""Released weights that the core's teachers read: those of the paper's Table 8, and BEiT's tokenizer.

Sums are those in the names of files, which their projects check with `check_hash=True` (facebookresearch/deit, torchvision).
"""

from __future__ import annotations

from ..releases import Release

_IMAGENET = "224 bicubic, ImageNet"
_AS_IMAGENET = "teacher.mean=[0.485,0.456,0.406] teacher.std=[0.229,0.224,0.225]"


def _clip(about: str, model: str, repository: str, pixels: str) -> Release:
    """OpenAI's CLIP as open_clip stores it: the official archives hold programs, not tensors."""
    return Release(
        about=about,
        license="MIT",
        source=f"hub:timm/{repository}/open_clip_model.safetensors",
        file=f"{repository}.open_clip.safetensors",
        use=f"teacher=open_clip teacher.model={model} teacher.pretrained={{file}}",
        pixels=pixels,
    )


def _timm(about: str, model: str, terms: str, pixels: str = _IMAGENET, more: str = "") -> Release:
    """The file that timm itself would fetch."""
    return Release(
        about=about,
        license=terms,
        source=f"hub:timm/{model}/model.safetensors",
        file=f"{model}.safetensors",
        use=f"teacher=timm teacher.model={model} teacher.checkpoint={{file}}{more}",
        pixels=pixels,
    )


def _moco(size: str, model: str, more: str = "") -> Release:
    file = f"vit-{size.lower()}-300ep.pth.tar"
    return Release(
        about=f"MoCo v3, ViT-{size}/16, ImageNet-1k",
        license="CC-BY-NC-4.0",
        source=f"https://dl.fbaipublicfiles.com/moco-v3/vit-{size.lower()}-300ep/{file}",
        file=file,
        use=f"teacher=timm teacher.model={model} teacher.checkpoint={{file}} teacher.prefix=module.base_encoder. "
        f"{_AS_IMAGENET}{more}",
        pixels=_IMAGENET,
    )


def _slip(about: str, file: str) -> Release:
    """facebookresearch/SLIP @ 2f95c15, README: ViT-B/16."""
    return Release(
        about=about,
        license="MIT",
        source=f"https://dl.fbaipublicfiles.com/slip/{file}",
        file=file,
        use=f"teacher=timm teacher.model=vit_base_patch16_224 teacher.checkpoint={{file}} teacher.prefix=module.visual. "
        f"{_AS_IMAGENET}",
        pixels=_IMAGENET,
    )


RELEASES = {
    "clip-b16-yfcc": _slip("CLIP, ViT-B/16, YFCC15M; Table 8 #1", "clip_base_25ep.pt"),
    "slip-b16-25ep": _slip("SLIP, ViT-B/16, YFCC15M, 25 epochs; Table 8 #2", "slip_base_25ep.pt"),
    "slip-b16": _slip("SLIP, ViT-B/16, YFCC15M, 100 epochs; Table 8 #3", "slip_base_100ep.pt"),
    "clip-b16-cc3m": _slip("CLIP, ViT-B/16, CC3M; Table 8 #4", "clip_base_cc3m_40ep.pt"),
    "clip-b16-cc12m": _slip("CLIP, ViT-B/16, CC12M; Table 8 #5", "clip_base_cc12m_35ep.pt"),
    "clip-b16": _clip(
        "CLIP of OpenAI, ViT-B/16; Table 8 #6",
        "ViT-B-16-quickgelu",
        "vit_base_patch16_clip_224.openai",
        "224 bicubic, CLIP",
    ),
    "clip-l14": _clip(
        "CLIP of OpenAI, ViT-L/14; Table 3",
        "ViT-L-14-quickgelu",
        "vit_large_patch14_clip_224.openai",
        "196 bicubic, CLIP",
    ),
    "resnet50": Release(
        about="ResNet-50 of torchvision, supervised; Table 8 #7",
        license="BSD-3-Clause",
        source="https://download.pytorch.org/models/resnet50-0676ba61.pth",
        file="resnet50-0676ba61.pth",
        use="teacher=timm teacher.model=resnet50.tv_in1k teacher.checkpoint={file} teacher.feature=raw",
        pixels="448 bilinear, ImageNet",
        sha256="0676ba61",
    ),
    "simclr-b16": _slip("SimCLR, ViT-B/16, YFCC15M; Table 8 #8", "simclr_base_25ep.pt"),
    "dino-b16": _timm("DINO, ViT-B/16, ImageNet-1k; Table 8 #9", "vit_base_patch16_224.dino", "Apache-2.0"),
    "mae-b16": _timm("MAE, ViT-B/16, ImageNet-1k; Table 8 #10", "vit_base_patch16_224.mae", "CC-BY-NC-4.0"),
    "beit-b16": _timm(
        "BEiT, ViT-B/16, ImageNet-22k and labels; near Table 8 #11",
        "beit_base_patch16_224.in22k_ft_in22k",
        "Apache-2.0",
        "224 bicubic, 0.5",
        " teacher.feature=raw",
    ),
    "beitv2-b16": _timm(
        "BEiT v2, ViT-B/16, ImageNet-1k and labels; near Table 8 #12",
        "beitv2_base_patch16_224.in1k_ft_in1k",
        "Apache-2.0",
        more=" teacher.feature=raw",
    ),
    "deit-b16": Release(
        about="DeiT, ViT-B/16, supervised",
        license="Apache-2.0",
        source="https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth",
        file="deit_base_patch16_224-b5f2ef4d.pth",
        use="teacher=timm teacher.model=deit_base_patch16_224.fb_in1k teacher.checkpoint={file}",
        pixels=_IMAGENET,
        sha256="b5f2ef4d",
    ),
    "mocov3-s16": _moco("S", "vit_small_patch16_224", " teacher.num_heads=12"),
    "mocov3-b16": _moco("B", "vit_base_patch16_224"),
    "dvae": Release(
        about="dVAE of DALL-E, 8192 codes: BEiT's tokenizer",
        license="MIT, modified",
        source="https://cdn.openai.com/dall-e/encoder.pkl",
        file="encoder.pkl",
        use="teacher=dvae teacher.weights={file}",
        pixels="112 Lanczos, 0.8 x + 0.1",
    ),
}
"""In the order of Table 8, and then what it does not list."""
