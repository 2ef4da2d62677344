import csv
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, PngImagePlugin

from iaunet import files, resample
from iaunet.dataset import MaskCoding, Slicing
from iaunet.decision import decide, decide_regions
from iaunet.errors import FileError, PredictionError
from iaunet.inference.folder import predict_folder
from iaunet.inference.inputs import group_channels, list_inputs
from iaunet.inference.inputs import mask_names as names_of_predict
from iaunet.inference.mosaic import Assembly, RowPrediction
from iaunet.inference.onnx_export import export_onnx, runtime_settings
from iaunet.inference.output import FolderOptions
from iaunet.inference.postprocessing import LabelCleaning, Postprocessing, clean_labels
from iaunet.inference.predictor import Predictor
from iaunet.inference.runtime import iaunet_runtime as program
from iaunet.inference.runtime.iaunet_runtime import ImageFault, Runtime, RuntimeFault
from iaunet.inference.tuning import Tuning
from iaunet.planners.plan import InferencePlan, Normalisation, build_planned_network
from iaunet.preprocessing.cases import prepare_case
from iaunet.stacks import Stack, read_stack

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))), reason="needs iaunet[onnx]"
)

CPU = torch.device("cpu")
SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))
TWO = MaskCoding(kind="values", values=(1, 2), written=(1, 700))
REGIONS = MaskCoding(kind="values", values=(1, 2), written=(1, 2), regions=((1, 2), (2,)), regions_class_order=(1, 2))


def settings_of(predictor):
    data = runtime_settings(predictor, "0")
    cleaning = tuple(program.Cleaning(**steps) for steps in data["cleaning"])
    return program.Settings(**data | {"size": tuple(data["size"]), "cleaning": cleaning})


def picture(seed, height, width, channels=3):
    """[channels, H, W] uint8: clouds with noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (channels, 5, 5), dtype=np.uint8)
    clouds = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in coarse]
    noisy = np.stack([*map(np.asarray, clouds)]) + rng.normal(0, 12, (channels, height, width))
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def networks(make_plan):
    """Networks of 3 channels and two outputs with random weights."""
    torch.manual_seed(11)
    plan = make_plan(channels=3, labels=("one", "two"), coding=TWO, input_size=(32, 48))
    return [build_planned_network(plan) for _ in range(2)]


@pytest.fixture(scope="module")
def build(make_plan, networks):
    """A predictor of `networks` by a plan with ``fields`` and a postprocessing."""

    def build(postprocessing=None, **fields):
        usual = {
            "channels": 3,
            "labels": ("one", "two"),
            "coding": TWO,
            "input_size": (32, 48),
            "input_mode": "resize",
            "inference": InferencePlan(mirroring=True, thresholds=(0.5, 0.5)),
        }
        tuning = Tuning(postprocessing=postprocessing)
        return Predictor(make_plan(**(usual | fields)), networks, CPU, tuning=tuning)

    return build


@pytest.fixture(scope="module")
def exported(build, tmp_path_factory):
    """The folder of an exported model; to be read only."""
    folder = tmp_path_factory.mktemp("exported") / "model ü"
    export_onnx(build(), "", folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of `exported`, the test's own to spoil."""
    return shutil.copytree(exported, tmp_path / "model")


@pytest.fixture
def runtime_of(folder):
    """The runtime of a predictor: the same networks, with its settings."""

    def runtime_of(predictor):
        path = folder / "runtime.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        data["settings"] = runtime_settings(predictor, data["settings"]["onnx_sha256"])
        path.write_text(json.dumps(data), encoding="utf-8")
        return Runtime(folder, threads=1)

    return runtime_of


@pytest.fixture(scope="module")
def runtime(exported):
    return Runtime(exported, threads=1)


@pytest.fixture
def images(tmp_path):
    """A folder with three images."""
    root = tmp_path / "images"
    (root / "below").mkdir(parents=True)
    for i, name in enumerate(["a 10.png", "a 2.png", "below/ж.png"]):
        Image.fromarray(np.moveaxis(picture(i, 40, 60), 0, 2)).save(root / name)
    return root


# --- the same steps as iaunet's ---


@given(data=st.data(), size=SIZES, dtype=st.sampled_from([np.uint8, np.uint16, np.int16, np.float32]))
def test_pictures_and_windows_of_them_are_resized_as_by_iaunet(data, size, dtype):
    native = data.draw(SIZES)
    image = np.random.default_rng(0).integers(0, 255, (2, *native)).astype(dtype)
    top, left = (data.draw(st.integers(0, side - 1)) for side in size)
    window = (top, left, data.draw(st.integers(1, size[0] - top)), data.draw(st.integers(1, size[1] - left)))

    np.testing.assert_array_equal(program.resize(image, size), resample.resize_image(image, size))
    np.testing.assert_array_equal(program.resize(image, size, window), resample.resize_image(image, size, window))


NORMALISATIONS = {
    "dataset": Normalisation(kind="dataset", mean=(90.5, 70.25, 33.3), sd=(40.0, 0.0, 21.1)),
    "windows": Normalisation(
        kind="dataset", mean=(90.5, 70.25, 33.3), sd=(40.0, 2.0, 21.1), windows=((10, 200), (0, 90), (30, 31))
    ),
    "case": Normalisation(kind="case"),
    "percentiles": Normalisation(kind="case", percentiles=(0.5, 99.5)),
}


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize(
    "geometry",
    [
        {"input_mode": "resize"},
        {"input_mode": "letterbox"},
        {"input_mode": "tiles", "tile_scale": 1.0},
        {"input_mode": "tiles", "tile_scale": 0.6},
    ],
    ids=str,
)
@pytest.mark.parametrize("native", [(32, 48), (31, 90), (150, 20), (1, 1), (113, 201)])
def test_inputs_are_those_of_iaunet_and_maps_come_back_to_the_same_mask(build, native, geometry, normalisation):
    predictor = build(**geometry, normalisation=NORMALISATIONS[normalisation])
    settings, image = settings_of(predictor), picture(1, *native)
    case = prepare_case(Stack(image[:, None]), predictor.plan)
    layout = program.lay_out(native, settings)

    rows = list(program.inputs(image, layout, settings))

    np.testing.assert_array_equal(np.stack(rows), np.stack([*case.rows()]))
    rng = np.random.default_rng(2)
    maps = [rng.random((2, 32, 48), np.float32) for _ in rows]
    assembly = Assembly(case, predictor.plan)
    for each in maps:
        assembly.add(RowPrediction(each))
    scaled = program.assemble(iter(maps), layout, 2)
    np.testing.assert_array_equal(program.decide_native(scaled, layout, settings), assembly.prediction.labels[0])


def test_a_mask_of_many_tiles_is_decided_in_bands(build, monkeypatch):
    predictor = build(input_mode="tiles", tile_scale=0.5)
    settings = settings_of(predictor)
    layout = program.lay_out((200, 300), settings)
    maps = np.random.default_rng(2).random((2, *layout.scaled), np.float32)
    whole = program.decide_native(maps, layout, settings)

    monkeypatch.setattr(program, "PIXELS_AT_ONCE", 700)

    np.testing.assert_array_equal(program.decide_native(maps, layout, settings), whole)


@given(
    maps=arrays.arrays(np.float32, (2, 4, 5), elements=st.sampled_from([0, 0.25, 0.3, 0.5, 0.75, 1, np.nan])),
    thresholds=st.tuples(*[st.sampled_from([0.25, 0.3, 0.5])] * 2),
)
def test_labels_and_regions_are_decided_as_by_iaunet(build, maps, thresholds):
    inference = InferencePlan(mirroring=False, thresholds=thresholds)
    labels = program.decide(maps, settings_of(build(inference=inference)))
    regions = program.decide(maps, settings_of(build(inference=inference, coding=REGIONS)))

    np.testing.assert_array_equal(labels, decide(maps, thresholds))
    np.testing.assert_array_equal(regions, decide_regions(maps, thresholds, (1, 2)))


MASKS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 2))
STEPS = st.builds(program.Cleaning, smallest=st.integers(0, 6), largest_only=st.booleans(), fill_holes=st.booleans())


@given(mask=MASKS, cleaning=st.tuples(STEPS, STEPS))
def test_masks_are_cleaned_as_by_iaunet(mask, cleaning):
    theirs = tuple(LabelCleaning(**dataclasses.asdict(steps)) for steps in cleaning)

    np.testing.assert_array_equal(program.clean(mask.copy(), cleaning), clean_labels(mask[None], theirs)[0])


@pytest.mark.parametrize("reach", [0, 1])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.5, 0.6, 0.98])
def test_components_of_a_large_mask_are_numbered_by_their_first_pixels(density, reach):
    from scipy import ndimage

    mask = np.random.default_rng(1).random((300, 400)) < density

    numbers = program.number_components(mask, reach)

    expected, _ = ndimage.label(mask, ndimage.generate_binary_structure(2, 1 + reach))
    np.testing.assert_array_equal(numbers, expected[mask] - 1)


def test_a_spiral_is_one_component():
    mask = np.zeros((201, 201), bool)
    for ring in range(0, 100, 4):
        mask[ring, ring : 201 - ring] = mask[200 - ring, ring : 201 - ring] = True
        mask[ring : 201 - ring, ring] = mask[ring : 201 - ring, 200 - ring] = True
        mask[ring + 1 : ring + 5, 100] = True

    assert not program.number_components(mask, 1).any()


@given(
    pixels=arrays.arrays(np.uint8, st.tuples(st.just(3), st.integers(1, 6), st.integers(1, 6))),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
)
def test_colour_and_grey_are_turned_into_each_other_as_by_iaunet(pixels, dtype):
    pixels = pixels.astype(dtype)

    np.testing.assert_array_equal(program.to_channels(pixels, 1), files.to_channels(pixels, 1))
    np.testing.assert_array_equal(program.to_channels(pixels[:1], 3), files.to_channels(pixels[:1], 3))
    assert program.to_channels(pixels, 3) is pixels


def test_channels_that_cannot_be_turned_are_refused():
    with pytest.raises(ImageFault, match="has 3 channels, the model 4: give images with 4 channels"):
        program.to_channels(np.zeros((3, 2, 2), np.uint8), 4)


# --- files ---


def grey(dtype, height=9, width=13, low=0, high=None):
    high = np.iinfo(dtype).max if high is None else high
    return np.random.default_rng(4).integers(low, high, (height, width)).astype(dtype)


def rgb():
    return np.moveaxis(picture(3, 20, 30), 0, 2)


def save(image, path, **options):
    Image.fromarray(image).save(path, **options)


def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


READ_ALIKE = {
    "grey.png": lambda path: save(grey(np.uint8), path),
    "deep.png": lambda path: save(grey(np.uint16), path),
    "one bit.png": lambda path: Image.fromarray(grey(np.uint8) > 100).save(path),
    "palette.png": lambda path: Image.fromarray(rgb()).quantize(16).save(path),
    "alpha.png": lambda path: Image.fromarray(rgb()).convert("RGBA").save(path),
    "grey alpha.png": lambda path: Image.fromarray(grey(np.uint8)).convert("LA").save(path),
    "colour.bmp": lambda path: save(rgb(), path),
    "colour.jpg": lambda path: save(rgb(), path),
    "grey.jpeg": lambda path: save(grey(np.uint8), path),
    "turned.jpg": lambda path: save(rgb(), path, exif=turned(6)),
    "mirrored.png": lambda path: save(rgb(), path, exif=turned(7)),
    "grey.tif": lambda path: tifffile.imwrite(path, grey(np.uint8)),
    "deep.tif": lambda path: tifffile.imwrite(path, grey(np.uint16)),
    "deep big.tif": lambda path: tifffile.imwrite(path, grey(np.uint16), byteorder=">"),
    "deep lzw.tif": lambda path: save(grey(np.uint16), path, compression="tiff_lzw"),
    "deep deflate.tif": lambda path: tifffile.imwrite(path, grey(np.uint16), compression="zlib", predictor=True),
    "deep big deflate.tif": lambda path: tifffile.imwrite(path, grey(np.uint16), byteorder=">", compression="zlib"),
    "signed.tif": lambda path: tifffile.imwrite(path, grey(np.int16, low=-3000, high=3000)),
    "signed 32.tif": lambda path: tifffile.imwrite(path, grey(np.int32, low=-70000, high=70000)),
    "small 32.tif": lambda path: tifffile.imwrite(path, grey(np.int32, high=100)),
    "float.tif": lambda path: tifffile.imwrite(path, grey(np.uint16).astype(np.float32) / 7),
    "inverted.tif": lambda path: tifffile.imwrite(path, grey(np.uint8), photometric="miniswhite"),
    "deep inverted.tif": lambda path: tifffile.imwrite(path, grey(np.uint16), photometric="miniswhite"),
    "colour.tif": lambda path: tifffile.imwrite(path, rgb(), photometric="rgb"),
    "planes.tif": lambda path: tifffile.imwrite(
        path, np.moveaxis(rgb(), 2, 0), photometric="rgb", planarconfig="separate"
    ),
    "alpha.tif": lambda path: Image.fromarray(rgb()).convert("RGBA").save(path),
    "packed.tiff": lambda path: save(rgb(), path, compression="packbits"),
    "jpeg.tif": lambda path: save(rgb(), path, compression="jpeg"),
    "palette.tif": lambda path: Image.fromarray(rgb()).quantize(16).save(path),
    "one bit.tif": lambda path: Image.fromarray(grey(np.uint8) > 100).save(path, compression="group4"),
    "turned.tif": lambda path: save(rgb(), path, exif=turned(6)),
    "turned lzw.tif": lambda path: save(rgb(), path, exif=turned(8), compression="tiff_lzw"),
    "imagej.tif": lambda path: tifffile.imwrite(path, grey(np.uint16), imagej=True),
}


@pytest.mark.parametrize("name", READ_ALIKE)
def test_files_are_read_as_by_iaunet(name, tmp_path):
    READ_ALIKE[name](tmp_path / name)
    expected = read_stack([tmp_path / name], Slicing()).pixels

    pixels = program.read_image(tmp_path / name)

    assert pixels.dtype == expected.dtype
    np.testing.assert_array_equal(pixels, expected[:, 0])


def write_deep_rgb(path):
    tifffile.imwrite(path, grey(np.uint16, 20, 90).reshape(20, 30, 3), photometric="rgb")


def write_bomb(path):
    """A PNG whose header says 60000 x 60000 pixels."""
    data = io.BytesIO()
    save(grey(np.uint8), data, format="PNG")
    head = b"IHDR" + (60000).to_bytes(4, "big") * 2 + data.getvalue()[24:29]
    import zlib

    path.write_bytes(data.getvalue()[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data.getvalue()[33:])


def write_nan(path):
    values = np.zeros((4, 5), np.float32)
    values[1, 1] = np.nan
    tifffile.imwrite(path, values)


def write_short(path):
    """A TIFF whose header says a thousand times as many rows as there are."""
    tifffile.imwrite(path, grey(np.uint8), rowsperstrip=9)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x01\x01\x04\0\1\0\0\0\x09\0", b"\x01\x01\x04\0\1\0\0\0\x28\x23", 1))


def write_without_last_tags(path):
    save(grey(np.uint16), path, compression="tiff_lzw")
    path.write_bytes(path.read_bytes()[:-5])


REFUSED = {
    "missing.png": (lambda path: None, "cannot be read (No such file or directory): mend its permissions"),
    "empty.png": (lambda path: path.write_bytes(b""), "file is empty: copy it again or remove it"),
    "no image.png": (lambda path: path.write_bytes(b"no image" * 9), "is not a readable PNG, JPEG"),
    "gif.png": (
        lambda path: save(grey(np.uint8), path, format="GIF"),
        "is not a readable PNG, JPEG",
    ),
    "bomb.png": (write_bomb, "has 60000 x 60000 pixels, more than the 536,870,912 allowed: cut or shrink it"),
    "pages.tif": (lambda path: tifffile.imwrite(path, np.zeros((5, 9, 9), np.uint8)), "holds several pages"),
    "stack.tif": (
        lambda path: tifffile.imwrite(path, np.zeros((3, 9, 9), np.uint8), imagej=True),
        "holds several pages, which only iaunet_predict reads",
    ),
    "deep colour.tif": (write_deep_rgb, "holds colour with 16 bits a channel, which Pillow cuts to 8"),
    "unsigned 32.tif": (
        lambda path: tifffile.imwrite(path, grey(np.uint32)),
        "is a TIFF file of a kind that is not read here (1 x 32 bits): save it as PNG",
    ),
    "short.tif": (write_short, "is truncated or damaged ("),
    "cut.tif": (write_without_last_tags, "is truncated or damaged (its tags end too early): copy it again"),
    "nan.tif": (write_nan, "holds nan or infinite values: replace them, with 0 for instance"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_cannot_be_read_are_told_in_one_line(name, tmp_path):
    write, message = REFUSED[name]
    write(tmp_path / name)

    with pytest.raises(ImageFault) as caught:
        program.read_image(tmp_path / name)

    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["colour.jpg", "deep.png", "colour.tif", "deep lzw.tif", "colour.bmp", "jpeg.tif"])
def test_a_truncated_file_is_refused_or_read_as_by_iaunet(name, share, tmp_path):
    path = tmp_path / name
    READ_ALIKE[name](path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])

    try:
        expected = read_stack([path], Slicing()).pixels[:, 0]
    except FileError:
        with pytest.raises(ImageFault):
            program.read_image(path)
    else:
        np.testing.assert_array_equal(program.read_image(path), expected)


# --- the model ---


@pytest.mark.parametrize("mode", ["resize", "letterbox", "tiles"])
@pytest.mark.parametrize(
    ("coding", "thresholds", "cleaning"),
    [
        (TWO, (0.5, 0.45), ()),
        (REGIONS, (0.48, 0.5), ()),
        (TWO, (0.5, 0.48), (LabelCleaning(smallest=9, fill_holes=True), LabelCleaning(largest_only=True))),
    ],
    ids=["labels", "regions", "cleaned"],
)
def test_masks_are_those_of_the_predictor(build, runtime_of, mode, coding, thresholds, cleaning):
    cleaning = cleaning or (LabelCleaning(),) * 2
    predictor = build(Postprocessing(thresholds=thresholds, cleaning=cleaning), input_mode=mode, coding=coding)
    runtime = runtime_of(predictor)

    differing = n_foreground = 0
    for seed, (height, width) in enumerate([(32, 48), (70, 90), (200, 45), (33, 260)]):
        image = np.moveaxis(picture(seed, height, width), 0, 2)
        mask, expected = runtime.predict(image), predictor.predict(image)
        assert (mask.dtype, mask.shape) == (expected.dtype, expected.shape)
        differing += int((mask != expected).sum())
        n_foreground += int((mask > 0).sum())

    assert n_foreground > 1000
    assert differing == 0


def test_grey_arrays_and_files_are_predicted(runtime, tmp_path):
    image = picture(7, 50, 40, channels=1)[0]
    save(image, tmp_path / "ö.png")

    mask = runtime.predict(image)

    np.testing.assert_array_equal(runtime.predict(tmp_path / "ö.png"), mask)
    np.testing.assert_array_equal(runtime.predict(str(tmp_path / "ö.png")), mask)
    np.testing.assert_array_equal(runtime.predict(np.dstack([image] * 3)), mask)
    assert mask.dtype == np.uint16
    assert set(np.unique(mask)) <= {0, 1, 700}


def test_arrays_of_other_axes_or_types_are_refused(runtime):
    with pytest.raises(ValueError, match=r"an image is \[H, W\] or \[H, W, C\], not \(1, 2, 3, 4\)"):
        runtime.predict(np.zeros((1, 2, 3, 4), np.uint8))
    with pytest.raises(ImageFault, match="pixels are uint16, those of the data set uint8: convert it to uint8"):
        runtime.predict(np.zeros((4, 5), np.uint16))


# --- a damaged folder ---


def change(folder, edit):
    path = folder / "runtime.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(program.Settings)])
@pytest.mark.parametrize("value", ["missing", None, "x", -1, [[]]])
def test_a_settings_file_with_a_field_missing_or_wrong_is_refused(field, value, folder):
    change(folder, lambda data: data["settings"].update({field: value}))
    if value == "missing":
        change(folder, lambda data: data["settings"].pop(field))
        with pytest.raises(RuntimeFault, match=f"is damaged .*'{field}'.*: copy the exported folder again"):
            Runtime(folder)
        return

    with pytest.raises(RuntimeFault):
        Runtime(folder, threads=1)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 5000, b'{"version": 1, "settings": []}'])
def test_a_settings_file_that_is_none_is_refused(content, folder):
    (folder / "runtime.json").write_bytes(content)

    with pytest.raises(RuntimeFault, match="is damaged") as caught:
        Runtime(folder)

    assert "\n" not in str(caught.value)


def test_settings_of_another_version_are_refused(folder):
    change(folder, lambda data: data.update(version=2))

    with pytest.raises(RuntimeFault, match=r"is of version 2: use the iaunet_runtime\.py beside it"):
        Runtime(folder)


def test_a_missing_or_changed_model_is_refused(folder):
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(RuntimeFault, match=r"model\.onnx is not the file that runtime\.json names: copy the exp"):
        Runtime(folder)

    (folder / "model.onnx").unlink()
    with pytest.raises(RuntimeFault, match=r"model\.onnx cannot be read \(No such file or directory\)"):
        Runtime(folder)

    (folder / "runtime.json").unlink()
    with pytest.raises(RuntimeFault, match=r"runtime\.json cannot be read \(No such file or directory\)"):
        Runtime(folder)


def test_a_model_that_onnxruntime_does_not_take_is_refused(folder):
    import hashlib

    (folder / "model.onnx").write_bytes(b"no model")
    found = hashlib.sha256(b"no model").hexdigest()
    change(folder, lambda data: data["settings"].update(onnx_sha256=found))

    with pytest.raises(RuntimeFault, match=r"cannot be loaded by onnxruntime .*: install what requirements\.txt asks"):
        Runtime(folder)


# --- a folder of images ---


def main(*arguments):
    return program.main([*map(str, arguments), "--threads", "1"])


def masks_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def test_a_folder_gets_the_masks_and_names_of_iaunet_predict(build, runtime, tmp_path, images):
    save(rgb(), images / "same.jpg")
    save(rgb(), images / "same.PNG")
    save(rgb(), images / "other.bmp")
    save(rgb(), images / ".hidden.png")
    (images / "notes.txt").write_bytes(b"no image")
    predictor = build()
    predict_folder(predictor, images, tmp_path / "theirs", FolderOptions())

    outcomes = program.predict_folder(runtime, images, tmp_path / "ours")

    assert [outcome.image for outcome in outcomes] == [
        "a 2.png",
        "a 10.png",
        "below/ж.png",
        "other.bmp",
        "same.PNG",
        "same.jpg",
    ]
    assert {outcome.status for outcome in outcomes} == {"done"}
    assert masks_in(tmp_path / "ours") == masks_in(tmp_path / "theirs")
    for name in masks_in(tmp_path / "ours"):
        ours, theirs = (np.asarray(Image.open(tmp_path / by / name)) for by in ("ours", "theirs"))
        np.testing.assert_array_equal(ours, theirs)
    with (tmp_path / "ours" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first = np.asarray(Image.open(tmp_path / "ours" / "a 2.png"))
    assert rows[0] == {
        "image": "a 2.png",
        "mask": "a 2.png",
        "status": "done",
        "problem": "",
        "one_pixels": str((first == 1).sum()),
        "two_pixels": str((first == 700).sum()),
    }


NAMES = st.sampled_from(
    ["a", "A", "b", "a.jpg", "a_mask", "b_Seg", "_mask", "a_mask_masks", "c_0000", "c_0001", "c_0002", "v"]
)
FOLDERS = st.sampled_from(["", "below/", "images/", "masks/", "below/GT/", "below/img/b/"])
ENDINGS = st.sampled_from([".png", ".PNG", ".jpg", ".tif", ".bmp", ".nii.gz", ".txt", ""])


@given(
    found=st.sets(st.tuples(FOLDERS, NAMES, ENDINGS), min_size=1),
    earlier=st.sets(FOLDERS, max_size=1),
    channels=st.sampled_from([0, 2]),
)
def test_names_of_masks_are_those_of_iaunet_predict(tmp_path_factory, found, earlier, channels):
    """Masks of an earlier prediction, or beside images, are left out by both."""
    root = tmp_path_factory.mktemp("names")
    for file in (*map("".join, found), *(f"{folder}predictions.csv" for folder in earlier)):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    output = root.parent / "elsewhere"
    try:
        list_inputs(root, output)
    except PredictionError:
        with pytest.raises(RuntimeFault, match=r"holds no images \(\.png"):
            program.list_cases(root, root, output, channels)
        return
    theirs = group_channels(root, list_inputs(root, output).images, channels)

    ours = program.list_cases(root, root, output, channels)

    assert [(case.name, case.stem, case.files) for case in ours] == [
        (case.name, case.stem, case.files) for case in theirs
    ]
    assert program.mask_names(ours) == names_of_predict(theirs, [".png"] * len(theirs))


def test_a_case_of_several_files_is_predicted_as_one(build, networks, runtime_of, tmp_path):
    predictor = build(channel_files=3)
    runtime = runtime_of(predictor)
    inputs = tmp_path / "channels"
    inputs.mkdir()
    for i, plane in enumerate(picture(1, 40, 50)):
        save(plane, inputs / f"p_000{i}.png")
    save(grey(np.uint8), inputs / "q_0001.png")
    for i, side in enumerate((20, 20, 21)):
        save(grey(np.uint8, side), inputs / f"r_000{i}.png")
    predict_folder(predictor, inputs, tmp_path / "theirs", FolderOptions())

    whole, lacking, unlike = program.predict_folder(runtime, inputs, tmp_path / "ours")

    assert (whole.mask, whole.status) == ("p.png", "done")
    assert lacking.problem == "has 1 of 3 channel files: add those that are missing"
    assert unlike.problem == "has channels of several sizes or types: bring all to one"
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "ours" / "p.png")), np.asarray(Image.open(tmp_path / "theirs" / "p.png"))
    )


def test_what_cannot_be_predicted_fails_and_the_rest_goes_on(exported, images, tmp_path, capsys):
    data = (images / "a 10.png").read_bytes()
    (images / "broken.png").write_bytes(data[: len(data) // 2])
    (images / "volume.nii.gz").write_bytes(b"")

    assert main("-i", images, "-o", tmp_path / "out", "--model", exported) == 1

    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "failed: broken.png: is damaged (a checksum of its pixels does not fit): copy it again"
    assert shown[1] == ("failed: volume.nii.gz: is a volume, which this runtime does not read: use iaunet_predict")
    assert shown[2] == f"masks: 3 done, 0 kept, 2 failed: {tmp_path / 'out'}"
    assert masks_in(tmp_path / "out") == {"a 10.png", "a 2.png", "below/ж.png"}


def test_nothing_but_failures_is_code_2(exported, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "empty.png").write_bytes(b"")

    assert main("-i", tmp_path / "in", "-o", tmp_path / "out", "--model", exported) == 2
    assert "0 done, 0 kept, 1 failed" in capsys.readouterr().out


def test_tiff_is_refused_where_axes_or_spacing_count(build, runtime_of, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", rgb(), photometric="rgb")
    runtime = runtime_of(build(slicing=Slicing(axes="ZYX")))

    with pytest.raises(ImageFault, match="is a TIFF file whose axes or spacing this model minds: use iaunet_predict"):
        runtime.predict(tmp_path / "a.tif")


def test_masks_of_this_model_are_kept_and_those_of_changed_images_made_again(runtime, images, tmp_path):
    program.predict_folder(runtime, images, tmp_path / "out")
    before = (tmp_path / "out" / "a 2.png").stat().st_mtime_ns
    save(rgb(), images / "a 10.png")

    outcomes = program.predict_folder(runtime, images, tmp_path / "out")

    assert [outcome.status for outcome in outcomes] == ["kept", "done", "kept"]
    assert (tmp_path / "out" / "a 2.png").stat().st_mtime_ns == before


def test_masks_of_another_model_or_hand_are_replaced_only_when_asked(build, runtime, runtime_of, images, tmp_path):
    out = tmp_path / "out"
    program.predict_folder(runtime, images, out)
    other = runtime_of(build(Postprocessing(thresholds=(0.6, 0.6), cleaning=(LabelCleaning(),) * 2)))

    with pytest.raises(RuntimeFault, match=r"a 10\.png was made by something else: use --overwrite, or another fol"):
        program.predict_folder(other, images, out)
    assert {outcome.status for outcome in program.predict_folder(other, images, out, overwrite=True)} == {"done"}
    save(grey(np.uint8), out / "a 2.png")
    with pytest.raises(RuntimeFault, match=r"a 2\.png was made by something else"):
        program.predict_folder(other, images, out)


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("empty", "out", "empty holds no images (.png, .jpg, .jpeg, .bmp, .tif, .tiff): check the path"),
        ("nowhere", "out", "nowhere cannot be used (No such file or directory): check the path"),
        ("images", "images", "images holds the images themselves: give another folder for the masks"),
        ("images", "file", "file cannot be used (File exists): check the path"),
    ],
)
def test_requests_that_cannot_be_done_are_told_in_one_line(source, output, message, exported, images, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")

    assert main("-i", tmp_path / source, "-o", tmp_path / output, "--model", exported) == 2

    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_masks_below_the_images_are_no_images(runtime, images):
    assert len(program.predict_folder(runtime, images, images / "masks")) == 3
    assert len(program.predict_folder(runtime, images, images / "masks")) == 3


def test_a_full_disk_is_named_and_leaves_whole_masks_only(runtime, images, tmp_path):
    resource = pytest.importorskip("resource", reason="no limits on file sizes on this system")
    save(np.moveaxis(picture(9, 900, 1200), 0, 2), images / "zz.png")
    out = tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(
            RuntimeFault, match=r"zz\.png cannot be written \(File too large\): free some space or mend"
        ):
            program.predict_folder(runtime, images, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert masks_in(out) == {"a 10.png", "a 2.png", "below/ж.png"}
    assert not list(out.rglob("*tmp"))
    for name in masks_in(out):
        Image.open(out / name).load()


def test_what_a_killed_process_left_goes(runtime, images, tmp_path):
    left = tmp_path / "out" / "below" / ".0123.iaunet-tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")

    program.predict_folder(runtime, images, tmp_path / "out")

    assert not left.exists()


def test_masks_tell_the_image_and_the_model_they_were_made_from(runtime, images, tmp_path):
    import hashlib

    program.predict_folder(runtime, images / "a 2.png", tmp_path / "out")

    with Image.open(tmp_path / "out" / "a 2.png") as mask:
        assert isinstance(mask, PngImagePlugin.PngImageFile)
        made_from = mask.text["iaunet:made-from"]
    assert made_from == f"{hashlib.sha256((images / 'a 2.png').read_bytes()).hexdigest()} {runtime.digest}"
    assert masks_in(tmp_path / "out") == {"a 2.png"}


def test_onnxruntime_writes_nothing_about_itself(exported, tmp_path):
    code = (
        f"import runpy; program = runpy.run_path({str(Path(program.__file__))!r})\n"
        f"program['Runtime']({str(exported)!r}, threads=1)"
    )
    environment = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "PATH": os.environ["PATH"]}  # and not CI
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)

    assert not list(tmp_path.iterdir())


def test_the_program_imports_nothing_but_its_requirements(exported):
    code = (
        "import sys, runpy\n"
        f"runpy.run_path({str(Path(program.__file__))!r})['open_session']({str(exported / 'model.onnx')!r})\n"
        "print([name for name in ('torch', 'scipy', 'iaunet', 'onnx', 'skimage', 'tifffile') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")

    assert done.stdout == "[]\n"
