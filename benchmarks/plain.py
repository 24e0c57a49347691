"""unimim's training step against a plain formulation of the same one: time, memory, and whether the losses are equal.

    python benchmarks/plain.py [maskdistill mae data2vec beit beitv2] [--dtype bf16] [--batch 8] [--steps 15]
    python benchmarks/plain.py mae --check

The plain one is written as the methods' papers and first implementations describe it, at the same sizes: attention written
out with its bias in float32, every block and the final norm over the whole sequence, masks as booleans, torch's AdamW, a
momentum copy averaged tensor by tensor, a one-hot matrix where the official tokenizer makes one, everything in the step. Its
teachers: CLIP from open_clip as it is, cast once; data2vec's copy and BEiT's dVAE in float32; BEiT v2's tokenizer under
autocast. Both sides share start values, images and masks, live in processes of their own and take turns; the ratio is the
median over steps in which no other program took a quarter of a core (`unimim.evaluation.cost`). The plain side leaves freed
memory to glibc's malloc as it comes; MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 in the environment let both keep theirs.

--check compares losses and gradients of one step in float32, drop path off.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp
from torch import Tensor, nn

from unimim import load
from unimim.engine.optim import parameter_groups
from unimim.evaluation import turns
from unimim.evaluation.cost import Case, ratios
from unimim.evaluation.turns import measure
from unimim.evaluation.workload import Workload

CHANGES = {
    "maskdistill": ["teacher.pretrained=null"],
    "mae": [],
    "data2vec": [],
    "beit": [],
    "beitv2": [],
}
LOWER = {"maskdistill": ["teacher.precision=bfloat16"], "beit": ["teacher.precision=bfloat16"]}
LOWER["beitv2"] = LOWER["beit"]
"""What a bfloat16 run of ours sets: fields of the recipe, their effect is in docs/numerics.md."""


class Attention(nn.Module):
    """softmax(q k^T + bias) v, written out; a bias in float32 makes the softmax float32."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.heads, self.dropout = like.num_heads, like.dropout
        self.qkv, self.proj = like.qkv, like.proj
        self.q_bias, self.v_bias = like.q_bias, like.v_bias

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        batch, length, dim = x.shape
        qkv_bias = self.qkv.bias
        if self.q_bias is not None:
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (dim // self.heads) ** -0.5, qkv[1], qkv[2]
        logits = q @ k.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias
        weights = F.dropout(logits.softmax(-1), self.dropout, self.training)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, length, dim))
        return out


class Block(nn.Module):
    def __init__(self, like: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1, self.norm2 = like.norm1, Attention(like.attn), like.ls1, like.norm2
        self.mlp, self.ls2, self.drop_path = like.mlp, like.ls2, like.drop_path
        assert isinstance(self.mlp, Mlp)
        assert isinstance(self.ls1, LayerScale | nn.Identity)
        assert isinstance(self.drop_path, DropPath | nn.Identity)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), bias)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """A ViT with mask tokens (BEiT's) or without hidden patches (MAE's), with the parameters of `like`, one of unimim's."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.patch_embed, self.prefix, self.mask_token = like.patch_embed, like.prefix, like.mask_token
        self.shared_bias, self.norm = like.shared_bias, like.norm
        self.blocks = nn.ModuleList(Block(block) for block in like.blocks)
        self.register_buffer("mean", like.mean)
        self.register_buffer("std", like.std)
        if isinstance(like.pos_embed, nn.Parameter):
            self.pos_embed = like.pos_embed
        else:
            self.register_buffer("pos_embed", like.pos_embed)

    def bias(self) -> Tensor | None:
        if self.shared_bias is None:
            return None
        index = self.shared_bias.index
        return self.shared_bias.table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1).contiguous().unsqueeze(0)  # type: ignore[no-any-return]

    def forward(
        self, image: Tensor, hidden: Tensor | None = None, kept: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The normed sequence and the stream after every block."""
        x = self.patch_embed((image - self.mean) / self.std)
        if hidden is not None:
            w = hidden.unsqueeze(-1).type_as(x)
            x = x * (1 - w) + self.mask_token.expand(len(x), x.shape[1], -1) * w
        if self.pos_embed is not None:
            x = x + self.pos_embed[:, 1:]
        if kept is not None:
            x = torch.gather(x, 1, kept.unsqueeze(-1).repeat(1, 1, x.shape[-1]))
        prefix = self.prefix if self.pos_embed is None else self.prefix + self.pos_embed[:, :1]
        x = torch.cat([prefix.expand(len(x), -1, -1), x], 1)
        bias, streams = self.bias(), []
        for block in self.blocks:
            x = block(x, bias)
            streams.append(x)
        return self.norm(x), streams


class MaskDistill(nn.Module):
    """Smooth L1 between a linear layer of hidden tokens and CLIP's layer-normed ones."""

    def __init__(self, objective: Any, dtype: torch.dtype) -> None:
        super().__init__()
        branch = objective.terms["mim"]
        self.student, self.proj = ViT(objective.student), branch.head.proj
        teacher = branch.teacher[0]
        self.teacher, self.rendition = copy.deepcopy(teacher.tower).to(dtype), teacher.rendition
        self.teacher.output_tokens = True
        self.mean, self.std, self.beta = teacher.mean, teacher.std, branch.loss.config.beta

    def target(self, view: Any) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            image = (view.pixels(self.rendition) - self.mean) / self.std
            tokens = self.teacher(image.to(next(self.teacher.parameters()).dtype))[1].float()
            return F.layer_norm(tokens, tokens.shape[-1:])

    def forward(self, view: Any, mask: Any) -> Tensor:
        target = self.target(view)[mask.hidden]
        tokens, _ = self.student(view.pixels(), mask.hidden)
        return F.smooth_l1_loss(self.proj(tokens[:, 1:][mask.hidden]).float(), target, beta=self.beta)


class Data2vec(nn.Module):
    """The same loss against the mean of the last layers of a momentum copy, which is float32."""

    def __init__(self, objective: Any, dtype: torch.dtype) -> None:
        super().__init__()
        branch = objective.terms["mim"]
        self.student, self.proj = ViT(objective.student), branch.head.proj
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.layers, self.beta = branch.teacher[0].config.layers, branch.loss.config.beta

    def forward(self, view: Any, mask: Any) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            _, streams = self.teacher(view.pixels())
            layers = [F.layer_norm(streams[number][:, 1:], streams[0].shape[-1:]) for number in self.layers]
            target = sum(layers) / len(layers)
            target = F.layer_norm(target, target.shape[-1:])[mask.hidden]
        tokens, _ = self.student(view.pixels(), mask.hidden)
        return F.smooth_l1_loss(self.proj(tokens[:, 1:][mask.hidden]).float(), target, beta=self.beta)

    @torch.no_grad()
    def after(self) -> None:
        live = self.student.state_dict()
        for name, value in self.teacher.state_dict().items():
            if value.is_floating_point():
                value.copy_(0.9998 * value + (1 - 0.9998) * live[name].detach())


class MAE(nn.Module):
    """Squared error of pixels, normalized by patch, at hidden patches; the decoder predicts everywhere."""

    def __init__(self, objective: Any, dtype: torch.dtype) -> None:
        super().__init__()
        branch = objective.terms["mim"]
        head, teacher = branch.head, branch.teacher[0]
        self.student, self.embed, self.mask_token, self.norm = (
            ViT(objective.student),
            head.embed,
            head.mask_token,
            head.norm,
        )
        self.proj, self.positions = head.proj, head.positions
        self.blocks = nn.ModuleList(Block(block) for block in head.blocks)
        self.mean, self.std, self.patch = teacher.mean, teacher.std, objective.student.geometry.patch[0]

    def forward(self, view: Any, mask: Any) -> Tensor:
        image = view.pixels()
        tokens, _ = self.student(image, kept=mask.visible_index)
        x = self.embed(tokens)
        order = torch.cat([mask.visible_index, mask.hidden_index], 1).argsort(1)
        hidden = self.mask_token.repeat(len(x), mask.hidden_index.shape[1], 1)
        patches = torch.cat([x[:, 1:], hidden.to(x.dtype)], 1)
        patches = torch.gather(patches, 1, order.unsqueeze(-1).repeat(1, 1, x.shape[-1])) + self.positions
        x = torch.cat([x[:, :1], patches], 1)
        for block in self.blocks:
            x = block(x)
        pred = self.proj(self.norm(x))[:, 1:]
        image, p = (image - self.mean) / self.std, self.patch
        grid = image.shape[-1] // p
        target = torch.einsum("nchpwq->nhwpqc", image.reshape(len(image), 3, grid, p, grid, p)).reshape(
            len(image), grid**2, -1
        )
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        loss = ((pred - target) ** 2).mean(-1)
        return (loss * mask.hidden).sum() / mask.hidden.sum()


class BEiT(nn.Module):
    """Cross-entropy of the dVAE's ids at hidden patches; the dVAE is float32."""

    def __init__(self, objective: Any, dtype: torch.dtype) -> None:
        super().__init__()
        branch = objective.terms["mim"]
        teacher = branch.teacher[0]
        self.student, self.proj = ViT(objective.student), branch.head.proj
        self.teacher, self.rendition = (
            copy.deepcopy(teacher.encoder).float().to(memory_format=torch.contiguous_format),
            teacher.rendition,
        )

    def forward(self, view: Any, mask: Any) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            ids = self.teacher(0.8 * view.pixels(self.rendition) + 0.1).argmax(1).flatten(1)
        tokens, _ = self.student(view.pixels(), mask.hidden)
        return F.cross_entropy(self.proj(tokens[:, 1:][mask.hidden]), ids[mask.hidden])


class BEiTv2(nn.Module):
    """Twice the cross-entropy of VQ-KD's ids: under the last block, and under two blocks over early patches."""

    def __init__(self, objective: Any, dtype: torch.dtype) -> None:
        super().__init__()
        branch = objective.terms["mim"]
        head, teacher = branch.head, branch.teacher[0]
        self.student, self.proj = ViT(objective.student), head.proj
        self.blocks = nn.ModuleList(Block(block) for block in head.blocks)
        self.early = head.config.early
        teacher = copy.deepcopy(teacher).float()
        self.encoder, self.project, self.codes = ViT(teacher.encoder), teacher.project, teacher.codes

    def ids(self, view: Any) -> Tensor:
        with torch.no_grad():
            z = F.normalize(self.project(self.encoder(view.pixels())[0][:, 1:]), dim=-1).flatten(0, 1)
            d = z.pow(2).sum(1, keepdim=True) + self.codes.pow(2).sum(1) - 2 * torch.einsum("bd,nd->bn", z, self.codes)
            ids = d.argmin(1)
            F.one_hot(ids, len(self.codes)).type(z.dtype).sum(0)  # the official count of used codes
            return ids.view(len(view.image), -1)

    def forward(self, view: Any, mask: Any) -> Tensor:
        ids = self.ids(view)[mask.hidden]
        tokens, streams = self.student(view.pixels(), mask.hidden)
        y = torch.cat([streams[-1][:, :1], streams[self.early][:, 1:]], 1)
        bias = self.student.bias()
        for block in self.blocks:
            y = block(y, bias)
        preds = self.proj(tokens[:, 1:][mask.hidden]), self.proj(self.student.norm(y)[:, 1:][mask.hidden])
        return sum(F.cross_entropy(pred, ids) for pred in preds)  # type: ignore[return-value]


PLAIN: dict[str, Any] = {"maskdistill": MaskDistill, "mae": MAE, "data2vec": Data2vec, "beit": BEiT, "beitv2": BEiTv2}


class Plain(Workload):
    """A workload whose step is the plain formulation's, with the start values, images and masks of the one it stands for."""

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        self.plain: nn.Module = PLAIN[case.recipe.name](self.objective, getattr(torch, case.recipe.precision)).train()
        for part in ("teacher", "encoder", "project"):
            if hasattr(self.plain, part):
                getattr(self.plain, part).requires_grad_(False).eval()
        policy = case.recipe.optimization
        groups = parameter_groups(self.plain, policy, lambda name: 0)
        groups = [{key: group[key] for key in ("params", "weight_decay")} for group in groups]
        self.adamw = torch.optim.AdamW(groups, lr=1e-6, betas=policy.betas, foreach=False)
        self.trained = [parameter for parameter in self.plain.parameters() if parameter.requires_grad]
        self.limit = policy.clip_norm or float("inf")
        self.objective.teachers, self.objective.branches = nn.ModuleDict(), nn.ModuleDict()  # theirs is in use
        del self.optimizer

    def step(self, mark: Callable[[str], object] = lambda part: None) -> None:
        """One step, all of which counts as the student's."""
        mark("student")
        view, (mask,) = self.batch.views["main"], self.batch.masks["main"]
        with torch.autocast("cpu", torch.bfloat16, self.case.recipe.precision == "bfloat16"):
            loss = self.plain(view, mask)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, self.limit)
        self.adamw.step()
        self.adamw.zero_grad()
        if isinstance(self.plain, Data2vec):
            self.plain.after()
        mark("")


def case(name: str, options: argparse.Namespace, plain: bool = False) -> Case:
    """What is measured of one side. Lower precisions of a teacher are ours alone."""
    low = LOWER.get(name, []) if options.dtype == "bf16" and not plain else []
    changes = [f"batch={options.batch}", f"precision={'bfloat16' if options.dtype == 'bf16' else 'float32'}"]
    recipe = load(name, [*CHANGES[name], *low, *changes, *options.set])
    return Case(recipe, script=str(Path(__file__).resolve()) if plain else "")


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    costs = measure([case(name, options, plain=True), case(name, options)], options.steps)
    plain, ours = costs
    ratio = ratios(costs)[1]
    return {
        "recipe": name,
        "dtype": options.dtype,
        "batch": options.batch,
        **{key: round(getattr(ratio, key), 3) for key in ("time", "low", "high", "cpu", "memory", "flops")},
        "seconds": {"plain": round(plain.step_time_median_s, 3), "ours": round(ours.step_time_median_s, 3)},
        "peak_rss_mb": {"plain": round(plain.peak_rss_mb), "ours": round(ours.peak_rss_mb)},
        "of_matmul_rate": {"plain": round(plain.matmul_share, 3), "ours": round(ours.matmul_share, 3)},
        "clean_steps": {"plain": plain.clean_steps, "ours": ours.clean_steps},
    }


def check(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Largest differences of one step in float32: the loss, and the gradients of what both have."""
    more = ["student.drop_path=0"] + ["student.attention_dropout=0"] * (name == "data2vec")
    told = argparse.Namespace(**{**vars(options), "dtype": "fp32", "set": [*options.set, *more]})
    work = Workload(case(name, told), torch.device("cpu"))
    view, (mask,) = work.batch.views["main"], work.batch.masks["main"]
    theirs = PLAIN[name](copy.deepcopy(work.objective), torch.float32).train()
    loss = theirs(view, mask)
    loss.backward()
    mine = work.objective(work.batch)["loss"]
    mine.backward()
    found = dict(work.objective.student.named_parameters())
    pairs = [(p.grad, found[key].grad) for key, p in theirs.student.named_parameters() if p.grad is not None]
    gaps = [float((a - b).norm() / a.norm().clamp_min(1e-12)) for a, b in pairs if b is not None]
    return {"recipe": name, "plain": loss.item(), "ours": mine.item(), "gradients": max(gaps), "compared": len(gaps)}


def main() -> None:
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):  # the file in which `measure` hands a case over
        os.environ.setdefault("MALLOC_MMAP_MAX_", "65536")  # glibc's own value, said so that the engine leaves it
        turns.main(sys.argv[1], Plain)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=[*PLAIN])
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes for both sides")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for name in options.recipes:
        print(json.dumps((check if options.check else compare)(name, options)), flush=True)


if __name__ == "__main__":
    main()
