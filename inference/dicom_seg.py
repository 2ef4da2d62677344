"""Writes predicted labels as DICOM segmentations, to be stored and shown beside the series they were made on."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from iaunet.dicom import Layout, read_layout
from iaunet.dicom_header import read_elements
from iaunet.errors import FileError, PredictionError
from iaunet.orientation import VolumeHeader
from iaunet.silence import ignoring_warnings
from iaunet.storage import replacing

if TYPE_CHECKING:
    import highdicom
    import pydicom

_SERIES_NUMBER = 1000
"""Above what scanners give to their own series."""

_CONTENT_DESCRIPTION = 0x00700081

_MAX_TEXT = 64
"""Characters of a DICOM text of kind LO."""

_OFTEN_LEFT_OUT = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""Attributes that must be there and may be empty."""

_HIGHDICOM_FAULTS = (AttributeError, ValueError, TypeError, LookupError)
"""What highdicom raises for images it cannot make a segmentation of."""


def write_segmentation(
    path: Path,
    labels: NDArray[np.uint8],
    names: Sequence[str],
    source: Sequence[Path],
    model: str,
) -> None:
    """Write labels as a DICOM segmentation of kind BINARY, whole or not at all.

    It belongs to patient, study and frame of reference of its source, names every source image, and has series and
    instance UIDs of its own, new ones each time. Every segment has the code "Tissue" as category and type: what it
    really is stands in its label.

    Args:
        path: The file to write, ``.dcm``.
        labels: [I, P, L] with 0 for background, in the shape `iaunet.dicom.read_series` gives the source.
        names: The name of each label, from label 1 on; cut at 64 characters.
        source: All files of the series, in any order.
        model: Says in words which model predicted.

    Raises:
        PredictionError: highdicom is not installed, or no segmentation can be made of such images.
        FileError: The source cannot be read as a series.
        WorkspaceError: The file cannot be written.
        ValueError: Labels have another shape than the source, or more values than names.
    """
    try:
        import highdicom as hd
    except ImportError as fault:
        raise PredictionError(
            "a DICOM segmentation needs highdicom, which is not installed: pip install 'iaunet[dicom]'"
        ) from fault
    layout = read_layout(source)
    if labels.shape != layout.header.shape or labels.max() > len(names) or not names:
        raise ValueError(f"labels {labels.shape} up to {labels.max()} for {layout.header.shape} and {len(names)} names")
    version = importlib.metadata.version("iaunet")
    try:
        with ignoring_warnings():  # of odd values in the source, which are the scanner's
            segmentation = hd.seg.Segmentation(
                source_images=[_read_attributes(file, layout.header) for file in layout.files],
                pixel_array=_pictures(labels, layout),
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=_describe_segments(names, model, version),
                series_instance_uid=hd.UID(),
                series_number=_SERIES_NUMBER,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="iaunet",
                manufacturer_model_name="iaunet",
                software_versions=version,
                device_serial_number="1",
                content_label="SEGMENTATION",
                content_description=model[:_MAX_TEXT],
                series_description="Segmentation by iaunet",
                specific_character_set="ISO_IR 192",
            )
            with replacing(path) as temporary:
                segmentation.save_as(temporary, enforce_file_format=True)
    except _HIGHDICOM_FAULTS as fault:
        reason = " ".join(str(fault).split()).rstrip(".")
        raise PredictionError(
            f"no DICOM segmentation can be made of {layout.files[0].name} ({reason}): write masks in another format"
        ) from fault


def _read_attributes(file: Path, header: VolumeHeader) -> "pydicom.Dataset":
    """All of a file but its pixels, its texts decoded, so that they can be written in another character set."""
    import pydicom

    dataset = pydicom.dcmread(file, stop_before_pixels=True)
    dataset.decode()
    for keyword in _OFTEN_LEFT_OUT:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    if "SharedFunctionalGroupsSequence" not in dataset:  # highdicom wants the sizes of voxels told
        columns, rows, slices = np.linalg.norm(header.affine[:3, :3], axis=0).round(6).tolist()
        if not dataset.get("PixelSpacing"):
            dataset.PixelSpacing = [rows, columns]
        if not dataset.get("SliceThickness"):
            dataset.SliceThickness = slices
    return dataset


def _pictures(labels: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """The labels [pictures, rows, columns] in the order of the source's pictures."""
    slices = layout.header.orientation.to_file(labels).transpose(2, 1, 0)
    pictures = np.empty(slices.shape, np.uint8)
    pictures[list(layout.frames)] = slices
    return pictures


def read_model(path: Path) -> str:
    """What a written segmentation says of the model that predicted; empty when it is missing, damaged or does not."""
    try:
        return read_elements(path).text(_CONTENT_DESCRIPTION)
    except FileError:
        return ""


def _describe_segments(names: Sequence[str], model: str, version: str) -> "list[highdicom.seg.SegmentDescription]":
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name="iaunet",
        family=codes.DCM.ArtificialIntelligence,
        version=version,
        parameters={"model": model},
    )
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:_MAX_TEXT],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names, start=1)
    ]
