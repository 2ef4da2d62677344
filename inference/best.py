"""The best model of a dataset, as ``iaunet_find_best`` chose it: its runs and what was learnt of them."""

import csv
import io
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from iaunet.dataset import require_case_name
from iaunet.errors import PredictionError
from iaunet.inference.calibration import Calibration
from iaunet.inference.expected_dice import ExpectedDice
from iaunet.inference.postprocessing import Postprocessing
from iaunet.inference.runs import Run
from iaunet.inference.tuning import Tuning
from iaunet.records import load_record, to_json
from iaunet.storage import digest, read_text, write_json, write_text
from iaunet.workspace import DatasetFolder

logger = logging.getLogger(__name__)

FOLDER, BEST = "best", "best.json"
POSTPROCESSING, CALIBRATION, EXPECTED_DICE = "postprocessing.json", "calibration.json", "expected_dice.json"
CROSSVAL, SCORES, CASES = "crossval.json", "scores.csv", "cases.csv"

AGAIN = "run iaunet_find_best again"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A run of an ensemble, and the hashes of the weights of its folds that were compared."""

    run: str
    weights_sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        require_case_name(self.run, "run")


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
    """What was chosen of which candidates, best first, and why.

    ``tuning_sha256`` is the digest of what was learnt of it, in the file alone; files that were written before it was
    kept have none.
    """

    version: int = 1
    dataset: str
    split: str
    members: tuple[Member, ...]
    candidates: tuple[Candidate, ...]
    why: str
    postprocessing_why: str
    tuning_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """A case as it was predicted out of fold: its Dice, the mean over labels; the Dice that was expected, None where
    that was not learnt; and whether that is so low that an image would be flagged."""

    name: str
    fold: int
    group: str
    dice: float
    expected_dice: float | None
    flagged: bool

    @classmethod
    def of_table(cls, row: Mapping[str, str]) -> "CaseRow":
        """A row of the table.

        Raises:
            KeyError: A column is missing.
            ValueError: A number is none.
        """
        expected = row["expected_dice"]
        return cls(
            name=row["name"],
            fold=int(row["fold"]),
            group=row["group"],
            dice=float(row["dice"]),
            expected_dice=float(expected) if expected else None,
            flagged=row["flagged"] == "1",
        )


def write_case_table(path: Path, rows: Iterable[CaseRow]) -> None:
    """Write cases as CSV, one a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(CaseRow)])
    for row in rows:
        expected = "" if row.expected_dice is None else f"{row.expected_dice:.6f}"
        writer.writerow([row.name, row.fold, row.group, f"{row.dice:.6f}", expected, int(row.flagged)])
    write_text(path, text.getvalue())


@dataclass(frozen=True)
class BestFolder:
    """Where the best model's files lie: the choice (``best.json``), what was learnt of it (``postprocessing.json``,
    ``calibration.json``, ``expected_dice.json``), and how it did out of fold (``crossval.json``, ``scores.csv``,
    ``cases.csv``)."""

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

    def write(self, model: BestModel, tuning: Tuning) -> None:
        """Keep a choice; ``best.json`` is written last and makes the others count."""
        parts = {
            POSTPROCESSING: tuning.postprocessing,
            CALIBRATION: tuning.calibration,
            EXPECTED_DICE: tuning.expected_dice,
        }
        for name, part in parts.items():
            if part is None:
                (self.root / name).unlink(missing_ok=True)
            else:
                write_json(self.root / name, to_json(part))
        write_json(self.root / BEST, to_json(replace(model, tuning_sha256=digest(to_json(tuning)))))

    def read(self) -> tuple[BestModel, Tuning]:
        """The choice, and what was learnt of it.

        Raises:
            PredictionError: A file is missing, holds something else, or is not of this choice.
        """
        model = load_record(BestModel, self.root / BEST, PredictionError, AGAIN)
        postprocessing = load_record(Postprocessing, self.root / POSTPROCESSING, PredictionError, AGAIN)
        tuning = Tuning(
            postprocessing=postprocessing,
            calibration=self.read_calibration(),
            expected_dice=self.read_expected_dice(),
        )
        if model.tuning_sha256 not in ("", digest(to_json(tuning))):
            parts = ", ".join((POSTPROCESSING, CALIBRATION, EXPECTED_DICE))
            raise PredictionError(f"one of {parts} in {self.root} has changed since the choice was made: {AGAIN}")
        return replace(model, tuning_sha256=""), tuning

    def read_calibration(self) -> Calibration | None:
        """The calibration, None where a choice was made without."""
        path = self.root / CALIBRATION
        return load_record(Calibration, path, PredictionError, AGAIN) if path.exists() else None

    def read_expected_dice(self) -> ExpectedDice | None:
        """The models of the Dice, None where a choice was made without."""
        path = self.root / EXPECTED_DICE
        return load_record(ExpectedDice, path, PredictionError, AGAIN) if path.exists() else None

    def read_cases(self) -> list[CaseRow]:
        """What came of each case out of fold; empty where a choice was made without.

        Raises:
            PredictionError: The table holds something else.
        """
        path = self.root / CASES
        if not path.exists():
            return []
        table = csv.DictReader(io.StringIO(read_text(path, PredictionError, AGAIN), newline=""))
        try:
            return [CaseRow.of_table(row) for row in table]
        except (KeyError, TypeError, ValueError, csv.Error) as fault:
            raise PredictionError(f"{path} holds no case in line {table.line_num}: {AGAIN}") from fault


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The names of the runs that ``iaunet_find_best`` chose, and what it learnt of them."""

    runs: list[str]
    tuning: Tuning


def find_chosen(dataset: DatasetFolder) -> Chosen | None:
    """What ``iaunet_find_best`` chose for a dataset.

    Returns:
        None where nothing was chosen, or the choice was of other weights than there are now; that is told.

    Raises:
        PredictionError: The files of the choice are damaged.
    """
    folder = BestFolder.of(dataset)
    if not folder.exists:
        if (folder.root / SCORES).exists():
            logger.warning("warning    a choice of iaunet_find_best was not finished: %s", AGAIN)
        return None
    model, tuning = folder.read()
    for member in model.members:
        run = Run(dataset.runs / member.run)
        found = tuple(fold.weights_digest() for fold in run.trained_folds())
        if found != member.weights_sha256:
            logger.warning(
                "warning    the choice of iaunet_find_best was of other weights of %s: %s", member.run, AGAIN
            )
            return None
    return Chosen(runs=[member.run for member in model.members], tuning=tuning)
