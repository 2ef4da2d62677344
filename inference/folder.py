"""Masks for a folder of images: names, files, what was done before, and a table of what came of each."""

import contextlib
import itertools
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from iaunet.dataset import MaskCoding, Slicing
from iaunet.dicom import is_dicom_file
from iaunet.discovery import natural_order, require_text
from iaunet.engines.parts import Part
from iaunet.errors import DatasetError, FileError, IaunetError, PredictionError
from iaunet.files import write_png
from iaunet.inference.audit import AuditLine, AuditLog, AuditSettings, appending, audit_line, audit_time, read_audit
from iaunet.inference.dicom_seg import read_model, write_segmentation
from iaunet.inference.inputs import InputCase, channel_of, group_channels, list_inputs, mask_names, text
from iaunet.inference.mosaic import Prediction
from iaunet.inference.outcomes import MaskMeasures, Outcome, measure_mask, strips, write_outcomes
from iaunet.inference.output import AUDIT, OVERLAYS, PROBABILITIES, RECORD, SEGMENTATIONS, TABLE, UNCERTAINTY
from iaunet.inference.overlay import draw_stack_overlay
from iaunet.inference.parts import Share, audit_files, claimed_whole
from iaunet.inference.predictor import Predictor
from iaunet.inference.stream import predict_stream
from iaunet.masks import image_stem, mask_ending, path_ending, read_made_from, write_mask
from iaunet.planners.plan import Plan
from iaunet.preprocessing.cases import CaseInput, prepare_case
from iaunet.stacks import (
    Spacing,
    Stack,
    hash_files,
    is_volume,
    read_mask_stack,
    read_stack,
    read_volume_header,
    series_files,
    volume_labels,
)
from iaunet.storage import FileGroup, digest, file_digest, read_json, remove_leftovers, write_json
from iaunet.volumes import VolumeHeader, is_volume_file, write_probabilities

logger = logging.getLogger(__name__)

SETTLED_AT_ONCE = 8
"""Images that wait when their files are brought to the disk together."""

SETTLED_WITHIN = 0.25
"""Seconds after which fewer are as well, as soon as another image is done: a killed process makes again what waits."""

CHANGED = "changed since it was predicted"


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """``overlay``, ``probabilities``, ``uncertainty`` and ``dicom_seg`` write further files, the last for DICOM input;
    ``overwrite`` replaces masks of another model and makes those of this one again, but for those made since
    ``made_since``, see `iaunet.inference.audit.audit_time`: what a killed process had done is not done twice."""

    overlay: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    dicom_seg: bool = False
    overwrite: bool = False
    made_since: str | None = None


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
    jobs = dict(zip(cases, names, strict=True))
    model = predictor.describe()
    claim = partial(_claim, output, model, names, options.overwrite)
    labels = predictor.plan.labels
    if part is None:
        with claimed_whole(output, claim), appending(output / AUDIT) as audit:
            work = _Work(predictor, output, jobs, options, digest(model), audit)
            for folder in work.folders:
                remove_leftovers(folder)
            outcomes = _predict_own(work, cases)
            write_outcomes(output / TABLE, outcomes, labels)
        return outcomes
    images = [[case.name, *map(_version_of, case.files)] for case in cases]
    share = Share(output, part, digest([model, predictor.flags_digest, names, images]))
    with share.claimed(claim), appending(share.folder / AUDIT) as audit:
        work = _Work(predictor, output, jobs, options, digest(model), audit)
        outcomes = _predict_own(work, part.of(cases))
        share.write(outcomes, labels)
    if share.unite(labels, work.folders):
        logger.info("table      all %d parts are there: %s", part.count, output / TABLE)
    return outcomes


def _predict_own(work: "_Work", cases: Sequence[InputCase]) -> list[Outcome]:
    """What comes of each of the cases that this process is to predict, by name; masks that are there are kept."""
    earlier = work.read_earlier(cases)
    anew = work.options.overwrite and work.options.made_since is None
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
    options = work.options
    stream = predict_stream(
        work.predictor, cases, work.load, work.finish, options.probabilities, keep_uncertainty=options.uncertainty
    )
    with work.settling() as settle_some, contextlib.closing(stream):  # its threads end before the last is settled
        for case, result in tqdm(stream, "predict", len(cases), unit=" images", disable=None, leave=False):
            settle_some()
            if isinstance(result, FileError | PredictionError):
                logger.warning("failed: %s: %s", case.name, result)
                failed = Outcome(image=case.name, mask="", status="failed", problem=str(result))
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


class _Made:
    """Images whose files wait to be settled together, and then get their lines in the audit file."""

    def __init__(self) -> None:
        self.files = FileGroup()
        self.outcomes: deque[tuple[InputCase, Outcome]] = deque()
        self._settled = time.monotonic()

    @property
    def are_enough(self) -> bool:
        """Whether waiting longer would gain little, or lose much should the process be killed."""
        waited = time.monotonic() - self._settled
        return bool(self.outcomes) and (len(self.outcomes) >= SETTLED_AT_ONCE or waited > SETTLED_WITHIN)

    def settle(self) -> list[tuple[InputCase, Outcome]]:
        """Give all files their names; the images whose files have them now."""
        done = [self.outcomes.popleft() for _ in range(len(self.outcomes))]
        self.files.settle()
        self._settled = time.monotonic()
        return done


@dataclass(frozen=True)
class _Work:
    """Loads images and writes what was predicted; called from threads."""

    predictor: Predictor
    output: Path
    jobs: Mapping[InputCase, str]
    options: FolderOptions
    model: str
    audit: AuditLog
    loaded: dict[InputCase, _Loaded] = field(default_factory=dict)
    made: _Made = field(default_factory=_Made)

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
        asked, masks = {case.name for case in cases}, {*self.jobs.values()}
        told: dict[tuple[str, str], _Told] = {}
        others: set[str] = set()
        for values in itertools.chain.from_iterable(map(read_audit, audit_files(self.output))):
            if values["mask"] and values["mask"] not in masks:
                others.add(values["mask"])
            line = audit_line(values) if values["image"] in asked and self._is_valid(values) else None
            if line is not None:
                told[line.image, line.input_sha256] = _Told(line.output_sha256, line.expected_dice, line.flag)
        return _Earlier(told, others)

    def _is_valid(self, values: Mapping[str, Any]) -> bool:
        """Whether what a line says of a mask would be said again."""
        said = (values.get("model"), values.get("flags_from"), values.get("outcome"))
        return said == (self.model, self.flags_from, "done") and str(values.get("time")) >= (
            self.options.made_since or ""
        )

    def find(self, case: InputCase, told: Mapping[tuple[str, str], _Told]) -> Outcome | None:
        """What came of an image before; None unless all its files say that this model made them from it."""
        files = self.files(case)
        if not files[0].exists():
            return None
        start = time.perf_counter()
        try:
            sha256 = hash_files(case.files)
            line = told.get((case.name, sha256))
            if line is None:
                return None
            mask = read_mask_stack(files[0], Slicing(slice_axis=self.plan.slicing.slice_axis))
            labels = np.empty(mask.values.shape, np.uint8)
            for values, place in zip(strips(mask.values), strips(labels), strict=True):
                place[...] = self.plan.coding.of_written.encode(values)
        except FileError:
            return None
        output_sha256 = file_digest(files[0])
        unchanged = output_sha256 == line.output_sha256  # then the line says what it was made from
        if not all(_is_made_from(file, self._made_from(sha256)) for file in files[unchanged:]):
            return None
        self.loaded[case] = _Loaded(start, sha256, output_sha256, seconds=time.perf_counter() - start)
        return Outcome(
            image=case.name,
            mask=self.jobs[case],
            status="kept",
            measures=measure_mask(labels, self.plan.coding.outputs, mask.spacing_mm),
            expected_dice=line.expected_dice if unchanged else None,
            flag=line.flag if unchanged else CHANGED,
        )

    def tell_replaced(self, waiting: Sequence[InputCase], others: Iterable[str]) -> None:
        """Say how many masks that are there are made anew, and how many are of images that are not asked for now."""
        anew = sum((self.output / self.jobs[case]).exists() for case in waiting)
        if anew:
            logger.info(
                "note       %d masks that are there are made anew: of other images or settings, or not finished",
                anew,
            )
        there = sum((self.output / mask).exists() for mask in others)
        if there:
            logger.info("note       %d masks of earlier calls are not in the table of this one", there)

    def finish(self, case: InputCase, prediction: Prediction) -> Outcome:
        """Write what was predicted; it gets its names, and its line in the audit file, when it is settled."""
        loaded = self.loaded[case]
        with self.made.files.taking():
            measures = self._write(case, prediction)
        loaded.seconds = time.perf_counter() - loaded.start
        expected = self.predictor.expect_dice(prediction)
        outcome = Outcome(
            image=case.name,
            mask=self.jobs[case],
            status="done",
            measures=measures,
            expected_dice=expected,
            flag=self._flag(expected, loaded.differences),
        )
        self.made.outcomes.append((case, outcome))
        return outcome

    @contextlib.contextmanager
    def settling(self) -> Iterator[Callable[[], None]]:
        """Gives what settles the images that were made, if they are enough, in a thread, which no interrupt reaches.

        When the block ends all others are settled, whatever ends it.
        """
        with ThreadPoolExecutor(1, "settle") as pool:
            before = pool.submit(self._settle)

            def settle_some() -> None:
                nonlocal before
                if self.made.are_enough:
                    before.result()  # so that a fault ends the work, and nothing piles up behind a slow disk
                    before = pool.submit(self._settle)

            try:
                yield settle_some
            finally:
                for settled in [before, pool.submit(self._settle)]:
                    settled.result()

    def _settle(self) -> None:
        """Bring all that was made to the disk, and tell it in the audit file."""
        for case, outcome in self.made.settle():
            self.record(case, outcome)

    def _write(self, case: InputCase, prediction: Prediction) -> MaskMeasures:
        loaded = self.loaded[case]
        made_from = self._made_from(loaded.sha256)
        header = read_volume_header(case.files[0]) if is_volume(case.files[0]) else None
        labels = prediction.labels
        if self.options.overlay:
            picture = draw_stack_overlay(read_stack(case.files, self.plan.slicing).pixels, labels)
            write_png(self._overlay(case), picture, made_from)
        if prediction.probabilities is not None:
            for file, plane in zip(self._probabilities(case), prediction.probabilities, strict=True):
                self._write_map(file, plane, 1.0, case, header, made_from)
        if prediction.uncertainty is not None:
            self._write_map(self._uncertainty(case), prediction.uncertainty, 0.5, case, header, made_from)
        for file in self._segmentations(case):
            names = self.plan.value_names
            volume = volume_labels(labels, self.plan.slicing).astype(np.uint8)
            write_segmentation(file, volume, names, series_files(case.files[0]), digest(made_from))
        measures = measure_mask(labels, self.plan.coding.outputs, loaded.spacing_mm)
        values = _to_values(self.plan.coding, labels)
        write_mask(self.output / self.jobs[case], values, self.plan.slicing, header, case.files, made_from)
        return measures

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
                output_sha256=loaded.output_sha256 or (file_digest(self.output / outcome.mask) if outcome.mask else ""),
                model=self.model,
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

    @property
    def folders(self) -> set[Path]:
        """All that files are written to."""
        return {self.output, *(file.parent for case in self.jobs for file in self.files(case))}

    def files(self, case: InputCase) -> list[Path]:
        """All that is written for an image, the mask first."""
        overlays = [self._overlay(case)] if self.options.overlay else []
        maps = self._probabilities(case) if self.options.probabilities else []
        maps += [self._uncertainty(case)] if self.options.uncertainty else []
        return [self.output / self.jobs[case], *overlays, *maps, *self._segmentations(case)]

    def _write_map(
        self,
        file: Path,
        plane: NDArray[np.float32],
        greatest: float,
        case: InputCase,
        header: VolumeHeader | None,
        made_from: str,
    ) -> None:
        """Write numbers from 0 to ``greatest``: as 0 to 65535 in 16-bit PNG or TIFF, float32 as they are in volumes."""
        if header is not None:
            like = case.files[0] if is_volume_file(case.files[0]) else header
            write_probabilities(file, volume_labels(plane, self.plan.slicing), like, made_from)
        else:
            levels = np.rint(plane * (65535 / greatest)).astype(np.uint16)
            write_mask(file, levels, self.plan.slicing, None, case.files, made_from)

    def _made_from(self, sha256: str) -> str:
        """Names the image's bytes and the model."""
        return f"{sha256} {self.model}"

    def _segmentations(self, case: InputCase) -> list[Path]:
        """The DICOM segmentation of a DICOM image, if it is wished."""
        if not self.options.dicom_seg or not is_volume(case.files[0]) or is_volume_file(case.files[0]):
            return []
        mask = self.output / SEGMENTATIONS / self.jobs[case]
        return [mask.with_name(f"{image_stem(mask)}.dcm")]

    def _overlay(self, case: InputCase) -> Path:
        mask = self.output / OVERLAYS / self.jobs[case]
        return mask.with_name(f"{image_stem(mask)}.png")

    def _probabilities(self, case: InputCase) -> list[Path]:
        """A file an output."""
        mask = self.output / PROBABILITIES / self.jobs[case]
        if len(self.plan.labels) == 1:
            return [mask]
        return [mask.with_name(f"{image_stem(mask)}_{word}{path_ending(mask)}") for word in _words(self.plan.labels)]

    def _uncertainty(self, case: InputCase) -> Path:
        return self.output / UNCERTAINTY / self.jobs[case]


def _words(labels: Sequence[str]) -> list[str]:
    """What tells labels apart in names of files: themselves, or numbers from 1 where one cannot be part of a name."""
    fit = all(re.fullmatch(r"[^/\\:*?\"<>|\x00-\x1f]{1,100}", label) for label in labels)
    if fit and len({label.casefold() for label in labels}) == len(labels):
        return [*labels]
    return [str(number) for number in range(1, len(labels) + 1)]


def _is_made_from(file: Path, made_from: str) -> bool:
    """Whether a written file says so; a DICOM segmentation has room for the digest only."""
    return read_model(file) == digest(made_from) if is_dicom_file(file) else read_made_from(file) == made_from


def _to_values(coding: MaskCoding, labels: NDArray[np.uint8]) -> NDArray[np.integer]:
    """The values of labels [S, H, W], where they fit in the place of these: a large mask is not held twice."""
    if max(coding.written) > np.iinfo(np.uint8).max:
        return coding.decode(labels)
    if len(coding.written) == 1:
        return np.multiply(labels, coding.written[0], out=labels)
    every = np.arange(1 + len(coding.written), dtype=np.uint8)
    table = coding.decode(every).astype(np.uint8).tobytes().ljust(256, b"\0")
    for strip in strips(labels):
        strip[...] = np.frombuffer(strip.tobytes().translate(table), np.uint8).reshape(strip.shape)
    return labels


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
    strangers = [name for name in names if (output / name).exists()]
    if strangers and not overwrite:
        raise PredictionError(
            f"{output / strangers[0]} is there and no prediction made it: use --overwrite, or another folder"
        )
    write_json(record, {**model, "digest": digest(model)})
