import io
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from iaunet.dicom import find_series, is_dicom_file, read_layout, read_segmentation, read_series, read_series_header
from iaunet.dicom_header import read_elements
from iaunet.errors import FileError
from iaunet.orientation import Volume

pydicom = pytest.importorskip("pydicom")

from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 4096, (6, 5), dtype=np.uint16)
SIGNED = (DEEP.astype(int) - 2000).astype(np.int16)
GREY = RNG.integers(0, 256, (6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
SMOOTH = np.mgrid[:64, :48].sum(0).astype(np.uint8)
SMOOTH_COLOUR = np.dstack([SMOOTH, SMOOTH // 2, 255 - SMOOTH])
FRAMES = RNG.integers(0, 4096, (4, 6, 5), dtype=np.uint16)
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
AXIAL, CORONAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)


def dataset_of(pixels, *, position=(0, 0, 0), orientation=AXIAL, spacing=(0.5, 0.75), series="1.2.3", **elements):
    """A CT slice; ``elements`` are set last, None takes one away."""
    colours = pixels.shape[-1] == 3
    *frames, rows, columns = pixels.shape[:-1] if colours else pixels.shape
    bits = pixels.dtype.itemsize * 8
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    values = {
        "SOPClassUID": uid.CTImageStorage,
        "SOPInstanceUID": uid.generate_uid(),
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": series,
        "FrameOfReferenceUID": "1.2.5",
        "Modality": "CT",
        "ImagePositionPatient": position and [*map(float, position)],
        "ImageOrientationPatient": orientation and [*orientation],
        "PixelSpacing": spacing and [*spacing],
        "Rows": rows,
        "Columns": columns,
        "NumberOfFrames": frames[0] if frames else None,
        "SamplesPerPixel": 3 if colours else 1,
        "PlanarConfiguration": 0 if colours else None,
        "PhotometricInterpretation": "RGB" if colours else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": data + b"\0" * (len(data) % 2),
        **elements,
    }
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "HighBit" not in dataset:
        dataset.HighBit = dataset.BitsStored - 1
    return dataset


def save(path, dataset, syntax=uid.ExplicitVRLittleEndian):
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if syntax == uid.ExplicitVRBigEndian:
        dataset.preamble = bytes(128)
        dataset.save_as(path, implicit_vr=False, little_endian=False)
    else:
        dataset.save_as(path, enforce_file_format=True)
    return path


def write(path, pixels, syntax=uid.ExplicitVRLittleEndian, **options):
    return save(path, dataset_of(pixels, **options), syntax)


def write_slices(folder, offsets, slices=None, **options):
    """A file for each offset along z, in an order of names that says nothing."""
    folder.mkdir(exist_ok=True)
    names = random.Random(1).sample(range(100), len(offsets))
    slices = [np.full((6, 5), k, np.int16) for k in range(len(offsets))] if slices is None else slices
    return [
        write(folder / f"{name}.dcm", pixels, position=(-3, 7, offset), **options)
        for name, pixels, offset in zip(names, slices, offsets, strict=True)
    ]


def item(**elements):
    found = Dataset()
    for keyword, value in elements.items():
        setattr(found, keyword, value)
    return found


def write_enhanced(
    path, frames, positions, *, slopes=None, orientations=None, sop=uid.EnhancedCTImageStorage, **options
):
    dataset = dataset_of(frames, position=None, orientation=None, spacing=None, SOPClassUID=sop, **options)
    shared = item(PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.75], SliceThickness=2.0)])
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for k, position in enumerate(positions):
        orientation = orientations[k] if orientations else AXIAL
        group = item(
            PlanePositionSequence=[item(ImagePositionPatient=[*map(float, position)])],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[*orientation])],
        )
        if slopes:
            group.PixelValueTransformationSequence = [
                item(RescaleSlope=slopes[k], RescaleIntercept=-3, RescaleType="US")
            ]
        dataset.PerFrameFunctionalGroupsSequence.append(group)
    return save(path, dataset)


def picture(path):
    """The one picture of a file [height, width] or [height, width, 3]."""
    return read_series([path]).voxels[:, 0].transpose(1, 2, 0).squeeze()


@pytest.mark.parametrize(
    ("name", "starts_with_magic", "expected"),
    [
        ("a.dcm", False, True),
        ("a.DICOM", False, True),
        ("IM0001", True, True),
        ("IM0001", False, False),
        ("1.2.840.10008.5", True, True),
        ("1.2.840.10008.5", False, False),
        ("a.png", True, False),
    ],
)
def test_a_dicom_file_is_known_by_its_ending_or_by_its_first_bytes(tmp_path, name, starts_with_magic, expected):
    path = tmp_path / name
    path.write_bytes(bytes(128) + (b"DICM" if starts_with_magic else b"DIXX"))

    assert is_dicom_file(path) is expected


def test_a_name_without_ending_that_is_no_file_is_no_dicom_file(tmp_path):
    assert not is_dicom_file(tmp_path / "gone")
    assert not is_dicom_file(tmp_path)


@pytest.mark.parametrize(
    ("pixels", "elements", "expected"),
    [
        (DEEP, {"BitsStored": 12}, DEEP),
        (SIGNED, {}, SIGNED),
        (SIGNED, {"BitsStored": 12}, SIGNED),
        (GREY, {}, GREY),
        (COLOUR, {}, COLOUR),
        (DEEP, {"RescaleSlope": 1, "RescaleIntercept": -1024, "BitsStored": 12}, DEEP.astype(np.int16) - 1024),
        (DEEP, {"RescaleSlope": 2, "RescaleIntercept": -5, "BitsStored": 12}, DEEP.astype(np.int16) * 2 - 5),
        (DEEP, {"RescaleSlope": 0.25, "RescaleIntercept": -3.5}, (DEEP * 0.25 - 3.5).astype(np.float32)),
        (DEEP, {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12}, 4095 - DEEP),
        (
            DEEP,
            {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "RescaleSlope": 2, "RescaleIntercept": -9},
            (4095 - DEEP.astype(np.int16)) * 2 - 9,
        ),
        (SIGNED, {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12}, -1 - SIGNED.astype(np.int32)),
        (DEEP, {"WindowCenter": 40, "WindowWidth": 80, "BitsStored": 12}, DEEP),
        (SIGNED, {"PixelPaddingValue": int(SIGNED[0, 0])}, SIGNED),
        (DEEP.astype(np.uint32) * 1000, {}, DEEP.astype(np.int32) * 1000),
        (DEEP.astype(np.uint32) * 2**20, {}, DEEP.astype(np.float32) * 2**20),
    ],
    ids=str,
)
def test_voxels_are_what_the_modality_measured(tmp_path, pixels, elements, expected):
    found = picture(write(tmp_path / "a.dcm", pixels, **elements))

    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRLittleEndian]
)
def test_every_way_of_writing_elements_is_read(tmp_path, syntax):
    texts = {"SpecificCharacterSet": "ISO_IR 100", "SeriesDescription": "Schädel"}
    path = write(tmp_path / "a.dcm", DEEP, syntax, position=(1, 2, 3), **texts)

    np.testing.assert_array_equal(picture(path), DEEP)
    assert find_series([path])[0].description == "Schädel"
    np.testing.assert_array_equal(read_series_header([path]).affine[:3, 3], [-1, -2, 3])


def test_big_endian_is_read(tmp_path):
    path = write(tmp_path / "a.dcm", DEEP, uid.ExplicitVRBigEndian, PixelData=DEEP.astype(">u2").tobytes())

    np.testing.assert_array_equal(picture(path), DEEP)


@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 7), (1, 16, 8)])
def test_pixels_of_one_bit_are_zero_and_one(tmp_path, shape):
    pixels = RNG.integers(0, 2, shape, dtype=np.uint8)
    packed = np.packbits(pixels.ravel(), bitorder="little").tobytes()
    data = packed + b"\0" * (len(packed) % 2)
    path = write(tmp_path / "a.dcm", pixels, position=None, BitsAllocated=1, BitsStored=1, PixelData=data)

    np.testing.assert_array_equal(read_series([path]).voxels[0, ::-1], pixels.reshape(-1, *shape[-2:]))


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_a_modality_lookup_table_is_applied(tmp_path, photometric):
    table = RNG.permutation(4096).astype(np.uint16)
    lut = item(LUTDescriptor=[4096, 0, 12], ModalityLUTType="US", LUTData=table.tobytes())
    path = write(
        tmp_path / "a.dcm", DEEP, BitsStored=12, ModalityLUTSequence=[lut], PhotometricInterpretation=photometric
    )

    expected = table[DEEP] if photometric == "MONOCHROME2" else 4095 - table[DEEP]
    np.testing.assert_array_equal(picture(path), expected)


def test_a_modality_lookup_table_may_begin_below_zero_and_end_before_the_largest_value(tmp_path):
    table = np.arange(100, 140, dtype=np.uint8)
    lut = item(LUTDescriptor=[40, -20, 8], ModalityLUTType="US", LUTData=table.tobytes())
    lut["LUTDescriptor"].VR = "SS"
    path = write(tmp_path / "a.dcm", np.array([[-50, -20, 0, 19, 50]], np.int16), ModalityLUTSequence=[lut])

    np.testing.assert_array_equal(read_series([path]).voxels.ravel(), [100, 100, 120, 139, 139])


def test_a_damaged_modality_lookup_table_is_named(tmp_path):
    path = write(tmp_path / "a.dcm", DEEP, ModalityLUTSequence=[item(ModalityLUTType="US")])

    with pytest.raises(FileError, match=r"a\.dcm has a damaged modality lookup table: export it again"):
        read_series([path])


def test_real_numbers_are_read_as_float32(tmp_path):
    values = RNG.normal(size=(6, 5)).astype(np.float32)
    dataset = dataset_of(DEEP, PixelData=None, BitsAllocated=32, FloatPixelData=values.tobytes())

    found = picture(save(tmp_path / "a.dcm", dataset))

    np.testing.assert_array_equal(found, values)
    assert found.dtype == np.float32


def test_nan_is_refused(tmp_path):
    values = np.full((6, 5), np.nan, np.float32)
    dataset = dataset_of(DEEP, PixelData=None, BitsAllocated=32, FloatPixelData=values.tobytes())

    with pytest.raises(FileError, match=r"a\.dcm holds nan or infinite values: replace them"):
        read_series([save(tmp_path / "a.dcm", dataset)])


def test_colours_are_red_green_blue_however_they_are_stored(tmp_path):
    from pydicom.pixels.processing import convert_color_space

    ybr = convert_color_space(COLOUR, "RGB", "YBR_FULL")
    palette = RNG.integers(0, 256, (3, 256), dtype=np.uint16) << 8
    tables = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, table in zip(("Red", "Green", "Blue"), palette, strict=True)
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", table.tobytes()))
    }
    planes = write(
        tmp_path / "planes.dcm", COLOUR, PlanarConfiguration=1, PixelData=COLOUR.transpose(2, 0, 1).tobytes()
    )
    luminance = write(tmp_path / "ybr.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    indexed = write(tmp_path / "palette.dcm", GREY, PhotometricInterpretation="PALETTE COLOR", **tables)

    np.testing.assert_array_equal(picture(planes), COLOUR)
    np.testing.assert_allclose(picture(luminance).astype(int), COLOUR, atol=2)
    np.testing.assert_array_equal(picture(indexed), (palette >> 8)[:, GREY].transpose(1, 2, 0))
    assert read_series_header([indexed]).channels == 3


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless], ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize(
    ("pixels", "elements"),
    [(DEEP, {"BitsStored": 12}), (SIGNED, {}), (SIGNED, {"BitsStored": 12}), (GREY, {}), (COLOUR, {})],
    ids=["uint16", "int16", "int12", "uint8", "colour"],
)
def test_run_lengths_and_jpeg_ls_are_read(tmp_path, syntax, pixels, elements):
    pixels = np.tile(pixels, (40, 40, 1)[: pixels.ndim])
    dataset = dataset_of(pixels, **elements)
    dataset.compress(syntax)

    np.testing.assert_array_equal(picture(save(tmp_path / "a.dcm", dataset, syntax)), pixels)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize("pixels", [DEEP, SIGNED, GREY, COLOUR], ids=["uint16", "int16", "uint8", "colour"])
def test_lossless_jpeg_and_jpeg_2000_are_read(tmp_path, compressor, pixels):
    import SimpleITK as sitk

    pixels = np.tile(pixels, (8, 8, 1)[: pixels.ndim])
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.Execute(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3))

    assert "JPEG" in uid.UID(read_elements(tmp_path / "a.dcm").transfer_syntax).name
    np.testing.assert_array_equal(picture(tmp_path / "a.dcm"), pixels)


@pytest.mark.parametrize(
    ("pixels", "photometric"),
    [(SMOOTH, "MONOCHROME2"), (SMOOTH_COLOUR, "YBR_FULL_422"), (SMOOTH_COLOUR, "YBR_FULL")],
    ids=["grey", "422", "444"],
)
def test_a_photographic_jpeg_is_near_what_was_saved(tmp_path, pixels, photometric):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    dataset = dataset_of(pixels, PhotometricInterpretation=photometric, PixelData=encapsulate([buffer.getvalue()]))
    dataset["PixelData"].VR = "OB"

    path = save(tmp_path / "a.dcm", dataset, uid.JPEGBaseline8Bit)

    np.testing.assert_allclose(picture(path).astype(int), pixels, atol=5)


def test_shuffled_names_give_the_same_volume_in_the_order_of_positions(tmp_path):
    slices = RNG.integers(-1000, 1000, (7, 6, 5)).astype(np.int16)
    offsets = [2.5 * k - 4 for k in range(7)]
    files = write_slices(tmp_path / "a", offsets, slices, InstanceNumber=1)

    volume = read_series(files)

    np.testing.assert_array_equal(volume.voxels[0], slices[::-1])  # the first canonical axis runs towards the feet
    assert volume.voxels.dtype == np.int16
    assert volume.spacing_mm == (2.5, 0.5, 0.75)
    np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], [3, -7, -4, 1])
    np.testing.assert_allclose(volume.affine @ [4, 5, 6, 1], [3 - 4 * 0.75, -7 - 5 * 0.5, 11, 1])
    for order in (files[::-1], sorted(files)):
        again = read_series(order)
        np.testing.assert_array_equal(again.voxels, volume.voxels)
        np.testing.assert_array_equal(again.affine, volume.affine)
        assert find_series(order)[0].files == tuple(files)


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, (0.6, 0.8, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0)])
def test_a_series_of_any_orientation_lies_where_simpleitk_has_it(tmp_path, orientation):
    import SimpleITK as sitk

    from iaunet.volumes import volume_from_sitk

    normal = np.cross(orientation[:3], orientation[3:])
    slices = RNG.integers(0, 1000, (4, 6, 5)).astype(np.int16)
    files = [
        write(tmp_path / f"{9 - k}.dcm", slices[k], position=tuple(5 + 1.5 * k * normal), orientation=orientation)
        for k in range(4)
    ]

    volume = read_series(files)

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    expected = volume_from_sitk(reader.Execute())
    np.testing.assert_array_equal(volume.voxels, expected.voxels)
    np.testing.assert_allclose(volume.header.canonical_affine, expected.header.canonical_affine, atol=1e-9)
    assert read_series_header(files).shape == volume.voxels.shape[1:]
    np.testing.assert_array_equal(read_series_header(files).affine, volume.affine)


def test_slices_of_different_rescaling_are_united(tmp_path):
    files = [
        write(tmp_path / f"{k}.dcm", DEEP, position=(0, 0, -k), RescaleSlope=slope, RescaleIntercept=0)
        for k, slope in enumerate((0.5, 1, 0.25))
    ]

    volume = read_series(files)

    np.testing.assert_array_equal(volume.voxels[0], DEEP * np.array([0.5, 1, 0.25])[:, None, None])
    assert volume.voxels.dtype == np.float32


@pytest.mark.parametrize(
    ("elements", "spacing_mm"),
    [
        ({"spacing": None, "ImagerPixelSpacing": [0.2, 0.3]}, (1, 0.2, 0.3)),
        ({"spacing": (0.1, 0.4), "ImagerPixelSpacing": [0.2, 0.3]}, (1, 0.1, 0.4)),
        ({"spacing": None}, (1, 1, 1)),
        ({"SliceThickness": 4}, (4, 0.5, 0.75)),
        ({"SliceThickness": 4, "SpacingBetweenSlices": 5}, (5, 0.5, 0.75)),
    ],
)
def test_a_lone_picture_without_orientation_is_one_axial_slice(tmp_path, elements, spacing_mm):
    path = write(tmp_path / "xray.dcm", DEEP, orientation=None, position=None, Modality="DX", **elements)

    volume = read_series([path])

    np.testing.assert_array_equal(volume.voxels, DEEP[None, None])
    assert volume.spacing_mm == spacing_mm


@pytest.mark.parametrize("sop", [uid.EnhancedCTImageStorage, uid.EnhancedMRImageStorage, uid.EnhancedXAImageStorage])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_the_frames_of_an_enhanced_file_are_put_in_order(tmp_path, sop, order):
    path = write_enhanced(tmp_path / "a.dcm", FRAMES, [(1, 2, 3 * k) for k in order], sop=sop)

    volume = read_series([path])

    np.testing.assert_array_equal(volume.voxels[0], FRAMES[np.argsort(order)][::-1])
    assert volume.spacing_mm == (3, 0.5, 0.75)
    assert read_layout([path]).frames == tuple(np.argsort(order))


@pytest.mark.parametrize("sop", [uid.EnhancedCTImageStorage, uid.EnhancedXAImageStorage])
@pytest.mark.parametrize("slopes", [(2, 2, 2, 2), (1, 2, 3, 4), (0.5, 1, 1.5, 2)])
def test_the_frames_of_an_enhanced_file_are_rescaled(tmp_path, sop, slopes):
    path = write_enhanced(tmp_path / "a.dcm", FRAMES, [(0, 0, -k) for k in range(4)], slopes=slopes, sop=sop)

    voxels = read_series([path]).voxels

    np.testing.assert_array_equal(voxels[0], FRAMES * np.array(slopes)[:, None, None] - 3)
    assert (voxels.dtype == np.float32) == (0.5 in slopes)


def test_enhanced_files_of_one_frame_each_are_a_series(tmp_path):
    files = [
        write_enhanced(tmp_path / f"{k}.dcm", FRAMES[k : k + 1], [(0, 0, 2 * place)])
        for k, place in enumerate((1, 0, 2))
    ]

    (found,) = find_series(files)

    assert found.files == (files[1], files[0], files[2])
    np.testing.assert_array_equal(read_series(files).voxels[0], FRAMES[[2, 0, 1]])


def test_frames_without_positions_are_slices_in_the_order_of_the_file(tmp_path):
    cine = np.stack([COLOUR, 255 - COLOUR, COLOUR // 2])
    path = write(tmp_path / "a.dcm", cine, position=None, orientation=None, spacing=None, Modality="US")

    volume = read_series([path])

    np.testing.assert_array_equal(volume.voxels.transpose(1, 2, 3, 0), cine[::-1])
    assert volume.spacing_mm == (1, 1, 1)


def test_frames_with_one_position_lie_along_the_normal(tmp_path):
    path = write(tmp_path / "a.dcm", FRAMES, position=(0, 0, 10), SpacingBetweenSlices=3)

    volume = read_series([path])

    np.testing.assert_array_equal(volume.voxels[0], FRAMES[::-1])
    np.testing.assert_allclose(volume.affine @ [0, 0, 3, 1], [0, 0, 19, 1])


def test_series_of_one_folder_are_told_apart(tmp_path):
    head = write_slices(tmp_path, [0, 1, 2], series="1.5", SeriesDescription="head")
    scout = write(tmp_path / "scout.dcm", GREY, series="1.5", orientation=CORONAL, SeriesDescription="head")
    large = write(tmp_path / "large.dcm", np.tile(GREY, (2, 2)), series="1.5", SeriesDescription="large")
    cines = [write(tmp_path / f"cine {k}.dcm", FRAMES, series="1.6", position=None) for k in range(2)]
    xrays = [write(tmp_path / f"xray {k}.dcm", DEEP, series="1.7", position=None) for k in range(2)]
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"nothing")

    found = find_series([head[2], broken, scout, *head[:2], large, *cines, *xrays])

    assert [series.files for series in found] == [
        tuple(head),
        (broken,),
        (scout,),
        (large,),
        *((path,) for path in cines + xrays),
    ]
    assert [series.description for series in found[:4]] == ["head", "", "head", "large"]
    assert [series.uid for series in found] == ["1.5", "", "1.5", "1.5", "1.6", "1.6", "1.7", "1.7"]


def test_a_file_among_the_slices_of_one_series_that_cannot_be_read_is_named(tmp_path):
    slices = write_slices(tmp_path, [0, 1, 2])
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"nothing")

    (found,) = find_series([broken, *slices])

    assert found.files == (*slices, broken)
    with pytest.raises(
        FileError, match=r"broken\.dcm: is no DICOM file, whatever its name says: remove it or export it"
    ):
        read_series_header(found.files)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 2, 4, 8, 10], r"1 of 6 slices are missing, expected at 6 mm \(\d+.dcm and \d+.dcm\): copy the whole"),
        ([0, 6, 8], "2 of 5 slices are missing, expected at 2, 4 mm"),
        ([0, 6, 12, 14], "4 of 8 slices are missing, expected at 2, 4, 8, 10 mm"),
        ([0, 2, 20], r"8 of 11 slices are missing, expected at 4, 6, 8, 10, 12, \.\.\. mm"),
        ([0, 2, 1e15], r"\d+ of \d+ slices are missing, expected at 4, 6, 8, 10, 12, \.\.\. mm"),
        ([0, 2, 2, 4], r"several slices lie at one position, 2 mm \(\d+.dcm and \d+.dcm\): put each acquisition"),
        ([0, 2, 4, 6, 8.5], r"unevenly spaced: 2.5 mm at \d+.dcm and \d+.dcm, 2 mm elsewhere: resample the series"),
    ],
)
def test_slices_that_are_no_even_stack_are_refused(tmp_path, offsets, message):
    with pytest.raises(FileError, match=message):
        read_series_header(write_slices(tmp_path, offsets))


def test_positions_that_are_rounded_are_no_fault(tmp_path):
    files = write_slices(tmp_path, [round(0.625 * k, 2) for k in range(20)])

    assert read_series_header(files).spacing_mm[0] == pytest.approx(0.625, abs=0.001)


def test_a_tilted_gantry_is_refused(tmp_path):
    files = [write(tmp_path / f"{k}.dcm", GREY, position=(0, k, 3 * k)) for k in range(3)]

    with pytest.raises(FileError, match=r"not stacked along their normal \(tilted gantry, 18.4 degrees\): resample"):
        read_series(files)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"pixels": np.tile(GREY, (2, 1))}, "b.dcm has 12 x 5 pixels of 1 values, a.dcm 6 x 5 pixels of 1 values"),
        ({"pixels": COLOUR}, "b.dcm has 6 x 5 pixels of 3 values, a.dcm 6 x 5 pixels of 1 values: put slices"),
        ({"orientation": CORONAL}, "b.dcm has another orientation than a.dcm: put slices"),
        ({"spacing": (0.5, 0.8)}, "b.dcm has another pixel spacing than a.dcm: put slices"),
        ({"position": None}, "b.dcm has no position or orientation and is not alone: put it"),
        ({"pixels": np.stack([GREY, GREY])}, "b.dcm has several pictures and is not alone: put it"),
        ({"series": "1.9", "SeriesDescription": "T2"}, r"holds 2 series: T1 \(1 files\), T2 \(1 files\): put each"),
        ({"series": "1.9"}, r"holds 2 series: T1 \(1 files\), 1\.9 \(1 files\): put each series in a folder"),
    ],
)
def test_files_of_different_kinds_are_no_series(tmp_path, other, message):
    first = write(tmp_path / "a.dcm", GREY, SeriesDescription="T1")
    options = {"pixels": GREY, "position": (0, 0, 1)} | other
    second = write(tmp_path / "b.dcm", **options)

    with pytest.raises(FileError, match=message):
        read_series_header([first, second])


def test_no_files_are_no_series():
    with pytest.raises(FileError, match="series has no files: give the files of one series"):
        read_series([])


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"PixelData": None, "Modality": "RTSTRUCT"}, r"a.dcm holds no image \(modality RTSTRUCT\): leave it out"),
        ({"PixelData": None, "Modality": "SR"}, r"holds no image \(modality SR\)"),
        ({"PixelData": None, "Modality": None}, r"holds no image \(modality not told\)"),
        ({"Modality": "RTDOSE"}, r"holds no image \(modality RTDOSE\)"),
        ({"SOPClassUID": uid.MediaStorageDirectoryStorage}, "a.dcm is a DICOMDIR, a list of files and no image: leave"),
        ({"SOPClassUID": uid.SegmentationStorage}, "a.dcm is a DICOM segmentation, which is a mask and no image: put"),
        ({"TotalPixelMatrixColumns": 5}, "a.dcm is a microscope slide stored in tiles: save regions of it as images"),
        ({"Rows": 7}, "a.dcm holds fewer pixels than its header promises: copy or export it again"),
        ({"Rows": 0}, "a.dcm promises 1 x 0 x 5 pixels of 1 values: export it again"),
        ({"SamplesPerPixel": 4}, "a.dcm promises 1 x 6 x 5 pixels of 4 values"),
        ({"NumberOfFrames": 0}, "a.dcm promises 0 x 6 x 5 pixels"),
        ({"Rows": 65535, "Columns": 65535}, "a.dcm promises more than the 2,147,483,648 values allowed: split or"),
        ({"PixelSpacing": [0.5, 0]}, "a.dcm has a pixel spacing of 0.5 x 0 mm: export it again with its true"),
        ({"PixelSpacing": [-0.5, 1]}, "a.dcm has a pixel spacing of -0.5 x 1 mm"),
        ({"PixelSpacing": 0.5}, "a.dcm has a pixel spacing of 0.5 mm"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "a.dcm has an orientation of other than 6 numbers"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "a.dcm has an orientation that is no pair of directions"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "no pair of directions at right angles: export it again"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "a.dcm has a rescale slope of 0: export it again"),
    ],
)
def test_what_is_no_image_or_cannot_be_is_named(tmp_path, elements, message):
    path = write(tmp_path / "a.dcm", DEEP, **elements)

    with pytest.raises(FileError, match=message):
        read_series([path])


@pytest.mark.parametrize(("text", "shown"), [(b"nan\\1", "nan"), (b"0,5\\0,5 ", "0,5"), (b"wide\\1", "wide")])
def test_text_where_numbers_belong_is_named(tmp_path, text, shown):
    path = write(tmp_path / "a.dcm", DEEP, spacing=("12345", "67890"))
    path.write_bytes(path.read_bytes().replace(b"12345\\67890 ", text.ljust(12)))

    with pytest.raises(FileError, match=rf"holds '{shown}.*where numbers belong, element \(0028,0030\): export"):
        read_series([path])


def test_an_enhanced_file_must_describe_each_frame_alike(tmp_path):
    positions = [(0, 0, k) for k in range(4)]
    few = write_enhanced(tmp_path / "few.dcm", FRAMES, positions[:3])
    turned = write_enhanced(tmp_path / "turned.dcm", FRAMES, positions, orientations=[AXIAL, AXIAL, CORONAL, CORONAL])

    with pytest.raises(FileError, match=r"few\.dcm holds 4 pictures and describes 3: export it again"):
        read_series([few])
    with pytest.raises(FileError, match=r"turned\.dcm holds pictures of different orientations: save each stack"):
        read_series([turned])


def test_a_truncated_file_is_named(tmp_path):
    whole = write(tmp_path / "whole.dcm", np.tile(DEEP, (20, 20))).read_bytes()
    dataset = dataset_of(np.tile(DEEP, (20, 20)))
    dataset.compress(uid.RLELossless)
    compressed = save(tmp_path / "compressed.dcm", dataset, uid.RLELossless).read_bytes()
    path = tmp_path / "a.dcm"

    for data, length, message in (
        (whole, -1000, r"a\.dcm is truncated: copy or export it again"),
        (compressed, -1000, r"a\.dcm is truncated"),
        (whole, 300, "has a truncated or damaged DICOM header: copy or export it again"),
        (whole, 130, "is no DICOM file, whatever its name says: remove it or export it again"),
    ):
        path.write_bytes(data[:length])
        with pytest.raises(FileError, match=message):
            read_series([path])


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileError, match="file is missing: restore it"):
        read_series([tmp_path / "a.dcm"])
    with pytest.raises(FileError, match=r"cannot be read \(.+\): mend its permissions"):
        read_series([tmp_path])


def test_pixels_that_cannot_be_decoded_are_named(tmp_path):
    dataset = dataset_of(DEEP, PixelData=encapsulate([b"no picture at all "]))
    dataset["PixelData"].VR = "OB"
    path = save(tmp_path / "a.dcm", dataset, uid.JPEG2000Lossless)

    with pytest.raises(FileError, match=r"a\.dcm is damaged or encoded in a way \(.+\.4\.90\) that cannot be decoded"):
        read_series([path])


@pytest.mark.parametrize("size", [(32, 48), (48, 64)])
def test_a_picture_of_another_size_than_the_header_says_is_refused(tmp_path, size):
    buffer = io.BytesIO()
    Image.fromarray(SMOOTH).save(buffer, "JPEG")
    dataset = dataset_of(SMOOTH, Rows=size[0], Columns=size[1], PixelData=encapsulate([buffer.getvalue()]))
    dataset["PixelData"].VR = "OB"
    path = save(tmp_path / "a.dcm", dataset, uid.JPEGBaseline8Bit)

    with pytest.raises(FileError, match=r"a\.dcm does not hold the pixels its header promises: export it again"):
        read_series([path])


def test_a_series_of_more_values_than_allowed_is_refused_before_decoding(tmp_path):
    files = []
    for k in range(3):
        dataset = dataset_of(GREY, position=(0, 0, k), Rows=30000, Columns=30000, PixelData=encapsulate([bytes(64)]))
        dataset["PixelData"].VR = "OB"
        files.append(save(tmp_path / f"{k}.dcm", dataset, uid.RLELossless))

    with pytest.raises(FileError, match="series has more than the 2,147,483,648 values allowed: split or shrink it"):
        read_series(files)


UNDEFINED, ITEM = b"\xff\xff\xff\xff", b"\xfe\xff\x00\xe0"


@pytest.mark.parametrize(
    "sequence",
    [
        b"\x08\x00\x40\x11SQ\x00\x00" + UNDEFINED + b"\x08\x00\x40\x11\x00\x00\x00\x00",
        (b"\x08\x00\x40\x11SQ\x00\x00" + UNDEFINED + ITEM + UNDEFINED) * 40,
        b"\x08\x00\x40\x11SQ\x00\x00\x00\x00\x00\x70",
        b"\x08\x00\x40\x11sq\x00\x00\x00\x00\x00\x00",
    ],
    ids=["no item", "too deep", "too long", "no value representation"],
)
def test_a_damaged_sequence_is_named(tmp_path, sequence):
    data = write(tmp_path / "a.dcm", DEEP).read_bytes()
    start = data.index(b"\x08\x00\x60\x00CS")  # the modality
    (tmp_path / "a.dcm").write_bytes(data[:start] + sequence + data[start:])

    with pytest.raises(FileError, match="has a truncated or damaged DICOM header: copy or export it again"):
        read_series([tmp_path / "a.dcm"])


@pytest.mark.parametrize("end", [b"", bytes(16), ITEM + b"\xff\x00\x00\x00"])
def test_fragments_that_break_off_are_a_truncated_file(tmp_path, end):
    dataset = dataset_of(DEEP)
    dataset.compress(uid.RLELossless)
    path = save(tmp_path / "a.dcm", dataset, uid.RLELossless)
    path.write_bytes(path.read_bytes()[:-8] + end)

    with pytest.raises(FileError, match=r"a\.dcm is truncated"):
        read_series([path])


def test_an_archive_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = write(tmp_path / "a.dcm", np.zeros((100, 100), np.uint16), uid.DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr("iaunet.dicom_header.MAX_INFLATED", 10_000)

    with pytest.raises(FileError, match="unpacks to more than the 10,000 bytes allowed: export it without compression"):
        read_series([path])


def test_a_damaged_archive_is_named(tmp_path):
    path = write(tmp_path / "a.dcm", DEEP, uid.DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()
    start = data.index(uid.DeflatedExplicitVRLittleEndian.encode()) + 22
    path.write_bytes(data[:start] + b"\xff" * 40)

    with pytest.raises(FileError, match="has a truncated or damaged DICOM header"):
        read_series([path])


def test_sequences_of_any_form_are_skipped_or_read(tmp_path):
    inner = item(RelatedSeriesSequence=[item(StudyInstanceUID="1.2"), item(StudyInstanceUID="1.3")])
    dataset = dataset_of(DEEP, RelatedSeriesSequence=[inner, item()])
    for element in (dataset["RelatedSeriesSequence"], inner["RelatedSeriesSequence"]):
        element.is_undefined_length = True
    inner.is_undefined_length_sequence_item = True

    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian):
        header = read_elements(save(tmp_path / "a.dcm", dataset, syntax))
        outer = header.items(0x00081250)
        assert [len(found.values) for found in outer] == [1, 0]
        assert [found.text(0x0020000D) for found in outer[0].items(0x00081250)] == ["1.2", "1.3"]
        assert header.whole(0x00280010) == 6


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    compressed = dataset_of(SIGNED, BitsStored=16)
    compressed.compress(uid.RLELossless)
    return [
        write(folder / "plain.dcm", SIGNED).read_bytes(),
        write(folder / "implicit.dcm", SIGNED, uid.ImplicitVRLittleEndian).read_bytes(),
        write_enhanced(folder / "enhanced.dcm", FRAMES, [(0, 0, k) for k in range(4)]).read_bytes(),
        save(folder / "rle.dcm", compressed, uid.RLELossless).read_bytes(),
    ]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3), st.floats(0, 1), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4))
def test_a_header_damaged_anywhere_is_a_fault_of_the_file_or_none(tmp_path, samples, which, kept, changes):
    data = bytearray(samples[which][: int(len(samples[which]) * kept)])
    for place, value in changes:
        if data:
            data[int(place * len(data))] = value
    path = tmp_path / "damaged.dcm"
    path.write_bytes(data)

    try:
        header = read_series_header([path])
    except FileError as fault:
        assert fault.what
        assert fault.mend
    else:
        assert min(header.shape) >= 1


def test_what_simpleitk_would_read_wrongly_asks_for_pydicom_where_it_is_missing(tmp_path, monkeypatch):
    signed = dataset_of(SIGNED, BitsStored=12)
    signed.compress(uid.RLELossless)
    table = item(LUTDescriptor=[4096, 0, 12], ModalityLUTType="US", LUTData=bytes(8192))
    files = {
        "is compressed with sign": save(tmp_path / "a.dcm", signed, uid.RLELossless),
        "has a modality lookup table": write(tmp_path / "b.dcm", DEEP, ModalityLUTSequence=[table]),
        "is MONOCHROME1 with signed pixels": write(tmp_path / "c.dcm", SIGNED, PhotometricInterpretation="MONOCHROME1"),
        "has a rescale slope for its pictures": write_enhanced(
            tmp_path / "d.dcm", FRAMES, [(0, 0, k) for k in range(4)], slopes=[1, 2, 3, 4]
        ),
        "holds pixels as real numbers": save(
            tmp_path / "e.dcm", dataset_of(DEEP, PixelData=None, FloatPixelData=bytes(120))
        ),
    }
    bits = dataset_of(GREY, BitsAllocated=1, BitsStored=1, PixelData=bytes(4))
    files["has one bit a pixel, encoded in a way"] = save(tmp_path / "f.dcm", bits, uid.ExplicitVRBigEndian)
    monkeypatch.setitem(sys.modules, "pydicom", None)

    for reason, path in files.items():
        with pytest.raises(FileError, match=rf"{path.name} {reason} that needs pydicom to be read: pip install"):
            read_series([path])


def test_want_of_memory_is_not_called_damage(tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    signed = dataset_of(SIGNED, BitsStored=12)
    signed.compress(uid.RLELossless)
    path = save(tmp_path / "a.dcm", signed, uid.RLELossless)

    def run_out(path):
        raise MemoryError

    monkeypatch.setattr(pydicom, "dcmread", run_out)

    with pytest.raises(FileError, match=r"a\.dcm needs more memory than there is: use fewer workers or close other"):
        read_series([path])


def test_importing_reads_no_image_library():
    heavy = "SimpleITK pydicom highdicom nibabel"
    code = f"import sys, iaunet.dicom; print([name for name in {heavy.split()} if name in sys.modules])"

    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def write_mask(path, pictures, places, *, kind="BINARY", labels=("one", "two"), **elements):
    """A segmentation: a picture [rows, columns] for each (position, segment)."""
    pictures = np.asarray(pictures, np.uint8)
    data = pictures.tobytes() if kind == "LABELMAP" else np.packbits(pictures.ravel(), bitorder="little").tobytes()
    bits = 8 if kind == "LABELMAP" else 1
    values = {
        "position": None,
        "orientation": None,
        "spacing": None,
        "SOPClassUID": LABEL_MAP if kind == "LABELMAP" else uid.SegmentationStorage,
        "Modality": "SEG",
        "SegmentationType": kind,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelData": data + b"\0" * (len(data) % 2),
        "SegmentSequence": [item(SegmentNumber=k, SegmentLabel=name) for k, name in enumerate(labels, start=1)],
        **elements,
    }
    dataset = dataset_of(pictures, **values)
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.75])],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[*AXIAL])],
    )
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for position, segment in places:
        group = Dataset()
        if position is not None:
            group.PlanePositionSequence = [item(ImagePositionPatient=[*map(float, position)])]
        if segment:
            group.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=segment)]
        dataset.PerFrameFunctionalGroupsSequence.append(group)
    return save(path, dataset)


@pytest.fixture
def series(tmp_path):
    return find_series(write_slices(tmp_path / "series", [0, 2, 4]))[0]


LEFT, RIGHT = np.zeros((2, 6, 5), np.uint8)
LEFT[1:3, :2] = 1
RIGHT[2:5, 3:] = 1


def test_a_segmentation_is_read_as_labels_of_its_series(tmp_path, series):
    path = write_mask(tmp_path / "mask.dcm", [LEFT, RIGHT, RIGHT], [((-3, 7, 4), 1), ((-3, 7, 4), 2), ((-3, 7, 0), 1)])

    labels, names = read_segmentation(path, series)

    np.testing.assert_array_equal(labels, [LEFT + 2 * RIGHT, np.zeros((6, 5)), RIGHT])
    assert labels.dtype == np.uint8
    assert names == {1: "one", 2: "two"}


def test_segments_are_numbered_as_the_file_says(tmp_path, series):
    path = write_mask(tmp_path / "mask.dcm", [LEFT, RIGHT], [((-3, 7, 2), 1), ((-3, 7, 2), 300)])

    labels, _ = read_segmentation(path, series)

    np.testing.assert_array_equal(labels[1], LEFT + np.uint16(300) * RIGHT)


def test_a_label_map_is_read_with_its_values(tmp_path, series):
    path = write_mask(tmp_path / "mask.dcm", [LEFT + 2 * RIGHT], [((-3, 7, 2), None)], kind="LABELMAP")

    labels, _ = read_segmentation(path, series)

    np.testing.assert_array_equal(labels[1], LEFT + 2 * RIGHT)
    assert not labels[[0, 2]].any()


def test_a_segmentation_without_places_belongs_to_a_lone_picture(tmp_path, series):
    lone = find_series([write(tmp_path / "xray.dcm", DEEP, position=None, orientation=None)])[0]
    path = write_mask(tmp_path / "mask.dcm", [LEFT, RIGHT], [(None, 1), (None, 2)])

    np.testing.assert_array_equal(read_segmentation(path, lone)[0], [LEFT + 2 * RIGHT])
    with pytest.raises(FileError, match="does not say where its pictures lie: export it again"):
        read_segmentation(path, series)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"places": [((-3, 7, 6), 1)]}, "lies elsewhere than its series: give the segmentation made on this series"),
        ({"places": [((-3, 7, 1), 1)]}, "lies elsewhere than its series"),
        ({"places": [((-3, 8, 2), 1)]}, "lies elsewhere than its series"),
        ({"places": [((-3, 7, 2), None)]}, "has pictures that name no segment: export it again"),
        ({"pictures": [np.ones((6, 6))]}, "has 6 x 6 pixels, its series 6 x 5: give the segmentation made on this"),
        ({"kind": "FRACTIONAL"}, "is a segmentation of kind FRACTIONAL: save it as BINARY"),
        ({"SOPClassUID": uid.CTImageStorage}, "is no DICOM segmentation: give the segmentation of the series, or a"),
        (
            {"pictures": [LEFT, LEFT], "places": [((-3, 7, 2), 1), ((-3, 7, 2), 2)]},
            "has segments that overlap: save them so that each pixel has one label",
        ),
    ],
)
def test_a_segmentation_that_does_not_fit_its_series_is_refused(tmp_path, series, options, message):
    options = {"pictures": [LEFT], "places": [((-3, 7, 2), 1)]} | options
    path = write_mask(tmp_path / "mask.dcm", **options)

    with pytest.raises(FileError, match=message):
        read_segmentation(path, series)


def test_a_segmentation_on_other_axes_is_refused(tmp_path):
    other = find_series(write_slices(tmp_path / "other", [0, 2, 4], spacing=(0.5, 0.8)))[0]
    path = write_mask(tmp_path / "mask.dcm", [LEFT], [((-3, 7, 2), 1)])

    with pytest.raises(FileError, match="has other axes or another spacing than its series: resample it onto"):
        read_segmentation(path, other)


@pytest.mark.real_data
def test_a_real_series_is_read_as_simpleitk_reads_it(real_data):
    import SimpleITK as sitk

    from iaunet.volumes import volume_from_sitk

    folder = real_data / "DICOM" / "hippocampus_crop"
    (found,) = find_series(sorted(folder.iterdir()))
    volume = read_series(sorted(folder.iterdir()))

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    expected = volume_from_sitk(reader.Execute())
    assert found.description == "HippoCrop"
    assert isinstance(volume, Volume)
    assert volume.voxels.shape == (1, 32, 51, 35)
    np.testing.assert_array_equal(volume.voxels, expected.voxels)
    np.testing.assert_allclose(volume.header.canonical_affine, expected.header.canonical_affine, atol=1e-6)


@pytest.mark.real_data
def test_a_real_series_with_gaps_says_which_slices_are_missing(real_data):
    folder = real_data / "DICOM" / "t2_512"
    (found,) = find_series(sorted(folder.iterdir()))

    assert [path.name for path in found.files] == ["000002.dcm", "000003.dcm", "000004.dcm", "000001.dcm"]
    with pytest.raises(FileError, match=r"5 of 9 slices are missing, expected at -25\.1623, -18\.6622, -12\.1622, "):
        read_series(found.files)
    pair = read_series(found.files[2:])
    assert pair.voxels.shape == (1, 2, 512, 512)
    assert pair.spacing_mm == pytest.approx((6.5, 0.4297, 0.4297), abs=1e-4)
