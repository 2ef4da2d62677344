"""A GPU without memory: tensors on it have a shape, a type and a device, and what a real one would do is counted.

A process can use it that was started with the library of `fake_cuda.cpp` in ``LD_PRELOAD``: torch looks for devices
once.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)

COPIES = {"_to_copy", "to", "copy_"}
"""Operations that copy numbers as they are; any other takes a number on the CPU as an argument of its kernel."""

OF_ONE_TYPE = {"mm", "addmm", "convolution", "index_put_"}
"""Operations whose kernels refuse floating numbers of several types, while torch finds no fault with the shapes."""

ALLOCATIONS = ("empty", "new_empty")
"""How the names of operations begin that take memory and compute nothing."""


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Let new tensors have no memory, and answer what a CPU build of torch cannot say of a GPU: one of Ampere.

    Networks are to be made before: `torch.nn.Module.to` brings real ones to the device, but none without memory.
    """
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(FakeTensor, "numpy", _as_array, raising=False)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
        patch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
        yield


class Traffic(TorchDispatchMode):
    """Counts what a block within `fake_gpu` would launch on the GPU, and what it would copy or wait for.

    ``launches`` are counted by operation, all else by the line of our code: ``waiting`` are copies to the GPU that
    Python waits for, ``beside`` those from pinned memory that it does not wait for, ``fetched`` copies to the CPU,
    ``reads`` numbers that Python looks at on the GPU (they are 0.5, whole ones 1), ``made_on_cpu`` results of more
    than 0 dimensions that are computed on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self.beside: Counter[str] = Counter()
        self.fetched: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.made_on_cpu: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = _tensors((args, kwargs))
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._read(given[0])
        if func is torch.ops.aten._pin_memory.default:
            return _pinned(given[0])
        result = func(*args, **(kwargs or {}))
        names = [argument.name for argument in func._schema.arguments]
        arguments = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        results = _tensors(result)
        _require_one_type(func.overloadpacket.__name__, given)
        _require_own_generator(arguments.get("generator"), results)
        self._count(func, given, results, arguments.get("non_blocking", False))
        return result

    def _read(self, tensor: Tensor) -> float:
        if tensor.device == GPU:
            self.reads[_line()] += 1
        return 0.5 if tensor.is_floating_point() else 1

    def _count(self, func: Any, given: list[Tensor], results: list[Tensor], non_blocking: bool) -> None:
        if not results and not given:
            return
        name, place = func.overloadpacket.__name__, (results or given)[0].device
        known = {tensor.untyped_storage()._cdata for tensor in given}
        made = [tensor for tensor in results if tensor.untyped_storage()._cdata not in known]  # others are views
        brought = [tensor for tensor in given if tensor.device != GPU and (tensor.ndim or name in COPIES)]
        if place == GPU and brought:
            is_pinned = all(getattr(tensor, "is_in_pinned_memory", False) for tensor in brought)
            (self.beside if non_blocking and is_pinned else self.waiting)[_line()] += 1
        elif place == GPU and (made or func._schema.is_mutable) and not name.startswith(ALLOCATIONS):
            self.launches[name] += 1
        elif place != GPU and any(tensor.device == GPU for tensor in given):
            self.fetched[_line()] += 1
        elif place != GPU and any(tensor.ndim for tensor in made):
            self.made_on_cpu[_line()] += 1


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _require_one_type(name: str, given: list[Tensor]) -> None:
    types = {tensor.dtype for tensor in given if tensor.is_floating_point()}
    if name in OF_ONE_TYPE and len(types) > 1:
        raise RuntimeError(f"{name} of several types: {', '.join(sorted(map(str, types)))}")


def _require_own_generator(generator: torch.Generator | None, results: list[Tensor]) -> None:
    if generator is not None and any(result.device.type != generator.device.type for result in results):
        raise RuntimeError(f"a generator on {generator.device} for numbers on {results[0].device}")


def _pinned(tensor: Tensor) -> Tensor:
    """What `torch.Tensor.pin_memory` gives; views of it do not count as pinned."""
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin a tensor on {tensor.device}")
    copy = torch.empty_like(tensor)
    copy.is_in_pinned_memory = True
    return copy


def _as_array(tensor: Tensor) -> np.ndarray:
    """Stands for `torch.Tensor.numpy`: an array of 0.5, refused where torch refuses it."""
    if tensor.device.type != "cpu" or tensor.dtype == torch.bfloat16 or tensor.requires_grad:
        raise TypeError(f"no array of a tensor of {tensor.dtype} on {tensor.device}, or of one with a gradient")
    return np.full(tuple(tensor.shape), 0.5, dtype=str(tensor.dtype).removeprefix("torch."))


def _line() -> str:
    """The line of our code that runs, ``module:number``; of a backward pass only what autograd calls is known."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("iaunet."):
            return f"{module}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
