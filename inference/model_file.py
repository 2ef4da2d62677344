"""A model as one file: written from a dataset's runs, read with every check, and unpacked again."""

import contextlib
import hashlib
import io
import json
import re
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from iaunet.dataset import Dataset, Source
from iaunet.errors import IaunetError, PredictionError, WorkspaceError
from iaunet.inference.best import AGAIN as CHOOSE_AGAIN
from iaunet.inference.best import CROSSVAL, BestFolder, BestModel, Member, find_chosen
from iaunet.inference.familiar import FAMILIAR, find_familiar
from iaunet.inference.model_card import write_card
from iaunet.inference.model_manifest import (
    CARD,
    MANIFEST,
    MODEL_VERSION,
    SCORES,
    FileEntry,
    ModelData,
    ModelFacts,
    ModelManifest,
    ModelRun,
    ModelScoreFile,
    ModelScores,
    ScoreNote,
    TrainingFacts,
    weights_file,
)
from iaunet.inference.postprocessing import NO_CLEANING, Postprocessing
from iaunet.inference.runs import FoldFolder, Run, RunRecord, choose_folds, choose_runs
from iaunet.inference.tuning import NetworkName, Tuning
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.plan import Plan, build_planned_network, parse_plan, save_plan
from iaunet.records import FieldError, from_json, load_record, to_json
from iaunet.storage import file_digest, naming_disk_faults, read_json, replacing, sync_folder, write_bytes, write_json
from iaunet.workspace import DatasetFolder, Workspace, is_dataset_name, locked

if TYPE_CHECKING:
    import torch
    from torch import nn

MOST_FILES = 10_000
MOST_BYTES = 64 << 30
MOST_TEXT = 16 << 20
"""Bytes of a file that is not weights."""

MOST_NOTES = 100_000
"""Characters that the owner adds to the card."""

MOST_DIRECTORY = 2 << 20
"""Bytes of the list of files at a zip's end; a longer one is not even read."""

AGAIN = "copy it or export it again"
SCORE_AGAIN = "run iaunet_train with --val_only again"

WEIGHTS = ".safetensors"
NO_DATA = "not imported"
"""Stands for the raw data's folder where there is none."""

Record = TypeVar("Record")

_DATE = (1980, 1, 1, 0, 0, 0)
_STAGING = ".importing"
_SHOWN = 300


@dataclass(frozen=True, eq=False)
class Model:
    """A model as read from its file: all that a predictor needs.

    ``plans`` are by run. ``networks`` are those of ``members``, on the CPU. ``card`` is the text of the model card.
    """

    facts: ModelFacts
    plans: Mapping[str, Plan]
    members: tuple[NetworkName, ...]
    networks: tuple["nn.Module", ...]
    card: str

    @property
    def plan(self) -> Plan:
        """What the networks take and give: all runs of a model agree in that."""
        return self.plans[self.members[0].run]

    @property
    def tuning(self) -> Tuning:
        """What was learnt of it out of fold."""
        return self.facts.tuning

    def first_only(self) -> "Model":
        """The same with one network."""
        return replace(self, members=self.members[:1], networks=self.networks[:1])


def export_model(
    folder: DatasetFolder,
    path: Path,
    runs: list[str] | None = None,
    folds: list[str] | None = None,
    notes: str = "",
) -> ModelManifest:
    """Write a model into one file, the same bytes for the same model.

    It holds no images, no names of cases and no paths: plans, weights, postprocessing, scores over cases, and a card
    that tells people about the model.

    Args:
        folder: The dataset's folder in the workspace.
        path: The file to write, whole or not at all.
        runs: Names of runs; None for those of ``iaunet_find_best``, or the only one.
        folds: Their folds; None for all finished ones that held cases out.
        notes: What the owner says of the model in its card: licence, origin of the data, citation.

    Raises:
        PredictionError: A run or fold is unknown or unfinished, the runs do not take the same input, or the notes are
            too long.
        WorkspaceError: The disk is full or the file cannot be written.
    """
    if path.is_dir() or path.suffix.lower() != ".zip":
        raise PredictionError(f"{path} cannot be a model's file: give one whose name ends in .zip")
    if len(notes) > MOST_NOTES:
        raise PredictionError(f"notes of {len(notes)} characters do not fit a model card: give {MOST_NOTES} at most")
    try:
        manifest, files = _collect(folder, runs, folds, notes)
    except FieldError as fault:
        raise PredictionError(f"{folder.name} cannot be exported: {fault}") from fault
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _add(archive, MANIFEST, _as_bytes(manifest))
        for name, content in files.items():
            _add(archive, name, content)
    return manifest


def open_model(path: Path, trusted_network: str | None = None) -> Model:
    """Read a model from its file; nothing is written, and no code is run that the file brings or names.

    Args:
        path: What `export_model` wrote.
        trusted_network: A stranger's network ``package.module:function`` whose code may be run.

    Raises:
        PredictionError: The file is none of ours, damaged or changed, or a network is a stranger's that is not
            trusted.
    """
    with _opened(path) as archive:
        for plan in archive.plans.values():
            if is_strange(plan) and plan.network.name != trusted_network:
                raise PredictionError(
                    f"{path} was trained with {_one_line(plan.network.name)}, whose code would be run: "
                    "give its name with --network if you trust it"
                )
        archive.read_scores()
        members = archive.facts.members
        networks = tuple(map(archive.load_network, members))
        return Model(archive.facts, archive.plans, members, networks, archive.read(CARD).decode(errors="replace"))


def import_model(path: Path, workspace: Workspace, name: str | None = None) -> DatasetFolder:
    """Make a dataset of a model's file, to predict with; it has runs and scores but no cases.

    Args:
        path: What `export_model` wrote.
        workspace: Gets a new dataset, whole or not at all.
        name: The dataset's name, None for that of the data the model was trained on.

    Raises:
        PredictionError: The file is none of ours, damaged or changed.
        WorkspaceError: The name cannot be used or is taken, or the disk is full.
    """
    with _opened(path) as archive:
        folder = workspace.folder(_valid_name(name or archive.facts.dataset))
        archive.verify()
        _require_new(folder)
        with locked(workspace.root, "importing a model"), naming_disk_faults(folder.root):
            _require_new(folder)
            staging = workspace.root / _STAGING  # two levels deep, where no command looks for datasets
            shutil.rmtree(staging, ignore_errors=True)  # what a killed import left
            try:
                _unpack(archive, DatasetFolder(staging / folder.name), folder)
                (staging / folder.name).rename(folder.root)
                sync_folder(workspace.root)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return folder


def _collect(
    folder: DatasetFolder, wished_runs: list[str] | None, wished_folds: list[str] | None, notes: str
) -> tuple[ModelManifest, dict[str, bytes | Path]]:
    """The manifest, and what its files hold: bytes, or a file to copy."""
    choice = find_chosen(folder)
    runs = choose_runs(folder, wished_runs or (choice.runs if choice else None))
    chosen = choice.tuning if choice and [run.name for run in runs] == choice.runs else Tuning()
    plans = {run.name: run.record.plan for run in runs}
    _require_one_input(plans)
    folds = {run.name: _in_order(choose_folds(run, wished_folds)) for run in runs}
    described = tuple(_describe_run(run, folds[run.name]) for run in runs)
    best = _narrowed(BestFolder.of(folder).read()[0], described) if chosen.postprocessing else None
    scores = ModelScoreFile(scores=tuple(_scores(folder, runs, described, best)))
    plan = plans[runs[0].name]
    facts = ModelFacts(
        iaunet=version("iaunet"),
        dataset=plan.dataset,
        fingerprint=plan.fingerprint,
        runs=described,
        postprocessing=chosen.postprocessing,
        calibration=chosen.calibration,
        expected_dice=chosen.expected_dice,
        familiar=find_familiar(folder, plan),
        chosen=best,
        data=_data(folder, plan),
        scores=tuple(map(ScoreNote.about, scores.scores)),
    )
    texts = {
        CARD: write_card(facts, plans, scores.scores, notes).encode(),
        SCORES: _as_bytes(scores),
        **{run.plan: _as_bytes(plans[run.name]) for run in described},
    }
    weights = [fold.weights for of_run in folds.values() for fold in of_run]
    copied = {weights_file(member): file for member, file in zip(facts.members, weights, strict=True)}
    files: dict[str, bytes | Path] = {**texts, **copied}
    return ModelManifest(model=facts, files={name: _entry(content) for name, content in files.items()}), files


def _entry(content: bytes | Path) -> FileEntry:
    if isinstance(content, bytes):
        return FileEntry(size=len(content), sha256=_sha256(content))
    return FileEntry(size=content.stat().st_size, sha256=file_digest(content))


def _in_order(folds: Sequence[FoldFolder]) -> list[FoldFolder]:
    """In the order in which all of them would be averaged: sums of floats depend on it."""
    return sorted(folds, key=lambda folder: folder.root.name)


def _describe_run(run: Run, folds: Sequence[FoldFolder]) -> ModelRun:
    record = run.record
    training = TrainingFacts(**{field.name: getattr(record, field.name) for field in fields(TrainingFacts)})
    return ModelRun(name=run.name, training=training, folds={fold.fold: fold.weights_digest() for fold in folds})


def _require_one_input(plans: Mapping[str, Plan]) -> None:
    """Refuse runs that one predictor cannot average."""
    (first, plan), *others = plans.items()
    for name, other in others:
        if (other.arrays_digest, other.labels, other.inference) != (plan.arrays_digest, plan.labels, plan.inference):
            raise PredictionError(f"{name} and {first} differ in data, input, labels or thresholds: take one of them")


def _narrowed(best: BestModel, runs: Sequence[ModelRun]) -> BestModel:
    """A choice as if there were no other folds than these of its runs."""
    return replace(best, members=tuple(Member(run=run.name, weights_sha256=run.held_out_sha256) for run in runs))


def _scores(
    folder: DatasetFolder, runs: Sequence[Run], described: Sequence[ModelRun], best: BestModel | None
) -> Iterator[ModelScores]:
    """The scores of just these networks: of all together, else of each run, else of each fold."""
    chosen = BestFolder.of(folder)
    if best is not None and best == chosen.read()[0] and all(run.holds_all_out for run in described):
        path = chosen.root / CROSSVAL
        content = read_json(path, PredictionError, CHOOSE_AGAIN)
        if not isinstance(content, dict) or content.get("members") != to_json(best.members):
            raise PredictionError(f"{path} is of another choice than best.json: {CHOOSE_AGAIN}")
        yield from _read_scores(path, {"of": "model"}, CHOOSE_AGAIN)
    for run, of_run in zip(runs, described, strict=True):
        about = {"of": "run", "run": run.name}
        scores: list[ModelScores] = []
        if run.crossval_json.exists() and of_run.holds_all_out:
            scores = _read_scores(run.crossval_json, about, SCORE_AGAIN, of_run.held_out_sha256)
        for fold in () if scores else of_run.folds:
            scores += _read_scores(run.fold(fold).summary_json, {**about, "of": "fold", "fold": fold}, SCORE_AGAIN)
        yield from scores


def _read_scores(
    path: Path, about: dict[str, str], mend: str, weights: Sequence[str] | None = None
) -> list[ModelScores]:
    """The scores in a file, none where it holds none or is of other ``weights``."""
    content = read_json(path, PredictionError, mend)
    try:
        if content["scores"] is None or (weights is not None and content["weights_sha256"] != [*weights]):
            return []
        return [from_json(ModelScores, about | {name: content[name] for name in ("split", "inflated", "scores")})]
    except (FieldError, KeyError, TypeError) as fault:
        raise PredictionError(f"{path} holds no scores ({fault}): {mend}") from fault


def _data(folder: DatasetFolder, plan: Plan) -> ModelData | None:
    """The data in numbers, None where they are not known or have changed since."""
    try:
        found = load_record(Fingerprint, folder.fingerprint_json, WorkspaceError, "")
        groups = folder.load_dataset().groups
    except WorkspaceError:
        return None
    if found.digest != plan.fingerprint:
        return None
    (low, left), (high, right) = found.sizes.min(0).tolist(), found.sizes.max(0).tolist()
    return ModelData(
        n_cases=len(found.cases),
        n_groups=len({groups[case.name] for case in found.cases if case.name in groups}),
        smallest=(low, left),
        largest=(high, right),
        n_volumes=sum(case.shape[0] > 1 for case in found.cases),
        n_empty=found.empty_masks,
    )


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> None:
    """Add a file as it is: weights hardly shrink, and what is not packed cannot unpack to more than it says."""
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # the same on every system
    info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
    with (
        io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source,
        archive.open(info, "w") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)


def _as_bytes(record: object) -> bytes:
    return (json.dumps(to_json(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator["_Archive"]:
    with _naming_damage(path):
        if not path.is_file():  # a pipe or device would never end
            raise PredictionError(f"{path} is no file: give a model's file, of iaunet_export_model")
        file = path.open("rb")
    with file:
        with _naming_damage(path):
            archive = zipfile.ZipFile(_with_small_directory(file))
        with archive:
            yield _Archive(path, archive, file.seek(0, io.SEEK_END))


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Turn what comes of reading a damaged zip into one line."""
    try:
        yield
    except PermissionError as fault:
        raise PredictionError(f"{path} cannot be read ({fault.strerror}): mend its permissions") from fault
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,  # encrypted; RecursionError of JSON
        struct.error,
    ) as fault:
        raise PredictionError(f"{path} is no model's file or damaged ({_one_line(fault)}): {AGAIN}") from fault


def _with_small_directory(file: IO[bytes]) -> IO[bytes]:
    """Refuse a zip whose list of files is long, before `zipfile` reads all of it into memory.

    The list's length stands 10 bytes before the end, and of large files also in a record before that.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 98))
    end64, locator, end = (lambda tail: (tail[:56], tail[56:76], tail[76:]))(file.read().rjust(98, b"\0"))
    if not (end.startswith(b"PK\5\6") and end.endswith(b"\0\0")):
        raise zipfile.BadZipFile("it does not end as a zip file does")
    lengths = struct.unpack_from("<L", end, 12)
    if locator.startswith(b"PK\6\7"):
        lengths += struct.unpack_from("<Q", end64, 40)
    if max(lengths) > MOST_DIRECTORY:
        raise zipfile.BadZipFile(f"its list of files has {max(lengths)} bytes, {MOST_DIRECTORY} at most are read")
    return file


def _one_line(text: object) -> str:
    """What a stranger wrote, fit for a terminal."""
    shown = "".join(character if character.isprintable() else " " for character in str(text))
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


class _Archive:
    """A model's file that is open: its list of files agrees with its manifest, and its plans with each other."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.path = path
        self.archive = archive
        self.entries = self._check_entries(archive.infolist(), size)
        self.manifest = self._parse_manifest()
        self.facts = self.manifest.model
        self.plans = {run.name: self._parse(run.plan, self.read(run.plan), parse_plan) for run in self.facts.runs}
        with self._refusing(MANIFEST):
            _require_one_input(self.plans)
            _require_fitting(self.facts, self.plans[self.facts.runs[0].name])

    def read(self, name: str) -> bytes:
        """The bytes of a file, those that the manifest names."""
        data = self._bytes(name)
        if _sha256(data) != self.manifest.files[name].sha256:
            raise self._refusal(f"{name} is not the file that {MANIFEST} names, its hash differs")
        return data

    def read_scores(self) -> tuple[ModelScores, ...]:
        """The scores of the model, its runs and folds."""
        return self._parse(SCORES, self.read(SCORES), lambda data: from_json(ModelScoreFile, data)).scores

    def verify(self) -> None:
        """Read everything once; weights are tried, but for a stranger's network, whose code is not run."""
        self.read(CARD)
        self.read_scores()
        for member in self.facts.members:
            if is_strange(self.plans[member.run]):
                self.read(weights_file(member))
            else:
                self.load_network(member)

    def load_network(self, member: NetworkName) -> "nn.Module":
        """Build a network and fill it."""
        import torch

        plan = self.plans[member.run]
        state = self._tensors(member)
        if not is_strange(plan):  # compared before it takes memory: a plan may ask for any size
            with self._refusing(weights_file(member)), torch.device("meta"):
                shapes = build_planned_network(plan).state_dict()
            self._require_weights_of(shapes, state, member)
        network = build_planned_network(plan)
        self._require_weights_of(network.state_dict(), state, member)
        network.load_state_dict(state)
        return network

    def _require_weights_of(
        self, own: Mapping[str, "torch.Tensor"], state: Mapping[str, "torch.Tensor"], member: NetworkName
    ) -> None:
        wrong = _differences(own, state)
        if wrong:
            raise self._refusal(
                f"{weights_file(member)} holds weights of another network than the plan's "
                f"({len(wrong)} tensors differ, the first is {_one_line(wrong[0])})"
            )

    def _tensors(self, member: NetworkName) -> dict[str, "torch.Tensor"]:
        import safetensors.torch

        data = self.read(weights_file(member))
        try:
            return safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as fault:
            raise self._refusal(f"{weights_file(member)} is no safetensors file ({_one_line(fault)})") from fault

    def _check_entries(self, found: Sequence[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
        """The entries of the zip by name.

        Raises:
            PredictionError: There are too many or too large ones, or one that could lead out of a folder.
        """
        if len(found) > MOST_FILES:
            raise self._refusal(f"has {len(found)} files, {MOST_FILES} at most are read")
        entries = {info.orig_filename.casefold(): info for info in found}
        if len(entries) < len(found):
            raise self._refusal("has two files of one name")
        for info in found:
            name = info.orig_filename
            if name != info.filename or name.startswith("/") or re.search(r"[\\:\0]", name) or ".." in name.split("/"):
                raise self._refusal(f"has a file {_one_line(ascii(name))} that would lie outside of a folder")
            if info.is_dir() or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise self._refusal(f"has a link or folder {_one_line(ascii(name))} among its files")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise self._refusal(f"was packed by another program ({_one_line(ascii(name))} is compressed or locked)")
        total = sum(info.file_size for info in found)
        if total > min(size, MOST_BYTES):
            raise self._refusal(f"says that it holds {total} bytes, more than there are or more than can be read")
        return {info.filename: info for info in found}

    def _parse_manifest(self) -> ModelManifest:
        if MANIFEST not in self.entries:
            raise self._refusal(f"has no {MANIFEST}")
        data = self._bytes(MANIFEST)
        number = self._parse(MANIFEST, data, lambda content: content.get("version") if isinstance(content, dict) else 0)
        if isinstance(number, int) and number > MODEL_VERSION:  # it may have fields that are not known yet
            raise self._refusal(f"was written by a newer iaunet, in version {number} of its format", "install that")
        manifest = self._parse(MANIFEST, data, lambda content: from_json(ModelManifest, content))
        sizes = {name: info.file_size for name, info in self.entries.items() if name != MANIFEST}
        named = {name: entry.size for name, entry in manifest.files.items()}
        unlike = [name for name in sorted(sizes.keys() | named.keys()) if sizes.get(name) != named.get(name)]
        if unlike:
            raise self._refusal(
                f"{_one_line(ascii(unlike[0]))} is missing, added or of another size than {MANIFEST} says"
            )
        return manifest

    def _parse(self, name: str, data: bytes, parse: Callable[[Any], Record]) -> Record:
        with _naming_damage(self.path):
            content = json.loads(data)
        with self._refusing(name):
            return parse(content)

    def _bytes(self, name: str) -> bytes:
        info = self.entries[name]
        if not name.endswith(WEIGHTS) and info.file_size > MOST_TEXT:
            raise self._refusal(f"{name} has {info.file_size} bytes, {MOST_TEXT} at most are read")
        with _naming_damage(self.path), self.archive.open(info) as file:
            return file.read()  # never more than the entry's size, and checked against its checksum

    @contextlib.contextmanager
    def _refusing(self, name: str) -> Iterator[None]:
        """Turn what cannot be in a file into one line; torch says a size that cannot be by RuntimeError."""
        try:
            yield
        except (IaunetError, RuntimeError) as fault:
            raise self._refusal(f"{_one_line(name)}: {_one_line(fault)}") from fault

    def _refusal(self, problem: str, mend: str = AGAIN) -> PredictionError:
        return PredictionError(f"{self.path} {problem}: {mend}")


def is_strange(plan: Plan) -> bool:
    """Whether a plan's network is not one of ours."""
    return ":" in plan.network.name


def _require_fitting(facts: ModelFacts, plan: Plan) -> None:
    """Refuse what was learnt of another model than the plan's."""
    if facts.familiar is not None and facts.familiar.channels != plan.channels:
        raise PredictionError(f"familiar images have {facts.familiar.channels} channels, the plan's {plan.channels}")
    postprocessing = facts.postprocessing
    if postprocessing is None:
        return
    numbers = len(postprocessing.thresholds), len(postprocessing.cleaning)
    if numbers != (len(plan.labels), len(plan.coding.written)):
        raise PredictionError("postprocessing is for other labels than the plan's")


def _differences(own: Mapping[str, "torch.Tensor"], state: Mapping[str, "torch.Tensor"]) -> list[str]:
    """The names of tensors that are missing, added, or of another shape or type."""

    def kind(tensors: Mapping[str, "torch.Tensor"], name: str) -> object:
        return (tensors[name].shape, tensors[name].dtype) if name in tensors else None

    return sorted(name for name in own.keys() | state.keys() if kind(own, name) != kind(state, name))


def _valid_name(name: str) -> str:
    if not is_dataset_name(name):
        raise WorkspaceError(
            f"{_one_line(ascii(name))} cannot be a data set's name: "
            "give --dataset_name with letters, digits, '_', '-', '.', '+'"
        )
    return name


def _require_new(folder: DatasetFolder) -> None:
    if folder.root.exists():
        raise WorkspaceError(f"{folder.root} is there already: give the model another name with --dataset_name")


def _unpack(archive: _Archive, staged: DatasetFolder, folder: DatasetFolder) -> None:
    """Write a dataset's folder to ``staged`` that will lie at ``folder``."""
    facts = archive.facts
    plan = archive.plans[facts.runs[0].name]
    scores = {(each.of, each.run, each.fold): each for each in archive.read_scores()}
    save_plan(plan, staged.plan_json)
    for run in facts.runs:
        target = Run(staged.runs / run.name)
        training = {field.name: getattr(run.training, field.name) for field in fields(TrainingFacts)}
        target.write_record(RunRecord(plan=archive.plans[run.name], **training))
        for fold, sha256 in run.folds.items():
            member = NetworkName(run=run.name, fold=fold, weights_sha256=sha256)
            write_bytes(target.fold(fold).weights, archive.read(weights_file(member)))
            summary = {"weights_sha256": sha256, "run": run.name, "fold": fold}
            write_json(target.fold(fold).summary_json, summary | _scored(scores.get(("fold", run.name, fold)), run))
        if of_run := scores.get(("run", run.name, "")):
            crossval = {"run": run.name, "weights_sha256": run.held_out_sha256, **_scored(of_run, run)}
            write_json(target.crossval_json, crossval)
    if facts.familiar is not None:
        write_json(staged.root / FAMILIAR, to_json(facts.familiar))
    _unpack_choice(facts, plan, scores.get(("model", "", "")), staged, folder.name)
    dataset = Dataset(
        name=folder.name,
        source=Source(root=str(folder.root / NO_DATA)),
        understood="a model that was imported without the data it was trained on",
        labels=plan.labels,
        coding=plan.coding,
        cases=(),
        slicing=plan.slicing,
        channel_files=plan.channel_files,
    )
    write_json(staged.dataset_json, to_json(dataset))


def _scored(scores: ModelScores | None, run: ModelRun) -> dict[str, Any]:
    """Scores as the files of a run hold them."""
    if scores is None:
        return {"split": run.training.split, "inflated": "", "scores": None}
    return {"split": scores.split, "inflated": scores.inflated, "scores": to_json(scores.scores)}


def _unpack_choice(facts: ModelFacts, plan: Plan, scores: ModelScores | None, staged: DatasetFolder, name: str) -> None:
    """Make the model the dataset's best one, where that decides what is predicted with."""
    best = BestFolder.of(staged)
    if facts.chosen is not None and facts.postprocessing is not None:
        if scores is not None:
            members = {"members": to_json(facts.chosen.members)}
            write_json(best.root / CROSSVAL, _scored(scores, facts.runs[0]) | members)
        best.write(replace(facts.chosen, dataset=name), facts.tuning)
    elif len(facts.runs) > 1:
        together = BestModel(
            dataset=name,
            split=facts.runs[0].training.split,
            members=tuple(Member(run=run.name, weights_sha256=run.held_out_sha256) for run in facts.runs),
            candidates=(),
            why="these runs were exported together",
            postprocessing_why="none was exported",
        )
        cleaning = (NO_CLEANING,) * len(plan.coding.written)
        nothing = Postprocessing(thresholds=plan.inference.thresholds, cleaning=cleaning)
        best.write(together, Tuning(postprocessing=nothing))
