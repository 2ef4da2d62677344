"""What `test_on_a_fake_gpu.py` has done on the fake GPU: ``device_program.py FOLDER``.

The names of the work and its arguments are in ``FOLDER/work.json``, what came of it goes to ``FOLDER/results.json``.
"""

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fake_device import GPU, Traffic, fake_gpu
from torch import Tensor

from iaunet.dataset import MaskCoding
from iaunet.device import casting
from iaunet.inference.predictor import Predictor
from iaunet.inference.runs import FoldFolder
from iaunet.loss import bce_dice_loss
from iaunet.networks import build_network
from iaunet.planners.plan import InferencePlan, NetworkPlan, Normalisation, Plan, build_planned_network
from iaunet.planners.recipes import find_recipe
from iaunet.trainers.averaging import WeightAverage
from iaunet.trainers.device_augmentation import DeviceAugmenter
from iaunet.trainers.fold_setup import FoldSetup
from iaunet.trainers.loader import Batch, DeviceCollator, StoredBatch
from iaunet.trainers.memory import remember_state
from iaunet.trainers.sampling import CaseOrder, EpochSampler, Sample
from iaunet.trainers.trainer import Trainer

ROWS = 16
CHANNELS, LABELS = 3, 2
SIDE = 64
ODD_SIZE = (75, 101)

RECIPE = dataclasses.replace(find_recipe("best"), batch_size=ROWS)
PLAN = Plan(
    planner="auto",
    dataset="toy",
    fingerprint="0",
    channels=CHANNELS,
    depth="uint8",
    labels=("first", "second"),
    coding=MaskCoding(kind="values", values=(1, 2), written=(1, 2), ignore=9),
    input_mode="resize",
    input_size=(SIDE, SIDE),
    normalisation=Normalisation(kind="dataset", mean=(100.0, 80.0, 60.0), sd=(40.0, 30.0, 20.0)),
    network=NetworkPlan(name="unet", width=4, depth=4),
    recipe=RECIPE,
    inference=InferencePlan(mirroring=True, thresholds=(0.5, 0.4)),
    split="random",
    why={},
)
SETUP = FoldSetup(
    plan=PLAN,
    folder=FoldFolder(Path("fold_0")),
    preprocessed=Path("preprocessed"),
    run="a run",
    train=("case",),
    validation=(),
    seed=0,
    device=GPU,
    micro_batch=ROWS,
    workers=0,
    epochs=2,
    precision=torch.bfloat16,
)

COUNTED = ("waiting", "beside", "fetched", "reads", "made_on_cpu")
"""What `Traffic` counts by line."""

Results = dict[str, Any]


def described(value: Any) -> list[object]:
    """What is known of a tensor or an array: device (None of an array), type and shape."""
    device = getattr(value, "device", None)
    return [str(device) if isinstance(value, Tensor) else None, str(value.dtype).removeprefix("torch."), [*value.shape]]


def copies(traffic: Traffic) -> Results:
    """All that a block copied or waited for, by line."""
    return {name: dict(getattr(traffic, name)) for name in COUNTED}


def outcome(action: Callable[[], Results]) -> Results:
    """What an action gives, or the ``fault`` that it ends with."""
    try:
        return action()
    except (RuntimeError, TypeError) as fault:
        return {"fault": "".join(traceback.format_exception(fault))}


# Networks -----------------------------------------------------------------------------------------------------------


def try_networks(networks: list[tuple[str, dict[str, Any]]]) -> list[Results]:
    """What each network does; ``fault`` where torch refuses it."""
    return [outcome(partial(try_network, name, options)) for name, options in networks]


def try_network(name: str, options: dict[str, Any]) -> Results:
    """Steps of a network in training and evaluation, with gradients, and a prediction."""
    network = build_network(name, channels=CHANNELS, labels=LABELS, width=8, depth=4, **options)
    with fake_gpu():
        network.to(device=GPU, memory_format=torch.channels_last)
        images = torch.zeros(2, CHANNELS, *ODD_SIZE, device=GPU)
        with Traffic() as traffic:
            modes = {mode: try_step(network.train(mode == "train")) for mode in ("train", "eval")}
            with torch.inference_mode(), casting(GPU, torch.bfloat16):
                modes["inference"] = {"logits": described(network(images.flip((-1,))))}
    return {"modes": modes, **copies(traffic)}


def try_step(network: torch.nn.Module) -> Results:
    """One step of a network in products of bfloat16, which leaves no gradients."""
    images = torch.zeros(2, CHANNELS, *ODD_SIZE, device=GPU).contiguous(memory_format=torch.channels_last)
    targets, valid = torch.zeros(2, LABELS, *ODD_SIZE, device=GPU), torch.ones(2, 1, *ODD_SIZE, device=GPU)
    with casting(GPU, torch.bfloat16):
        logits = network(images)
    losses = bce_dice_loss(logits, targets, valid)
    losses.loss.backward()
    gradients = {name: p.grad is not None and described(p.grad) for name, p in network.named_parameters()}
    shapes = {name: [*p.shape] for name, p in network.named_parameters()}
    network.zero_grad(set_to_none=True)
    parts = [described(part) for part in losses]
    return {"logits": described(logits), "losses": parts, "gradients": gradients, "shapes": shapes}


# Training -----------------------------------------------------------------------------------------------------------


def augment(changes: dict[str, float]) -> Results:
    """A batch brought to the GPU and augmented there as the recipe ``best`` says, but for some changes."""
    plan = dataclasses.replace(RECIPE.augmentation, **changes)
    with fake_gpu():
        collate = DeviceCollator(DeviceAugmenter(plan, PLAN.normalisation), PLAN.coding, GPU)
        images = torch.zeros(ROWS, CHANNELS, SIDE, SIDE, dtype=torch.float16)
        masks = torch.zeros(ROWS, SIDE, SIDE, dtype=torch.uint8)
        with Traffic() as traffic:
            batch = collate(StoredBatch(images, masks, tuple(Sample(i, (0, 0, i)) for i in range(ROWS))).pin_memory())
    parts = {name: described(getattr(batch, name)) for name in ("images", "targets", "valid")}
    return {**parts, "launches": sum(traffic.launches.values()), **copies(traffic)}


def train(_: None) -> Results:
    """A step of a training, and the launches of what it does besides forward and backward."""
    network = build_planned_network(PLAN)
    average = WeightAverage(network, RECIPE.average_decay)
    with fake_gpu():
        trainer = start_training(network, average)
        images, targets, valid = (torch.zeros(ROWS, n, SIDE, SIDE, device=GPU) for n in (CHANNELS, LABELS, 1))
        with Traffic() as step:
            losses = trainer.train_step(Batch(images, targets, tuple(range(ROWS)), valid))
        with Traffic() as remembering:
            remember_state(trainer.network, GPU)
        with Traffic() as averaging:
            trainer.average.update(trainer.network)
        moments = [described(state["exp_avg"])[:2] for state in trainer.optimiser.state.values()]
    parts = {"remember_state": remembering, "average": averaging}
    launches = {name: sum(traffic.launches.values()) for name, traffic in parts.items()}
    return {"losses": losses, "moments": moments, "launches": launches, **copies(step)}


def start_training(network: torch.nn.Module, average: WeightAverage) -> Trainer:
    """A trainer as `Trainer.build` leaves it, but for arrays and loaders."""
    trainer = Trainer(SETUP)
    trainer.network = trainer.parallel = network.to(device=GPU, memory_format=torch.channels_last).train()
    average.network.to(device=GPU, memory_format=torch.channels_last)
    trainer.average = average
    trainer.optimiser = trainer.make_optimiser()
    trainer.scaler = torch.amp.GradScaler(enabled=False)
    order = CaseOrder(
        [[row] for row in range(ROWS)], [True] * ROWS, batch_size=ROWS, most_steps=1, foreground_rows=0.0, seed=0
    )
    trainer.sampler = EpochSampler(order)
    return trainer


# Prediction ---------------------------------------------------------------------------------------------------------


def predict(_: None) -> Results:
    """What two networks say of a batch in four flips, with all that can be asked for."""
    networks = [build_planned_network(PLAN) for _ in range(2)]
    with fake_gpu():
        predictor = Predictor(PLAN, networks, GPU)
        predictor.ensemble.temperatures = (1.0, 1.3)
        inputs = torch.zeros(ROWS, CHANNELS, SIDE, SIDE)
        with Traffic() as traffic:
            said = predictor._predict(inputs, uncertainty=True, measure=True)
    parts = ("probabilities", "uncertainty", "statistics")
    rows = [{name: described(getattr(row, name)) for name in parts} for row in said]
    return {"passes": len(predictor.flips), "rows": rows, **copies(traffic)}


# Faults -------------------------------------------------------------------------------------------------------------


class AddsFromTheCpu(torch.nn.Module):
    """Adds a tensor that it keeps as a plain attribute, which `torch.nn.Module.to` leaves on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.ones(3)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.kept


class CopiesInBackward(torch.autograd.Function):
    """Passes numbers on; their gradient is multiplied by numbers from the CPU."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor) -> Tensor:
        return numbers * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.ones(3).to(GPU)


FAULTS: dict[str, Callable[[Tensor], object]] = {
    "mixed devices": lambda numbers: AddsFromTheCpu().to(GPU)(numbers),
    "a product of two types": lambda numbers: numbers.expand(3, 3) @ numbers.expand(3, 3).bfloat16(),
    "a layer of two types": lambda numbers: F.linear(numbers, numbers.expand(3, 3).bfloat16(), numbers),
    "a convolution of two types": lambda numbers: F.conv1d(numbers[None, None], numbers[None, None].half()),
    "rows of another type": lambda numbers: numbers.index_put_((numbers.long(),), numbers.half()),
    "random numbers of the CPU": lambda numbers: numbers.normal_(generator=torch.Generator()),
    "a result on the GPU as an array": lambda numbers: numbers.numpy(),
    "bfloat16 as an array": lambda numbers: numbers.bfloat16().cpu().numpy(),
    "pinned on the GPU": lambda numbers: numbers.pin_memory(),
    "as many as there are": lambda numbers: numbers[numbers > 0],
    "a list of indices": lambda numbers: numbers[[0, 2]],
    "a new tensor": lambda numbers: torch.tensor([1.0, 2.0], device=GPU),
    "a number made on the CPU": lambda numbers: torch.tensor(1.0).to(GPU),
    "memory that is not pinned": lambda numbers: torch.ones(3).to(GPU, non_blocking=True),
    "pinned memory": lambda numbers: torch.ones(3).pin_memory().to(GPU, non_blocking=True),
    "pinned memory that is waited for": lambda numbers: torch.ones(3).pin_memory().to(GPU),
    "a copy in the backward pass": lambda numbers: CopiesInBackward.apply(numbers.requires_grad_()).sum().backward(),
    "a number read": lambda numbers: float(numbers.sum()),
    "a question": lambda numbers: bool((numbers > 0).all()),
    "a result brought back": lambda numbers: numbers.cpu(),
    "a result of inference brought back": torch.inference_mode()(lambda numbers: numbers.to("cpu")),
    "a view": lambda numbers: numbers[1:].reshape(1, 2).expand(4, 2),
    "a number added": lambda numbers: numbers + torch.tensor(1.0),
    "made on the CPU": lambda numbers: torch.arange(3) * 2,
}


def commit_faults(_: None) -> dict[str, Results]:
    """What is said of each of `FAULTS`, and of what is none."""
    return {name: outcome(partial(counted, fault)) for name, fault in FAULTS.items()}


def counted(action: Callable[[Tensor], object]) -> Results:
    """How often an action on three numbers on the GPU copies, waits and launches."""
    with fake_gpu():
        numbers = torch.ones(3, device=GPU)
        with Traffic() as traffic:
            action(numbers)
    return {name: sum(getattr(traffic, name).values()) for name in (*COUNTED, "launches")}


WORK: dict[str, Callable[[Any], Any]] = {
    "networks": try_networks,
    "augmentation": augment,
    "training": train,
    "prediction": predict,
    "faults": commit_faults,
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    work = json.loads((folder / "work.json").read_text())
    results = [WORK[name](argument) for name, argument in work]
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
