"""The command that checks a machine: doctor."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import emit, plain, show_table, table
from .errors import FAILED
from .listing import Json

SHORT = ("batch=8", "epochs=3", "optimization.warmup_epochs=0")
"""Three steps over eight images."""
TINY = (
    "student.image_size=16", "student.patch_size=4", "student.dim=16", "student.depth=1", "student.num_heads=2",
    "head.dim=16", "head.depth=1", "head.num_heads=2",
)  # fmt: skip
"""mae-micro as small as it goes."""


DEFAULT = "mae-micro"
PATIENCE = 60
"""Seconds that processes, and compiling, may take."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, how it is, and what was seen or is to be done."""

    check: str
    status: Literal["ok", "warning", "failed"]
    message: str


def doctor(
    recipe: Annotated[str, typer.Option(metavar="R", help="Take the three steps of this recipe.")] = DEFAULT,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where runs will be written.")] = Path(),
    quick: Annotated[bool, typer.Option("--quick", help="Start no processes and compile nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Check that this machine can train.

    Looks at torch, devices, processes, compiler, disk, limits and plugins, and takes three real steps.
    """
    findings = [_guarded(name, check) for name, check in checks(recipe, out, quick).items()]
    if as_json:
        emit([asdict(finding) for finding in findings])
    else:
        colours = {"ok": "green", "warning": "yellow", "failed": "red"}
        rows = [(f.check, plain(f.status, colours[f.status]), f.message) for f in findings]
        show_table(table(["check", "status", "what"], rows, fold="what"))
    if any(finding.status == "failed" for finding in findings):
        raise typer.Exit(FAILED)


class Warned(Exception):
    """It works, but not as well as it could."""


def _guarded(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", check())
    except Warned as warning:
        return Finding(name, "warning", str(warning))
    except Exception as error:  # whatever is broken: the other checks still count
        return Finding(name, "failed", f"{type(error).__name__}: {error}")


def _torch() -> str:
    import torch

    return f"{torch.__version__}, Python {sys.version.split()[0]}, {torch.get_num_threads()} threads"


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        raise Warned("no CUDA device: training runs on the CPU, which suits the -micro recipes only")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"CUDA {torch.version.cuda}: {', '.join(names)}"


def _backend() -> str:
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        raise Warned("torch was built without gloo, so only one process can train")
    if torch.cuda.is_available() and not dist.is_nccl_available():
        raise Warned("torch was built without NCCL, so only one GPU can train; install a torch build for CUDA on Linux")
    return "gloo and NCCL" if dist.is_nccl_available() else "gloo"


def _bfloat16() -> str:
    """bfloat16 keeps 8 bits: products of 256 numbers stay within 2 % of float32."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    a, b = torch.randn(2, 256, 256, device=device).unbind()
    exact = a @ b
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        x, y = a.to(dtype), b.to(dtype)
        started = time.perf_counter()
        product = x @ y
        float(product[0, 0])
        seconds.append(time.perf_counter() - started)
    error = float((product.float() - exact).norm() / exact.norm())
    if error > 0.02:
        raise RuntimeError(f"bfloat16 products are off by {error:.1%} on {device}; train with precision=float32")
    if seconds[1] > 3 * seconds[0]:
        raise Warned(
            f"bfloat16 is {seconds[1] / seconds[0]:.0f} times slower than float32 on {device}; use precision=float32"
        )
    return f"products within {error:.1%} of float32 on {device}"


BLOCK = """
import copy, torch
from unimim.layers.blocks import Block
torch.manual_seed(0)
block, x = Block(32, 2), torch.randn(2, 16, 32)
compiled = copy.deepcopy(block)
compiled.compile()
outputs = [module(x)[0] for module in (block, compiled)]
for output in outputs:
    output.square().sum().backward()
pairs = [outputs, *([p.grad, q.grad] for p, q in zip(block.parameters(), compiled.parameters()))]
print(max(float((a - b).detach().norm() / a.detach().norm().clamp_min(1e-12)) for a, b in pairs))
"""
"""The greatest relative difference of a compiled block's output and gradients from the block's own."""


def _compiler(quick: bool) -> str:
    found = next(
        (path for name in (os.environ.get("CXX", "c++"), "g++", "clang++") if (path := shutil.which(name))), None
    )
    if found is None:
        raise Warned("no C++ compiler, which train --compile needs; install g++ or clang")
    if quick:
        return f"{found}; nothing was compiled (--quick)"
    started = time.perf_counter()
    try:
        done = subprocess.run([sys.executable, "-c", BLOCK], capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise Warned(
            f"{found}, but one small block is not compiled after {PATIENCE} s; train without --compile"
        ) from None
    if done.returncode:
        raise Warned(f"{found}, but torch.compile fails ({_last_line(done.stderr)}); train without --compile")
    difference = float(done.stdout)
    if difference > 1e-3:
        raise Warned(f"a compiled block differs from the block by {difference:.0e}; train without --compile")
    return (
        f"{found}; a compiled block is within {difference:.0e} of the block, in {time.perf_counter() - started:.0f} s"
    )


def _last_line(text: str) -> str:
    return (text.strip() or "no message").splitlines()[-1]


def _disk(out: Path) -> str:
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.is_dir())
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".unimim-doctor-") as file:
        file.write(bytes(PROBE_MB * 10**6))
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    free = shutil.disk_usage(folder).free / 1e9
    seen = f"{free:.0f} GB free in {folder}; {PROBE_MB} MB written and synced in {seconds:.2f} s"
    if free < 5:
        raise Warned(f"{seen}; a ViT-B run keeps about 3 GB of checkpoints, so choose another folder")
    if seconds > 5:
        raise Warned(f"{seen}; checkpoints will be slow, so choose a faster disk or raise --checkpoint-minutes")
    return seen


PROBE_MB = 16


def _open_files() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1024:
        raise Warned(f"{soft} open files allowed; loader workers may need more: ulimit -n {min(hard, 65536)}")
    return f"{soft} open files allowed"


def _shared_memory() -> str:
    path = Path("/dev/shm")
    if not path.is_dir():
        return "not needed on this system"
    free = shutil.disk_usage(path).free / 1e6
    if free < 512:
        raise Warned(f"{free:.0f} MB in /dev/shm, through which workers hand over images; in Docker use --shm-size=8g")
    return f"{free / 1000:.1f} GB in /dev/shm"


SUM = """
import sys, torch, torch.distributed as dist
backend, meet, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group(backend, init_method=meet, rank=rank, world_size=2)
x = torch.tensor([rank + 1.0], device=torch.device("cuda", rank) if backend == "nccl" else "cpu")
dist.all_reduce(x)
assert x.item() == 3.0, x
dist.destroy_process_group()
"""
"""1 + 2 over two processes."""


def _processes() -> str:
    import torch

    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    started = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", SUM, backend, f"{(Path(folder) / 'meet').as_uri()}"]
        both = [
            subprocess.Popen(
                [*command, rank], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
            )
            for rank in ("0", "1")
        ]
        try:
            said = [process.communicate(timeout=PATIENCE)[1] for process in both]
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"two processes did not meet over {backend} in {PATIENCE} s; {FIREWALL}") from None
        finally:
            for process in both:
                process.kill()
                process.communicate()
    wrong = [text for process, text in zip(both, said, strict=True) if process.returncode]
    if wrong:
        raise RuntimeError(f"two processes could not add over {backend} ({_last_line(wrong[0])}); {FIREWALL}")
    return f"two processes added over {backend} in {time.perf_counter() - started:.0f} s"


FIREWALL = "check the firewall and this host's name, and for NCCL set NCCL_DEBUG=INFO and NCCL_SOCKET_IFNAME"


def _plugins() -> str:
    from ..registry import plugins

    loaded = plugins().loaded
    bad = [f"{plugin.name}: {plugin.problem}" for plugin in loaded if plugin.problem]
    if bad:
        raise Warned(f"{'; '.join(bad)} (unimim plugins -v)")
    return ", ".join(f"{plugin.name} {plugin.version}" for plugin in loaded)


def _steps(name: str) -> str:
    from ..engine.run import Run
    from ..recipe import load
    from ..training import train_recipe

    recipe = load(name, [*SHORT, *(TINY if name == DEFAULT else ())])
    size = max(recipe.student.geometry.image)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(out=Path(folder), workers=1)
        outcome = train_recipe(recipe, f"shapes:size={size},train=8,val=10", run, quiet=True)
    taken = f"took {outcome.step} steps on {run.device} in {time.perf_counter() - started:.0f} s"
    return f"{recipe.name} {taken}, with a loader worker"


def checks(recipe: str, out: Path, quick: bool) -> dict[str, Callable[[], str]]:
    """What is looked at, in order; each returns what it saw, and raises Warned or anything else with what to do."""
    found: dict[str, Callable[[], str]] = {
        "torch": _torch,
        "device": _device,
        "communication": _backend,
        "bfloat16": _bfloat16,
        "compiler": partial(_compiler, quick),
        "disk": partial(_disk, out),
        "open files": _open_files,
        "shared memory": _shared_memory,
        "processes": _processes,
        "plugins": _plugins,
        "training": partial(_steps, recipe),
    }
    if quick:
        del found["processes"]
    return found
