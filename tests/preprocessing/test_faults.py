"""Every row of docs/faults.md that is about data, made and given to the command."""

import gzip
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from iaunet.preprocessing.command import main

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parent))
    forms = import_module("forms")

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
SKIP = " (or leave such cases out with --skip_faulty)"


class Row(NamedTuple):
    """A sound data set, what is done to it, and options of the command."""

    write: Callable[[Path], None]
    spoil: Callable[[Path], object]
    options: Sequence[str] = ("--verify_only",)


def of(write, n_cases=6, size=(24, 32), **options):
    return lambda root: write(root, forms.boxes(n_cases, size), **options)


def nothing(root):
    root.mkdir()


def change(file, function):
    """Change the pixels of an image file."""

    def spoil(root):
        pixels = np.asarray(Image.open(root / file))
        Image.fromarray(function(pixels)).save(root / file)

    return spoil


def change_all(folder, function):
    def spoil(root):
        for path in (root / folder).iterdir():
            change(path, function)(root)

    return spoil


def change_nifti(file, function):
    """Change the header and voxels of a NIfTI file."""

    def spoil(root):
        image = nibabel.load(root / file)
        nibabel.save(function(np.asarray(image.dataobj), image.affine.copy()), root / file)

    return spoil


def shifted(voxels, affine):
    affine[0, 3] += 7
    return nibabel.Nifti1Image(voxels, affine)


def with_nan(voxels, affine):
    voxels = voxels.astype(np.float32)
    voxels[0, 0, 0] = np.nan
    return nibabel.Nifti1Image(voxels, affine)


def write_header(file, offset, form, *values):
    """Overwrite bytes of a NIfTI header."""

    def spoil(root):
        data = bytearray(gzip.decompress((root / file).read_bytes()))
        struct.pack_into(form, data, offset, *values)
        (root / file).write_bytes(gzip.compress(bytes(data)))

    return spoil


def cut(file, share=0.6):
    """Leave only the first part of a file."""

    def spoil(root):
        data = (root / file).read_bytes()
        (root / file).write_bytes(data[: int(len(data) * share)])

    return spoil


def text(file, content):
    return lambda root: (root / file).write_text(content, encoding="utf-8")


def remove(file):
    return lambda root: (root / file).unlink()


def both(*spoils):
    def spoil(root):
        for each in spoils:
            each(root)

    return spoil


def edit(file, function):
    return lambda root: forms.edit_json(root / file, function)


def bomb(file):
    """Let the header of a PNG tell of 30000x30000 pixels."""

    def spoil(root):
        data = (root / file).read_bytes()
        header = data[12:16] + struct.pack(">II", 30_000, 30_000) + data[24:29]
        (root / file).write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])

    return spoil


pictures, pictures_12 = of(forms.write_pictures), of(forms.write_pictures, 12, (64, 64))
volumes, series, pages = (
    of(write, 4 * forms.SLICES) for write in (forms.write_volumes, forms.write_series, forms.write_tiffs)
)
nnunet, per_channel = of(forms.write_nnunet), of(forms.write_nnunet, a_file_a_channel=True)
labelme, coco, rle = of(forms.write_labelme), of(forms.write_coco), of(forms.write_coco, code="plain")
compressed = of(forms.write_coco, code="compressed")
yolo, table = of(forms.write_yolo), of(forms.write_table)
coloured, named = of(forms.write_coloured, named=False), of(forms.write_coloured)
palettes, several = of(forms.write_palettes), of(forms.write_several)


def save_slice(file, place, series="s0", number=0, **elements):
    case = forms.boxes(number + 1)[number]
    return lambda root: forms.save_dicom(root / file, case.grey, place=place, series=series, **elements)


def no_image(path, modality):
    """A DICOM file of this modality without pixels, or a segmentation."""
    import pydicom

    case = forms.boxes(1)[0]
    segmentation = {"SOPClassUID": pydicom.uid.SegmentationStorage} if modality == "SEG" else {}
    forms.save_dicom(path, case.grey, place=9, series=modality, Modality=modality, **segmentation)
    if not segmentation:
        dataset = pydicom.dcmread(path)
        del dataset.PixelData
        dataset.save_as(path)


def to_itk(root, ending):
    """Save a volume in another format."""
    path = root / "images" / "s1.nii.gz"
    image = nibabel.load(path)
    volume = SimpleITK.GetImageFromArray(np.asarray(image.dataobj).transpose(2, 1, 0))
    volume.SetSpacing(forms.SPACING_MM[::-1])
    SimpleITK.WriteImage(volume, path.with_name(f"s1{ending}"))
    path.unlink()


def times(path):
    tifffile.imwrite(path, np.zeros((2, 3, 24, 32), np.uint8), photometric="minisblack", metadata={"axes": "TZYX"})


def retag(folder, function):
    """Change the DICOM data sets of a folder."""

    def spoil(root):
        import pydicom

        for path in sorted((root / folder).iterdir()):
            dataset = pydicom.dcmread(path)
            function(dataset)
            dataset.save_as(path)

    return spoil


def tilt(dataset):
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y + z * 0.3, z]


def invert_greys(dataset):
    dataset.PhotometricInterpretation = "MONOCHROME1"


def save_pages(file, n_pages, axes):
    def spoil(root):
        stack = forms.boxes(n_pages)
        forms.save_tiff(root / "images" / file, np.stack([case.grey for case in stack]), axes)

    return spoil


def to_tiff(file, **options):
    """Save an image as TIFF instead of PNG."""

    def spoil(root):
        path = root / file
        tifffile.imwrite(path.with_suffix(".tif"), np.asarray(Image.open(path)), **options)
        path.unlink()

    return spoil


def cmyk(root):
    path = root / "images" / "c2.png"
    Image.open(path).convert("CMYK").save(path.with_suffix(".tif"))
    path.unlink()


def unknown_compression(root):
    """Say of packed pixels that they are packed in a way nobody knows."""
    to_tiff("images/c2.png", compression="zlib")(root)
    path = root / "images" / "c2.tif"
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(50002)


def large_tiff(root):
    """Let the header of a TIFF file tell of 60000 x 60000 pixels."""
    to_tiff("images/c2.png")(root)
    with tifffile.TiffFile(root / "images" / "c2.tif", mode="r+") as file:
        for tag in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[tag].overwrite(60_000)


def deep_colour(root):
    for path in sorted((root / "images").iterdir()):
        deep = np.asarray(Image.open(path)).astype(np.uint16) * 257
        tifffile.imwrite(path.with_suffix(".tif"), deep, photometric="rgb")
        path.unlink()


def blurred(root):
    """Smooth a mask's edges, as a viewer does that enlarges it."""
    path = root / "masks" / "c2.png"
    image = Image.open(path)
    image.resize((16, 12), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC).save(path)


def noise():
    return np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def many_colours(root):
    colours = np.random.default_rng(0).integers(30, 255, (12, 3), dtype=np.uint8)
    for number, path in enumerate(sorted((root / "masks").iterdir())):
        mask = np.asarray(Image.open(path)) > 0
        forms.save(path, np.where(mask, colours[2 * number], np.uint8(0)))
        change(path, lambda pixels, number=number: stripe(pixels, colours[2 * number + 1]))(root)


def stripe(pixels, colour):
    pixels = pixels.copy()
    pixels[0, :] = colour
    return pixels


def other_palette(root):
    path = root / "masks" / "c2.png"
    forms.save_palette(path, np.asarray(Image.open(path)), (0, 0, 0, 0, 255, 0))


def outline(mask):
    inside = mask > 0
    inner = inside.copy()
    for axis in (0, 1):
        inner &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
    return np.where(inside & ~inner, mask.max(), mask.dtype.type(0))


def two_labels(root):
    """Another label, a dark bar at the foot of each picture; in one case the two are swapped."""
    for path in sorted((root / "masks").iterdir()):
        mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
        mask[-2:] = 2
        if path.stem == "c3":
            mask = np.array([0, 2, 1], np.uint8)[mask]
        forms.save(path, mask)
        change(root / "images" / path.name, lambda pixels: np.vstack([pixels[:-2], pixels[-2:] * 0]))(root)


def held_out(*spoils):
    """Sound cases of their own in a folder ``test`` beside the data set, and what is done to them."""

    def spoil(root):
        cases = [forms.Drawn(f"t{case.name}", *parts(case)) for case in forms.boxes(9)[6:]]
        forms.write_pictures(root.with_name("test"), cases)
        for each in spoils:
            each(root)

    return spoil


def parts(case):
    return case.picture, case.mask, case.outline


TEST = ("--verify_only", "--test", "{test}")


def copied_case(root):
    for part in ("images", "masks"):
        shutil.copy(root / part / "c0.png", root.with_name("test") / part / "copy.png")


def same_groups(root):
    """Patients with two pictures each, of whom one is in the test set too."""
    for part in ("images", "masks"):
        for path in [*(root / part).iterdir()]:
            path.rename(path.with_name(f"p{int(path.stem[1:]) // 2}_{path.stem[1:]}.png"))
        (root.with_name("test") / part / "tc6.png").rename(root.with_name("test") / part / "p0_6.png")
        (root.with_name("test") / part / "tc7.png").rename(root.with_name("test") / part / "p7_7.png")
        (root.with_name("test") / part / "tc8.png").rename(root.with_name("test") / part / "p8_8.png")


def broken_test_image(root):
    cut("../test/images/tc7.png")(root)


def save_as(name, mode=None, **options):
    """Save the picture of c2 in another format, perhaps one that its name does not tell."""

    def spoil(root):
        path = root / "images" / "c2.png"
        image = Image.open(path).convert(mode)
        path.unlink()
        image.save(path.with_name(name), **options)

    return spoil


def turn(root):
    """Store a picture on its side; its mask has the displayed orientation."""
    path = root / "images" / "c2.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".jpg"), exif=exif)
    path.unlink()


def lie_down(root):
    """The same, and the mask as it is stored."""
    turn(root)
    change("masks/c2.png", lambda mask: np.rot90(mask))(root)


def animate(root):
    path = root / "images" / "c2.png"
    image = Image.open(path)
    image.save(path, save_all=True, append_images=[image.rotate(180)])


def indexed(root):
    """Save a picture with a palette of which one colour is half transparent."""
    path = root / "images" / "c2.png"
    Image.open(path).quantize(16).save(path, transparency=bytes([128]))


def append(file, data):
    def spoil(root):
        with (root / file).open("ab") as stream:
            stream.write(data)

    return spoil


def put_bytes(file, place, data):
    def spoil(root):
        content = bytearray((root / file).read_bytes())
        start = place % len(content)
        content[start : start + len(data)] = data
        (root / file).write_bytes(content)

    return spoil


def rename(old, new):
    """Give an image and its mask other names."""

    def spoil(root):
        for part in ("images", "masks"):
            (root / part / f"{old}.png").rename(root / part / f"{new}.png")

    return spoil


def link(target):
    """Put a link in the place of an image."""

    def spoil(root):
        (root / "images" / "c2.png").unlink()
        (root / "images" / "c2.png").symlink_to(target)

    return spoil


def pipe(root):
    (root / "images" / "c2.png").unlink()
    os.mkfifo(root / "images" / "c2.png")


def folder_named_png(root):
    (root / "images" / "c9.png").mkdir()


def hollow_png(root):
    """A picture whose packed pixels go on for 20 MB behind its last row."""
    path = root / "images" / "c2.png"
    data = path.read_bytes()
    rows = b"\0" * (24 * 97) + bytes(20_000_000)
    parts = [(b"IHDR", data[16:29]), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    path.write_bytes(data[:8] + b"".join(map(png_part, parts)))


def png_part(part):
    kind, content = part
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def interlace(root):
    """A picture in the seven passes of Adam7, plain first."""
    path = root / "images" / "c2.png"
    pixels = np.asarray(Image.open(path))
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [b"\0" + row.tobytes() for top, left, down, on in passes for row in pixels[top::down, left::on]]
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(png_part, parts)))


def one_pixel(root):
    for part in ("images", "masks"):
        change(f"{part}/c2.png", lambda pixels: pixels[:1, :1])(root)


def to_float(value):
    """Save a picture as 32-bit float, with a value that is none."""

    def spoil(root):
        path = root / "images" / "s1.tif"
        pages = tifffile.imread(path).astype(np.float32)
        pages[0, 0, 0] = value
        forms.save_tiff(path, pages, "ZYX")

    return spoil


def entities(root):
    """A description in XML whose ten entities stand for a gigabyte."""
    names = "abcdefghij"
    lines = [f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in pairwise(names)]
    text = f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "lol">{"".join(lines)}]><OME>&j;</OME>'
    path = root / "images" / "s1.tif"
    pages = tifffile.imread(path)
    with tifffile.TiffWriter(path, ome=False) as file:
        file.write(pages, photometric="minisblack", description=text, metadata=None)


def circle_of_pages(root):
    """Let the last page of a TIFF file name the first as the next."""
    path = root / "images" / "s1.tif"
    with tifffile.TiffFile(path) as file:
        offsets = [page.offset for page in file.pages]
        last = offsets[-1] + 2 + 12 * len(file.pages[-1].tags)
    put_bytes("images/s1.tif", last, struct.pack("<I", offsets[0]))(root)


def oblique(root):
    """Image and mask turned by ten degrees about the third axis."""
    cosine, sine = np.cos(np.radians(10)), np.sin(np.radians(10))
    turn = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for part in ("images", "masks"):
        change_nifti(f"{part}/s1.nii.gz", lambda voxels, affine: nibabel.Nifti1Image(voxels, turn @ affine))(root)


def with_infinity(voxels, affine):
    voxels = voxels.astype(np.float32)
    voxels[0, 0, 0] = np.inf
    return nibabel.Nifti1Image(voxels, affine)


def beyond_floats(voxels, affine):
    return nibabel.Nifti1Image(np.where(voxels == voxels.max(), 1e300, voxels), affine)


def fourth_axis(voxels, affine):
    return nibabel.Nifti1Image(voxels[..., None], affine)


def floats_in(ending, value):
    """Save a volume of 32-bit floats in another format, with a value that is none."""

    def spoil(root):
        path = root / "images" / "s1.nii.gz"
        voxels = np.asarray(nibabel.load(path).dataobj).astype(np.float32)
        voxels[0, 0, 0] = value
        path.unlink()
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), path.with_name(f"s1{ending}"))

    return spoil


def unpacked(root):
    path = root / "images" / "s1.nii.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))


def gzip_bomb(root):
    """20 MB of zeros behind the last voxel, packed to 20 kB."""
    path = root / "images" / "s1.nii.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(20_000_000)))


def sub_text(file, old, new):
    def spoil(root):
        data = (root / file).read_bytes()
        assert old in data
        (root / file).write_bytes(data.replace(old, new, 1))

    return spoil


def set_element(keyword, value, number=2):
    """Change an element of one slice."""

    def spoil(root):
        import pydicom

        path = root / "images" / "s1" / f"{number}.dcm"
        dataset = pydicom.dcmread(path)
        setattr(dataset, keyword, value)
        dataset.save_as(path)

    return spoil


def pack_slices(root):
    import pydicom

    for path in sorted((root / "images" / "s1").iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.save_as(path)


def smaller_slice(root):
    case = forms.boxes(9)[7]
    forms.save_dicom(root / "images" / "s1" / "2.dcm", case.grey[:20], place=2, series="s1")


def not_utf8(root):
    (root / "images" / "c2.png").rename(Path(str(root / "images") + "/c\udce42.png"))


def archive(root):
    (root / "images" / "more.zip").write_bytes(b"PK\3\4")
    (root / "images" / "notes.txt").write_text("hello", encoding="utf-8")


def forbid_writing(root):
    for folder in (root / "images", root / "masks", root):
        folder.chmod(0o555)


def loop(root):
    (root / "images" / "again").symlink_to(root / "images")


def leave(n):
    def spoil(root):
        for path in [*(root / "images").iterdir(), *(root / "masks").iterdir()]:
            if int(path.stem[1:]) >= n:
                path.unlink()

    return spoil


def labels(*names_and_values, **fields):
    def function(data):
        data["labels"] = {"background": 0, **dict(names_and_values)}
        data.update(fields)

    return edit("dataset.json", function)


def first_shape(**fields):
    return edit("images/c2.json", lambda data: data["shapes"][0].update(fields))


def annotation(**fields):
    return edit("labels.json", lambda data: data["annotations"][0].update(fields))


def rename_images(data):
    for image in data["images"]:
        image["file_name"] = "x" + image["file_name"]


def replace_line(file, number, line):
    def spoil(root):
        lines = (root / file).read_text(encoding="utf-8").splitlines()
        lines[number - 1] = line
        (root / file).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return spoil


def repeat_part(root):
    path = root / "masks" / "c2" / "1.png"
    forms.save(path, np.asarray(Image.open(path))[:12])


def with_alpha(pixels):
    return np.dstack([pixels, np.arange(pixels[..., 0].size, dtype=np.uint32).reshape(pixels.shape[:2]) % 256]).astype(
        np.uint8
    )


def bars(mask, n):
    """Values 1 to n from left to right in the foot of the picture, 0 above."""
    values = np.zeros_like(mask)
    values[12:] = 1 + np.arange(mask.shape[1]) * n // mask.shape[1]
    return values


def numbered(root):
    """One to three boxes a mask, with a value each."""
    for number, path in enumerate(sorted((root / "masks").iterdir())):
        mask = np.zeros((24, 32), np.uint8)
        for value in range(1, 2 + number % 3):
            mask[4:12, 10 * value - 8 : 10 * value - 2] = value
        forms.save(path, mask)


def to_jpeg(root):
    for path in sorted((root / "masks").iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()


def groups(root, n):
    rows = [f"c{number},p{number}" for number in range(n)]
    root.with_name("groups.csv").write_text("\n".join(["case,group", *rows]), encoding="utf-8")


def empty(pixels):
    return np.zeros_like(pixels)


def full(pixels):
    return np.full_like(pixels, 255)


def inverted(pixels):
    return 255 - pixels


def to_ones(pixels):
    return pixels // 255


def from_ones(pixels):
    return pixels * 255


def grey(pixels):
    return pixels[..., 0]


def deep(pixels):
    return pixels[..., 0].astype(np.uint16)


def deep_png(root):
    row = b"\0" + struct.pack(">H", 1000) * 32 * 3
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 32, 24, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 24)),
        (b"IEND", b""),
    ]
    (root / "images" / "c2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(map(png_part, parts)))


def no_width(root):
    path = root / "images" / "c2.png"
    data = path.read_bytes()
    header = (b"IHDR", struct.pack(">II", 0, 24) + data[24:29])
    path.write_bytes(data[:8] + png_part(header) + data[33:])


ROWS = {
    # pictures and masks
    "an empty folder": Row(nothing, lambda root: None),
    "a folder that is not there": Row(nothing, Path.rmdir),
    "images without masks": Row(of(forms.write_images), lambda root: None),
    "an image without mask": Row(pictures, remove("masks/c2.png")),
    "a mask without image": Row(pictures, remove("images/c2.png")),
    "a mask of another size": Row(pictures, change("masks/c3.png", lambda mask: mask[:20])),
    "a truncated PNG": Row(pictures, cut("images/c2.png")),
    "a text file named .png": Row(pictures, text("images/c4.png", "hello")),
    "an empty file": Row(pictures, text("masks/c1.png", "")),
    "a PNG that promises 30000 x 30000 pixels": Row(pictures, bomb("images/c1.png")),
    "grey among colours": Row(pictures, change("images/c1.png", grey)),
    "an image that is transparent": Row(pictures, change("images/c1.png", with_alpha)),
    "16 bit among 8 bit": Row(pictures, change("images/c1.png", deep)),
    "two images of one name": Row(pictures, lambda root: shutil.copy(root / "images/c1.png", root / "images/c1.jpg")),
    "3 images for 5 folds": Row(pictures, leave(3), ("--dry_run",)),
    "several faults": Row(pictures, both(cut("images/c2.png"), remove("masks/c4.png"))),
    "a zip and a text among the images": Row(pictures, archive),
    "a name that is not UTF-8": Row(pictures, not_utf8),
    "a link in a circle": Row(pictures, loop),
    "a folder that may only be read": Row(pictures, forbid_writing),
    # odd files and names
    "a JPEG that is stored on its side": Row(pictures, turn),
    "its mask on its side as well": Row(pictures, lie_down),
    "a JPEG of four inks": Row(pictures, save_as("c2.jpg", "CMYK")),
    "a progressive JPEG": Row(pictures, save_as("c2.jpg", progressive=True)),
    "bytes behind the end of a JPEG": Row(pictures, both(save_as("c2.jpg"), append("images/c2.jpg", b"\n-- \n" * 99))),
    "a truncated JPEG": Row(pictures, both(save_as("c2.jpg"), cut("images/c2.jpg"))),
    "a JPEG named .png": Row(pictures, save_as("c2.png", format="JPEG")),
    "a GIF named .png": Row(pictures, save_as("c2.png", format="GIF")),
    "a truncated BMP": Row(pictures, both(save_as("c2.bmp"), cut("images/c2.bmp"))),
    "an interlaced PNG": Row(pictures, interlace),
    "an animated PNG": Row(pictures, animate),
    "a palette with a transparent colour": Row(pictures, indexed),
    "a PNG of 16 bits a colour": Row(pictures, deep_png),
    "a wrong byte among the pixels of a PNG": Row(pictures, put_bytes("images/c2.png", 1000, b"\xaa")),
    "a wrong checksum in a PNG": Row(pictures, put_bytes("images/c2.png", -16, b"\0\0\0\0")),
    "a PNG of no width": Row(pictures, no_width),
    "a PNG that unfolds to 20 MB behind its last row": Row(pictures, hollow_png),
    "an image of one pixel": Row(pictures, one_pixel),
    "a name with spaces, umlauts and brackets": Row(pictures, rename("c2", "Ärzte [2] (links)")),
    "a name with a line end": Row(pictures, both(rename("c2", "c\n2"), cut("images/c\n2.png"))),
    "a name of 250 characters": Row(pictures, rename("c2", "x" * 246)),
    "names that differ by capitals": Row(pictures, rename("c2", "C1")),
    "a folder named .png": Row(pictures, folder_named_png),
    "a pipe named .png": Row(pictures, pipe),
    "a link to a device": Row(pictures, link("/dev/zero")),
    "a link to itself": Row(pictures, link("c2.png")),
    "a link to nothing": Row(pictures, link("c99.png")),
    # volumes
    "a NIfTI file of two volumes": Row(
        volumes,
        change_nifti("images/s1.nii.gz", lambda v, a: nibabel.Nifti1Image(np.stack([v, v], axis=3), a)),
    ),
    "a voxel that is nan": Row(volumes, change_nifti("images/s1.nii.gz", with_nan)),
    "a spacing of 0": Row(
        volumes,
        both(write_header("images/s1.nii.gz", 80, "<f", 0.0), write_header("images/s1.nii.gz", 252, "<2h", 0, 0)),
    ),
    "axes in one plane": Row(volumes, write_header("images/s1.nii.gz", 280, "<4f", 0, 0, 0, 0)),
    "a header that promises more voxels than there are": Row(
        volumes, write_header("images/s1.nii.gz", 42, "<3h", 2000, 2000, 2000)
    ),
    "a truncated .nii.gz": Row(volumes, cut("images/s1.nii.gz")),
    "a mask volume of another shape": Row(
        volumes, change_nifti("masks/s1.nii.gz", lambda v, a: nibabel.Nifti1Image(v[:, :, :4], a))
    ),
    "a mask volume elsewhere": Row(volumes, change_nifti("masks/s1.nii.gz", shifted)),
    "a mask volume with other axes in the same place": Row(
        volumes,
        lambda root: forms.save_nifti(root / "masks/s1.nii.gz", forms.truth_of(forms.boxes(10)[5:]), "RAS"),
    ),
    "a mask volume of fractions": Row(
        volumes, change_nifti("masks/s1.nii.gz", lambda v, a: nibabel.Nifti1Image(v * np.float32(0.5), a))
    ),
    "a truncated .mha": Row(volumes, both(partial(to_itk, ending=".mha"), cut("images/s1.mha"))),
    "a truncated .nrrd": Row(volumes, both(partial(to_itk, ending=".nrrd"), cut("images/s1.nrrd"))),
    "an .mhd file without its data": Row(volumes, both(partial(to_itk, ending=".mhd"), remove("images/s1.raw"))),
    "an .mhd file whose data lie elsewhere": Row(
        volumes, both(partial(to_itk, ending=".mhd"), sub_text("images/s1.mhd", b"= s1.raw", b"= ../s1.raw"))
    ),
    "a voxel that is infinite": Row(volumes, change_nifti("images/s1.nii.gz", with_infinity)),
    "a voxel of 1e300": Row(volumes, change_nifti("images/s1.nii.gz", beyond_floats)),
    "a voxel that is nan in .mha": Row(volumes, floats_in(".mha", np.nan)),
    "a voxel that is infinite in .nrrd": Row(volumes, floats_in(".nrrd", -np.inf)),
    "a negative spacing": Row(
        volumes,
        both(write_header("images/s1.nii.gz", 80, "<f", -0.5), write_header("images/s1.nii.gz", 252, "<2h", 0, 0)),
    ),
    "a negative spacing in .mha": Row(
        volumes,
        both(partial(to_itk, ending=".mha"), sub_text("images/s1.mha", b"ElementSpacing = ", b"ElementSpacing = -")),
    ),
    "a spacing of 0 in .nrrd": Row(
        volumes,
        both(
            partial(to_itk, ending=".nrrd"),
            sub_text("images/s1.nrrd", b"space directions: (0.5,0,0)", b"space directions: (0,0,0)"),
        ),
    ),
    "a size beyond all files in .mha": Row(
        volumes,
        both(
            partial(to_itk, ending=".mha"),
            sub_text("images/s1.mha", b"DimSize = 32 24 5", b"DimSize = 99999 99999 99999"),
        ),
    ),
    "a size beyond all files in .nrrd": Row(
        volumes,
        both(
            partial(to_itk, ending=".nrrd"), sub_text("images/s1.nrrd", b"sizes: 32 24 5", b"sizes: 99999 99999 99999")
        ),
    ),
    "an oblique volume": Row(volumes, oblique),
    "a NIfTI file of one volume along a fourth axis": Row(volumes, change_nifti("images/s1.nii.gz", fourth_axis)),
    "a .nii.gz that is not packed": Row(volumes, unpacked),
    "a .nii.gz that unfolds to 20 MB behind its last voxel": Row(volumes, gzip_bomb),
    "a text file named .nii.gz": Row(volumes, text("images/s1.nii.gz", "hello")),
    "a text file named .mha": Row(volumes, both(remove("images/s1.nii.gz"), text("images/s1.mha", "hello"))),
    "a text file named .nrrd": Row(volumes, both(remove("images/s1.nii.gz"), text("images/s1.nrrd", "hello"))),
    # DICOM
    "a missing slice": Row(series, remove("images/s1/2.dcm")),
    "a slice twice": Row(series, lambda root: shutil.copy(root / "images/s1/2.dcm", root / "images/s1/copy.dcm")),
    "a tilted gantry": Row(series, retag("images/s1", tilt)),
    "two series in a folder": Row(series, both(*(save_slice(f"images/s1/{n}x.dcm", n, "other") for n in range(2)))),
    "an RTSTRUCT beside the slices": Row(series, lambda root: no_image(root / "images/s1/rt.dcm", "RTSTRUCT")),
    "a truncated slice": Row(series, cut("images/s1/2.dcm")),
    "a file among the slices that is no DICOM": Row(series, text("images/s1/notes.dcm", "hello")),
    "MONOCHROME1": Row(series, retag("images/s1", invert_greys)),
    "packed slices": Row(series, pack_slices),
    "bytes behind the end of a slice": Row(series, append("images/s1/2.dcm", b"\x28\0\x10\0OB\0\0\xf0\xff\xff\xff")),
    "a slice of another size": Row(series, smaller_slice),
    "a slice that promises 65535 x 65535 pixels": Row(
        series, both(set_element("Rows", 65535), set_element("Columns", 65535))
    ),
    "a slice whose position is no number": Row(series, sub_text("images/s1/2.dcm", b"0.0\\0.0\\5.0", b"0.0\\nan\\5.0")),
    "a slice without spacing": Row(series, set_element("PixelSpacing", [0, 0.5])),
    "a DICOM segmentation among the images": Row(series, lambda root: no_image(root / "images/s1/seg.dcm", "SEG")),
    # TIFF
    "several pages that do not say what they are": Row(pages, save_pages("s1.tif", 5, None)),
    "the same with --axes ZYX": Row(pages, save_pages("s1.tif", 5, None), ("--verify_only", "--axes", "ZYX")),
    "pages of several times": Row(pages, lambda root: times(root / "images/s1.tif")),
    "a truncated TIFF": Row(pages, cut("images/s1.tif")),
    "CMYK": Row(pictures, cmyk),
    "a pixel that is nan": Row(pages, to_float(np.nan)),
    "a pixel that is infinite": Row(pages, to_float(np.inf)),
    "pages in a circle": Row(pages, circle_of_pages),
    "a description of a gigabyte in a few lines": Row(pages, entities),
    "a compression nobody knows": Row(pictures, unknown_compression),
    "colour with 16 bits a channel": Row(pictures, deep_colour),
    "a TIFF that promises 60000 x 60000 pixels": Row(pictures, large_tiff),
    # nnU-Net
    "a missing channel file": Row(per_channel, remove("imagesTr/c2_0001.png")),
    "a label without image": Row(nnunet, remove("imagesTr/c2_0000.png")),
    "an image without label": Row(nnunet, remove("labelsTr/c2.png")),
    "labels with gaps": Row(nnunet, labels(("polyp", 1), ("stalk", 3))),
    "regions without order": Row(nnunet, labels(("whole", [1, 2]), ("core", 2))),
    "an ignore label that is not the highest": Row(nnunet, labels(("polyp", 1), ("stalk", 2), ("ignore", 2))),
    "a value that dataset.json does not name": Row(nnunet, change("labelsTr/c2.png", lambda mask: mask * 2)),
    "a dataset.json that is no JSON": Row(nnunet, cut("dataset.json")),
    "a file_ending that no file has": Row(nnunet, edit("dataset.json", lambda data: data.update(file_ending=".tif"))),
    # annotations
    "Labelme: drawn on an image of another size": Row(
        labelme, edit("images/c2.json", lambda data: data.update(imageHeight=48, imageWidth=64))
    ),
    "Labelme: a point that is nan": Row(labelme, first_shape(points=[[1, 1], [9, float("nan")], [9, 9]])),
    "Labelme: an unknown kind of shape": Row(labelme, first_shape(shape_type="spline")),
    "Labelme: a shape beside the image": Row(labelme, first_shape(points=[[40, 5], [50, 5], [50, 15]])),
    "Labelme: a file that is no JSON": Row(labelme, cut("images/c2.json")),
    "Labelme: an image without file": Row(labelme, remove("images/c2.json")),
    "COCO: run lengths of another size": Row(rle, annotation(segmentation={"counts": [5, 5], "size": [24, 32]})),
    "COCO: damaged compressed run lengths": Row(
        compressed, annotation(segmentation={"counts": "~~~", "size": [24, 32]})
    ),
    "COCO: an annotation of an unknown image": Row(coco, annotation(image_id=99)),
    "COCO: one id for two images": Row(coco, edit("labels.json", lambda data: data["images"][1].update(id=1))),
    "COCO: one id for two labels": Row(
        coco, edit("labels.json", lambda data: data["categories"].append({"id": 1, "name": "stalk"}))
    ),
    "COCO: a box without outline": Row(coco, annotation(segmentation=[], bbox=[1, 2, 3, 4])),
    "COCO: names of no image": Row(
        coco,
        edit("labels.json", lambda data: [item.update(file_name="x" + item["file_name"]) for item in data["images"]]),
    ),
    "YOLO: boxes": Row(yolo, text("labels/c2.txt", "0 0.5 0.5 0.2 0.2\n")),
    "YOLO: a class without name": Row(yolo, text("labels/c2.txt", "1 0.1 0.1 0.5 0.1 0.5 0.5\n")),
    "YOLO: pixels instead of shares": Row(yolo, text("labels/c2.txt", "0 10 10 20 10 20 20\n")),
    "run lengths: beyond the image": Row(table, replace_line("train.csv", 2, "c0,760 20")),
    "run lengths: a bad number": Row(table, replace_line("train.csv", 2, "c0,7x 20")),
    "run lengths: a start without length": Row(table, replace_line("train.csv", 2, "c0,7 20 3")),
    "annotations of two formats": Row(coco, lambda root: forms.write_yolo(root, forms.boxes(6))),
    "colours: twelve without names": Row(coloured, many_colours),
    "colours: smoothed edges": Row(named, blurred),
    "colours: smoothed edges, no names": Row(coloured, blurred),
    "colours: a palette unlike the others": Row(palettes, other_palette),
    "colours: a name twice": Row(named, text("labelmap.txt", "polyp:255,0,0::\npolyp:0,255,0::\n")),
    "several masks: of different sizes": Row(several, repeat_part),
    "several masks: a broken one": Row(several, cut("masks/c2/1.png")),
    # masks that seem wrong
    "255 where the others use 1": Row(
        pictures_12, both(change_all("masks", to_ones), change("masks/c2.png", from_ones))
    ),
    "1 where the others use 255": Row(pictures_12, change("masks/c2.png", to_ones)),
    "an inverted mask": Row(pictures_12, change("masks/c2.png", inverted)),
    "all masks inverted": Row(pictures_12, change_all("masks", inverted)),
    "an outline among filled masks": Row(pictures_12, change("masks/c2.png", outline)),
    "all masks outlines": Row(pictures_12, change_all("masks", outline)),
    "labels swapped in one mask": Row(pictures_12, two_labels),
    "all masks empty": Row(pictures, change_all("masks", empty)),
    "all masks full": Row(pictures, change_all("masks", full)),
    "masks saved as JPEG": Row(pictures_12, to_jpeg),
    "values that number components": Row(pictures, numbered),
    "nine labels without names": Row(pictures, change_all("masks", lambda mask: bars(mask, 9))),
    "masks of any grey": Row(pictures, change_all("masks", lambda mask: bars(mask, 24) * np.uint8(10))),
    "a photograph among the masks": Row(pictures, lambda root: forms.save(root / "masks/c2.png", noise())),
    # groups and test set
    "a table of groups that lacks a case": Row(
        pictures, lambda root: groups(root, 5), ("--verify_only", "--groups", "{groups}")
    ),
    "an expression that names no group": Row(pictures, lambda root: None, ("--verify_only", "--groups", r"p(\d+)_")),
    "a test image copied from the training data": Row(pictures, held_out(copied_case), TEST),
    "patients in both": Row(pictures, held_out(same_groups), (*TEST, "--groups", r"(p\d+)_")),
    "a broken test image": Row(pictures, held_out(broken_test_image), TEST),
    "a test set without masks": Row(
        pictures, held_out(lambda root: shutil.rmtree(root.with_name("test") / "masks")), TEST
    ),
    "a test set that is not there": Row(pictures, lambda root: None, TEST),
}


def told():
    """What docs/faults.md says of each input: the answer."""
    page = PAGE.read_text(encoding="utf-8").partition("## Other commands")[0]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", page, re.MULTILINE)
    return {name: answer.replace(r"\|", "|") for name, answer in rows if name not in ("input", "---")}


def pattern(message):
    """A message of the page, whose dots stand for what differs from machine to machine."""
    return ".+".join(map(re.escape, message.split("…")))


def test_the_page_tells_of_every_row():
    assert [*told()] == [*ROWS]


def test_more_than_sixty_rows_are_bad_or_odd_image_files():
    files = [name for name, row in ROWS.items() if row.write in (pictures, volumes, series, pages)]

    assert len(files) >= 60


@pytest.mark.parametrize("name", ROWS)
def test_the_answer_is_the_one_the_page_tells(name, tmp_path, capsys):
    row, answer = ROWS[name], told()[name]
    root, workspace = tmp_path / "data", tmp_path / "workspace"
    row.write(root)
    row.spoil(root)
    options = [option.format(test=tmp_path / "test", groups=tmp_path / "groups.csv") for option in row.options]
    capsys.readouterr()

    code = main([str(root), "--workspace", str(workspace), "--workers", "1", "--width", "1", *options])

    out, err = capsys.readouterr()
    messages = re.findall(r"`(.+?)`", answer)
    if answer.startswith("goes on"):
        assert (code, err) == (0, "")
        notes = [line.removeprefix("note: ") for line in out.splitlines() if line.startswith("note: ")]
        assert len(notes) == len(messages)
        assert all(map(re.fullmatch, map(pattern, messages), notes))
    else:
        faults = [line.removeprefix("fault: ") for line in out.splitlines() if line.startswith("fault: ")]
        lines = faults or [err.removeprefix("error: ").removesuffix("\n").removesuffix(SKIP)]
        assert code == 2
        assert err.count("\n") == 1
        assert len(lines) == len(messages)
        assert all(map(re.fullmatch, map(pattern, messages), lines))
