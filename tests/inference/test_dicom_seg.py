import datetime
import importlib.metadata
import sys

import numpy as np
import pytest

from iaunet.dicom import find_series, read_layout, read_segmentation, read_series
from iaunet.errors import FileError, PredictionError, WorkspaceError
from iaunet.inference.dicom_seg import write_segmentation

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402

RNG = np.random.default_rng(0)
AXIAL, CORONAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)
NAMES = ("anterior", "arrière")


def write_slice(path, position=(0, 0, 0), orientation=AXIAL, shape=(6, 5), **elements):
    """A picture of nothing; an element that is None is left out."""
    values = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": uid.MRImageStorage,
        "SOPInstanceUID": uid.generate_uid(),
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.2.3",
        "FrameOfReferenceUID": "1.2.5",
        "Modality": "MR",
        "PatientName": "Müller^Änne",
        "PatientID": "17",
        "PatientBirthDate": "19500102",
        "PatientSex": "F",
        "StudyDate": "20200304",
        "AccessionNumber": "A1",
        "ImagePositionPatient": position and [*map(float, position)],
        "ImageOrientationPatient": orientation and [*orientation],
        "PixelSpacing": [0.5, 0.75],
        "SliceThickness": 2.0,
        "Rows": shape[-2],
        "Columns": shape[-1],
        "NumberOfFrames": shape[0] if len(shape) == 3 else None,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": bytes(int(np.prod(shape))),
        **elements,
    }
    dataset = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder, orientation=AXIAL, n=4, **elements):
    """Slices 2 mm apart, whose names do not say their order."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [
        write_slice(folder / f"{(k * 7) % 10}.dcm", tuple(3 + 2 * k * normal), orientation, **elements)
        for k in range(n)
    ]


def write_enhanced(path, order=(2, 0, 1)):
    """A multi-frame file whose frames lie in another order than they are stored."""

    write_slice(path, None, None, (len(order), 6, 5), SOPClassUID=uid.EnhancedMRImageStorage, PixelSpacing=None)
    dataset = pydicom.dcmread(path)
    measures, axes = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 2.0
    axes.ImageOrientationPatient = [*AXIAL]
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [axes]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for k in order:
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = [0.0, 0.0, 2.0 * k]
        group.PlanePositionSequence = [place]
        dataset.PerFrameFunctionalGroupsSequence.append(group)
    dataset.save_as(path, enforce_file_format=True)
    return path


def some_labels(shape, n=2):
    return RNG.integers(0, n + 1, shape, dtype=np.uint8)


def rounded(position):
    return tuple(round(float(part), 6) for part in position)


def places_by_pydicom(path):
    """The segment, position and pixels of each frame, as pydicom finds them."""
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    found = []
    for picture, group in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        holder = group if "SegmentIdentificationSequence" in group else shared
        segment = holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found.append((segment, rounded(group.PlanePositionSequence[0].ImagePositionPatient), picture))
    return found


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, (0.8, 0.6, 0, 0, 0, -1)])
def test_every_label_is_where_it_was_predicted(tmp_path, orientation):
    import SimpleITK as sitk

    files = write_series(tmp_path, orientation)
    labels = some_labels(read_layout(files).header.shape)
    path = tmp_path / "out" / "seg.dcm"

    write_segmentation(path, labels, NAMES, files[::-1], "two folds")

    found, names = read_segmentation(path, find_series(files)[0])
    np.testing.assert_array_equal(found, labels)
    assert names == {1: "anterior", 2: "arrière"}
    layout = read_layout(files)
    slices = layout.header.orientation.to_file(labels).transpose(2, 1, 0)
    expected = {
        (segment, rounded(pydicom.dcmread(file).ImagePositionPatient)): slices[k] == segment
        for segment in (1, 2)
        for k, file in enumerate(layout.files)
    }
    places = places_by_pydicom(path)
    assert {place[:2] for place in places} == expected.keys()
    raw = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
    for (segment, position, picture), by_sitk in zip(places, raw, strict=True):
        np.testing.assert_array_equal(picture, expected[segment, position])
        np.testing.assert_array_equal(by_sitk > 0, expected[segment, position])


def test_highdicom_reads_each_source_slice_back(tmp_path):
    files = write_series(tmp_path)
    labels = some_labels((4, 6, 5))

    write_segmentation(tmp_path / "seg.dcm", labels, NAMES, files, "two folds")

    segmentation = highdicom.seg.segread(tmp_path / "seg.dcm")
    instances = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    found = segmentation.get_pixels_by_source_instance(instances, combine_segments=True)
    np.testing.assert_array_equal(found, labels[::-1])  # the files rise, the first canonical axis falls


def test_a_segmentation_belongs_to_the_study_of_its_source_and_names_each_image(tmp_path):
    files = write_series(tmp_path)
    source = [pydicom.dcmread(file) for file in files]
    path = tmp_path / "seg.dcm"

    write_segmentation(path, some_labels((4, 6, 5)), NAMES, files, "IAUNet, folds 0 to 4")

    found = pydicom.dcmread(path)
    for keyword in (
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "AccessionNumber",
    ):
        assert found[keyword].value == source[0][keyword].value
    (referenced,) = found.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == "1.2.3"
    instances = {image.ReferencedSOPInstanceUID for image in referenced.ReferencedInstanceSequence}
    assert instances == {image.SOPInstanceUID for image in source}
    by_position = {tuple(image.ImagePositionPatient): image.SOPInstanceUID for image in source}
    for group in found.PerFrameFunctionalGroupsSequence:
        (derived,) = group.DerivationImageSequence[0].SourceImageSequence
        position = tuple(group.PlanePositionSequence[0].ImagePositionPatient)
        assert derived.ReferencedSOPInstanceUID == by_position[position]
    assert (found.Modality, found.SegmentationType, found.Manufacturer) == ("SEG", "BINARY", "iaunet")
    assert found.ContentDescription == "IAUNet, folds 0 to 4"
    assert found.ContentDate == datetime.datetime.now().strftime("%Y%m%d")
    for number, (segment, name) in enumerate(zip(found.SegmentSequence, NAMES, strict=True), start=1):
        assert (segment.SegmentNumber, segment.SegmentLabel) == (number, name)
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "iaunet")
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmVersion == importlib.metadata.version("iaunet")
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"


def test_each_writing_has_instances_of_its_own(tmp_path):
    files = write_series(tmp_path)
    labels = some_labels((4, 6, 5))
    found = []
    for name in ("a", "b"):
        write_segmentation(tmp_path / name, labels, NAMES, files, "")
        dataset = pydicom.dcmread(tmp_path / name)
        found += [dataset.SeriesInstanceUID, dataset.SOPInstanceUID]

    assert len({*found, "1.2.3"}) == 5
    assert all(uid.UID(value).is_valid for value in found)


def test_an_empty_mask_is_written(tmp_path):
    files = write_series(tmp_path)

    write_segmentation(tmp_path / "seg.dcm", np.zeros((4, 6, 5), np.uint8), ["lesion"], files, "")

    labels, names = read_segmentation(tmp_path / "seg.dcm", find_series(files)[0])
    assert labels.shape == (4, 6, 5)
    assert not labels.any()
    assert names == {1: "lesion"}


def test_slices_and_labels_without_foreground_are_background(tmp_path):
    files = write_series(tmp_path)
    labels = np.zeros((4, 6, 5), np.uint8)
    labels[2, 1:4, 2:] = 2

    write_segmentation(tmp_path / "seg.dcm", labels, NAMES, files, "")

    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", find_series(files)[0])[0], labels)


@pytest.mark.parametrize(
    "elements",
    [
        {"FrameOfReferenceUID": None, "ImageOrientationPatient": None, "ImagePositionPatient": None},
        {"ImageOrientationPatient": None, "ImagePositionPatient": None},
        {},
    ],
    ids=["no frame of reference", "no position", "position"],
)
def test_a_lone_picture_has_a_segmentation(tmp_path, elements):
    file = write_slice(tmp_path / "a.dcm", SOPClassUID=uid.ComputedRadiographyImageStorage, Modality="CR", **elements)
    labels = some_labels((1, 6, 5))

    write_segmentation(tmp_path / "seg.dcm", labels, NAMES, [file], "")

    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", find_series([file])[0])[0], labels)


def test_an_enhanced_file_has_a_segmentation(tmp_path):
    file = write_enhanced(tmp_path / "a.dcm")
    labels = some_labels((3, 6, 5))

    write_segmentation(tmp_path / "seg.dcm", labels, NAMES, [file], "")

    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", find_series([file])[0])[0], labels)


def test_attributes_the_scanner_left_out_are_empty(tmp_path):
    left_out = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber")
    files = write_series(tmp_path, **dict.fromkeys(left_out))

    write_segmentation(tmp_path / "seg.dcm", some_labels((4, 6, 5)), ["x" * 80, "y"], files, "m" * 80)

    found = pydicom.dcmread(tmp_path / "seg.dcm")
    assert not any(found[keyword].value for keyword in left_out)
    assert found.SegmentSequence[0].SegmentLabel == "x" * 64


@pytest.mark.parametrize("thickness", [None, ""])
def test_voxel_sizes_the_scanner_left_out_are_those_of_the_volume(tmp_path, thickness):
    files = write_series(tmp_path, SliceThickness=thickness, PixelSpacing=None, ImagerPixelSpacing=[0.25, 0.5])

    write_segmentation(tmp_path / "seg.dcm", some_labels((4, 6, 5)), NAMES, files, "")

    (shared,) = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence
    (measures,) = shared.PixelMeasuresSequence
    assert (measures.PixelSpacing, measures.SliceThickness) == ([0.25, 0.5], 2)


@pytest.mark.parametrize(
    "elements",
    [
        {"shape": (3, 6, 5), "FrameOfReferenceUID": None, "position": None, "orientation": None},
        {"StudyInstanceUID": None},
        {"FrameOfReferenceUID": None},
    ],
    ids=["a film", "no study", "no frame of reference"],
)
def test_where_no_segmentation_can_be_made_the_reason_is_told(tmp_path, elements):
    file = write_slice(tmp_path / "a.dcm", **elements)
    labels = some_labels(read_series([file]).voxels.shape[1:])

    with pytest.raises(PredictionError, match=r"no DICOM segmentation can be made of a\.dcm \(.+\): write masks in"):
        write_segmentation(tmp_path / "seg.dcm", labels, NAMES, [file], "")
    assert not (tmp_path / "seg.dcm").exists()


def test_a_series_that_cannot_be_read_has_no_segmentation(tmp_path):
    with pytest.raises(FileError, match="file is missing"):
        write_segmentation(tmp_path / "seg.dcm", some_labels((1, 6, 5)), NAMES, [tmp_path / "a.dcm"], "")


@pytest.mark.parametrize(
    ("labels", "names"),
    [(some_labels((4, 5, 6)), NAMES), (some_labels((4, 6, 5), 3), NAMES), (some_labels((4, 6, 5)), ())],
)
def test_labels_must_fit_the_source_and_have_names(tmp_path, labels, names):
    with pytest.raises(ValueError, match=r"labels \(4, \d, \d\) up to \d for \(4, 6, 5\) and \d names"):
        write_segmentation(tmp_path / "seg.dcm", labels, names, write_series(tmp_path), "")


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    files = write_series(tmp_path)
    (tmp_path / "seg.dcm").mkdir()
    before = sorted(tmp_path.iterdir())

    with pytest.raises(WorkspaceError, match=r"seg\.dcm cannot be written"):
        write_segmentation(tmp_path / "seg.dcm", some_labels((4, 6, 5)), NAMES, files, "")
    assert sorted(tmp_path.iterdir()) == before


def test_without_highdicom_the_message_says_what_to_install(tmp_path, monkeypatch):
    files = write_series(tmp_path)
    monkeypatch.setitem(sys.modules, "highdicom", None)

    with pytest.raises(PredictionError, match=r"which is not installed: pip install 'iaunet\[dicom\]'"):
        write_segmentation(tmp_path / "seg.dcm", some_labels((4, 6, 5)), NAMES, files, "")


@pytest.mark.real_data
@pytest.mark.parametrize(("series", "names"), [("hippocampus_crop", None), ("t2_512", ["000004.dcm", "000001.dcm"])])
def test_labels_of_a_real_series_survive(tmp_path, real_data, series, names):
    folder = real_data / "DICOM" / series
    files = [folder / name for name in names] if names else sorted(folder.iterdir())
    labels = some_labels(read_layout(files).header.shape)

    write_segmentation(tmp_path / "seg.dcm", labels, NAMES, files, "two folds")

    found, _ = read_segmentation(tmp_path / "seg.dcm", find_series(files)[0])
    np.testing.assert_array_equal(found, labels)
