"""The predictor: an ensemble of trained networks that turns images into masks."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from iaunet.device import autocasting, choose_device, is_out_of_memory
from iaunet.errors import PredictionError
from iaunet.inference.model_file import open_model
from iaunet.inference.mosaic import Assembly, Prediction
from iaunet.inference.postprocessing import NO_CLEANING, Postprocessing
from iaunet.inference.runs import Run, choose_folds
from iaunet.planners.plan import Plan, build_planned_network, with_thresholds
from iaunet.preprocessing.cases import prepare_case
from iaunet.stacks import Stack
from iaunet.weights import load_weights

logger = logging.getLogger(__name__)

BATCH_SIZES = {"cpu": 4, "cuda": 16, "mps": 8}
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""The axes flipped by mirroring: not at all, left-right, up-down, both."""


class Predictor:
    """Predicts with one network or the mean of several.

    Args:
        plan: What the networks were trained with.
        networks: At least one; put into evaluation mode and moved to ``device``.
        device: Where to run.
        mirroring: Average over the four flips; None for what the plan says.
        postprocessing: Thresholds to use instead of the plan's, and how masks are cleaned; None for nothing of it.

    Raises:
        ValueError: There is no network.
    """

    def __init__(
        self,
        plan: Plan,
        networks: Sequence[nn.Module],
        device: torch.device,
        mirroring: bool | None = None,
        postprocessing: Postprocessing | None = None,
    ) -> None:
        if not networks:
            raise ValueError("a predictor needs at least one network")
        self.plan = plan if postprocessing is None else with_thresholds(plan, postprocessing.thresholds)
        cleaning = () if postprocessing is None else postprocessing.cleaning
        self.cleaning = cleaning if any(steps != NO_CLEANING for steps in cleaning) else ()
        self.device = device
        self.flips = FLIPS if (plan.inference.mirroring if mirroring is None else mirroring) else FLIPS[:1]
        self.batch_size = BATCH_SIZES.get(device.type, 4)
        self.networks = [_ready(network, device) for network in networks]

    @classmethod
    def from_runs(
        cls,
        runs: Sequence[Run],
        folds: Sequence[str] | None = None,
        device: str = "auto",
        mirroring: bool | None = None,
        trusted_network: str | None = None,
        postprocessing: Postprocessing | None = None,
    ) -> "Predictor":
        """The ensemble of the finished folds of runs.

        Args:
            runs: Runs on the same arrays, one at least.
            folds: Their folds ("0", ..., or "all"); None for all that are finished.
            device: See `iaunet.device.choose_device`.
            mirroring: See the class.
            trusted_network: A stranger's network ``package.module:function`` whose code may be run.
            postprocessing: See the class.

        Raises:
            PredictionError: A fold is not finished, the runs do not take the same input, or a run's network is a
                stranger's that is not trusted.
        """
        plan = runs[0].record.plan
        for name in {run.record.plan.network.name for run in runs}:
            if ":" in name and name != trusted_network:
                raise PredictionError(
                    f"the run was trained with {name}, whose code would be run: give --network {name} if you trust it"
                )
        for run in runs[1:]:
            other = run.record.plan
            if other.arrays_digest != plan.arrays_digest:
                raise PredictionError(
                    f"{run.name} and {runs[0].name} were trained on other data or arrays: predict with one of them"
                )
            if (other.labels, other.inference) != (plan.labels, plan.inference):
                raise PredictionError(
                    f"{run.name} and {runs[0].name} differ in labels, thresholds or mirroring: predict with one"
                )
        networks = []
        for run in runs:
            for folder in choose_folds(run, list(folds) if folds else None):
                network = build_planned_network(run.record.plan)
                load_weights(folder.weights, network)
                networks.append(network)
        return cls(plan, networks, choose_device(device), mirroring, postprocessing)

    @classmethod
    def from_model(
        cls,
        path: Path,
        device: str = "auto",
        mirroring: bool | None = None,
        trusted_network: str | None = None,
    ) -> "Predictor":
        """The ensemble and postprocessing of a model's file, see `iaunet.inference.model_file.open_model`.

        Args:
            path: What ``iaunet_export_model`` wrote.
            device: See `iaunet.device.choose_device`.
            mirroring: See the class.
            trusted_network: See `from_runs`.

        Raises:
            PredictionError: The file is none of ours, damaged or changed, or a network is a stranger's that is not
                trusted.
        """
        model = open_model(path, trusted_network)
        return cls(model.plan, model.networks, choose_device(device), mirroring, model.postprocessing)

    def predict(self, image: NDArray[np.generic]) -> NDArray[np.generic]:
        """Predict one image.

        Args:
            image: [H, W] grey or [H, W, C] colour, in the units of the training images (8-bit: 0 to 255).

        Returns:
            The mask [H, W] with the values of the training masks.

        Raises:
            ValueError: The array has other axes.
            FileError: Its channels cannot be brought to those of the training images.
        """
        if image.ndim not in (2, 3):
            raise ValueError(f"an image is [H, W] or [H, W, C], not {image.shape}")
        pixels = image[None] if image.ndim == 2 else np.moveaxis(image, 2, 0)
        return self.plan.coding.decode(self.predict_case(Stack(pixels[:, None])).labels[0])

    def predict_case(self, stack: Stack, keep_probabilities: bool = False) -> Prediction:
        """Predict a case as read from its files, see `iaunet.stacks.read_stack`.

        Raises:
            FileError: It does not fit the training images in channels or type.
        """
        case = prepare_case(stack, self.plan)
        assembly = Assembly(case, self.plan, keep_probabilities, self.cleaning)
        rows = case.rows()
        while batch := list(itertools.islice(rows, self.batch_size)):
            for probabilities in self.predict_inputs(np.stack(batch)):
                assembly.add(probabilities)
        return assembly.prediction

    def predict_inputs(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean probabilities of the ensemble.

        Args:
            inputs: [B, C, h, w], normalised.

        Returns:
            [B, L, h, w] float32 in [0, 1].

        Raises:
            PredictionError: Memory does not suffice for a single image even on the CPU.
        """
        while True:
            try:
                parts = torch.split(torch.from_numpy(inputs), self.batch_size)
                return torch.cat([self._mean_probabilities(part) for part in parts]).numpy()
            except RuntimeError as fault:
                if not is_out_of_memory(fault):
                    raise
                self._use_less_memory(fault)

    @torch.inference_mode()
    def _mean_probabilities(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.to(self.device).contiguous(memory_format=torch.channels_last)
        total: torch.Tensor | float = 0.0
        for network in self.networks:
            for axes in self.flips:
                with autocasting(self.device):
                    logits = network(inputs.flip(axes) if axes else inputs)
                total = total + logits.float().sigmoid().flip(axes)
        mean = torch.as_tensor(total) / (len(self.networks) * len(self.flips))
        return mean.cpu().contiguous()

    def _use_less_memory(self, fault: RuntimeError) -> None:
        """Halve the batch; with one image a batch, go to the CPU."""
        if self.batch_size > 1:
            self.batch_size //= 2
            logger.warning("memory ran out on %s: going on with batches of %d", self.device, self.batch_size)
        elif self.device.type != "cpu":
            self.device = torch.device("cpu")
            self.networks = [_ready(network, self.device) for network in self.networks]
            logger.warning("memory ran out on the GPU with one image: going on on the CPU")
        else:
            raise PredictionError("not enough memory for one image: close other programs") from fault


def _ready(network: nn.Module, device: torch.device) -> nn.Module:
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()
