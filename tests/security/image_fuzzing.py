"""Reads damaged files and tells what came of them: a process of its own, with little memory and time for each.

    python image_fuzzing.py image|mask FOLDER FIRST LAST [FORMAT...]

reads the inputs number FIRST to LAST - 1 of each format, or of all; a number always stands for the same bytes. Prints
JSON: by format a `Tally`. A process that dies leaves its input in FOLDER/input.
"""

import faulthandler
import gzip
import json
import math
import resource
import shutil
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from image_seeds import IMAGES, MASKS, SIGNATURE, Seed, chunk, png_chunks, series_seeds
from mutations import mutate

from iaunet.dataset import DEFAULT_SLICING
from iaunet.errors import LONGEST, FileError, in_one_line
from iaunet.stacks import Spacing, Stack, read_mask_stack, read_stack

SECONDS = 120
"""An input may take so long, also where many processes share the processor: one that is held up longer ends with its
traceback."""

ADDRESSES = 4 << 30
"""Bytes of addresses beyond those in use at the start."""

MEMORY = 1 << 30
"""Bytes in memory beyond those in use at the start: no input is larger than some kB."""

MOST_ESCAPES = 20

TYPES = {"uint8", "uint16", "int16", "int32", "float32"}


@dataclass
class Tally:
    """What came of the inputs of one format.

    ``slowest`` is the number of the input that took most of the processor's time. ``escapes`` tells number and fault of
    those that were neither read nor refused in one line.
    """

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: int = 0
    slowest_s: float = 0.0
    memory_mb: int = 0
    escapes: dict[int, str] = field(default_factory=dict)


def damaged(kind: str, seeds: list[Seed], number: int) -> tuple[dict[str, bytes], str]:
    """The files of an input, and which is read."""
    rng = np.random.default_rng([number, *kind.encode()])
    files, path = seeds[int(rng.integers(len(seeds)))]
    others = seeds[int(rng.integers(len(seeds)))].files
    name = [*files][int(rng.integers(len(files)))]
    other = [*others.values()][int(rng.integers(len(others)))]
    change = INSIDE.get(kind, mutate) if rng.integers(2) else mutate
    return {**files, name: change(files[name], rng, other)}, path


def mutate_in_gzip(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Change what is packed, so that checksums still fit."""
    return gzip.compress(mutate(gzip.decompress(data), rng, gzip.decompress(other)), 1, mtime=0)


def mutate_in_png(data: bytes, rng: np.random.Generator, _: bytes) -> bytes:
    """Change one part of a PNG file, so that checksums still fit."""
    parts = [*png_chunks(data)]
    changed = int(rng.integers(len(parts)))
    kind, content = parts[changed]
    packed = kind == b"IDAT"
    content = mutate(zlib.decompress(content) if packed else content, rng)
    parts[changed] = kind, zlib.compress(content) if packed else content
    return SIGNATURE + b"".join(chunk(*part) for part in parts)


INSIDE: Mapping[str, Callable[[bytes, np.random.Generator, bytes], bytes]] = {
    "PNG": mutate_in_png,
    "NIfTI in gzip": mutate_in_gzip,
}
"""Formats of which half of the inputs are changed behind their checksums."""


def read_as_image(path: Path, _: Stack | None) -> None:
    """Read an image and look whether it is one."""
    stack = read_stack([path], DEFAULT_SLICING)
    assert stack.pixels.ndim == 4 and stack.pixels.size > 0, stack.pixels.shape
    assert stack.pixels.dtype.name in TYPES and stack.pixels.dtype.isnative, stack.pixels.dtype
    assert np.isfinite(stack.pixels).all(), "not finite"
    check_place(stack.spacing_mm)


def read_as_mask(path: Path, image: Stack | None) -> None:
    """Read a mask, perhaps of an image, and look whether it is one."""
    mask = read_mask_stack(path, DEFAULT_SLICING, image)
    assert mask.values.ndim == 3 and mask.values.size > 0, mask.values.shape
    assert mask.values.dtype.kind in "iu" and mask.values.dtype.isnative, mask.values.dtype
    assert int(mask.values.max()) >= int(mask.values.min())
    check_place(mask.spacing_mm)


def check_place(spacing_mm: Spacing | None) -> None:
    """See that distances are distances."""
    if spacing_mm is not None:
        assert len(spacing_mm) == 3 and all(0 < side < math.inf for side in spacing_mm), spacing_mm


def escape_of(read: Callable[[Path, Stack | None], None], path: Path, image: Stack | None) -> str | None:
    """Why an input is an escape; None where it was read.

    Raises:
        FileError: It was refused as it should.
    """
    try:
        read(path, image)
    except FileError as fault:
        text = str(fault)
        if not (fault.what and fault.mend and in_one_line(text) == text and len(text) <= LONGEST):
            return f"message {text!r}"
        raise
    except BaseException as fault:
        return f"{type(fault).__name__}: {fault}"
    return None


def peak_memory() -> int:
    """The most bytes that this process had in memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    """Let a folder hold these files and no others."""
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def run(mode: str, kind: str, folder: Path, numbers: range, image: Stack) -> Tally:
    """Read the inputs of a format."""
    read = read_as_image if mode == "image" else read_as_mask
    seeds, tally = MASKS[kind](), Tally()
    at_start = peak_memory()
    for number in numbers:
        files, path = damaged(kind, seeds, number)
        put(folder, files)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        start = time.process_time()
        try:
            escape = escape_of(read, folder / path, image if kind == "DICOM segmentation" else None)
            tally.accepted += escape is None
        except FileError:
            escape = None
            tally.refused += 1
        seconds = round(time.process_time() - start, 3)
        if seconds > tally.slowest_s:
            tally.slowest, tally.slowest_s = number, seconds
        tally.inputs += 1
        faulthandler.cancel_dump_traceback_later()
        tally.memory_mb = max(tally.memory_mb, (peak_memory() - at_start) >> 20)
        if tally.memory_mb << 20 > MEMORY:
            escape = f"took {tally.memory_mb} MB of memory"
        if escape:
            tally.escapes[number] = escape
            shutil.copytree(folder, folder.with_name(f"{mode}-{kind}-{number}"))
        if len(tally.escapes) == MOST_ESCAPES or tally.memory_mb << 20 > MEMORY:
            break
    return tally


def main(mode: str, folder: Path, numbers: range, kinds: list[str]) -> None:
    """Read the inputs of some formats."""
    faulthandler.enable()
    warnings.simplefilter("error")
    inputs, series = folder / "input", folder / "series"
    inputs.mkdir()
    series.mkdir()
    put(series, series_seeds()[0].files)
    image = read_stack([series], DEFAULT_SLICING)  # imports what is needed: addresses are counted from here
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES,) * 2)
    every = IMAGES if mode == "image" else MASKS
    print(json.dumps({kind: asdict(run(mode, kind, inputs, numbers, image)) for kind in kinds or every}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), range(int(sys.argv[3]), int(sys.argv[4])), sys.argv[5:])
