import dataclasses
import math
import pickle

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from iaunet.planners.suspicions import CaseShapes, MaskShape, find_suspicions, measure_shape

ROWS, COLUMNS = np.mgrid[:96, :128]
FRAME_PIXELS = 2 * 96 + 2 * 128 - 4
INVERTED = "mask seems inverted: it covers the border around a hole that is like what the others mark"
OUTLINED = "mask is a closed thin outline, the others are solid"


def disc(row=48, column=64, radius=20):
    return (ROWS - row) ** 2 + (COLUMNS - column) ** 2 <= radius**2


def ring(row=48, column=64, radius=20, wall=1):
    return disc(row, column, radius) & ~disc(row, column, radius - wall)


def image_of(shape, rng, contrast=2.0):
    return (contrast * shape + rng.normal(size=shape.shape)).astype(np.float32)


def case(name, label_maps, grey, values=(0, 1)):
    shapes = {label: measure_shape(label_map, grey) for label, label_map in label_maps.items() if label_map.any()}
    return CaseShapes(name=name, mask_file=f"masks/{name}.png", shapes=shapes, values=frozenset(values))


def discs(n, spoil=lambda shape: shape, spoiled=(), values=(0, 1)):
    """Cases of one bright disc inside the frame, some of whose masks are spoiled."""
    rng = np.random.default_rng(0)
    cases = []
    for i in range(n):
        shape = disc(rng.integers(35, 60), rng.integers(35, 90), rng.integers(10, 30))
        label_map = spoil(shape) if i in spoiled else shape
        cases.append(case(f"case_{i}", {1: label_map}, image_of(shape, rng), values))
    return cases


def pairs(n, spoiled=(), mirrored=(), contrast=2.0):
    """Cases with label 1 on the left and the larger label 2 on the right, which differ in intensity as well."""
    rng = np.random.default_rng(0)
    cases = []
    for i in range(n):
        left, right = disc(48, 32 + rng.integers(-3, 4), 12), disc(48, 96 + rng.integers(-3, 4), 14)
        if i in mirrored:
            left, right = left[:, ::-1], right[:, ::-1]
        grey = image_of(left, rng, contrast) - np.float32(contrast) * right
        first, second = (right, left) if i in spoiled else (left, right)
        cases.append(case(f"case_{i}", {1: first, 2: second}, grey, (0, 1, 2)))
    return cases


def files(problems):
    return [problem.file for problem in problems]


def masks(*numbers):
    return [f"masks/case_{i}.png" for i in numbers]


def invert(shape):
    return ~shape


def outline(shape):
    return shape & ~ndimage.binary_erosion(shape)


def test_a_disc_is_measured_in_shares_and_pixels():
    shape = disc(row=48, column=32, radius=20)

    measured = measure_shape(shape, np.where(shape, np.float32(3), np.float32(1)))

    assert measured.share == pytest.approx(shape.mean())
    assert (measured.border_share, measured.filled_ratio, measured.holes_per_part) == (0, 1, 0)
    assert measured.diameter == pytest.approx(40, abs=1)
    assert measured.width == pytest.approx(40 / math.sqrt(2), abs=2)  # the largest square in it
    assert measured.relative_intensity == pytest.approx(1 / math.sqrt(shape.mean() * (1 - shape.mean())))
    assert measured.centre == (pytest.approx(48.5 / 96), pytest.approx(32.5 / 128))


@pytest.mark.parametrize(("wall", "width"), [(1, 2), (3, 4)])
def test_a_ring_encloses_one_hole_and_is_as_wide_as_its_wall(wall, width):
    measured = measure_shape(ring(radius=30, wall=wall), np.ones((96, 128), np.float32))

    assert measured.filled_ratio == pytest.approx(disc(radius=30).sum() / ring(radius=30, wall=wall).sum())
    assert (measured.holes_per_part, measured.width) == (1, width)
    assert measured.diameter == pytest.approx(60, abs=1)


def test_holes_and_parts_count_by_their_area():
    two_rings_and_specks = ring(40, 30, 20) | ring(40, 90, 20)
    two_rings_and_specks[90, 2:120:8] = True
    net = (ROWS % 16 == 8) | (COLUMNS % 16 == 8)

    assert measure_shape(two_rings_and_specks, ROWS.astype(np.float32)).holes_per_part == pytest.approx(1, abs=0.2)
    assert measure_shape(net, ROWS.astype(np.float32)).holes_per_part == pytest.approx(35)


def test_the_inverse_of_a_shape_has_the_opposite_intensity_and_its_background_enclosed():
    shape = disc()
    grey = image_of(shape, np.random.default_rng(0))

    here, inverse = measure_shape(shape, grey), measure_shape(~shape, grey)

    assert inverse.share == pytest.approx(1 - here.share)
    assert (here.border_share, inverse.border_share) == (0, 1)
    assert inverse.relative_intensity == pytest.approx(-here.relative_intensity)
    assert (here.enclosed_background, inverse.enclosed_background) == (0, pytest.approx(1))


def test_the_frame_is_counted_once_at_its_corners():
    corner = (ROWS < 10) & (COLUMNS < 10)

    assert measure_shape(corner, ROWS.astype(np.float32)).border_share == pytest.approx(19 / FRAME_PIXELS)


def test_a_label_that_fills_the_image_has_no_contrast_and_encloses_nothing():
    measured = measure_shape(np.ones((96, 128), bool), ROWS.astype(np.float32))

    assert (measured.share, measured.border_share, measured.filled_ratio) == (1, 1, 1)
    assert (measured.relative_intensity, measured.enclosed_background, measured.width) == (0, 0, 96)


def test_a_constant_image_has_no_contrast():
    assert measure_shape(disc(), np.full((96, 128), 0.1, np.float32)).relative_intensity == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_images_of_a_few_pixels_can_be_measured(size):
    measured = measure_shape(np.ones(size, bool), np.zeros(size, np.float32))

    assert (measured.share, measured.border_share, measured.width) == (1, 1, 2)


def test_an_empty_label_map_is_refused():
    with pytest.raises(ValueError, match="label map is empty"):
        measure_shape(np.zeros((4, 4), bool), np.zeros((4, 4), np.float32))


def test_a_label_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"label map is \(4, 4\), its image \(4, 5\)"):
        measure_shape(np.ones((4, 4), bool), np.zeros((4, 5), np.float32))


def test_a_case_travels_between_processes():
    [one] = discs(1)

    assert pickle.loads(pickle.dumps(one)) == one


def test_sound_masks_raise_no_suspicion():
    assert find_suspicions(discs(40)) == []
    assert find_suspicions(pairs(40)) == []


def test_no_cases_raise_no_suspicion():
    assert find_suspicions([]) == []


def test_a_dataset_of_empty_masks_raises_no_suspicion():
    empty = [CaseShapes(name=str(i), mask_file=str(i), shapes={}, values=frozenset({0})) for i in range(20)]

    assert find_suspicions(empty) == []


def test_each_inverted_mask_is_a_fault():
    problems = find_suspicions(discs(40, invert, spoiled=(3, 17, 30)))

    assert files(problems) == masks(3, 17, 30)
    assert {(problem.level, problem.what) for problem in problems} == {("fault", INVERTED)}


def test_a_mask_around_a_hole_of_another_intensity_is_not_called_inverted():
    cases = discs(40)
    shape = disc(radius=22)
    cases[5] = case("case_5", {1: ~shape}, image_of(~shape, np.random.default_rng(1)))

    assert find_suspicions(cases) == []


def test_a_mask_around_a_hole_of_another_size_is_not_called_inverted():
    cases = discs(40)
    shape = disc(radius=2)
    cases[5] = case("case_5", {1: ~shape}, image_of(shape, np.random.default_rng(1)))

    assert find_suspicions(cases) == []


def test_a_mask_that_fills_the_frame_but_for_its_corners_is_not_called_inverted():
    cases = discs(40)
    shape = (ROWS + COLUMNS > 8) & (ROWS < 95)
    cases[5] = case("case_5", {1: shape}, image_of(shape, np.random.default_rng(1)))

    assert find_suspicions(cases) == []


def test_masks_around_holes_are_no_fault_where_every_third_is_one():
    assert find_suspicions(discs(42, invert, spoiled=range(0, 42, 3))) == []


def test_masks_that_are_all_inverted_are_one_note():
    [problem] = find_suspicions(discs(40, invert, spoiled=range(38)))

    assert (problem.level, problem.file) == ("note", "masks")
    assert problem.what == "mask covers most of the image and its border in 38 of 40 masks"


@pytest.mark.parametrize("dilations", [0, 1])
def test_each_outlined_mask_is_a_note_among_solid_ones(dilations):
    def traced(shape):
        line = outline(shape)
        return ndimage.binary_dilation(line, iterations=dilations) if dilations else line

    problems = find_suspicions(discs(40, traced, spoiled=(3, 17, 30)))

    assert files(problems) == masks(3, 17, 30)
    assert {(problem.level, problem.what) for problem in problems} == {("note", OUTLINED)}


def test_masks_that_are_all_outlines_are_one_note():
    [problem] = find_suspicions(discs(40, outline, spoiled=range(40)))

    assert (problem.level, problem.file) == ("note", "masks")
    assert problem.what == "mask is a closed thin outline in 40 of 40 masks"
    assert problem.mend == "fill it if it means the area inside"


def test_thick_rings_are_no_outlines():
    def thick(shape):
        return shape & ~ndimage.binary_erosion(shape, iterations=5)

    assert find_suspicions(discs(40, thick, range(40))) == []


def test_nets_are_no_outlines_nor_is_a_loop_among_thin_lines():
    rng = np.random.default_rng(0)
    net = (ROWS % 32 == 8) | (COLUMNS % 32 == 8)
    lines = [(ROWS + shift) % 24 == 8 for shift in range(20)]
    loop = ring(radius=25)

    nets = [case(str(i), {1: net}, image_of(net, rng)) for i in range(20)]
    thin = [case(str(i), {1: shape}, image_of(shape, rng)) for i, shape in enumerate([*lines, loop])]

    assert find_suspicions(nets) == []
    assert find_suspicions(thin) == []


def test_masks_with_two_labels_swapped_are_notes():
    problems = find_suspicions(pairs(40, spoiled=(3, 17, 30)))

    assert files(problems) == masks(3, 17, 30)
    assert {problem.level for problem in problems} == {"note"}
    assert problems[0].what == "labels 1 and 2 seem swapped: they fit the other masks only the other way round"


def test_labels_that_differ_by_place_alone_are_told_apart():
    assert files(find_suspicions(pairs(40, spoiled=(3, 17, 30), contrast=0.0))) == masks(3, 17, 30)


def test_a_mirrored_image_is_no_swap_while_the_intensities_fit():
    assert find_suspicions(pairs(40, mirrored=(3, 17, 30))) == []


def test_labels_swapped_in_every_third_case_are_a_habit():
    assert find_suspicions(pairs(42, spoiled=range(0, 42, 3))) == []


def test_labels_that_nothing_tells_apart_are_never_called_swapped():
    rng = np.random.default_rng(0)
    cases = []
    for i in range(60):
        first, second = (disc(rng.integers(20, 76), side, rng.integers(6, 16)) for side in rng.permutation([30, 98]))
        cases.append(case(str(i), {1: first, 2: second}, image_of(first, rng, contrast=0.0), (0, 1, 2)))

    assert find_suspicions(cases) == []


def test_only_the_pair_that_was_swapped_is_named():
    rng = np.random.default_rng(0)
    cases = []
    for i in range(30):
        places = [disc(48 + rng.integers(-3, 4), column, 10) for column in (24, 64, 104)]
        order = (3, 2, 1) if i == 7 else (1, 2, 3)
        grey = image_of(places[0], rng, contrast=0.0)
        cases.append(case(f"case_{i}", dict(zip(order, places, strict=True)), grey, range(4)))

    [problem] = find_suspicions(cases)

    assert problem.file == "masks/case_7.png"
    assert problem.what.startswith("labels 1 and 3 seem swapped")


def test_suspicions_about_one_of_several_labels_name_it():
    cases = pairs(40)
    cases[4] = dataclasses.replace(
        cases[4], shapes={1: cases[4].shapes[1], 2: measure_shape(ring(48, 96, 14), ROWS.astype(np.float32))}
    )

    [problem] = find_suspicions(cases)

    assert (problem.file, problem.what) == (
        "masks/case_4.png",
        "label 2 is a closed thin outline, the others are solid",
    )


def test_fewer_than_ten_cases_raise_no_suspicion_of_their_shape():
    assert find_suspicions(discs(9, invert, spoiled=(3,))) == []
    assert find_suspicions(discs(9, outline, spoiled=(3,))) == []
    assert find_suspicions(pairs(9, spoiled=(3,))) == []
    assert len(find_suspicions(pairs(10, spoiled=(3,)))) == 1


def with_values(*values):
    """Cases of one disc whose masks hold these values."""
    cases = discs(len(values))
    return [dataclasses.replace(one, values=frozenset(own)) for one, own in zip(cases, values, strict=True)]


@pytest.mark.parametrize(("usual", "strange"), [(1, 255), (255, 1), (1, 65535)])
def test_each_mask_with_255_where_the_others_use_1_is_a_fault(usual, strange):
    problems = find_suspicions(with_values({0, usual}, {0, strange}, {0}, {0, usual}, {strange}, {0, usual}))

    assert files(problems) == masks(1, 4)
    assert {problem.level for problem in problems} == {"fault"}
    assert problems[0].what == f"mask uses {strange} where the others use {usual}"
    assert problems[0].mend == f"save it with {usual} in place of {strange}"


def test_another_lone_value_in_few_masks_is_a_note():
    [problem] = find_suspicions(with_values(*[{0, 1}] * 39, {0, 2}))

    assert (problem.level, problem.file) == ("note", "masks/case_39.png")
    assert problem.what == "mask uses 2 where the others use 1"
    assert problem.mend == "save it with 1, unless 2 is a label of its own"


def test_values_that_are_classes_of_whole_masks_raise_no_suspicion():
    assert find_suspicions(with_values(*[{0, 1}] * 36, *[{0, 2}] * 4)) == []
    assert find_suspicions(with_values(*[{0, 128}] * 10, *[{0, 255}] * 10)) == []


def test_values_that_meet_in_one_mask_are_labels():
    assert find_suspicions(with_values(*[{0, 1}] * 38, {0, 255}, {0, 1, 255})) == []


def test_masks_of_another_value_are_still_compared_with_the_others():
    cases = discs(40, invert, spoiled=(3,))
    cases[3] = dataclasses.replace(cases[3], shapes={255: cases[3].shapes[1]}, values=frozenset({0, 255}))

    assert [problem.what for problem in find_suspicions(cases)] == ["mask uses 255 where the others use 1", INVERTED]


def as_volume(name, slices):
    return [dataclasses.replace(one, name=name, mask_file=f"masks/{name}.png") for one in slices]


def test_the_slices_of_a_volume_are_judged_together():
    slices = pairs(60, spoiled=(18, 19, 20))
    volumes = [as_volume(f"case_{i}", slices[3 * i : 3 * i + 3]) for i in range(20)]

    problems = find_suspicions([one for volume in volumes for one in volume])

    assert files(problems) == masks(6)


def test_an_inverted_volume_is_found_though_its_empty_slices_are_full():
    rng = np.random.default_rng(0)
    cases = []
    for i in range(20):
        shape = disc(radius=rng.integers(15, 25))
        slices = [(np.zeros_like(shape), image_of(shape, rng)), (shape, image_of(shape, rng))]
        cases += as_volume(f"case_{i}", [case("", {1: ~part if i == 6 else part}, grey) for part, grey in slices])

    [problem] = find_suspicions(cases)

    assert (problem.file, problem.what) == ("masks/case_6.png", INVERTED)


def test_a_volume_full_of_a_label_can_be_judged():
    full = case("", {1: np.ones((96, 128), bool)}, ROWS.astype(np.float32))

    assert find_suspicions([*discs(20), *as_volume("case_20", [full, full])]) == []


def test_the_outcome_does_not_depend_on_the_order_of_the_cases():
    cases = discs(40, invert, spoiled=(3, 17, 30))

    there, back = find_suspicions(cases), find_suspicions(cases[::-1])

    assert there == back[::-1]


def test_shapes_of_every_kind_can_be_judged_together():
    rng = np.random.default_rng(0)

    def any_shape():
        share = rng.choice([1e-9, 0.01, 0.5, 0.99, 1.0])
        return MaskShape(
            share=share,
            border_share=rng.choice([0.0, 0.5, 1.0]),
            filled_ratio=min(rng.choice([1.0, 5.0]), 1 / share),
            holes_per_part=rng.choice([0.0, 1.0]),
            width=2.0,
            diameter=rng.choice([1.0, 300.0]),
            relative_intensity=rng.normal(scale=100),
            centre=(rng.random(), rng.random()),
        )

    cases = [
        CaseShapes(name=str(i), mask_file=str(i), shapes={1: any_shape(), 2: any_shape()}, values=frozenset({0, 1, 2}))
        for i in range(200)
    ]

    assert all(problem.file in {"masks", *map(str, range(200))} for problem in find_suspicions(cases))


def read_real(folder, every=1):
    for path in sorted((folder / "images").iterdir())[::every]:
        with Image.open(path) as image, Image.open(folder / "masks" / f"{path.stem}.png") as mask:
            yield path.stem, np.array(image.convert("L"), np.float32), np.array(mask) > 0


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "every"), [("CVC-ClinicDB", 3), ("ISIC2018", 10), ("DRIVE", 1)])
def test_real_masks_raise_no_suspicion(real_data, name, every):
    read = read_real(real_data / name, every)

    assert find_suspicions([case(stem, {1: mask}, grey) for stem, grey, mask in read]) == []


@pytest.mark.real_data
@pytest.mark.parametrize(("spoil", "what"), [(invert, INVERTED), (outline, OUTLINED)])
def test_spoiled_masks_are_found_among_polyps(real_data, spoil, what):
    cases = [
        case(f"case_{i}", {1: spoil(mask) if i in (10, 20, 70) else mask}, grey)
        for i, (_, grey, mask) in enumerate(read_real(real_data / "CVC-ClinicDB", every=6))
    ]

    problems = find_suspicions(cases)

    assert files(problems) == masks(10, 20, 70)
    assert {problem.what for problem in problems} == {what}


def read_hippocampi(folder):
    """The slices (name of the volume, mask, image) of all volumes."""
    for path in sorted((folder / "images").iterdir()):
        grey = np.asarray(nibabel.load(path).dataobj, np.float32)
        mask = np.rint(np.asarray(nibabel.load(folder / "masks" / path.name).dataobj)).astype(np.uint8)
        for k in range(grey.shape[2]):
            yield path.name, mask[..., k], grey[..., k]


@pytest.mark.real_data
def test_hippocampi_raise_no_suspicion_as_volumes_or_as_slices(real_data):
    read = read_hippocampi(real_data / "Hippocampus")
    slices = [case(name, {1: mask == 1, 2: mask == 2}, grey) for name, mask, grey in read]

    assert find_suspicions(slices) == []
    assert find_suspicions([one for i, part in enumerate(slices) for one in as_volume(f"case_{i}", [part])]) == []


@pytest.mark.real_data
def test_hippocampi_with_their_parts_swapped_are_found(real_data):
    swapped = {"hippocampus_006.nii.gz", "hippocampus_019.nii.gz", "hippocampus_040.nii.gz"}
    slices = []
    for name, mask, grey in read_hippocampi(real_data / "Hippocampus"):
        first, second = (2, 1) if name in swapped else (1, 2)
        slices.append(case(name, {first: mask == 1, second: mask == 2}, grey))

    problems = find_suspicions(slices)

    assert {problem.file for problem in problems} == {f"masks/{name}.png" for name in swapped}
    assert len(problems) == 3
