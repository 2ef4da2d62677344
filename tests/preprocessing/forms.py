"""Writes one small data set in every form that is read: pictures, volumes, annotations."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

RED = (255, 0, 0)
SLICES = 5
"""Pictures of a stack, slices of a series."""

SPACING_MM = (2.5, 0.75, 0.5)
"""Distance of slices, rows and columns in the volumes written here."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """A picture [height, width, 3] uint8, its mask [height, width] bool, and the mask's border as (x, y)."""

    name: str
    picture: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    outline: Sequence[tuple[float, float]]

    @property
    def grey(self) -> NDArray[np.uint8]:
        """One channel of the picture."""
        return self.picture[..., 1]


Cases = Sequence[Drawn]


def boxes(n_cases: int = 8, size: tuple[int, int] = (24, 32)) -> list[Drawn]:
    """Bright boxes on clouds, each case unlike the others and the same each time."""
    return [_box(number, size) for number in range(n_cases)]


def _box(number: int, size: tuple[int, int]) -> Drawn:
    rng = np.random.default_rng(number)
    height, width = size
    clouds = Image.fromarray(rng.integers(20, 110, (4, 4, 3), dtype=np.uint8))
    picture = np.array(clouds.resize((width, height), Image.Resampling.BICUBIC))
    top, left = int(rng.integers(3, height // 3)), int(rng.integers(3, width // 3))
    bottom, right = top + height // 4 + number % 3, left + width // 4 + number % 4
    mask = np.zeros(size, np.bool_)
    mask[top:bottom, left:right] = True
    picture[mask] += 100
    return Drawn(f"c{number}", picture, mask, [(left, top), (right, top), (right, bottom), (left, bottom)])


def save(path: Path, pixels: NDArray[np.generic], **options: Any) -> Path:
    """Write an image file, and its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"compress_level": 0} | options) if path.suffix == ".png" else options)
    return path


def write_images(root: Path, cases: Cases) -> None:
    """Images alone."""
    for case in cases:
        save(root / "images" / f"{case.name}.png", case.picture)


def write_pictures(root: Path, cases: Cases) -> None:
    """``images`` and ``masks`` of 0 and 255."""
    write_images(root, cases)
    for case in cases:
        save(root / "masks" / f"{case.name}.png", case.mask.astype(np.uint8) * 255)


def write_side_by_side(root: Path, cases: Cases) -> None:
    """One folder with both, masks called NAME_mask."""
    for case in cases:
        save(root / f"{case.name}.png", case.picture)
        save(root / f"{case.name}_mask.png", case.mask.astype(np.uint8) * 255)


def write_nnunet(root: Path, cases: Cases, a_file_a_channel: bool = False) -> None:
    """A raw data set of nnU-Net with a colour PNG a case, or three grey ones."""
    for case in cases:
        save(root / "labelsTr" / f"{case.name}.png", case.mask.astype(np.uint8))
        planes = np.moveaxis(case.picture, 2, 0) if a_file_a_channel else [case.picture]
        for channel, plane in enumerate(planes):
            save(root / "imagesTr" / f"{case.name}_{channel:04d}.png", plane)
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "polyp": 1},
        "numTraining": len(cases),
        "file_ending": ".png",
    }
    write_json(root / "dataset.json", description)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(data), encoding="utf-8")


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Change what a JSON file holds."""
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    write_json(path, data)


def write_labelme(root: Path, cases: Cases, as_masks: bool = False) -> None:
    """A JSON file of Labelme beside each image, with a polygon or a mask."""
    write_images(root, cases)
    for case in cases:
        if not case.mask.any():
            shapes = []
        elif as_masks:
            shapes = [_labelme_mask(case.mask)]
        else:
            shapes = [{"label": "polyp", "shape_type": "polygon", "points": [*map(list, case.outline)]}]
        height, width = case.mask.shape
        image = {"imagePath": f"{case.name}.png", "imageHeight": height, "imageWidth": width, "imageData": None}
        write_json(root / "images" / f"{case.name}.json", {"version": "5.4.1", "flags": {}, "shapes": shapes, **image})


def _labelme_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A bitmap of the box around a mask, as Labelme's drawing with AI gives it."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    top, bottom, left, right = (int(side) for side in (rows[0], rows[-1], columns[0], columns[-1]))
    stream = io.BytesIO()
    Image.fromarray(mask[top : bottom + 1, left : right + 1]).save(stream, format="PNG")
    code = base64.b64encode(stream.getvalue()).decode()
    return {"label": "polyp", "shape_type": "mask", "points": [[left, top], [right, bottom]], "mask": code}


def write_coco(root: Path, cases: Cases, code: str = "polygons") -> None:
    """One file of COCO with ``polygons``, or with run lengths in ``plain`` or ``compressed`` code."""
    write_images(root, cases)
    images, annotations = [], []
    for number, case in enumerate(cases, start=1):
        height, width = case.mask.shape
        images.append({"id": number, "file_name": f"{case.name}.png", "height": height, "width": width})
        if not case.mask.any():
            continue
        if code == "polygons":
            segmentation: Any = [[float(side) for point in case.outline for side in point]]
        else:
            counts = column_runs(case.mask)
            segmentation = {"counts": counts if code == "plain" else compressed(counts), "size": [height, width]}
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": segmentation})
    categories = [{"id": 1, "name": "polyp"}]
    write_json(root / "labels.json", {"images": images, "annotations": annotations, "categories": categories})


def column_runs(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of runs down the columns, background first."""
    flat = mask.ravel(order="F")
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff([0, *borders.tolist(), flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def compressed(counts: Sequence[int]) -> str:
    """COCO's code of run lengths, see `iaunet.annotations.coco.decode_counts`."""
    differences = [count - (counts[i - 2] if i > 2 else 0) for i, count in enumerate(counts)]
    return "".join(map(_code, differences))


def _code(number: int) -> str:
    text = ""
    while True:
        bits, number = number & 31, number >> 5
        is_last = number == (-1 if bits & 16 else 0)
        text += chr(bits + (0 if is_last else 32) + 48)
        if is_last:
            return text


def write_yolo(root: Path, cases: Cases) -> None:
    """Text files of YOLO in ``labels`` with polygons in shares of the image."""
    write_images(root, cases)
    (root / "labels").mkdir()
    (root / "classes.txt").write_text("polyp\n", encoding="utf-8")
    for case in cases:
        height, width = case.mask.shape
        shares = " ".join(f"{x / width!r} {y / height!r}" for x, y in case.outline)
        row = f"0 {shares}\n" if case.mask.any() else ""
        (root / "labels" / f"{case.name}.txt").write_text(row, encoding="utf-8")


def write_table(root: Path, cases: Cases) -> None:
    """A table of run lengths as in Kaggle's competitions: starts and lengths down the columns, counted from 1."""
    write_images(root, cases)
    rows = ["ImageId,EncodedPixels"]
    for case in cases:
        counts = column_runs(case.mask)
        starts = np.cumsum([0, *counts])[1::2]
        runs = " ".join(f"{start + 1} {length}" for start, length in zip(starts, counts[1::2], strict=False))
        rows.append(f"{case.name},{runs}")
    (root / "train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_coloured(root: Path, cases: Cases, named: bool = True) -> None:
    """Masks of red on black, and CVAT's file that names the colour."""
    write_images(root, cases)
    for case in cases:
        save(root / "masks" / f"{case.name}.png", case.mask[..., None] * np.array(RED, np.uint8))
    if named:
        (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\npolyp:255,0,0::\n", encoding="utf-8")


def write_palettes(root: Path, cases: Cases) -> None:
    """Masks with a palette: 0 is black, 1 is red."""
    write_images(root, cases)
    (root / "masks").mkdir()
    for case in cases:
        save_palette(root / "masks" / f"{case.name}.png", case.mask.astype(np.uint8), (0, 0, 0, *RED))


def save_palette(path: Path, indices: NDArray[np.uint8], palette: Sequence[int]) -> None:
    """Write an image of indices with the colours of a palette."""
    image = Image.fromarray(indices)
    image.putpalette([*palette])
    image.save(path)


def write_several(root: Path, cases: Cases) -> None:
    """Two masks an image, in a folder called like it: the mask's left and right half."""
    write_images(root, cases)
    for case in cases:
        middle = case.mask.shape[1] // 2
        for number, half in enumerate((slice(None, middle), slice(middle, None))):
            part = np.zeros(case.mask.shape, np.uint8)
            part[:, half] = case.mask[:, half] * np.uint8(255)
            save(root / "masks" / case.name / f"{number}.png", part)


def affine(orientation: str = "LPS") -> NDArray[np.float64]:
    """From a file's voxels (x, y, z) to RAS mm, with x towards L or R, y towards P or A and z towards S."""
    slices, rows, columns = SPACING_MM
    signs = (-1 if orientation[0] == "L" else 1, -1 if orientation[1] == "P" else 1, 1)
    return np.diag([signs[0] * columns, signs[1] * rows, signs[2] * slices, 1.0])


def save_nifti(path: Path, slices: NDArray[np.generic], orientation: str = "LPS") -> Path:
    """Write slices [slices, height, width], feet first, as NIfTI whose axes run as told; the voxels' places stay."""
    import nibabel

    place = affine()
    voxels = slices.transpose(2, 1, 0)
    for axis in (axis for axis in range(3) if orientation[axis] != "LPS"[axis]):
        voxels = np.flip(voxels, axis)
        place[:3, 3] += place[:3, axis] * (voxels.shape[axis] - 1)
        place[:3, axis] *= -1
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, place), path)  # type: ignore[attr-defined]
    return path


def write_nifti(root: Path, cases: Cases) -> None:
    """Each picture a volume of one slice, grey."""
    for case in cases:
        save_nifti(root / "images" / f"{case.name}.nii.gz", case.grey[None])
        save_nifti(root / "masks" / f"{case.name}.nii.gz", case.mask[None].astype(np.uint8))


def stacked(cases: Cases) -> dict[str, Cases]:
    """Some cases each by the name of their stack, feet first."""
    return {f"s{start // SLICES}": cases[start : start + SLICES] for start in range(0, len(cases), SLICES)}


def truth_of(stack: Cases) -> NDArray[np.uint8]:
    """The masks [slices, height, width] of a stack as labels."""
    return np.stack([case.mask for case in stack]).astype(np.uint8)


def write_volumes(root: Path, cases: Cases, orientation: str = "LPS") -> None:
    """The pictures of a stack as the slices of a NIfTI volume, grey."""
    for name, stack in stacked(cases).items():
        save_nifti(root / "images" / f"{name}.nii.gz", np.stack([case.grey for case in stack]), orientation)
        save_nifti(root / "masks" / f"{name}.nii.gz", truth_of(stack), orientation)


def write_tiffs(root: Path, cases: Cases, axes: str | None = "ZYX") -> None:
    """The pictures of a stack as pages of a TIFF file, grey, that says its axes or not."""
    for name, stack in stacked(cases).items():
        save_tiff(root / "images" / f"{name}.tif", np.stack([case.grey for case in stack]), axes)
        save_tiff(root / "masks" / f"{name}.tif", truth_of(stack) * np.uint8(255), axes)


def save_tiff(path: Path, pages: NDArray[np.generic], axes: str | None, **options: Any) -> None:
    """Write pages as a TIFF file."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"axes": axes} if axes else None
    tifffile.imwrite(path, pages, photometric="minisblack", metadata=metadata, **options)


def write_series(root: Path, cases: Cases) -> None:
    """The pictures of a stack as the slices of a DICOM series, grey; masks as NIfTI."""
    for name, stack in stacked(cases).items():
        for number, case in enumerate(stack):
            save_dicom(root / "images" / name / f"{number}.dcm", case.grey, place=number, series=name)
        save_nifti(root / "masks" / f"{name}.nii.gz", truth_of(stack))


def save_dicom(path: Path, pixels: NDArray[np.uint8], place: float, series: str, **elements: Any) -> Path:
    """Write a slice of an MR series.

    Args:
        path: The file.
        pixels: [height, width].
        place: How many slices it lies above the first.
        series: Told apart by this text.
        elements: Further elements by their keyword, written last.
    """
    pydicom = pytest.importorskip("pydicom")
    uid = pydicom.uid
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=[series, str(place), path.name])
    slices, rows, columns = SPACING_MM
    values = {
        "SOPClassUID": uid.MRImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": uid.generate_uid(entropy_srcs=[series]),
        "SeriesDescription": series,
        "FrameOfReferenceUID": "1.2.5",
        "Modality": "MR",
        "ImagePositionPatient": [0.0, 0.0, place * slices],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [rows, columns],
        "SliceThickness": slices,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": pixels.tobytes() + b"\0" * (pixels.size % 2),
        **elements,
    }
    dataset = pydicom.dataset.FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def side_by_side(cases: Cases) -> Drawn:
    """Cases in one picture, from left to right."""
    names = "-".join(case.name for case in cases)
    return Drawn(names, np.hstack([c.picture for c in cases]), np.hstack([c.mask for c in cases]), [])


def write_instances(root: Path, cases: Cases) -> None:
    """Masks whose values number the connected components from 1."""
    from scipy import ndimage

    write_images(root, cases)
    for case in cases:
        components, _ = ndimage.label(case.mask, np.ones((3, 3)))
        save(root / "masks" / f"{case.name}.png", components.astype(np.uint8))
