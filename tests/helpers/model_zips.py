"""The zips of models as somebody might change or forge them."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO


def files_of(zipped: Path | BinaryIO) -> dict[str, bytes]:
    """The files in a zip."""
    with zipfile.ZipFile(zipped) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(files: Mapping[Any, bytes]) -> bytes:
    """A zip of files {name, or ZipInfo: bytes} as they are: not compressed, and the same bytes each time."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name) if isinstance(name, str) else name, data)
    return file.getvalue()


def pack(path: Path, files: Mapping[Any, bytes]) -> Path:
    """Write what `packed` makes; returns the path."""
    path.write_bytes(packed(files))
    return path


def seal(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a model with a manifest that has their sizes and hashes, as somebody would forge it."""
    manifest = json.loads(files["model.json"])
    for name, data in files.items():
        if name != "model.json":
            manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for run in manifest["model"]["runs"]:
        for fold in run["folds"]:
            run["folds"][fold] = manifest["files"][f"{run['name']}/fold_{fold}.safetensors"]["sha256"]
    return {**files, "model.json": json.dumps(manifest).encode()}
