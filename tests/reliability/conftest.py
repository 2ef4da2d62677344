"""What tests of reliability share: whether the files that are to be seen are whole."""

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from iaunet.storage import TEMPORARY_SUFFIX
from iaunet.trainers.checkpoint import load_checkpoint

BEING_MADE = (".partial", ".old", TEMPORARY_SUFFIX)
"""End the names of files and folders that do not count yet, or no longer."""


def read_png(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def read_csv(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    header, *rows = csv.reader(text.splitlines())
    assert all(len(row) == len(header) for row in rows)


def read_lines(path: Path) -> None:
    *lines, _ = path.read_text(encoding="utf-8").split("\n")  # a killed process may leave a part of its last line
    for line in filter(None, lines):
        try:
            json.loads(line)
        except ValueError:  # which the next process has ended
            assert not line.endswith("}")


def read_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def read_array(path: Path) -> None:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    assert path.stat().st_size == array.offset + array.nbytes


def read_page(path: Path) -> None:
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


def read_onnx(path: Path) -> None:
    from onnx.checker import check_model

    check_model(path)


READERS: dict[str, Callable[[Path], object]] = {
    ".png": read_png,
    ".csv": read_csv,
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".jsonl": read_lines,
    ".zip": read_zip,
    ".npy": read_array,
    ".html": read_page,
    ".onnx": read_onnx,
    ".safetensors": load_file,
    ".pt": load_checkpoint,
    ".md": lambda path: path.read_text(encoding="utf-8"),
    ".py": lambda path: compile(path.read_bytes(), path, "exec"),
    ".txt": lambda path: path.read_text(encoding="utf-8"),
    "Dockerfile": lambda path: path.read_text(encoding="utf-8"),
}
"""What reads files to their end, by their endings; it raises or asserts where one is not whole."""


def is_to_be_seen(path: Path, folder: Path) -> bool:
    """Whether a file has its final name and counts: held-out masks and logits do once summary.json is there."""
    parts = path.relative_to(folder).parts
    if path.name.endswith(".lock") or any(part.endswith(BEING_MADE) for part in parts):
        return False
    if "validation" in parts:
        fold = folder.joinpath(*parts[: parts.index("validation")])
        return (fold / "summary.json").exists()
    return True


def require_whole_files(folder: Path) -> None:
    """Read every file below a folder that has its final name, to its end."""
    for path in folder.rglob("*"):
        if path.is_file() and is_to_be_seen(path, folder):
            try:
                READERS[path.suffix or path.name](path)
            except Exception as fault:
                raise AssertionError(f"{path} is not whole") from fault


@pytest.fixture(scope="session")
def require_whole() -> Callable[[Path], None]:
    """`require_whole_files`."""
    return require_whole_files
