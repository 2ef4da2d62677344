"""What becomes of memory that was freed: the C library's part, and Python's own."""

import ctypes
import gc
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h

KEPT = 2**30
"""Free bytes at the top of a heap (each thread may have one) before they are given back."""

LARGEST = 2**25
"""Bytes of the largest blocks that are kept; glibc allows no more."""


def keep_freed_memory() -> bool:
    """Let this process use memory again that it freed, where the C library would give it back to the system.

    The activations of a network are freed and asked for again with every image. Each page given back has to be
    emptied by the system and mapped anew, which takes up to a sixth of the time of a small network on a CPU.

    Returns:
        Whether the C library is one that can be told so; elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        tell = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return all([tell(_TRIM_THRESHOLD, KEPT), tell(_MMAP_THRESHOLD, LARGEST)])


def collect_less() -> None:
    """Look for unused cycles of objects less often than Python does of itself.

    What a process imports is most of what it has, and stays: looking through torch costs a tenth of its import.
    """
    gc.set_threshold(10_000, 20, 50)
