"""What networks cost: parameters, multiply-adds, and how many images a second they take on a device."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from iaunet.device import autocasting
from iaunet.networks.counting import count_multiply_adds, count_parameters
from iaunet.planners.plan import Plan, build_planned_network

BATCHES: Mapping[str, int] = {"cpu": 1, "cuda": 16, "mps": 8}
"""Images that go through a network at once when it is timed."""

ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a network costs at its plan's input size.

    ``multiply_adds`` are those of one image. ``images_per_second`` is of the bare network on one device, forward only:
    no decoding, no mirroring, no ensemble; 0 where it was not timed.
    """

    parameters: int
    multiply_adds: int
    images_per_second: float = 0.0


def measure_costs(plans: Mapping[str, Plan], device: torch.device | None) -> dict[str, Cost]:
    """The costs of the networks of plans, by the plans' names.

    Networks take turns, `ROUNDS` times after one to warm up, and the median counts, so that what else the machine does
    meets them alike.

    Args:
        plans: Networks with fresh weights are built of them.
        device: Where they are timed; None to count only.
    """
    costs = {}
    for name, plan in plans.items():
        with torch.device("meta"):
            network = build_planned_network(plan)
        costs[name] = Cost(
            parameters=count_parameters(network),
            multiply_adds=count_multiply_adds(network, plan.channels, plan.input_size),
        )
    if device is None:
        return costs
    speeds = _time_in_turns([*plans.values()], device)
    return {
        name: Cost(parameters=cost.parameters, multiply_adds=cost.multiply_adds, images_per_second=speed)
        for (name, cost), speed in zip(costs.items(), speeds, strict=True)
    }


def _time_in_turns(plans: Sequence[Plan], device: torch.device) -> list[float]:
    networks = [
        build_planned_network(plan).to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        for plan in plans
    ]
    batch = BATCHES.get(device.type, 1)
    seconds: list[list[float]] = [[] for _ in plans]
    for turn in range(ROUNDS + 1):
        for network, plan, taken in zip(networks, plans, seconds, strict=True):
            measured = _time_once(network, torch.randn(batch, plan.channels, *plan.input_size), device)
            if turn:
                taken.append(measured)
    return [batch / statistics.median(taken) for taken in seconds]


@torch.inference_mode()
def _time_once(network: nn.Module, images: torch.Tensor, device: torch.device) -> float:
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    _wait(device)
    start = time.perf_counter()
    with autocasting(device):
        network(images)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Until a card has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
