"""What a model's file says of itself: its runs, the data and the scores behind them, and every file with its hash."""

import re
from dataclasses import dataclass
from typing import Literal
from unicodedata import normalize

from iaunet.inference.best import BestModel, Member
from iaunet.inference.calibration import Calibration
from iaunet.inference.expected_dice import ExpectedDice
from iaunet.inference.postprocessing import Postprocessing
from iaunet.inference.runs import Precision
from iaunet.inference.scores import ScoreSummary
from iaunet.inference.tuning import NetworkName, Tuning
from iaunet.metrics import METRICS
from iaunet.planners.familiar import Familiar
from iaunet.records import require

MANIFEST, CARD, SCORES = "model.json", "README.md", "crossval.json"
MODEL_VERSION = 1

ScoresOf = Literal["model", "run", "fold"]


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """How a run was trained, as far as its plan does not say; see `iaunet.inference.runs.RunRecord`."""

    split: str
    split_digest: str
    seed: int
    micro_batch: int
    device: str
    precision: Precision | None = None
    threads: int
    versions: dict[str, str]
    hours: float | None
    epochs: int | None
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """A run of the model: its name, how it was trained, and the hash of the weights of each of its folds."""

    name: str
    training: TrainingFacts
    folds: dict[str, str]

    def __post_init__(self) -> None:
        fits = re.fullmatch(r"[^./\\:*?\"<>|\x00-\x1f][^/\\:*?\"<>|\x00-\x1f]{0,149}", self.name)
        is_name = fits is not None and self.name[-1] not in ". "
        require(is_name, "name", self.name, "up to 150 letters, digits, '-', '_', '.'")
        are_folds = all(re.fullmatch(r"[0-9]{1,4}|all", fold) for fold in self.folds)
        require(bool(self.folds) and are_folds, "folds", [*self.folds], "numbers of folds, or all")

    @property
    def plan(self) -> str:
        """The file of its plan."""
        return f"plan_{self.name}.json"

    @property
    def holds_all_out(self) -> bool:
        """Whether each fold held cases out."""
        return all(map(str.isdecimal, self.folds))

    @property
    def held_out_sha256(self) -> tuple[str, ...]:
        """The hashes of the weights of the folds that held cases out, in the order of their numbers."""
        return tuple(self.folds[fold] for fold in sorted((f for f in self.folds if f.isdecimal()), key=int))


def same_on_disk(name: str) -> str:
    """The same text for names that one folder cannot hold both on every system: for capitals, and for characters that
    are composed in several ways."""
    return normalize("NFC", normalize("NFC", name).casefold())


def weights_file(member: NetworkName) -> str:
    """The file of a network's weights."""
    return f"{member.run}/fold_{member.fold}.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelData:
    """The data a model was trained on, in numbers. Sizes are (height, width) in pixels; ``n_groups`` is 0 where groups
    are not known; ``n_empty`` counts cases without foreground."""

    n_cases: int
    n_groups: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    n_volumes: int
    n_empty: int


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """Scores on cases that the networks did not see.

    They are ``of`` the model as a whole, postprocessed; of one ``run`` over its folds, or of one ``fold`` of it, as
    masks come from the networks. ``inflated`` is empty, or says why they are too good.
    """

    of: ScoresOf
    run: str = ""
    fold: str = ""
    split: str
    inflated: str
    scores: ScoreSummary

    def __post_init__(self) -> None:
        for label, summary in self.scores.labels.items():
            found = [*(summary.all_cases.keys() & summary.with_truth.keys())]
            require({*METRICS} <= {*found}, f"scores of {label}", found, f"all of {', '.join(METRICS)}")


@dataclass(frozen=True, kw_only=True)
class ModelScoreFile:
    """What crossval.json of a model holds."""

    scores: tuple[ModelScores, ...]


@dataclass(frozen=True, kw_only=True)
class ScoreNote:
    """What `ModelScores` are about, and the mean Dice of each label."""

    of: ScoresOf
    run: str
    fold: str
    split: str
    inflated: str
    n_cases: int
    dice: dict[str, float]

    @classmethod
    def about(cls, scores: ModelScores) -> "ScoreNote":
        """The note on some scores."""
        labels = scores.scores.labels
        return cls(
            of=scores.of,
            run=scores.run,
            fold=scores.fold,
            split=scores.split,
            inflated=scores.inflated,
            n_cases=scores.scores.n_cases,
            dice={label: summary.all_cases["dice"].mean for label, summary in labels.items()},
        )


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What there is to know about a model.

    ``iaunet`` is the version that wrote it, ``dataset`` and ``fingerprint`` name the data it was trained on.
    ``chosen`` tells why ``iaunet_find_best`` chose its runs and postprocessing, None where it did not;
    ``calibration`` and ``expected_dice`` are what it learnt besides, ``familiar`` what images of the data are like.
    ``data`` is None where the data are not known any more. ``scores`` are those in crossval.json.
    """

    iaunet: str
    dataset: str
    fingerprint: str
    runs: tuple[ModelRun, ...]
    postprocessing: Postprocessing | None
    calibration: Calibration | None = None
    expected_dice: ExpectedDice | None = None
    familiar: Familiar | None = None
    chosen: BestModel | None
    data: ModelData | None
    scores: tuple[ScoreNote, ...]

    def __post_init__(self) -> None:
        names = [same_on_disk(run.name) for run in self.runs]
        require(0 < len({*names}) == len(names), "runs", names, "runs whose names differ by more than capitals")
        if self.chosen is not None:
            members = tuple(Member(run=run.name, weights_sha256=run.held_out_sha256) for run in self.runs)
            require(self.chosen.members == members, "chosen.members", "not the model's", "the model's runs and weights")
        both = (self.chosen is None) == (self.postprocessing is None)
        require(both, "postprocessing", self.postprocessing, "it together with the reason for it, chosen")

    @property
    def tuning(self) -> Tuning:
        """What is used when images are predicted."""
        return Tuning(
            postprocessing=self.postprocessing, calibration=self.calibration, expected_dice=self.expected_dice
        )

    @property
    def members(self) -> tuple[NetworkName, ...]:
        """The networks, in the order in which they are averaged."""
        return tuple(
            NetworkName(run=run.name, fold=fold, weights_sha256=sha256)
            for run in self.runs
            for fold, sha256 in run.folds.items()
        )


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the model: its size in bytes and its hash."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ModelManifest:
    """What a model's model.json holds: what there is to know about it, and all of its other files by name."""

    version: int = MODEL_VERSION
    model: ModelFacts
    files: dict[str, FileEntry]

    def __post_init__(self) -> None:
        weights = {weights_file(member): member.weights_sha256 for member in self.model.members}
        expected = {CARD, SCORES, *(run.plan for run in self.model.runs), *weights}
        unlike = sorted(expected ^ self.files.keys())
        require(not unlike, "files", unlike[:3], "those of the model's runs and folds, no more and no fewer")
        wrong = [name for name, sha256 in weights.items() if self.files[name].sha256 != sha256]
        require(not wrong, "files", wrong[:3], "the weights that the model's folds name")
