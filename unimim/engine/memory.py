"""What a process does with the memory of freed tensors."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""
NEVER, NONE = -1, 0
CHOSEN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the next step have the pages of this one's freed tensors; whether that was possible.

    glibc maps every large tensor anew and gives its pages back when it is freed, so the kernel clears, page by page, all
    memory that a step writes to. From now on malloc takes large tensors from its heap and never makes that smaller: a
    process holds its peak until it ends. Only with glibc, and only if no environment variable (CHOSEN) has said
    otherwise. Devices other than the CPU have allocators of their own.
    """
    if sys.platform != "linux" or any(name in os.environ for name in CHOSEN):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(M_TRIM_THRESHOLD, NEVER)) and bool(library.mallopt(M_MMAP_MAX, NONE))
