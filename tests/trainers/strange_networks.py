"""Networks that misbehave, named to the commands as ``strange_networks:function``; each begins as a narrow U-Net."""

import os
import time

import torch
from torch import nn

from iaunet.networks import build_network


class Strange(nn.Module):
    """A U-Net that counts how often it was trained; `disturb` and `spoil` are for the others to override."""

    def __init__(self, channels: int, labels: int, width: int, depth: int) -> None:
        super().__init__()
        self.network = build_network("unet", channels=channels, labels=labels, width=width, depth=depth)
        self.trained = 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        is_real = rows.device.type != "meta"
        if self.training and is_real:
            self.trained += 1
        rows = self.disturb(rows)
        logits: torch.Tensor = self.network(rows)
        if is_real:
            self.spoil(rows)
        return logits

    def disturb(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def spoil(self, rows: torch.Tensor) -> None:
        """Called after the forward pass, when buffers have changed and random numbers were drawn."""


class Dropping(Strange):
    """Draws random numbers in training."""

    def disturb(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(rows, 0.2, self.training)


class Forgetful(Dropping):
    """Runs out of memory once, at its third training pass."""

    def spoil(self, rows: torch.Tensor) -> None:
        if self.training and self.trained == 3:
            raise torch.OutOfMemoryError("simulated")


class Greedy(Strange):
    """Runs out of memory with more than two rows."""

    most_rows = 2

    def spoil(self, rows: torch.Tensor) -> None:
        if len(rows) > self.most_rows:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")


class Modest(Greedy):
    """Runs out of memory with more than four rows."""

    most_rows = 4


class Insatiable(Greedy):
    """Runs out of memory with a single row."""

    most_rows = 0


class Idle(Strange):
    """Has a layer that nothing goes through."""

    def __init__(self, channels: int, labels: int, width: int, depth: int) -> None:
        super().__init__(channels, labels, width, depth)
        self.idle = nn.Conv2d(channels, channels, 1)


class Failing(Strange):
    """Has a fault of its own, at its third training pass."""

    def spoil(self, rows: torch.Tensor) -> None:
        if self.trained == 3:
            raise ValueError("a fault of the network's own")


class Kinked(Strange):
    """Has a finite loss whose gradient is nan, from its third training pass on."""

    def __init__(self, channels: int, labels: int, width: int, depth: int) -> None:
        super().__init__(channels, labels, width, depth)
        self.zero = nn.Parameter(torch.zeros(1))

    def disturb(self, rows: torch.Tensor) -> torch.Tensor:
        return rows + 0 * self.zero.clamp(min=0).sqrt() if self.trained >= 3 else rows


class Tied(Strange):
    """Two of its layers share one weight."""

    def __init__(self, channels: int, labels: int, width: int, depth: int) -> None:
        super().__init__(channels, labels, width, depth)
        self.one = nn.Conv2d(channels, channels, 1)
        self.two = nn.Conv2d(channels, channels, 1)
        self.two.weight = self.one.weight

    def disturb(self, rows: torch.Tensor) -> torch.Tensor:
        return rows + 0.1 * self.two(torch.relu(self.one(rows)))


class Hungry(Strange):
    """Takes $ROW_MIB MiB of memory for each row besides, as long as a pass lasts."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        ballast = rows.new_empty(len(rows), int(os.environ.get("ROW_MIB", "0")) << 18)
        logits = super().forward(rows)
        del ballast
        return logits


class Slow(Strange):
    """Takes as many seconds a pass as $SLOW_SECONDS says."""

    def spoil(self, rows: torch.Tensor) -> None:
        time.sleep(float(os.environ.get("SLOW_SECONDS", "0")))


def build_plain(channels: int, labels: int, width: int, depth: int) -> nn.Module:
    """Without batch normalisation: rows have no influence on each other."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, labels, 3, padding=1))
