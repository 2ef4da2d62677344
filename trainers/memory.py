"""How many rows fit through a network at once."""

import itertools
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from iaunet.device import CPU, casting, random_state, restore_random_state
from iaunet.exhaustion import MEMORY_FAULTS, is_out_of_memory
from iaunet.loss import bce_dice_loss

logger = logging.getLogger(__name__)

FEWEST_ROWS = 4
"""Batch normalisation needs at least this many rows for its statistics."""

ALLOWANCE = 1.1
"""Memory a step takes beyond the tensors that are alive at once: what kernels work in, and fragmentation."""

STATE_COPIES = 5
"""Weights, gradients, Adam's two moments and the average."""


def micro_batches(batch_size: int) -> list[int]:
    """The sizes that cut a batch into equal parts of at least `FEWEST_ROWS`, from the whole batch down."""
    smaller = range(batch_size // 2, FEWEST_ROWS - 1, -1)
    return [batch_size, *(rows for rows in smaller if batch_size % rows == 0)]


def find_micro_batch(
    network: nn.Module,
    channels: int,
    input_size: tuple[int, int],
    batch_size: int,
    memory: int | None,
    device: torch.device = CPU,
    precision: torch.dtype | None = None,
) -> int:
    """The largest equal part of a batch whose training step fits into memory.

    Args:
        network: The network, on any device.
        channels: Channels of its input.
        input_size: (height, width) of its input.
        batch_size: Rows of a whole batch.
        memory: Bytes that may be used; None for no limit.
        device: Where the steps are to run.
        precision: The type that products are taken in there, None for float32.

    Returns:
        One of `micro_batches`. The smallest is returned even if it does not fit either, with a warning.
    """
    if memory is None:
        return batch_size
    try:
        a_row = row_bytes(network, channels, input_size, device, precision)
    except RuntimeError as fault:  # a stranger's network may look at numbers, which are not there
        logger.info("memory of a step is not known beforehand (%s)", str(fault).split("\n")[0])
        return batch_size
    fixed = state_bytes(network)
    sizes = micro_batches(batch_size)
    fitting = [rows for rows in sizes if fixed + rows * a_row <= memory]
    if fitting:
        return fitting[0]
    need = (fixed + sizes[-1] * a_row) / 2**30
    logger.warning(
        "a training step needs about %.1f GB, %.1f GB are free: a smaller --width would fit", need, memory / 2**30
    )
    return sizes[-1]


def step_fits(
    network: nn.Module, shape: tuple[int, int, int, int], device: torch.device, precision: torch.dtype | None
) -> bool:
    """Whether memory suffices for images of a shape forward and backward, tried for real.

    The network, which lies on the device, is left in training mode and with gradients, all else as before.
    """
    images = torch.zeros(shape, device=device)
    restore = remember_state(network, device)
    network.train()
    try:
        with casting(device, precision):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        bce_dice_loss(logits, torch.zeros_like(logits)).loss.backward()  # type: ignore[no-untyped-call]
    except MEMORY_FAULTS as fault:
        if not is_out_of_memory(fault):
            raise
        return False
    finally:
        restore()
    return True


def remember_state(network: nn.Module, device: torch.device) -> Callable[[], None]:
    """What brings a network's buffers and the random state back to what they are now, to take a step again."""
    kept = [torch.empty_like(buffer) for buffer in network.buffers()]
    copy_tensors(kept, [*network.buffers()])
    before = random_state(device)

    def restore() -> None:
        copy_tensors([*network.buffers()], kept)
        restore_random_state(before, device)

    return restore


def copy_tensors(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others of their types, on a GPU with a kernel or two for all of a type."""
    pairs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        pairs.setdefault(target.dtype, []).append((target, source))
    for of_type in pairs.values():  # of several types at once each tensor would have a kernel of its own
        torch._foreach_copy_([target for target, _ in of_type], [source for _, source in of_type])


def leave_as_it_is() -> None:
    """Stands for what `remember_state` gives, until there was memory to remember anything."""


def state_bytes(network: nn.Module) -> int:
    """Bytes of what training holds whatever the number of rows."""
    return STATE_COPIES * sum(p.numel() * p.element_size() for p in network.parameters())


def row_bytes(
    network: nn.Module,
    channels: int,
    input_size: tuple[int, int],
    device: torch.device = CPU,
    precision: torch.dtype | None = None,
) -> int:
    """About the bytes that one row adds to the peak of a training step, forward and backward.

    The step runs on tensors that have a shape and a device but no memory: nothing is computed, and the network stays
    as it is (but for what it may keep aside of its parameters and buffers: give one that is not used any more).

    Raises:
        RuntimeError: The network looks at numbers of its input.
    """
    rows = 2
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = _as_fakes(network, device)
        with _LiveBytes() as counted:
            images = torch.zeros(rows, channels, *input_size, device=device)
            with casting(device, precision):
                logits = torch.func.functional_call(network, tensors, (images,))
            bce_dice_loss(logits, torch.zeros_like(logits)).loss.backward()  # type: ignore[no-untyped-call]
    return int(ALLOWANCE * counted.peak / rows)


def _as_fakes(network: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Parameters and buffers as they would lie on a device; their gradients are dropped as they come."""
    fakes: dict[str, Tensor] = {}
    for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
        fakes[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        if tensor.requires_grad:
            fake = fakes[name].requires_grad_()
            fake.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
    return fakes


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None  # counted by `state_bytes`, as all of them live at the end of a step


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of tensors that operations make, while they live; ``peak`` is the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed; views share that of what they show."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def free(_: object) -> None:
            self._live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, free)
        self._live += size
        self.peak = max(self.peak, self._live)
