"""Where networks run, and in which precision."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from iaunet.errors import IaunetError
from iaunet.silence import ignoring_warnings

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")

Precision = Literal["float32", "bfloat16", "float16"]

PRECISIONS: dict[Precision, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The types that products can be taken in, by name; None is that of the numbers themselves."""


class DeviceError(IaunetError):
    """A device that is not there."""


def choose_device(wish: str) -> torch.device:
    """The device to run on.

    Args:
        wish: ``auto`` for the fastest there is that torch has kernels for, or a device of torch (``cpu``, ``cuda``,
            ``cuda:1``, ``mps``).

    Raises:
        DeviceError: It is not there, or no device at all.
    """
    if wish == "auto":
        if torch.cuda.is_available():
            return _first_gpu_or_cpu()
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wish)
        _compute_on(device)
    except (RuntimeError, AssertionError) as fault:
        reason = _without_kernels(fault) or str(fault).split("\n")[0]
        raise DeviceError(f"device {wish!r} cannot be used ({reason}): give auto, cpu, cuda or mps") from fault
    return device


@cache  # so that it is told once
def _first_gpu_or_cpu() -> torch.device:
    """The first GPU, or the CPU if torch has no kernels for it; what else is wrong with it is told where it is used."""
    device = torch.device("cuda")
    try:
        _compute_on(device)
    except RuntimeError as fault:
        reason = _without_kernels(fault)
        if reason is not None:
            logger.warning("warning    %s; computing on the CPU", reason)
            return CPU
    return device


def _compute_on(device: torch.device) -> None:
    torch.zeros(1, device=device) + 1  # zeros alone need no kernel on a GPU


def _without_kernels(fault: BaseException) -> str | None:
    """What to tell where a fault means that torch was built for other cards than the one that is there, else None."""
    if "no kernel image" not in str(fault):
        return None
    build = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}"
    return f"{build}, has no kernels for this GPU: install a build for its generation"


def describe_device(device: torch.device) -> str:
    """A device with the card's name or the number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def unused_gpu(device: torch.device) -> str | None:
    """A sentence when the work runs on the CPU though the machine has an NVIDIA card, else None."""
    has_card = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    if device.type != "cpu" or not has_card or torch.cuda.is_available():
        return None
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    return (
        f"this machine has an NVIDIA GPU that torch {torch.__version__} ({build}) cannot use: "
        "install torch's CUDA build or a newer driver"
    )


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """The type that prediction takes products in on a device, None for plain float32."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if _has_bfloat16(device) else torch.float16


def _has_bfloat16(gpu: torch.device) -> bool:
    """Whether a GPU has units for bfloat16 (Ampere and later): others emulate it, many times slower."""
    return torch.cuda.get_device_capability(gpu) >= (8, 0)


def training_precision(device: torch.device) -> torch.dtype | None:
    """The type that training takes products in on a device, None for plain float32.

    Beside that of prediction, CPUs with units for products of bfloat16 matrices (AMX) use them: steps take up to a
    third of the time. Masks are predicted in float32 there, unless asked for otherwise, so that they do not depend on
    the kind of CPU.
    """
    return torch.bfloat16 if is_faster_in_bfloat16(device) else mixed_precision(device)


def precision_name(precision: torch.dtype | None) -> Precision:
    """The name in `PRECISIONS` of a type that products are taken in."""
    return next(name for name, of in PRECISIONS.items() if of is precision)


def begun_precision(name: Precision | None, device: torch.device) -> torch.dtype | None:
    """The type that a training goes on with, None for plain float32: the one it began with, if the device has it.

    Args:
        name: What it began with; None for a training of before it was recorded.
        device: Where it goes on.
    """
    if name is None or (name == "float16" and device.type != "cuda"):
        return mixed_precision(device)
    if name == "bfloat16" and device.type == "cuda" and not _has_bfloat16(device):
        return mixed_precision(device)
    return PRECISIONS[name]


def is_faster_in_bfloat16(device: torch.device) -> bool:
    """Whether a device is a CPU with units for products of bfloat16 matrices (AMX)."""
    return device.type == "cpu" and _has_matrix_units()


def _has_matrix_units() -> bool:
    # torch 2.13 has no public questions for it: whether the CPU has them, and whether the system lets them be used
    questions = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_init_amx")]
    return all(ask is not None and ask() for ask in questions)


@contextlib.contextmanager
def autocasting(device: torch.device) -> Iterator[None]:
    """Run a block in the precision that prediction has on the device."""
    with casting(device, mixed_precision(device)):
        yield


@contextlib.contextmanager
def casting(device: torch.device, precision: torch.dtype | None) -> Iterator[None]:
    """Run a block with products taken in a type; None takes them in the types that tensors have.

    For None on a GPU, TF32 is switched off, for the rest of the process: gradients are computed after the block.
    """
    if precision is None and device.type == "cuda":
        _switch_tf32_off()
    with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
        yield


def _switch_tf32_off() -> None:
    """Keep convolutions and products from rounding float32 to 10 bits, as they may on Ampere and later."""
    with ignoring_warnings():  # newer versions of torch announce another name for it
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def random_state(device: torch.device) -> list[torch.Tensor]:
    """The state of torch's generators that a network may draw from: the CPU's, and the card's if it runs on one."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def restore_random_state(states: Sequence[torch.Tensor], device: torch.device) -> None:
    """Go back to what `random_state` gave; what was saved on another kind of device is taken as far as it goes."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def free_memory(device: torch.device) -> int | None:
    """Bytes that may be used on a device, None when the system does not tell.

    On a GPU what is free now, with what torch keeps there and nothing is in. On a CPU half of what this machine or
    container has, whatever else runs: the number of rows that a training takes at a time depends on it, and with that
    its weights.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    limits = [limit for limit in (_physical_memory(), _container_memory()) if limit is not None]
    return min(limits) // 2 if limits else None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _container_memory() -> int | None:
    """The limit of a Linux control group, where there is one."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # ValueError: "max", no limit
        return None
