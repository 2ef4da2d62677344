"""Weights files: safetensors, which hold tensors and texts and can run nothing."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from iaunet.errors import NetworkError
from iaunet.exhaustion import MEMORY_FAULTS, is_out_of_memory
from iaunet.storage import write_bytes


def save_weights(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write a network's parameters and buffers, whole or not at all.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    # cloned, since safetensors refuses tensors that share their memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_bytes(path, safetensors.torch.save(tensors))


def load_weights(path: Path, network: torch.nn.Module) -> None:
    """Fill a network from a weights file.

    Raises:
        NetworkError: The file is missing, damaged, or holds the weights of another network; nothing is changed then.
    """
    try:
        state = safetensors.torch.load_file(path)
    except FileNotFoundError as fault:
        raise NetworkError(f"{path} is missing: check the path, or train again") from fault
    except (OSError, SafetensorError, ValueError, *MEMORY_FAULTS) as fault:
        if is_out_of_memory(fault):
            raise NetworkError(f"memory does not suffice to read {path}: close other programs") from fault
        raise NetworkError(f"{path} is no safetensors file or damaged ({fault}): copy it again") from fault
    own = network.state_dict()
    wrong = sorted(name for name in own.keys() | state.keys() if _shape(own, name) != _shape(state, name))
    if wrong:
        raise NetworkError(
            f"{path} holds weights of another network ({len(wrong)} tensors differ, the first is {wrong[0]}): "
            "give the weights of the same network, width, channels and labels"
        )
    network.load_state_dict(state)


def _shape(state: Mapping[str, torch.Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None
