"""The audit file of a folder of predictions: a line for each image and each time it was asked for."""

import contextlib
import functools
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from iaunet.inference.postprocessing import LabelCleaning
from iaunet.records import FieldError, from_json, to_json
from iaunet.storage import make_folder, naming_disk_faults


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """All that masks depend on beside the weights: averaging over flips, a temperature a network, what follows the
    networks, see `iaunet.inference.postprocessing.Postprocessing`, and the precision, None for the device's usual."""

    mirroring: bool
    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]
    cleaning: tuple[LabelCleaning, ...]
    precision: str | None = None


@dataclass(frozen=True, kw_only=True)
class AuditLine:
    """What was done with an image.

    Args:
        time: When it was done, ISO 8601 in UTC, see `audit_time`.
        image: Its path below the folder of images.
        input_sha256: Of its bytes; of several files the hash of their hashes; empty if they cannot be read.
        mask: The file of its mask, empty if there is none.
        output_sha256: Of the mask's bytes.
        model: Digest of weights and settings, as in predictions.json.
        iaunet: The version that did it.
        device: Where the networks ran.
        seconds: From reading the image to writing its mask, other images being worked on at the same time.
        outcome: "done", "kept" from an earlier call of the same model, or "failed".
        problem: Why it failed.
        expected_dice: Of the mask, None where that is not known.
        flag: Why somebody should look at it, empty if nothing is notable.
        flags_from: Digest of what expected Dice and flag follow from, see `Predictor.flags_digest`.
    """

    time: str
    image: str
    input_sha256: str
    mask: str
    output_sha256: str
    model: str
    iaunet: str
    settings: AuditSettings
    device: str
    seconds: float
    outcome: Literal["done", "kept", "failed"]
    problem: str
    expected_dice: float | None
    flag: str
    flags_from: str


class AuditLog:
    """An open audit file, to which threads add lines."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._lock = threading.Lock()

    def add(self, line: AuditLine) -> None:
        """Add a line; it is in the system's hands when this returns.

        Raises:
            WorkspaceError: The disk is full.
        """
        values = {name: _plain(value) for name, value in vars(line).items()}
        text = json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock, naming_disk_faults(self._path):
            self._file.write(text.encode(errors="surrogateescape"))
            self._file.flush()


@contextlib.contextmanager
def appending(path: Path) -> Iterator[AuditLog]:
    """Open an audit file to add lines to; what a killed process left of a line is ended first.

    Raises:
        WorkspaceError: The disk is full or the file cannot be written.
    """
    with naming_disk_faults(path):
        make_folder(path.parent)
        file = path.open("ab+")
    try:
        with naming_disk_faults(path):
            if file.seek(0, os.SEEK_END) and not _ends_a_line(file):
                file.write(b"\n")
        yield AuditLog(path, file)
        with naming_disk_faults(path):
            file.flush()
            os.fsync(file.fileno())
    finally:
        with naming_disk_faults(path):
            file.close()


def audit_time() -> str:
    """Now, as audit lines tell it: later times follow in the order of texts."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_audit(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of an audit file as JSON, in their order; none if there is no file.

    Those whose image and mask are no texts are left out; `audit_line` makes records of those that are needed, which
    takes several times longer than reading them.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for text in file:
            with contextlib.suppress(ValueError, RecursionError):  # of a killed process, or of somebody else
                values = json.loads(text)
                if isinstance(values, dict) and all(isinstance(values.get(name), str) for name in ("image", "mask")):
                    yield values


def audit_line(values: dict[str, Any]) -> AuditLine | None:
    """The record of a line, None of one that another version wrote with other fields."""
    try:
        return from_json(AuditLine, values)
    except FieldError:
        return None


def _plain(value: object) -> Any:
    return _settings_json(value) if isinstance(value, AuditSettings) else to_json(value)


@functools.lru_cache(maxsize=8)
def _settings_json(settings: AuditSettings) -> Any:
    """Kept, since it is the same for every image of a call."""
    return to_json(settings)


def _ends_a_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
