"""Bad and odd images among those to predict: each has its line in the table, and the others their masks.

Those of a data set are in docs/faults.md, made by tests/preprocessing/test_faults.py.
"""

import csv
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image

from iaunet.inference.predict_command import main

RNG = np.random.default_rng(0)
SIZE = (40, 56)
PICTURE = Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8))

DAMAGED = r"is truncated or damaged \(.+\): copy it again from its source or remove it"
UNREADABLE = "is not a readable PNG, JPEG, BMP or TIFF image, whatever its name says: remove it or save it again as PNG"
PAGES = "holds 2 pages: save each page as an image of its own"

pytestmark = pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names are always text on this system")


class Odd(NamedTuple):
    """How a file is made, the size of its mask (None: it fails, or is left out), and what the table says."""

    make: Callable[[Path], object]
    size: tuple[int, int] | None = SIZE
    problem: str = ""


def saved(**options):
    return lambda path: PICTURE.save(path, **options)


def of_bytes(data):
    return lambda path: path.write_bytes(data)


def cut(path):
    PICTURE.save(path)
    path.write_bytes(path.read_bytes()[:900])


def bomb(path):
    """Let the header of a PNG tell of 20000 x 20000 pixels."""
    PICTURE.save(path)
    data = path.read_bytes()
    header = data[12:16] + struct.pack(">II", 20_000, 20_000) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


def fewer_rows(path):
    """Let the header of a PNG tell of four rows more than it holds."""
    PICTURE.save(path)
    data = path.read_bytes()
    header = data[12:16] + struct.pack(">II", SIZE[1], SIZE[0] + 4) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


def on_its_side(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PICTURE.save(path, exif=exif)


def grown_jpeg(path):
    """Let the header of a JPEG tell of 13000 x 13000 pixels."""
    PICTURE.save(path)
    data = bytearray(path.read_bytes())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 13_000, 13_000)
    path.write_bytes(data)


def with_nan(path):
    pixels = np.asarray(PICTURE).astype(np.float32)
    pixels[0, 0] = np.nan
    tifffile.imwrite(path, pixels, photometric="rgb")


LATIN = os.fsdecode(b"caf\xe9.png")
LONG = "x" * 251 + ".png"

FILES = {
    LATIN: Odd(saved(), None, "has a name that is not UTF-8: rename it"),
    "two words (ü).png": Odd(saved()),
    "line\nend.png": Odd(saved()),
    LONG: Odd(saved()),
    "capital.png": Odd(saved()),
    "CAPITAL.png": Odd(saved()),
    "empty.png": Odd(Path.touch, None, "file is empty: copy it again or remove it"),
    "text.png": Odd(of_bytes(b"hello"), None, UNREADABLE),
    "cut.png": Odd(cut, None, DAMAGED),
    "gif.png": Odd(saved(format="GIF"), None, UNREADABLE),
    "jpeg.png": Odd(saved(format="JPEG")),
    "bomb.png": Odd(bomb, None, r"is truncated or damaged \(.+ bytes cannot unfold to .+\): .+"),
    "fewer rows.png": Odd(fewer_rows, None, DAMAGED),
    "animated.png": Odd(saved(save_all=True, append_images=[PICTURE.rotate(180)]), None, PAGES),
    "one pixel.png": Odd(lambda path: PICTURE.crop((0, 0, 1, 1)).save(path), (1, 1)),
    "line.png": Odd(lambda path: PICTURE.crop((0, 0, 56, 1)).save(path), (1, 56)),
    "inks.jpg": Odd(lambda path: PICTURE.convert("CMYK").save(path)),
    "side.jpg": Odd(on_its_side, SIZE[::-1]),
    "grown.jpg": Odd(grown_jpeg, None, r"is truncated or damaged \(.+ bytes cannot unfold to .+\): .+"),
    "nan.tif": Odd(with_nan, None, "holds nan or infinite values: replace them, with 0 for instance"),
    "itself.png": Odd(lambda path: path.symlink_to(path.name), None, r"cannot be read \(.+\): mend its permissions .+"),
    "nothing.png": Odd(lambda path: path.symlink_to("gone.png"), None, "file is missing: restore it, .+"),
    "pipe.png": Odd(os.mkfifo, None),
    "device.png": Odd(lambda path: path.symlink_to("/dev/zero"), None),
    "folder.png": Odd(Path.mkdir, None),
}


def test_bad_images_fail_alone_and_odd_ones_are_predicted(trained_toy, tmp_path, capfd):
    images, output = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    for name, odd in FILES.items():
        odd.make(images / name)

    code = main(["-i", str(images), "-o", str(output), "-d", "toy", "--workspace", str(trained_toy), "--fast"])

    _, err = capfd.readouterr()
    assert (code, err) == (1, "")
    told = {line["image"]: line for line in read_table(output)}
    assert [*told] == sorted(told, key=[*told].index)
    assert {*told} == {written(name) for name, odd in FILES.items() if odd.size or odd.problem}
    for name, odd in FILES.items():
        line = told.get(written(name), {"problem": "", "mask": ""})
        assert re.fullmatch(odd.problem, line["problem"])
        assert size_of(output / line["mask"]) == odd.size


def written(name):
    return name.encode(errors="backslashreplace").decode()


def read_table(output):
    with (output / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def size_of(mask):
    if not mask.is_file():
        return None
    with Image.open(mask) as image:
        return image.size[::-1]


def test_a_folder_whose_own_name_is_not_utf8_is_refused_once(trained_toy, tmp_path, capsys):
    images = tmp_path / os.fsdecode(b"caf\xe9")
    images.mkdir()
    PICTURE.save(images / "a.png")

    code = main(["-i", str(images), "-o", str(tmp_path / "out"), "-d", "toy", "--workspace", str(trained_toy)])

    assert code == 2
    assert re.fullmatch(r"error: .+/caf\\udce9 has a name that is not UTF-8: rename it\n", capsys.readouterr().err)
