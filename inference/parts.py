"""Shares of one folder of predictions that several processes make at once: their locks, tables, and the whole table."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from iaunet.discovery import natural_order
from iaunet.engines.parts import Part
from iaunet.errors import PredictionError, WorkspaceError
from iaunet.inference.outcomes import Outcome, write_outcomes
from iaunet.inference.output import AUDIT, PARTS, RECORD, TABLE
from iaunet.records import FieldError, from_json, to_json
from iaunet.storage import read_json, remove_leftovers, write_json, writing_beside
from iaunet.workspace import locked

OUTCOMES = "outcomes.json"

SECONDS_TO_CLAIM = 120
"""How long a part waits for another that claims the folder or writes its table, which takes seconds at most."""

DOING = "predicting"
MEND = "run the command of its part again"


@dataclass(frozen=True)
class Share:
    """A part of the images of a folder, with a folder of its own below that of the masks.

    Args:
        output: The folder of the masks of all parts.
        part: Which of how many.
        key: Digest of what is predicted by what. The parts of another model, of other images or of another number lie
            apart, so that no table is put together from them; parts of two keys are not at work at once.
    """

    output: Path
    part: Part
    key: str

    @property
    def folder(self) -> Path:
        """Holds the part's lock, table, outcomes and audit file."""
        return self._folder_of(self.part.number)

    @contextlib.contextmanager
    def claimed(self, claim: Callable[[], None]) -> Iterator[None]:
        """Keep others from this part, and from predicting into the folder as a whole.

        What this part wrote before does not count any more, so that of parts that are made again at once only the last
        to end writes the whole table.

        Args:
            claim: Is called while no other part begins or ends.

        Raises:
            WorkspaceError: Another process makes this part, or one of another number, by another model or of other
                images, or predicts into the folder as a whole.
        """
        with contextlib.ExitStack() as stack:
            with locked(self.output, DOING, SECONDS_TO_CLAIM):
                _require_no_part(self.output, besides=self.folder.parent)
                stack.enter_context(locked(self.folder, f"{DOING} part {self.part}"))
                claim()
                _forget_parts(self.output, besides=self.folder.parent)
                (self.folder / OUTCOMES).unlink(missing_ok=True)
                remove_leftovers(self.folder)
            stack.enter_context(writing_beside(self.output / RECORD))  # masks lie beside it, not in this part's folder
            yield

    def write(self, outcomes: Sequence[Outcome], labels: Sequence[str]) -> None:
        """Write what came of the images of this part."""
        write_outcomes(self.folder / TABLE, outcomes, labels)
        write_json(self.folder / OUTCOMES, [to_json(outcome) for outcome in outcomes])

    def unite(self, labels: Sequence[str], folders: Iterable[Path]) -> bool:
        """Write the table of the whole folder, if all parts have written theirs.

        Args:
            labels: Of the networks' outputs.
            folders: Those that masks and what goes with them are written to; what killed processes left is removed.

        Returns:
            Whether they have.
        """
        with locked(self.output, DOING, SECONDS_TO_CLAIM):
            files = [self._folder_of(number) / OUTCOMES for number in range(1, self.part.count + 1)]
            if not all(file.exists() for file in files):
                return False
            outcomes = [outcome for file in files for outcome in _read_outcomes(file)]
            outcomes.sort(key=lambda outcome: natural_order(outcome.image))
            write_outcomes(self.output / TABLE, outcomes, labels)
            with contextlib.suppress(WorkspaceError):  # other parts are at work, whose files these may be
                _require_no_part(self.output)
                for folder in folders:
                    remove_leftovers(folder)
        return True

    def _folder_of(self, number: int) -> Path:
        return self.output / PARTS / f"{self.part.count}-{self.key[:12]}" / str(number)


@contextlib.contextmanager
def claimed_whole(output: Path, claim: Callable[[], None]) -> Iterator[None]:
    """Keep all others from predicting into a folder.

    Args:
        output: The folder of the masks.
        claim: Is called once they are.

    Raises:
        WorkspaceError: Another process predicts there, all images or a part of them.
    """
    with locked(output, DOING):
        _require_no_part(output)  # none begins from here on
        claim()
        _forget_parts(output)
        yield


def audit_files(output: Path) -> list[Path]:
    """The audit files of a folder of masks: that of the whole, and those of parts."""
    return [output / AUDIT, *sorted(output.glob(f"{PARTS}/*/*/{AUDIT}"))]


def _require_no_part(output: Path, besides: Path | None = None) -> None:
    for folder in output.glob(f"{PARTS}/*/*/"):
        if folder.parent != besides:
            with locked(folder, f"{DOING} a part"):
                pass


def _forget_parts(output: Path, besides: Path | None = None) -> None:
    """What others did does not count any more, since their masks are about to be replaced."""
    for file in output.glob(f"{PARTS}/*/*/{OUTCOMES}"):
        if file.parent.parent != besides:
            file.unlink(missing_ok=True)


def _read_outcomes(path: Path) -> list[Outcome]:
    values = read_json(path, PredictionError, MEND)
    if not isinstance(values, list):
        raise PredictionError(f"{path} holds no list of outcomes: {MEND}")
    try:
        return [from_json(Outcome, each) for each in values]
    except FieldError as fault:
        raise PredictionError(f"{path}: {fault}; {MEND}") from fault
