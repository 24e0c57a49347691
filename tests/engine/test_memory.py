"""Memory of freed tensors stays with a process that trains on a CPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from unimim.engine.memory import CHOSEN

PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from unimim.engine.distributed import process_group
from unimim.engine.run import Run

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(16 << 20).fill_(1.0)  # 64 MiB, more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
with process_group(Run(out=Path("unused"), device="cpu")):
    faults()
    print(faults())
"""


def page_faults(**variables: str) -> int:
    """Of writing four times to a tensor of 64 MiB, in a training process that did so before."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN} | variables
    told = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return int(told.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc is not here"
)
def test_a_process_that_trains_keeps_the_memory_of_freed_tensors_unless_its_environment_says_otherwise() -> None:
    assert page_faults() < 100
    assert page_faults(MALLOC_MMAP_MAX_="65536") > 4 * (64 << 20) // (2 << 20)  # at least a fault for each huge page
