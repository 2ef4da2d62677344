"""A model's file opened: what it says is checked before it is used, and nothing of it is run or written."""

import contextlib
import hashlib
import io
import json
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from iaunet.errors import IaunetError, PredictionError, in_one_line
from iaunet.inference.model_manifest import (
    CARD,
    MANIFEST,
    MODEL_VERSION,
    SCORES,
    ModelFacts,
    ModelManifest,
    ModelScoreFile,
    ModelScores,
    same_on_disk,
    weights_file,
)
from iaunet.inference.tuning import NetworkName, Tuning
from iaunet.planners.plan import Plan, build_planned_network, parse_plan
from iaunet.records import from_json

if TYPE_CHECKING:
    import torch
    from torch import nn

MOST_FILES = 10_000
MOST_BYTES = 64 << 30
MOST_TEXT = 16 << 20
"""Bytes of a file that is not weights."""

MOST_DIRECTORY = 2 << 20
"""Bytes of the list of files at a zip's end; a longer one is not even read."""

AGAIN = "copy it or export it again"

WEIGHTS = ".safetensors"

Record = TypeVar("Record")

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


def open_model(path: Path, trusted_network: str | None = None) -> Model:
    """Read a model from its file; nothing is written, and no code is run that the file brings or names.

    Args:
        path: What `iaunet.inference.model_export.export_model` wrote.
        trusted_network: A stranger's network ``package.module:function`` whose code may be run.

    Raises:
        PredictionError: The file is none of ours, damaged or changed, or a network is a stranger's that is not
            trusted.
    """
    with opened_archive(path) as archive:
        for plan in archive.plans.values():
            if is_strange(plan) and plan.network.name != trusted_network:
                raise PredictionError(
                    f"{path} was trained with {one_line(plan.network.name)}, whose code would be run: "
                    "give its name with --network if you trust it"
                )
        archive.read_scores()
        members = archive.facts.members
        networks = tuple(map(archive.load_network, members))
        return Model(archive.facts, archive.plans, members, networks, archive.read(CARD).decode(errors="replace"))


@contextlib.contextmanager
def opened_archive(path: Path) -> Iterator["ModelArchive"]:
    """Open a model's file and check what it says.

    Raises:
        PredictionError: It is none of ours, damaged or changed.
    """
    with _naming_damage(path):
        if not path.is_file():  # a pipe or device would never end
            raise PredictionError(f"{path} is no file: give a model's file, of iaunet_export_model")
        file = path.open("rb")
    with file:
        with _naming_damage(path):
            archive = zipfile.ZipFile(_with_small_directory(file))
        with archive:
            yield ModelArchive(path, archive, file.seek(0, io.SEEK_END))


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
        raise PredictionError(f"{path} is no model's file or damaged ({one_line(fault)}): {AGAIN}") from fault


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


def one_line(text: object) -> str:
    """What a stranger wrote, fit for a terminal."""
    shown = in_one_line(str(text))
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


class ModelArchive:
    """A model's file that is open: its list of files agrees with its manifest, and its plans with each other."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.path = path
        self.archive = archive
        self.entries = self._check_entries(archive.infolist(), size)
        self.manifest = self._parse_manifest()
        self.facts = self.manifest.model
        self.plans = {run.name: self._parse(run.plan, self.read(run.plan), parse_plan) for run in self.facts.runs}
        with self._refusing(MANIFEST):
            require_one_input(self.plans)
            _require_fitting(self.facts, self.plans[self.facts.runs[0].name])

    def read(self, name: str) -> bytes:
        """The bytes of a file, those that the manifest names."""
        data = self._bytes(name)
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
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
                f"({len(wrong)} tensors differ, the first is {one_line(wrong[0])})"
            )

    def _tensors(self, member: NetworkName) -> dict[str, "torch.Tensor"]:
        import safetensors.torch

        data = self.read(weights_file(member))
        try:
            return safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as fault:
            raise self._refusal(f"{weights_file(member)} is no safetensors file ({one_line(fault)})") from fault

    def _check_entries(self, found: Sequence[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
        """The entries of the zip by name.

        Raises:
            PredictionError: There are too many or too large ones, or one that could lead out of a folder.
        """
        if len(found) > MOST_FILES:
            raise self._refusal(f"has {len(found)} files, {MOST_FILES} at most are read")
        if len({same_on_disk(info.orig_filename) for info in found}) < len(found):
            raise self._refusal("has two files of one name")
        for info in found:
            name = info.orig_filename
            if name != info.filename or name.startswith("/") or re.search(r"[\\:\0]", name) or ".." in name.split("/"):
                raise self._refusal(f"has a file {one_line(ascii(name))} that would lie outside of a folder")
            if info.is_dir() or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise self._refusal(f"has a link or folder {one_line(ascii(name))} among its files")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise self._refusal(f"was packed by another program ({one_line(ascii(name))} is compressed or locked)")
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
                f"{one_line(ascii(unlike[0]))} is missing, added or of another size than {MANIFEST} says"
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
            raise self._refusal(f"{one_line(name)}: {one_line(fault)}") from fault

    def _refusal(self, problem: str, mend: str = AGAIN) -> PredictionError:
        return PredictionError(f"{self.path} {problem}: {mend}")


def is_strange(plan: Plan) -> bool:
    """Whether a plan's network is not one of ours."""
    return ":" in plan.network.name


def require_one_input(plans: Mapping[str, Plan]) -> None:
    """Refuse runs that one predictor cannot average."""
    (first, plan), *others = plans.items()
    for name, other in others:
        if (other.arrays_digest, other.labels, other.inference) != (plan.arrays_digest, plan.labels, plan.inference):
            raise PredictionError(f"{name} and {first} differ in data, input, labels or thresholds: take one of them")


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
