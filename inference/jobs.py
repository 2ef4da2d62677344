"""A folder predicted on an engine: each part of its images is a call in another process, with a model of its own."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iaunet.allocation import keep_freed_memory
from iaunet.device import Precision
from iaunet.discovery import natural_order
from iaunet.engines import Engine
from iaunet.engines.parts import Part
from iaunet.engines.tasks import Task
from iaunet.errors import IaunetError, PredictionError
from iaunet.inference.audit import audit_time
from iaunet.inference.folder import predict_folder
from iaunet.inference.outcomes import Outcome
from iaunet.inference.output import ENGINE, FolderOptions
from iaunet.inference.predictor import Predictor
from iaunet.workspace import DatasetFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which networks predict, and how: those of ``dataset`` or of the file ``model``; all else as in `Predictor`."""

    dataset: DatasetFolder | None = None
    model: Path | None = None
    runs: Sequence[str] | None = None
    folds: Sequence[str] | None = None
    device: str = "auto"
    mirroring: bool | None = None
    trusted_network: str | None = None
    postprocessing: bool = True
    fast: bool = False
    precision: Precision | None = None

    def load(self) -> Predictor:
        """The predictor.

        Raises:
            PredictionError: As `Predictor.from_dataset` and `Predictor.from_model`.
            ValueError: Neither a dataset nor a model's file is given.
        """
        how = self.device, self.mirroring, self.trusted_network, self.postprocessing, self.fast, self.precision
        if self.model is not None:
            return Predictor.from_model(self.model, *how)
        if self.dataset is None:
            raise ValueError("a predictor is of a dataset or of a model's file: give one")
        return Predictor.from_dataset(self.dataset, self.runs, self.folds, *how)


@dataclass(frozen=True, kw_only=True)
class PartJob:
    """A part of a folder to predict, see `predict_folder`; its paths are absolute."""

    choice: ModelChoice
    inputs: Path
    output: Path
    options: FolderOptions
    part: Part


def predict_part(job: PartJob) -> list[Outcome]:
    """What comes of the images of a part, predicted in this process."""
    keep_freed_memory()
    return predict_folder(job.choice.load(), job.inputs, job.output, job.options, job.part)


def predict_on_engine(
    engine: Engine, choice: ModelChoice, inputs: Path, output: Path, options: FolderOptions, n_parts: int
) -> list[Outcome]:
    """Write a mask for every image of a folder, its parts beside each other.

    A part whose process is killed is begun again, and goes on from the masks that this call made, and without
    ``overwrite`` from those that were there before. No picture goes through
    the engine: each process reads, computes and writes at the same time, a few batches ahead and behind its networks.

    Args:
        engine: Where the parts are predicted.
        choice: Which networks predict; their files lie on a disk that all machines share, as inputs and output do.
        inputs: See `predict_folder`.
        output: See `predict_folder`.
        options: See `predict_folder`.
        n_parts: How many parts there are, 1 at least; each loads the networks once.

    Returns:
        An outcome for each image, by name.

    Raises:
        PredictionError: Parts could not be predicted.
        EngineError: The engine cannot be reached.
    """
    inputs, output = inputs.resolve(), output.resolve()
    options = replace(options, made_since=audit_time() if options.overwrite else None)
    parts = [Part(number, n_parts) for number in range(1, n_parts + 1)]
    tasks = [
        Task(
            f"part {part}",
            PartJob(choice=choice, inputs=inputs, output=output, options=options, part=part),
            output / ENGINE / f"part_{part.number}_of_{part.count}.txt",
        )
        for part in parts
    ]
    outcomes: list[Outcome] = []
    faults: dict[str, IaunetError] = {}
    for task, result in engine.run(predict_part, tasks, choice.device != "cpu"):
        if isinstance(result, IaunetError):
            faults[task.name] = result
        else:
            outcomes += result
        logger.info("%s %s", task.name, f"failed: {result}" if task.name in faults else "is finished")
    if faults:
        name, fault = next(iter(faults.items()))
        raise PredictionError(
            f"{len(faults)} of {n_parts} parts could not be predicted, run the same command again; {name}: {fault}"
        )
    return sorted(outcomes, key=lambda outcome: natural_order(outcome.image))
