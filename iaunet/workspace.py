"""The workspace: one folder that holds what was made from each dataset."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from iaunet.dataset import Dataset
from iaunet.errors import WorkspaceError
from iaunet.records import load_record
from iaunet.storage import digest, make_folder, naming_disk_faults, writing_beside

logger = logging.getLogger(__name__)

WORKSPACE_NAME = "iaunet_workspace"

LOCK = ".lock"
"""The file in a folder, or the end of the name of one beside a file, that a process locks to work there alone."""


@dataclass(frozen=True)
class DatasetFolder:
    """The folder of one dataset in the workspace: where each stage's files lie."""

    root: Path

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.root.name

    @property
    def dataset_json(self) -> Path:
        """What was understood of the raw data, a `Dataset`."""
        return self.root / "dataset.json"

    @property
    def problems_csv(self) -> Path:
        """Every fault and note about the raw data."""
        return self.root / "problems.csv"

    @property
    def fingerprint_json(self) -> Path:
        """What was measured on the raw data."""
        return self.root / "fingerprint.json"

    @property
    def plan_json(self) -> Path:
        """What was decided."""
        return self.root / "plan.json"

    @property
    def splits_json(self) -> Path:
        """The folds."""
        return self.root / "splits.json"

    @property
    def preprocessed(self) -> Path:
        """The folder of the preprocessed arrays."""
        return self.root / "preprocessed"

    @property
    def held_out_json(self) -> Path:
        """The held-out test set, if there is one."""
        return self.root / "test.json"

    @property
    def check_html(self) -> Path:
        """A page that shows the dataset as it was understood."""
        return self.root / "check.html"

    @property
    def masks(self) -> Path:
        """The folder of masks made of annotations that are no masks yet, such as polygons."""
        return self.root / "masks"

    @property
    def runs(self) -> Path:
        """The folder of the runs."""
        return self.root / "runs"

    def load_dataset(self) -> Dataset:
        """What was understood of the raw data.

        Raises:
            WorkspaceError: dataset.json is missing or holds something else.
        """
        mend = "run iaunet_plan_and_preprocess with the raw data's folder again"
        return load_record(Dataset, self.dataset_json, WorkspaceError, mend)

    def load_cases(self) -> Dataset:
        """The same, for what needs the cases themselves.

        Raises:
            WorkspaceError: There are none: a model was imported without its data.
        """
        dataset = self.load_dataset()
        if not dataset.cases:
            raise WorkspaceError(
                f"{self.name} is a model without the data it was trained on: it can predict and be exported, no more"
            )
        return dataset


@dataclass(frozen=True)
class Workspace:
    """One folder that holds a folder for each dataset."""

    root: Path

    def names(self) -> list[str]:
        """The datasets that were planned here, sorted.

        Raises:
            PermissionError: The workspace cannot be read, which must not look as if it were empty.
        """
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if os.path.exists(path / "dataset.json"))  # noqa: PTH110

    def folder(self, name: str) -> DatasetFolder:
        """The folder of a dataset, whether or not it exists yet."""
        return DatasetFolder(self.root / name)

    def find(self, dataset: str) -> DatasetFolder:
        """The folder of a dataset given as the user gives it.

        Args:
            dataset: A name the workspace knows, or the path of raw data that was planned here.

        Raises:
            WorkspaceError: The workspace does not know it; the message lists what it knows.
        """
        if dataset in self.names():
            return self.folder(dataset)
        if is_path(dataset):
            raw = str(Path(dataset).resolve())
            for name in self.names():
                if self.folder(name).load_dataset().source.root == raw:
                    return self.folder(name)
            raise WorkspaceError(
                f"{dataset} has not been planned in {self.root}: run iaunet_plan_and_preprocess {dataset}"
            )
        known = ", ".join(self.names()) or "none yet"
        raise WorkspaceError(
            f"the workspace {self.root} has no data set {dataset!r}, it knows: {known}; "
            "run iaunet_plan_and_preprocess FOLDER first"
        )


def is_dataset_name(name: str) -> bool:
    """Whether a dataset can be called so: at most 100 letters, digits, ``_``, ``.``, ``+``, ``-`` and spaces."""
    return re.fullmatch(r"[^\W_][\w .+-]{0,99}", name) is not None


def is_path(dataset: str) -> bool:
    """Whether the user means a folder with raw data rather than a name: it has a path separator or is a dot."""
    return "/" in dataset or "\\" in dataset or dataset in (".", "..")


def open_workspace(given: Path | None, environment: Mapping[str, str]) -> Workspace:
    """The workspace to use: the one given, else $IAUNET_WORKSPACE, else the nearest upwards, else a new one here.

    Args:
        given: What the user gave on the command line.
        environment: The environment's variables.

    Raises:
        WorkspaceError: It is no folder or cannot be made.
    """
    root = given or (Path(environment["IAUNET_WORKSPACE"]) if environment.get("IAUNET_WORKSPACE") else None)
    if root is None:
        here = Path.cwd()
        nearest = (folder / WORKSPACE_NAME for folder in (here, *here.parents))
        root = next((path for path in nearest if path.is_dir()), here / WORKSPACE_NAME)
    if root.exists() and not root.is_dir():
        raise WorkspaceError(f"{root} is a file: give a folder as --workspace")
    root = root.resolve()
    logger.info("workspace %s", root)
    return Workspace(root)


def find_dataset(dataset: str | Path, workspace: str | Path | None = None) -> DatasetFolder:
    """The folder of a dataset in the workspace that commands would use here.

    Args:
        dataset: A name the workspace knows, or the path of raw data that was planned there.
        workspace: The workspace; None for that of the environment, the nearest upwards, or a new one here.

    Raises:
        WorkspaceError: There is no such workspace, or it does not know the dataset.
    """
    given = None if workspace is None else Path(workspace)
    return open_workspace(given, os.environ).find(os.fspath(dataset))


@contextlib.contextmanager
def locked(folder: Path, doing: str, wait_seconds: float = 0) -> Iterator[None]:
    """Keep other processes from working in a folder; the lock goes with the process, however it ends.

    Nothing is written there any more once the folder, or its disk, is taken away.

    Args:
        folder: The folder; made if it does not exist.
        doing: What the block does, for the message of the process that comes second.
        wait_seconds: How long that one waits for the lock before it gives up.

    Raises:
        WorkspaceError: Another process holds the lock.
    """
    make_folder(folder)
    lock = folder / LOCK
    with _holding(lock, folder, f"{doing} in", wait_seconds), writing_beside(lock):
        yield


@contextlib.contextmanager
def locked_output(path: Path) -> Iterator[None]:
    """Keep other processes from writing the same file, or a folder that is not there yet; else as `locked`.

    Args:
        path: What is written. The lock lies beside it, and is removed at the end.

    Raises:
        WorkspaceError: Another process is writing it.
    """
    make_folder(path.parent)
    lock = path.with_name(f".{digest(path.name)[:16]}{LOCK}")  # short, whatever the name's length
    with _holding(lock, path, "writing", wait_seconds=0):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()


@contextlib.contextmanager
def _holding(lock: Path, path: Path, doing: str, wait_seconds: float) -> Iterator[None]:
    held = FileLock(lock, timeout=wait_seconds)
    try:
        with naming_disk_faults(path):
            held.acquire()
    except Timeout as fault:
        raise WorkspaceError(f"another process is {doing} {path}: wait until it ends, or stop it first") from fault
    try:
        yield
    finally:
        held.release()
