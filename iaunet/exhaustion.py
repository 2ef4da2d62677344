"""What it looks like when memory runs out."""

import errno

MEMORY_FAULTS = (RuntimeError, MemoryError)
"""What torch, numpy and Python raise then, and torch for much else: ask `is_out_of_memory`."""

_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Cannot allocate memory",
    "Unable to allocate",
    "bad_alloc",
    "bad allocation",
    "STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
    "can't start new thread",
    "failed to map segment",
)
"""What is said by torch on a CPU under Linux, under Windows and on other devices; by the system; by numpy, also within
the words of another process; by C++ under Linux and Windows; by cuBLAS and cuDNN; for want of a thread's stack; and by
the linker. Not "unable to find an engine": cuDNN says so for want of a workspace, but also where it is broken or does
not know a type, which fewer rows or a smaller network would not mend."""


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU. Imports no torch."""
    if isinstance(fault, MemoryError) or (isinstance(fault, OSError) and fault.errno == errno.ENOMEM):
        return True
    is_torchs = type(fault).__name__ == "OutOfMemoryError"
    return is_torchs or any(words in str(fault) for words in _WORDS)
