"""Peak memory of UniGrad's negative part, sum of (p C) * p against the diagonal of p C p^T, forward and backward.

    python benchmarks/unigrad.py --images 16 --tokens 196 --dim 768

n = images x tokens queries of width D, float32. Both forms run once each under torch's memory profiler, the inputs counted in
neither; needs the plugin unimim-sim. The official form holds an n x n matrix, and its gradient.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from unimim import TargetSpec, plugins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=196)
    parser.add_argument("--dim", type=int, default=768)
    options = parser.parse_args()
    loss = plugins()["losses"]["unigrad"].Config().build(TargetSpec(options.dim))

    def square(pred: Tensor, target: Tensor) -> Tensor:
        """The official formula."""
        p, t = pred.flatten(0, 1), target.flatten(0, 1)
        negative = torch.diagonal(p @ (t.T @ t / len(t)) @ p.T).mean()
        return ((p - t).square().sum(-1).mean() + 0.02 * negative) / p.shape[-1]

    draw = torch.Generator().manual_seed(0)
    target = torch.randn(options.images, options.tokens, options.dim, generator=draw)
    peaks, found = {}, {}
    for name, form in (("D x D", lambda p, t: loss(p, t).mean()), ("n x n", square)):
        pred = torch.randn(target.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        peaks[name], found[name] = peak(form, pred, target)
    print(f"n = {options.images * options.tokens}, D = {options.dim}")
    for name, bytes_ in peaks.items():
        print(f"{name}: peak {bytes_ / 2**20:.1f} MiB, loss {found[name]:.7f}")
    print(f"n x n over D x D: {peaks['n x n'] / peaks['D x D']:.1f} times")


def peak(form: Callable[[Tensor, Tensor], Tensor], pred: Tensor, target: Tensor) -> tuple[int, float]:
    """Most bytes held at once above what was held before, and the loss."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        value = form(pred, target)
        value.backward()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    held, most = 0, 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most, float(value.detach())


if __name__ == "__main__":
    main()
