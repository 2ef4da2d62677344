"""Files that appear whole or not at all, and the hashes that say what a file was made from."""

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from iaunet.errors import IaunetError, WorkspaceError

TEMPORARY_SUFFIX = ".iaunet-tmp"
"""Ends the names of files that are still being written."""

SYNCED_AT_ONCE = 1024
"""Files that wait to be synced at most."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)
_FAILING = (errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN)

_group: "ContextVar[FileGroup | None]" = ContextVar("group", default=None)
"""Takes the files that a thread writes."""

_marks: set[Path] = set()
"""Files that are there as long as the folders are in which this process works."""


@contextlib.contextmanager
def naming_disk_faults(path: Path) -> Iterator[None]:
    """Turn a full, closed or failing disk, or one that is gone, into one line that names the path.

    Raises:
        WorkspaceError: The system refused to write for want of space or of permission, the name is too long, or the
            disk fails or was taken away, see `writing_beside`.
    """
    _require_in_place(path)
    try:
        yield
    except OSError as fault:
        _require_in_place(path)
        if fault.errno == errno.ENOENT and not os.path.exists(path.parent):  # noqa: PTH110  # without any access as well
            raise _gone(path.parent) from fault
        if fault.errno in _FAILING:
            raise WorkspaceError(
                f"the disk of {path} fails ({fault.strerror}): check it and run the same command again"
            ) from fault
        if fault.errno == errno.ENOLCK:
            raise WorkspaceError(
                f"the disk of {path} has no file locks ({fault.strerror}): switch them on, or choose another disk"
            ) from fault
        if fault.errno in _NO_SPACE:
            raise WorkspaceError(f"no space left for {path}: free some space and run the same command again") from fault
        if fault.errno in _NOT_WRITABLE:
            is_long = fault.errno == errno.ENAMETOOLONG
            mend = "shorten its name" if is_long else "choose another folder or mend its permissions"
            raise WorkspaceError(f"{path} cannot be written ({fault.strerror}): {mend}") from fault
        raise


@contextlib.contextmanager
def writing_beside(mark: Path) -> Iterator[None]:
    """Within the block nothing is written below the folder of a file, its lock say, once that file is not there.

    It goes when the disk is taken away. What is written then would be put on the disk below, out of sight as soon as
    the other is back.
    """
    _marks.add(mark)
    try:
        yield
    finally:
        _marks.discard(mark)


def _require_in_place(path: Path) -> None:
    for mark in tuple(_marks):  # other threads have theirs
        if path.is_relative_to(mark.parent) and not os.path.exists(mark):  # noqa: PTH110
            raise _gone(mark.parent)


def _gone(folder: Path) -> WorkspaceError:
    return WorkspaceError(f"{folder} is gone or emptied: bring it back, or its disk, and run the same command again")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file that appears under its name only when whole.

    Yields:
        A temporary path in the same folder to write to. When the block ends well it is synced and renamed to
        ``path``, or waits for that in a `FileGroup`; when it fails it is removed and ``path`` stays as it was.

    Raises:
        WorkspaceError: The disk is full, the folder cannot be written or the name is too long.
    """
    writer = digest([os.getpid(), threading.get_ident()])[:16]
    temporary = path.with_name(f".{_token(path.name)}-{writer}{TEMPORARY_SUFFIX}")
    group = _group.get()
    try:
        with naming_disk_faults(path):
            make_folder(path.parent)
            yield temporary
            if group is None:
                _settle([(temporary, path)])
    except BaseException:
        _remove([temporary])
        raise
    if group is not None:
        group.add(temporary, path)


class FileGroup:
    """Files that come to the disk, and to their names, together, by whoever settles them: who writes does not wait.

    Threads may add files at any time; what waits is lost if the process is killed before `settle`.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Path, Path]] = deque()

    @contextlib.contextmanager
    def taking(self) -> Iterator[None]:
        """Within the block the files that this thread writes with `replacing` wait in this group."""
        token = _group.set(self)
        try:
            yield
        finally:
            _group.reset(token)

    def add(self, temporary: Path, path: Path) -> None:
        """Let a file that was written to a temporary path wait for its name."""
        self._waiting.append((temporary, path))

    def settle(self) -> None:
        """Bring all that waits to the disk, and then to its names.

        Raises:
            WorkspaceError: The disk is full or fails; what has no name yet is removed.
        """
        files = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            _settle(files)
        except BaseException:
            _remove(temporary for temporary, _ in files)
            raise


def _settle(files: Sequence[tuple[Path, Path]]) -> None:
    """Sync temporary files, give them their names, and sync the folders of these."""
    for temporary, path in files:
        with naming_disk_faults(path):
            _sync_file(temporary)
    for temporary, path in files:
        with naming_disk_faults(path):
            temporary.replace(path)
    for folder in {path.parent for _, path in files}:
        sync_folder(folder)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def is_there(path: Path) -> bool:
    """Whether there is something; no where the system refuses to look, or the name, or it is too long."""
    return os.path.exists(path)  # noqa: PTH110  # Path.exists raises for some of these


def make_folder(path: Path) -> Path:
    """Make a folder and those above it.

    Raises:
        WorkspaceError: It cannot be made.
    """
    with naming_disk_faults(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as fault:  # a place like /proc that takes no folders
            raise WorkspaceError(f"{path} cannot be made: choose another folder") from fault
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file with ``\\n`` line ends whole, see `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, see `replacing`; its text, which may be long, is never held as a whole."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file, ensure_ascii=False, allow_nan=False, indent=1)
        file.write("\n")


def read_json(path: Path, error: type[IaunetError], mend: str) -> Any:
    """Parse a JSON file.

    Args:
        path: The file.
        error: What to raise when it is missing or no JSON.
        mend: What the user can do about it; ends the message.
    """
    text = read_text(path, error, mend)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise error(f"{path} is no JSON ({fault}): {mend}") from fault


def read_text(path: Path, error: type[IaunetError], mend: str) -> str:
    """The text of a UTF-8 file, with or without byte order mark; ``error`` and ``mend`` as in `read_json`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as fault:
        raise error(f"{path} is missing: {mend}") from fault
    except (OSError, UnicodeDecodeError) as fault:
        raise error(f"{path} cannot be read ({fault}): {mend}") from fault


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete what killed processes left half-written in a folder (not in those below it).

    Args:
        folder: Where nobody else writes now.
        name: Of a file, to delete what was to become it alone: others may write beside it.
    """
    for path in folder.glob(f".{'' if name is None else _token(name)}*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)


def _token(name: str) -> str:
    """Stands for a file's name, short whatever its length, which may be what the disk allows."""
    return digest(ascii(name))[:16]


def digest(value: Any) -> str:
    """SHA-256 of plain values: the same for equal values, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_files(paths: Iterable[Path]) -> None:
    """Bring files that others wrote to the disk, and their places in their folders.

    Several at a time, which file systems with a journal do for little more than the price of one.
    """
    folders = set()
    waiting = iter(paths)
    while some := [*itertools.islice(waiting, SYNCED_AT_ONCE)]:
        for _ in _syncing_threads().map(_sync_file, some):
            pass
        folders |= {path.parent for path in some}
    for folder in folders:
        sync_folder(folder)


@functools.cache
def _syncing_threads() -> concurrent.futures.ThreadPoolExecutor:
    """Threads that are kept: starting them costs more than what they do for a few files."""
    return concurrent.futures.ThreadPoolExecutor(8, "sync")


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
