"""The out-of-fold masks of a run beside the true ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from iaunet.errors import FileError, PredictionError
from iaunet.files import read_mask
from iaunet.inference.report.runs import RunFacts
from iaunet.inference.runs import Run
from iaunet.preprocessing.arrays import Arrays

SCORE_AGAIN = "run iaunet_train with --val_only for this fold"


@dataclass(frozen=True, eq=False)
class HeldOutMasks:
    """The masks of the cases that the folds of a run held out, at native size, as they came from the networks.

    ``folder`` is the run's; ``arrays`` hold the true masks.
    """

    folder: Path
    run: RunFacts
    arrays: Arrays

    def prediction(self, name: str) -> NDArray[np.uint8]:
        """The predicted labels [slices, H, W] of a case.

        Raises:
            PredictionError: The mask is missing, damaged or of another image.
        """
        path = Run(self.folder).fold(str(self.run.fold_of[name])).validation / f"{name}.png"
        shape = self.arrays.cases[name].shape
        try:
            labels = self.run.plan.coding.of_written.encode(read_mask(path))
        except FileError as fault:
            raise PredictionError(f"{path}: {fault.what}: {SCORE_AGAIN}") from fault
        if labels.shape != (shape[0] * shape[1], shape[2]):
            raise PredictionError(f"{path} is not as large as the image: {SCORE_AGAIN}")
        return labels.reshape(shape)

    def truth(self, name: str) -> NDArray[np.uint8]:
        """The true labels [slices, H, W] of a case.

        Raises:
            PreprocessingError: They are missing or damaged.
        """
        return self.arrays.truth(name)

    def pairs(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """The predicted and the true labels of every held-out case."""
        for name in self.run.fold_of:
            yield self.prediction(name), self.truth(name)
