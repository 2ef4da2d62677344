"""Files damaged at random, of every format that is read: each is an image, or refused in one line."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("image_fuzzing.py")
KINDS = ("PNG", "JPEG", "BMP", "TIFF", "NIfTI", "NIfTI in gzip", "MHA", "MHD", "NRRD", "DICOM", "DICOM series")
MASK_KINDS = (*KINDS, "DICOM segmentation")
LEAST_ACCEPTED = 0.01

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits and measures memory as on Linux")


class Reading:
    """A process that reads damaged files of some formats, or of all."""

    def __init__(self, folder: Path, mode: str, first: int, last: int, kinds: Sequence[str] = ()) -> None:
        folder.mkdir()
        self.folder = folder
        command = [sys.executable, PROGRAM, mode, folder, str(first), str(last), *kinds]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def tallies(self) -> dict[str, Any]:
        """What came of the files of each format, once all are read; none may be an escape."""
        out, err = self.process.communicate()
        if self.process.returncode:
            files = {path.name: path.read_bytes().hex() for path in (self.folder / "input").iterdir()}
            pytest.fail(f"the reader died ({self.process.returncode}) of {files}\n{err}")
        tallies: dict[str, Any] = json.loads(out)
        assert {kind: tally["escapes"] for kind, tally in tallies.items() if tally["escapes"]} == {}
        return tallies


def test_some_damaged_files_of_every_format_are_images_or_refused_in_one_line(tmp_path):
    reading = Reading(tmp_path / "images", "image", 0, 120), Reading(tmp_path / "masks", "mask", 0, 20)
    images, masks = (each.tallies() for each in reading)

    assert tuple(images) == KINDS
    assert tuple(masks) == MASK_KINDS
    for tally in images.values():
        assert tally["inputs"] == tally["accepted"] + tally["refused"] == 120
        assert tally["accepted"] >= LEAST_ACCEPTED * tally["inputs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "kind", "count"),
    [*(("image", kind, 9_100) for kind in KINDS), *(("mask", kind, 840) for kind in MASK_KINDS)],
)
def test_many_damaged_files_are_images_or_refused_in_one_line(tmp_path, mode, kind, count):
    half = count // 2
    parts = Reading(tmp_path / "first", mode, 0, half, [kind]), Reading(tmp_path / "rest", mode, half, count, [kind])
    tallies = [each.tallies()[kind] for each in parts]
    accepted = sum(tally["accepted"] for tally in tallies)
    print(f"{mode}, {kind}: {accepted} of {count} accepted", *tallies, sep="\n")

    assert sum(tally["inputs"] for tally in tallies) == count
    assert accepted >= LEAST_ACCEPTED * count
