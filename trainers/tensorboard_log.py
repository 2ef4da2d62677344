"""The numbers of each epoch as TensorBoard shows them; needs the extra ``tensorboard``."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from iaunet.storage import naming_disk_faults

STEP = "epoch"


class TensorBoardLog:
    """Scalars by epoch, one of each column that has a value.

    Args:
        path: The folder of its event files; one is added to those of earlier starts.
        epochs: Epochs that a resumed training has behind it: TensorBoard leaves out later ones of earlier starts.

    Raises:
        WorkspaceError: The folder cannot be written.
    """

    def __init__(self, path: Path, epochs: int) -> None:
        self._path = path
        with naming_disk_faults(path):
            self._writer = SummaryWriter(str(path), purge_step=epochs + 1)

    def add(self, row: Mapping[str, float]) -> None:
        """Append an epoch's numbers; they are on disk when this returns."""
        with naming_disk_faults(self._path):
            for name, value in row.items():
                if name != STEP and not math.isnan(value):
                    self._writer.add_scalar(name, value, int(row[STEP]))
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
