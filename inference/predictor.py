"""The predictor: an ensemble of trained networks that turns images into masks."""

import itertools
import logging
import threading
from collections.abc import Generator, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from iaunet.device import Precision, choose_device
from iaunet.errors import FileError, PredictionError
from iaunet.exhaustion import MEMORY_FAULTS, is_out_of_memory
from iaunet.inference.best import find_chosen
from iaunet.inference.ensemble import FLIPS, Ensemble, mean_probabilities
from iaunet.inference.expected_dice import measure_rows
from iaunet.inference.lanes import NotEnoughMemory, in_lanes, lanes_of
from iaunet.inference.model_file import open_model
from iaunet.inference.mosaic import Assembly, Prediction, RowPrediction
from iaunet.inference.output import FolderOptions
from iaunet.inference.postprocessing import NO_CLEANING
from iaunet.inference.runs import Run, choose_folds, choose_runs
from iaunet.inference.tuning import Judge, NetworkName, Tuning
from iaunet.planners.familiar import Familiar, find_familiar
from iaunet.planners.plan import Plan, build_planned_network, with_thresholds
from iaunet.preprocessing.cases import prepare_case
from iaunet.records import to_json
from iaunet.stacks import Stack, read_stack, volume_labels
from iaunet.storage import digest
from iaunet.weights import load_weights
from iaunet.workspace import DatasetFolder

if TYPE_CHECKING:
    from iaunet.inference.outcomes import Outcome

Image = NDArray[np.generic] | str | PathLike[str]
"""Pixels, or the path of a file."""

logger = logging.getLogger(__name__)

BATCH_SIZES = {"cpu": 1, "cuda": 16, "mps": 8}
"""Rows that a network gets at once; on a CPU several such batches run side by side, see `iaunet.inference.lanes`."""


class Predictor:
    """Predicts with one network or the mean of several.

    Args:
        plan: What the networks were trained with.
        networks: At least one; put into evaluation mode and moved to ``device``.
        device: Where to run.
        mirroring: Average over the four flips; None for what the plan says.
        tuning: What was learnt of the networks out of fold; None for nothing.
        members: The name of each network, by which ``tuning`` knows it; None where they have none.
        familiar: What the training images are like: others are flagged; None where that is not known.
        precision: The type that products are taken in: None for float32 on CPUs, so that masks do not depend on the
            kind of CPU, and for 16 bits on GPUs. Probabilities are float32 in any case.

    Raises:
        ValueError: There is no network, or the members are not one a network.
    """

    def __init__(
        self,
        plan: Plan,
        networks: Sequence[nn.Module],
        device: torch.device,
        mirroring: bool | None = None,
        tuning: Tuning | None = None,
        members: Sequence[NetworkName] | None = None,
        familiar: Familiar | None = None,
        precision: Precision | None = None,
    ) -> None:
        self.tuning = tuning = tuning or Tuning()
        self.members = tuple([NetworkName()] * len(networks) if members is None else members)
        if len(self.members) != len(networks):
            raise ValueError(f"{len(self.members)} names for {len(networks)} networks")
        self.familiar = familiar
        post = tuning.postprocessing
        self.plan = plan if post is None else with_thresholds(plan, post.thresholds)
        cleaning = () if post is None else post.cleaning
        self.cleaning = cleaning if any(steps != NO_CLEANING for steps in cleaning) else ()
        self.device = device
        mirrors = plan.inference.mirroring if mirroring is None else mirroring
        self.judge: Judge | None = tuning.judge(self.members, mirrors)
        self.batch_size = BATCH_SIZES.get(device.type, 1)
        self._changing = threading.Lock()
        ensemble = Ensemble(networks, FLIPS if mirrors else FLIPS[:1], tuning.temperatures(self.members), precision)
        self.ensemble = _ready(ensemble, device)

    @property
    def flips(self) -> tuple[tuple[int, ...], ...]:
        """The axes of each pass of a network, see `iaunet.inference.ensemble.FLIPS`."""
        return self.ensemble.flips

    @property
    def lanes(self) -> int:
        """How many batches are run at once."""
        return lanes_of(torch.get_num_threads()) if self.device.type == "cpu" else 1

    @classmethod
    def from_dataset(
        cls,
        folder: DatasetFolder,
        runs: Sequence[str] | None = None,
        folds: Sequence[str] | None = None,
        device: str = "auto",
        mirroring: bool | None = None,
        trusted_network: str | None = None,
        postprocessing: bool = True,
        fast: bool = False,
        precision: Precision | None = None,
    ) -> "Predictor":
        """The ensemble of a dataset's runs, those that ``iaunet_find_best`` chose or the only one.

        Args:
            folder: The dataset's folder in the workspace, see `iaunet.workspace.find_dataset`.
            runs: Names of runs to take instead.
            folds: See `from_runs`.
            device: See `from_runs`.
            mirroring: See the class.
            trusted_network: See `from_runs`.
            postprocessing: Whether masks are postprocessed as ``iaunet_find_best`` chose.
            fast: Whether one network is enough, the first.
            precision: See the class.

        Raises:
            PredictionError: A run or fold is unknown or not finished, or there are several runs and none was chosen;
                and as `from_runs`.
        """
        chosen = find_chosen(folder)
        found = choose_runs(folder, [*runs] if runs else chosen.runs if chosen else None)
        tuning = chosen.tuning if chosen is not None and [run.name for run in found] == chosen.runs else Tuning()
        if not postprocessing:
            tuning = tuning.without_postprocessing(found[0].record.plan)
        if fast:
            found = found[:1]
            folds = (folds or [choose_folds(found[0], None)[0].fold])[:1]
        familiar = find_familiar(folder, found[0].record.plan)
        return cls.from_runs(found, folds, device, mirroring, trusted_network, tuning, familiar, precision)

    @classmethod
    def from_runs(
        cls,
        runs: Sequence[Run],
        folds: Sequence[str] | None = None,
        device: str = "auto",
        mirroring: bool | None = None,
        trusted_network: str | None = None,
        tuning: Tuning | None = None,
        familiar: Familiar | None = None,
        precision: Precision | None = None,
    ) -> "Predictor":
        """The ensemble of the finished folds of runs.

        Args:
            runs: Runs on the same arrays, one at least.
            folds: Their folds ("0", ..., or "all"); None for all that are finished.
            device: See `iaunet.device.choose_device`.
            mirroring: See the class.
            trusted_network: A stranger's network ``package.module:function`` whose code may be run.
            tuning: See the class.
            familiar: See the class.
            precision: See the class.

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
        networks, members = [], []
        for run in runs:
            for folder in choose_folds(run, list(folds) if folds else None):
                network = build_planned_network(run.record.plan)
                load_weights(folder.weights, network)
                networks.append(network)
                members.append(NetworkName(run=run.name, fold=folder.fold, weights_sha256=folder.weights_digest()))
        return cls(plan, networks, choose_device(device), mirroring, tuning, members, familiar, precision)

    @classmethod
    def from_model(
        cls,
        path: str | PathLike[str],
        device: str = "auto",
        mirroring: bool | None = None,
        trusted_network: str | None = None,
        postprocessing: bool = True,
        fast: bool = False,
        precision: Precision | None = None,
    ) -> "Predictor":
        """The ensemble of a model's file and what was learnt of it, see `iaunet.inference.model_file.open_model`.

        Args:
            path: What ``iaunet_export_model`` wrote.
            device: See `iaunet.device.choose_device`.
            mirroring: See the class.
            trusted_network: See `from_runs`.
            postprocessing: See `from_dataset`.
            fast: See `from_dataset`.
            precision: See the class.

        Raises:
            PredictionError: The file is none of ours, damaged or changed, or a network is a stranger's that is not
                trusted.
        """
        model = open_model(Path(path), trusted_network)
        if fast:
            model = model.first_only()
        tuning = model.tuning if postprocessing else model.tuning.without_postprocessing(model.plan)
        return cls(
            model.plan,
            model.networks,
            choose_device(device),
            mirroring,
            tuning,
            model.members,
            model.facts.familiar,
            precision,
        )

    @property
    def flags_digest(self) -> str:
        """What names all that the flags of a mask follow from: models of the Dice, and what images are familiar."""
        return digest([to_json(self.judge), to_json(self.familiar)])

    def describe(self) -> dict[str, Any]:
        """What masks depend on: networks by run, fold and hash of their weights, and the settings."""
        plan = self.plan
        return {
            "dataset": plan.dataset,
            "members": to_json(self.members),
            "mirroring": len(self.flips) > 1,
            "temperatures": list(self.ensemble.temperatures),
            "thresholds": list(plan.inference.thresholds),
            "cleaning": to_json(self.cleaning),
            "labels": dict(zip(plan.value_names, plan.coding.written, strict=True)),
            **({"precision": self.ensemble.precision} if self.ensemble.precision else {}),
        }

    @overload
    def predict(self, image: NDArray[np.generic] | str | PathLike[str]) -> NDArray[np.integer]: ...

    @overload
    def predict(self, image: list[Image]) -> list[NDArray[np.integer]]: ...

    def predict(self, image: Image | list[Image]) -> NDArray[np.integer] | list[NDArray[np.integer]]:
        """Predict one image, or several one after the other.

        Args:
            image: [H, W] grey or [H, W, C] colour, in the units of the training images (8-bit: 0 to 255); the path of
                a file that `iaunet_predict` reads; or a list of these.

        Returns:
            The mask with the values of the training masks, [H, W]; of a volume the voxels in the order of its file's
            axes as `iaunet.stacks.read_stack` turns them: inferior, posterior, left. For a list a mask each.

        Raises:
            ValueError: An array has other axes.
            FileError: An array's channels or type are not those of the training images.
            PredictionError: A file cannot be read, or does not fit likewise; the message names it.
        """
        if isinstance(image, list):
            return [self.predict(each) for each in image]
        if isinstance(image, np.ndarray):
            labels = self.predict_case(_to_stack(image)).labels
        else:
            labels = self._predict_file(Path(image)).labels
        of_volume = volume_labels(labels, self.plan.slicing) if len(labels) > 1 else labels[0]
        return self.plan.coding.decode(of_volume)

    def _predict_file(self, path: Path) -> Prediction:
        expected = self.plan.channel_files
        try:
            if expected:
                raise FileError(f"is one of {expected} channel files", "use predict_folder, or give an array [H, W, C]")
            return self.predict_case(read_stack([path], self.plan.slicing))
        except FileError as fault:
            raise PredictionError(f"{path} {fault.what}: {fault.mend}") from fault

    def predict_folder(
        self, inputs: str | PathLike[str], output: str | PathLike[str], options: FolderOptions | None = None
    ) -> "list[Outcome]":
        """Write a mask for every image of a folder, see `iaunet.inference.folder.predict_folder`."""
        from iaunet.inference.folder import predict_folder  # which needs this class

        return predict_folder(self, Path(inputs), Path(output), options or FolderOptions())

    def predict_case(
        self, stack: Stack, keep_probabilities: bool = False, keep_uncertainty: bool = False
    ) -> Prediction:
        """Predict a case as read from its files, see `iaunet.stacks.read_stack`.

        Raises:
            FileError: It does not fit the training images in channels or type.
        """
        case = prepare_case(stack, self.plan)
        assembly = Assembly(case, self.plan, keep_probabilities, self.cleaning, keep_uncertainty)
        rows = case.rows()
        batches = iter(lambda: list(itertools.islice(rows, self.batch_size)), [])
        for said in self.predict_batches(map(np.stack, batches), keep_uncertainty):
            for row in said:
                assembly.add(row)
        return assembly.prediction

    def expect_dice(self, prediction: Prediction) -> float | None:
        """The Dice that the mask of a prediction is expected to have, None where that was not learnt."""
        if self.judge is None or prediction.statistics is None:
            return None
        return self.judge.expect(prediction.statistics)

    def predict_inputs(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean probabilities of the ensemble.

        Args:
            inputs: [B, C, h, w], normalised.

        Returns:
            [B, L, h, w] float32 in [0, 1].

        Raises:
            PredictionError: Memory does not suffice for a single image even on the CPU.
        """
        batches = (inputs[at : at + self.batch_size] for at in range(0, len(inputs), self.batch_size))
        return np.stack([row.probabilities for said in self.predict_batches(batches) for row in said])

    def predict_batches(
        self, batches: Iterable[NDArray[np.float32]], uncertainty: bool = False, measure: bool = False
    ) -> Generator[list[RowPrediction], None, None]:
        """What the ensemble says of the rows of each batch, in order; a few batches are under way at a time.

        Args:
            batches: Each [B, C, h, w], normalised; taken from as the work goes on, in the calling thread.
            uncertainty: Whether to tell where networks and flips disagree.
            measure: Whether to tell the statistics of each network even if no expected Dice follows from them.

        Raises:
            PredictionError: Memory does not suffice for a single image even on the CPU.
        """
        return in_lanes(lambda batch: self.predict_batch(batch, uncertainty, measure), batches, self.lanes)

    def predict_batch(
        self, inputs: NDArray[np.float32], uncertainty: bool = False, measure: bool = False
    ) -> list[RowPrediction]:
        """What the ensemble says of the rows [B, C, h, w] of one batch, in this thread; see `predict_batches`.

        Raises:
            NotEnoughMemory: Memory does not suffice for a single image even on the CPU.
        """
        while True:
            rows = self.batch_size
            try:
                parts = torch.split(torch.from_numpy(inputs), rows)
                return [row for part in parts for row in self._predict(part, uncertainty, measure)]
            except MEMORY_FAULTS as fault:
                if not is_out_of_memory(fault):
                    raise
                with self._changing:
                    if rows == self.batch_size:  # else another lane has changed it
                        self._use_less_memory(fault)

    @torch.inference_mode()
    def _predict(self, inputs: torch.Tensor, uncertainty: bool, measure: bool) -> list[RowPrediction]:
        inputs = inputs.to(self.device).contiguous(memory_format=torch.channels_last)
        said: list[torch.Tensor] = []
        passes: list[torch.Tensor] = []
        measured: list[torch.Tensor] = []
        for member in self.ensemble.members(inputs):
            said.append(member.probabilities)
            if uncertainty:
                passes += member.passes
            if measure or self.judge is not None:
                levels = self.plan.inference.thresholds
                measured.append(measure_rows(member.probabilities, member.disagreement, levels))
        mean = mean_probabilities(said).cpu().contiguous().numpy()
        spread = torch.stack(passes).std(0, correction=0).amax(1).cpu().numpy() if passes else None
        statistics = torch.stack(measured, 1).cpu().numpy() if measured else None
        return [
            RowPrediction(
                probabilities,
                None if spread is None else spread[number],
                None if statistics is None else statistics[number],
            )
            for number, probabilities in enumerate(mean)
        ]

    def _use_less_memory(self, fault: BaseException) -> None:
        """Halve the batch; with one image a batch, go to the CPU."""
        if self.batch_size > 1:
            self.batch_size //= 2
            logger.warning("memory ran out on %s: going on with batches of %d", self.device, self.batch_size)
        elif self.device.type != "cpu":
            self.device = torch.device("cpu")
            self.ensemble = _ready(self.ensemble, self.device)
            logger.warning("memory ran out on the GPU with one image: going on on the CPU")
        else:
            raise NotEnoughMemory("not enough memory for one image: close other programs") from fault


def _ready(ensemble: Ensemble, device: torch.device) -> Ensemble:
    ensemble = ensemble.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ensemble.eval()


def _to_stack(image: NDArray[np.generic]) -> Stack:
    if image.ndim not in (2, 3):
        raise ValueError(f"an image is [H, W] or [H, W, C], not {image.shape}")
    pixels = image[None] if image.ndim == 2 else np.moveaxis(image, 2, 0)
    return Stack(pixels[:, None])
