import errno
import os

import numpy as np
import pytest
import torch

from iaunet.exhaustion import is_out_of_memory


@pytest.mark.parametrize("allocate", [lambda: torch.empty(10**15), lambda: np.empty(10**15), lambda: bytearray(10**15)])
def test_want_of_memory_is_known_whoever_asked_for_it(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()

    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.OutOfMemoryError("said otherwise"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
    ids=str,
)
def test_want_of_memory_is_known_by_what_is_said(fault):
    assert is_out_of_memory(fault)


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ],
    ids=str,
)
def test_other_faults_are_told_from_it(fault):
    assert not is_out_of_memory(fault)
