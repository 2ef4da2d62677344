"""The best model of a dataset, as ``iaunet_find_best`` chose it: its runs and how their masks are postprocessed."""

import logging
from dataclasses import dataclass
from pathlib import Path

from iaunet.errors import PredictionError
from iaunet.inference.postprocessing import Postprocessing
from iaunet.inference.runs import Run
from iaunet.records import load_record, to_json
from iaunet.storage import write_json
from iaunet.workspace import DatasetFolder

logger = logging.getLogger(__name__)

FOLDER, BEST, POSTPROCESSING, CROSSVAL, SCORES = (
    "best",
    "best.json",
    "postprocessing.json",
    "crossval.json",
    "scores.csv",
)

AGAIN = "run iaunet_find_best again"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A run of an ensemble, and the hashes of the weights of its folds that were compared."""

    run: str
    weights_sha256: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Runs that predict together, and how they did on the cases they held out.

    ``dice`` is the mean over cases, of each the mean over labels; ``low`` and ``high`` are the ends of its 95 %
    interval over groups, None below two groups.
    """

    runs: tuple[str, ...]
    dice: float
    low: float | None
    high: float | None

    @property
    def title(self) -> str:
        """Its runs in one line."""
        return " + ".join(self.runs)


@dataclass(frozen=True, kw_only=True)
class BestModel:
    """What was chosen of which candidates, best first, and why."""

    version: int = 1
    dataset: str
    split: str
    members: tuple[Member, ...]
    candidates: tuple[Candidate, ...]
    why: str
    postprocessing_why: str


@dataclass(frozen=True)
class BestFolder:
    """Where the best model's files lie."""

    root: Path

    @classmethod
    def of(cls, dataset: DatasetFolder) -> "BestFolder":
        """That of a dataset."""
        return cls(dataset.root / FOLDER)

    @property
    def exists(self) -> bool:
        """Whether a best model was chosen."""
        return (self.root / BEST).exists()

    def forget(self) -> None:
        """Take an earlier choice back, before anything of a new one is written: until `write` there is none."""
        (self.root / BEST).unlink(missing_ok=True)

    def write(self, model: BestModel, postprocessing: Postprocessing) -> None:
        """Keep a choice; ``best.json`` is written last and makes the others count."""
        write_json(self.root / POSTPROCESSING, to_json(postprocessing))
        write_json(self.root / BEST, to_json(model))

    def read(self) -> tuple[BestModel, Postprocessing]:
        """The choice.

        Raises:
            PredictionError: A file is missing or holds something else.
        """
        model = load_record(BestModel, self.root / BEST, PredictionError, AGAIN)
        return model, load_record(Postprocessing, self.root / POSTPROCESSING, PredictionError, AGAIN)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The names of the runs that ``iaunet_find_best`` chose, and how their masks are postprocessed."""

    runs: list[str]
    postprocessing: Postprocessing


def find_chosen(dataset: DatasetFolder) -> Chosen | None:
    """What ``iaunet_find_best`` chose for a dataset.

    Returns:
        None where nothing was chosen, or the choice was of other weights than there are now; that is told.

    Raises:
        PredictionError: The files of the choice are damaged.
    """
    folder = BestFolder.of(dataset)
    if not folder.exists:
        return None
    model, postprocessing = folder.read()
    for member in model.members:
        run = Run(dataset.runs / member.run)
        found = tuple(fold.weights_digest() for fold in run.trained_folds())
        if found != member.weights_sha256:
            logger.warning(
                "warning    the choice of iaunet_find_best was of other weights of %s: %s", member.run, AGAIN
            )
            return None
    return Chosen(runs=[member.run for member in model.members], postprocessing=postprocessing)
