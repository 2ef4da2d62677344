"""All that the report of a dataset says, as one value; `iaunet.inference.report.gathering` fills it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from iaunet.inference.best import Candidate
from iaunet.inference.crossval import Summary
from iaunet.inference.report.runs import RunFacts
from iaunet.inference.scores import CaseScore, LabelScore, ScoreSummary
from iaunet.planners.plan import Plan

if TYPE_CHECKING:
    from iaunet.detection import DetectionSummary
    from iaunet.inference.calibration import Calibration
    from iaunet.inference.expected_dice import ExpectedDice
    from iaunet.inference.report.suspects import Suspect


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The data at a glance. Sizes are (height, width) in pixels.

    ``n_groups`` is 0 where groups are not known; ``group_sizes`` are their names and numbers of cases, the largest
    first. ``usual`` is the commonest of ``n_sizes`` sizes, that of ``n_usual`` cases. ``spacing_mm`` is the median
    distance of slices, rows and columns, None unless it is known of every case. ``foreground_share`` is the median
    over cases. ``n_copies`` and ``n_near`` count cases equal or nearly equal to another. ``ceiling`` is the median
    Dice of true masks taken to the network's size and back, None without foreground. ``understood`` says how the raw
    folder was read; it is empty in an anonymous report.
    """

    n_cases: int
    n_volumes: int
    n_slices: int
    n_empty: int
    n_groups: int
    groups_from: str
    group_sizes: tuple[tuple[str, int], ...]
    labels: tuple[str, ...]
    channels: int
    depth: str
    smallest: tuple[int, int]
    largest: tuple[int, int]
    usual: tuple[int, int]
    n_usual: int
    n_sizes: int
    spacing_mm: tuple[float, float, float] | None
    foreground_share: float
    n_copies: int
    n_near: int
    ceiling: float | None
    fingerprint: str
    understood: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the plan decided in one respect, in words, and why."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, kw_only=True)
class FoldSize:
    """One fold of a split: its cases, and the groups it holds out (0 where groups are not known)."""

    fold: int
    n_train: int
    n_held_out: int
    n_groups: int


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """A split; ``inflated`` is empty, or says why its scores are too good."""

    name: str
    inflated: str
    folds: tuple[FoldSize, ...]


@dataclass(frozen=True, kw_only=True)
class ChosenFacts:
    """What ``iaunet_find_best`` chose: the runs that predict together, of which candidates (best first), and why.

    ``masks`` says in words how their masks are postprocessed, ``masks_why`` why.
    """

    runs: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    why: str
    masks: str
    masks_why: str


@dataclass(frozen=True, kw_only=True)
class ScoredFacts:
    """The out-of-fold scores that the report is about.

    They are ``of`` the chosen model, each fold postprocessed as the other folds ask, or of one run, masks as they come.
    ``folds`` of the split's ``n_folds`` were scored. ``overall`` is the Dice of cases, the mean over labels.
    """

    of: Literal["model", "run"]
    title: str
    split: str
    inflated: str
    folds: tuple[int, ...]
    n_folds: int
    summary: ScoreSummary
    overall: Summary

    @property
    def is_complete(self) -> bool:
        """Whether every fold of the split was scored."""
        return len(self.folds) == self.n_folds


@dataclass(frozen=True, kw_only=True)
class LeakageFacts:
    """The same network and recipe trained on the random split and on the grouped one.

    Dice of each case, the mean over labels, over the cases that both held out; ``difference`` is random minus grouped,
    case by case: what the random split makes the score look better by. Intervals are over groups.
    """

    network: str
    recipe: str
    random_run: str
    grouped_run: str
    n_cases: int
    random: Summary
    grouped: Summary
    difference: Summary


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """One held-out case.

    ``labels`` are its scores by label, those that `ScoredFacts` sums up. ``shape`` is (slices, height, width), None of
    a case that the dataset has no more. ``group`` is empty where groups are not known, ``expected_dice`` None where
    there is none. ``of_runs`` is the Dice of each run that held it out, the mean over labels. ``suspect`` is empty, or
    says how its label is suspect.
    """

    name: str
    fold: int
    group: str
    shape: tuple[int, int, int] | None
    labels: Mapping[str, LabelScore]
    of_runs: Mapping[str, float]
    expected_dice: float | None = None
    flagged: bool = False
    suspect: str = ""

    @property
    def dice(self) -> float:
        """Its Dice, the mean over labels."""
        return CaseScore(name=self.name, labels=self.labels).dice


@dataclass(frozen=True, kw_only=True)
class HeldOutFacts:
    """The held-out test set: ``leakage`` is empty, or says why its scores are too good.

    ``summary`` is None until it was scored; ``n_times`` tells how often that was done, last with which ``model``, its
    runs. ``stale`` is empty, or says why that is not the present one. ``n_unscored`` cases could not be scored.
    """

    n_cases: int
    leakage: str
    summary: ScoreSummary | None = None
    n_times: int = 0
    model: str = ""
    stale: str = ""
    n_unscored: int = 0


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What the report cannot show, why, and the command that mends it (empty if none does)."""

    what: str
    why: str
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """Everything the report, its tables and methods.md say.

    In an anonymous report the names of cases and groups are replaced by numbers, and no path is in it. ``iaunet`` is
    the version that makes the report. ``runs`` are all runs, ``shown`` the one whose masks and logits are shown:
    detection is measured on its masks as they come. ``chosen`` is None where ``iaunet_find_best`` chose nothing, or of
    other weights than there are now. ``cases`` are in the order of the fold and the name. ``detection`` is by label.
    ``commands`` make all of it again, in their order.
    """

    dataset: str
    anonymous: bool
    iaunet: str
    data: DataFacts
    plan: Plan
    choices: tuple[Choice, ...]
    splits: tuple[SplitFacts, ...]
    missing_splits: Mapping[str, str]
    runs: tuple[RunFacts, ...]
    shown: RunFacts
    chosen: ChosenFacts | None
    scored: ScoredFacts
    leakage: tuple[LeakageFacts, ...]
    cases: tuple[CaseFacts, ...]
    detection: "Mapping[str, DetectionSummary]" = field(default_factory=dict)
    suspects: "tuple[Suspect, ...]" = ()
    calibration: "Calibration | None" = None
    expected_dice: "ExpectedDice | None" = None
    held_out: HeldOutFacts | None = None
    missing: tuple[Missing, ...] = ()
    commands: tuple[str, ...] = ()
