"""All that decides the training of one fold, as a value."""

from dataclasses import dataclass
from pathlib import Path

import torch

from iaunet.inference.runs import FoldFolder
from iaunet.planners.plan import Plan
from iaunet.trainers.distributed import ALONE, Ranks


@dataclass(frozen=True, kw_only=True)
class FoldSetup:
    """All that decides the training of one fold.

    ``run`` names the run's settings by their digest. ``train`` and ``validation`` are names of cases; the second is
    empty when a model is trained on every case. ``commands_folds`` is how many folds the command will train, this
    one included; ``hours`` limits the whole command and fixes the number of epochs unless ``epochs`` has done so.
    ``weights`` is a file to start from, ``log`` a name of `iaunet.trainers.metrics_log.LOGS`. ``ranks`` are the
    processes that train it together; ``micro_batch`` and ``workers`` are those of each. ``precision`` is the type that
    products are taken in, None for float32. ``augments_on_device`` says that rows are augmented where the network runs
    and not while they are loaded.
    """

    plan: Plan
    folder: FoldFolder
    preprocessed: Path
    run: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    seed: int
    device: torch.device
    micro_batch: int
    workers: int
    epochs: int
    commands_folds: int = 1
    hours: float | None = None
    weights: Path | None = None
    log: str = "csv"
    ranks: Ranks = ALONE
    precision: torch.dtype | None = None
    augments_on_device: bool = False
