"""Masks for a folder of images: names, files, what was done before, and a table of what came of each."""

import contextlib
import errno
import itertools
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from iaunet.discovery import natural_order, require_text
from iaunet.engines.parts import Part
from iaunet.errors import DatasetError, FileError, IaunetError, PredictionError
from iaunet.inference.audit import AuditLine, AuditLog, AuditSettings, appending, audit_line, audit_time, read_audit
from iaunet.inference.inputs import InputCase, channel_of, group_channels, list_inputs, mask_names, text
from iaunet.inference.mask_files import MaskFiles
from iaunet.inference.mosaic import Prediction
from iaunet.inference.outcomes import Outcome, write_outcomes
from iaunet.inference.output import AUDIT, RECORD, TABLE, FolderOptions
from iaunet.inference.parts import Share, audit_files, claimed_whole
from iaunet.inference.predictor import Predictor
from iaunet.inference.settling import Settler
from iaunet.inference.stream import predict_stream
from iaunet.masks import mask_ending
from iaunet.planners.plan import Plan
from iaunet.preprocessing.cases import CaseInput, prepare_case
from iaunet.stacks import Spacing, Stack, hash_files, read_stack
from iaunet.storage import digest, file_digest, is_there, read_json, remove_leftovers, write_json

logger = logging.getLogger(__name__)

CHANGED = "changed since it was predicted"
EARLIER = "; its mask there is of an earlier call"


def predict_folder(
    predictor: Predictor,
    inputs: Path,
    output: Path,
    options: FolderOptions,
    part: Part | None = None,
) -> list[Outcome]:
    """Write a mask for every image of a folder.

    Args:
        predictor: Predicts; masks that the same model made are kept.
        inputs: A folder of images, searched to its depth, or one image.
        output: Gets a mask for each, see `iaunet.masks.mask_ending`, predictions.csv, predictions.json and audit.jsonl.
        options: What else to write.
        part: Of the images, whose masks alone are made; other processes may make the other parts at the same time. The
            table of each part lies in a folder of its own, until the last to end writes that of all images.

    Returns:
        An outcome for each image, by name. An image that cannot be read fails; the rest goes on.

    Raises:
        PredictionError: There is nothing to predict, or the output folder holds other masks.
        WorkspaceError: The output folder cannot be written, or another process is writing there.
    """
    found = list_inputs(inputs, output)
    for line in found.left_out:
        logger.info("note       %s", line)
    cases = group_channels(found.root, found.images, predictor.plan.channel_files)
    return predict_cases(predictor, cases, output, options, part)


def predict_cases(
    predictor: Predictor,
    cases: Sequence[InputCase],
    output: Path,
    options: FolderOptions,
    part: Part | None = None,
) -> list[Outcome]:
    """Write a mask for each of some images, see `predict_folder`."""
    if options.uncertainty and len(predictor.members) * len(predictor.flips) < 2:
        raise PredictionError("one network without mirroring cannot disagree: leave out --uncertainty, or use more")
    names = mask_names(cases, [mask_ending(case.files[0], predictor.plan.slicing) for case in cases])
    model = predictor.describe()
    files = MaskFiles(output, dict(zip(cases, names, strict=True)), predictor.plan, options, digest(model))
    claim = partial(_claim, output, model, names, options.overwrite)
    labels = predictor.plan.labels
    files.require_own_folders()
    if part is None:
        with claimed_whole(output, claim), appending(output / AUDIT) as audit:
            work = _Work(predictor, files, audit)
            for folder in files.folders:
                remove_leftovers(folder)
            outcomes = _predict_own(work, cases)
            write_outcomes(output / TABLE, outcomes, labels)
        return outcomes
    images = [[case.name, *map(_version_of, case.files)] for case in cases]
    share = Share(output, part, digest([model, predictor.flags_digest, names, images]))
    with share.claimed(claim), appending(share.folder / AUDIT) as audit:
        work = _Work(predictor, files, audit)
        outcomes = _predict_own(work, part.of(cases))
        share.write(outcomes, labels)
    if share.unite(labels, files.folders):
        logger.info("table      all %d parts are there: %s", part.count, output / TABLE)
    return outcomes


def _predict_own(work: "_Work", cases: Sequence[InputCase]) -> list[Outcome]:
    """What comes of each of the cases that this process is to predict, by name; masks that are there are kept."""
    earlier = work.read_earlier(cases)
    options = work.files.options
    anew = options.overwrite and options.made_since is None
    outcomes: list[Outcome] = []
    waiting: list[InputCase] = []
    for case in tqdm(cases, "look for masks", unit=" images", disable=None, leave=False):
        before = None if anew else work.find(case, earlier.told)
        if before is None:
            waiting.append(case)
        else:
            outcomes.append(work.record(case, before))
    work.tell_replaced(waiting, earlier.others)
    outcomes += _predict(waiting, work)
    return sorted(outcomes, key=lambda outcome: natural_order(outcome.image))


def _predict(cases: Sequence[InputCase], work: "_Work") -> Iterator[Outcome]:
    """What comes of each case; one that cannot be read fails, and the rest goes on."""
    options = work.files.options
    stream = predict_stream(
        work.predictor, cases, work.load, work.finish, options.probabilities, keep_uncertainty=options.uncertainty
    )
    with work.settler.beside() as settle_some, contextlib.closing(stream):  # its threads end before all is settled
        for case, result in tqdm(stream, "predict", len(cases), unit=" images", disable=None, leave=False):
            settle_some()
            if isinstance(result, FileError | PredictionError):
                earlier = is_there(work.files.mask(case))  # of another model, or of what the image was before
                problem = f"{result}{EARLIER if earlier else ''}"
                failed = Outcome(image=case.name, mask="", status="failed", problem=problem)
                logger.warning("failed: %s: %s", case.name, problem)
                yield work.record(case, failed)
            elif isinstance(result, IaunetError):
                raise result
            else:
                yield result


def _require_name(path: Path) -> None:
    """Refuse an image whose name cannot be written."""
    try:
        require_text(path)
    except DatasetError as fault:
        raise FileError("has a name that is not UTF-8", "rename it") from fault


def _require_short_name(path: Path) -> None:
    """Refuse an image whose mask would have a name that the disk does not take."""
    try:
        path.lstat()
    except OSError as fault:
        if fault.errno == errno.ENAMETOOLONG:
            raise FileError("has a name that is too long for its mask", "shorten it") from fault


def _version_of(path: Path) -> list[tuple[str, int, int]]:
    """What tells the content of an image's file, or of the files of a series, from what was there before, unread."""
    with contextlib.suppress(OSError):  # it fails when it is read
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [(text(file.name), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    return []


@dataclass(frozen=True, slots=True)
class _Told:
    """What an earlier call said of a mask."""

    output_sha256: str
    expected_dice: float | None
    flag: str


@dataclass(frozen=True, slots=True)
class _Earlier:
    """What earlier calls did: what they said of masks, by image and its bytes, and masks that are not asked for now."""

    told: Mapping[tuple[str, str], _Told]
    others: Collection[str]


@dataclass(eq=False)
class _Loaded:
    """What is known of an image between reading and writing: when reading began, what was read, and of a mask that is
    kept its hash."""

    start: float
    sha256: str = ""
    output_sha256: str = ""
    spacing_mm: Spacing | None = None
    differences: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class _Work:
    """Loads images and writes what was predicted; called from threads."""

    predictor: Predictor
    files: MaskFiles
    audit: AuditLog
    loaded: dict[InputCase, _Loaded] = field(default_factory=dict)
    settler: Settler = field(default_factory=Settler)

    @property
    def plan(self) -> Plan:
        """What the networks were trained with."""
        return self.predictor.plan

    @cached_property
    def flags_from(self) -> str:
        """See `Predictor.flags_digest`."""
        return self.predictor.flags_digest

    @cached_property
    def iaunet(self) -> str:
        """The version that predicts."""
        return version("iaunet")

    @cached_property
    def settings(self) -> AuditSettings:
        """What masks depend on beside the weights."""
        return AuditSettings(
            mirroring=len(self.predictor.flips) > 1,
            temperatures=self.predictor.ensemble.temperatures,
            thresholds=self.plan.inference.thresholds,
            cleaning=self.predictor.cleaning,
            precision=self.predictor.ensemble.precision,
        )

    def load(self, case: InputCase) -> CaseInput:
        self.loaded[case] = loaded = _Loaded(time.perf_counter())
        stack = self._read(case)
        loaded.sha256, loaded.spacing_mm = stack.sha256, stack.spacing_mm
        prepared = prepare_case(stack, self.plan)
        if self.predictor.familiar is not None:
            loaded.differences = tuple(self.predictor.familiar.differences(stack))
        return prepared

    def _read(self, case: InputCase) -> Stack:
        for path in case.files:
            _require_name(path)
        for path in self.files.of(case):
            _require_short_name(path)
        expected = self.plan.channel_files
        if expected and len(case.files) != expected:
            there = {channel_of(path) for path in case.files}
            missing = [f"_{number:04d}" for number in range(expected) if number not in there]
            raise FileError(
                f"has {len(case.files)} of {expected} channel files",
                f"add those whose names end in {', '.join(missing)}",
            )
        return read_stack(case.files, self.plan.slicing)

    def read_earlier(self, cases: Sequence[InputCase]) -> _Earlier:
        """What the audit files say, of which those of large folders are read once only."""
        asked, masks = {case.name for case in cases}, {*self.files.names.values()}
        told: dict[tuple[str, str], _Told] = {}
        others: set[str] = set()
        for values in itertools.chain.from_iterable(map(read_audit, audit_files(self.files.output))):
            if values["mask"] and values["mask"] not in masks:
                others.add(values["mask"])
            line = audit_line(values) if values["image"] in asked and self._is_valid(values) else None
            if line is not None:
                told[line.image, line.input_sha256] = _Told(line.output_sha256, line.expected_dice, line.flag)
        return _Earlier(told, others)

    def _is_valid(self, values: Mapping[str, Any]) -> bool:
        """Whether what a line says of a mask would be said again."""
        said = (values.get("model"), values.get("flags_from"), values.get("outcome"))
        return said == (self.files.model, self.flags_from, "done") and str(values.get("time")) >= (
            self.files.options.made_since or ""
        )

    def find(self, case: InputCase, told: Mapping[tuple[str, str], _Told]) -> Outcome | None:
        """What came of an image before; None unless all its files say that this model made them from it."""
        files = self.files.of(case)
        if not is_there(files[0]):
            return None
        start = time.perf_counter()
        try:
            sha256 = hash_files(case.files)
            line = told.get((case.name, sha256))
            if line is None:
                return None
            measures = self.files.measure(case)
        except FileError:
            return None
        output_sha256 = file_digest(files[0])
        unchanged = output_sha256 == line.output_sha256  # then the line says what it was made from
        if not self.files.are_made_from(files[unchanged:], sha256):
            return None
        self.loaded[case] = _Loaded(start, sha256, output_sha256, seconds=time.perf_counter() - start)
        return Outcome(
            image=case.name,
            mask=self.files.names[case],
            status="kept",
            measures=measures,
            expected_dice=line.expected_dice if unchanged else None,
            flag=line.flag if unchanged else CHANGED,
        )

    def tell_replaced(self, waiting: Sequence[InputCase], others: Iterable[str]) -> None:
        """Say how many masks that are there are made anew, and how many are of images that are not asked for now."""
        anew = sum(is_there(self.files.mask(case)) for case in waiting)
        if anew:
            logger.info(
                "note       %d masks that are there are made anew: of other images or settings, or not finished",
                anew,
            )
        there = sorted(mask for mask in others if is_there(self.files.output / mask))
        if there:
            named = ", ".join(there[:3]) + (", ..." if there[3:] else "")
            logger.info("note       %d masks of earlier calls are not in the table of this one: %s", len(there), named)

    def finish(self, case: InputCase, prediction: Prediction) -> Outcome:
        """Write what was predicted; it gets its names, and its line in the audit file, when it is settled."""
        loaded = self.loaded[case]
        with self.settler.files.taking():
            measures = self.files.write(case, prediction, loaded.sha256, loaded.spacing_mm)
        loaded.seconds = time.perf_counter() - loaded.start
        expected = self.predictor.expect_dice(prediction)
        outcome = Outcome(
            image=case.name,
            mask=self.files.names[case],
            status="done",
            measures=measures,
            expected_dice=expected,
            flag=self._flag(expected, loaded.differences),
        )
        self.settler.add(partial(self.record, case, outcome))
        return outcome

    def record(self, case: InputCase, outcome: Outcome) -> Outcome:
        """Add an image's line to the audit file."""
        loaded = self.loaded.pop(case)
        if not loaded.sha256:
            with contextlib.suppress(FileError):
                loaded.sha256 = hash_files(case.files)  # of what could not be read as an image
        self.audit.add(
            AuditLine(
                time=audit_time(),
                image=case.name,
                input_sha256=loaded.sha256,
                mask=outcome.mask,
                output_sha256=loaded.output_sha256 or (file_digest(self.files.mask(case)) if outcome.mask else ""),
                model=self.files.model,
                iaunet=self.iaunet,
                settings=self.settings,
                device=str(self.predictor.device),
                seconds=round(loaded.seconds or time.perf_counter() - loaded.start, 4),
                outcome=outcome.status,
                problem=outcome.problem,
                expected_dice=outcome.expected_dice,
                flag=outcome.flag,
                flags_from=self.flags_from,
            )
        )
        return outcome

    def _flag(self, expected: float | None, differences: Sequence[str]) -> str:
        """Why somebody should look at a mask."""
        judge = self.predictor.judge
        reasons = (
            [f"expected Dice {expected:.2f}"] if judge and expected is not None and expected < judge.flag_below else []
        )
        if differences:
            reasons.append(f"unlike the training images: {', '.join(differences)}")
        return "; ".join(reasons)


def _claim(output: Path, model: Mapping[str, Any], names: Sequence[str], overwrite: bool) -> None:
    """Make the output folder this model's.

    Raises:
        PredictionError: It holds masks of another model, or files that no prediction made.
    """
    record = output / RECORD
    if not overwrite and record.exists():
        before = read_json(record, PredictionError, "use --overwrite, or another folder")
        if not isinstance(before, dict) or before.get("digest") != digest(model):
            raise PredictionError(f"{output} holds masks of another model: use --overwrite, or another folder")
        return
    strangers = [name for name in names if is_there(output / name)]
    if strangers and not overwrite:
        raise PredictionError(
            f"{output / strangers[0]} is there and no prediction made it: use --overwrite, or another folder"
        )
    write_json(record, {**model, "digest": digest(model)})
