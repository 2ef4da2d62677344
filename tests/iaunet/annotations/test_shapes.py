import io
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from iaunet.annotations.shapes import Bitmap, Circle, Polygons, Runs, Shape, draw, image_name, ring, shapes_digest
from iaunet.errors import FileError


def shape(outline, label="polyp"):
    return Shape(label, outline, "shape 1")


def inside(outline, size):
    return draw([shape(outline)], size, {"polyp": 1}).pixels.astype(bool)


def points(*pairs):
    return np.array(pairs, np.float64)


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any))
def test_the_borders_of_any_mask_drawn_again_are_the_mask(rings, polygon, mask):
    several = Polygons(tuple(map(ring, rings(mask))))
    joined = Polygons((ring(polygon(mask)),))

    np.testing.assert_array_equal(inside(several, mask.shape), mask)
    np.testing.assert_array_equal(inside(joined, mask.shape), mask)


coordinate = st.floats(-4, 14, allow_nan=False, width=32)


@given(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8))
def test_a_pixel_is_inside_when_a_ray_from_its_centre_crosses_the_polygon_an_odd_number_of_times(pairs):
    expected = np.zeros((10, 12), bool)
    for row, column in np.ndindex(expected.shape):
        x, y = column + 0.5, row + 0.5
        for begin, end in zip(pairs, [*pairs[1:], pairs[0]], strict=True):
            (x0, y0), (x1, y1) = sorted((begin, end), key=lambda point: point[1])
            if y0 <= y < y1:
                expected[row, column] ^= x0 + (y - y0) * ((x1 - x0) / (y1 - y0)) <= x

    np.testing.assert_array_equal(inside(Polygons((ring(pairs),)), expected.shape), expected)


@given(
    st.lists(st.tuples(st.integers(0, 24), st.integers(0, 20)), min_size=3, max_size=7, unique=True),
    st.tuples(st.integers(1, 23), st.integers(1, 19)),
)
def test_polygons_that_share_edges_share_no_pixel_and_lose_none(pairs, middle):
    """A fan of triangles over a square: each edge to the middle is shared by two."""
    frame = points((0, 0), (12, 0), (12, 10), (0, 10))
    centre = np.array(middle) / 2
    fan = [Polygons((np.array([centre, frame[i], frame[(i + 1) % 4]]),)) for i in range(4)]

    times_covered = sum(inside(part, (10, 12)).astype(int) for part in fan)

    np.testing.assert_array_equal(times_covered, 1)


def test_a_pixel_whose_centre_lies_on_an_edge_belongs_to_the_polygon_right_of_it_and_below():
    square = Polygons((points((1.5, 1.5), (3.5, 1.5), (3.5, 3.5), (1.5, 3.5)),))

    rows, columns = np.nonzero(inside(square, (6, 6)))

    assert {*rows.tolist()} == {*columns.tolist()} == {1, 2}


def test_a_ring_within_a_ring_is_a_hole():
    outer, hole = points((0, 0), (6, 0), (6, 6), (0, 6)), points((2, 2), (4, 2), (4, 4), (2, 4))

    mask = inside(Polygons((outer, hole)), (6, 6))

    assert mask.sum() == 32
    assert not mask[2:4, 2:4].any()


def test_what_lies_outside_the_image_is_cut():
    around = Polygons((points((-50, -50), (50, -50), (50, 2), (-50, 2)),))
    beside = Polygons((points((20, 20), (30, 20), (30, 30)),))

    drawing = draw([shape(around), shape(beside)], (4, 5), {"polyp": 1})

    np.testing.assert_array_equal(drawing.pixels, [[1] * 5, [1] * 5, [0] * 5, [0] * 5])
    assert drawing.vanished == 1


def test_normalised_points_are_shares_of_width_and_height():
    half = Polygons((points((0, 0), (0.5, 0), (0.5, 1), (0, 1)),), normalised=True)

    np.testing.assert_array_equal(inside(half, (2, 6)), [[True] * 3 + [False] * 3] * 2)


def test_a_circle_covers_the_pixels_whose_centres_are_within_its_radius():
    rows, columns = np.mgrid[:20, :30] + 0.5
    expected = (rows - 7.2) ** 2 + (columns - 25.1) ** 2 <= 8.3**2

    np.testing.assert_array_equal(inside(Circle(25.1, 7.2, 8.3), (20, 30)), expected)
    assert not inside(Circle(100, 100, 5), (20, 30)).any()


def test_runs_go_down_the_columns_and_are_united():
    runs = Runs(np.array([1, 4, 5]), np.array([2, 3, 3]))

    np.testing.assert_array_equal(inside(runs, (4, 3)), np.array([[0, 1, 0], [1, 1, 0], [1, 1, 0], [0, 1, 0]]) > 0)


def test_a_bitmap_is_cut_where_it_leaves_the_image():
    full = png(np.full((3, 4), 255, np.uint8))

    np.testing.assert_array_equal(
        inside(Bitmap(full, row=-1, column=2), (5, 5)),
        np.array([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0] * 5, [0] * 5, [0] * 5]) > 0,
    )
    assert not inside(Bitmap(full, row=9, column=9), (5, 5)).any()
    assert Bitmap(full, row=-1, column=2).reach((5, 5)) == (2, 6, -1, 2)


def test_later_shapes_lie_on_top_and_pixels_of_two_labels_are_counted():
    left = shape(Polygons((points((0, 0), (3, 0), (3, 2), (0, 2)),)), "a")
    right = shape(Polygons((points((2, 0), (5, 0), (5, 2), (2, 2)),)), "b")

    drawing = draw([left, right, right], (2, 5), {"a": 1, "b": 300})

    np.testing.assert_array_equal(drawing.pixels, [[1, 1, 300, 300, 300]] * 2)
    assert drawing.pixels.dtype == np.uint16
    assert drawing.painted_over == 2
    assert drawing.vanished == 0


def test_nothing_drawn_is_an_empty_map_of_bytes():
    drawing = draw([], (2, 3), {})

    np.testing.assert_array_equal(drawing.pixels, np.zeros((2, 3), np.uint8))
    assert drawing.pixels.dtype == np.uint8


def test_a_polygon_of_many_points_on_a_large_image_is_drawn_at_once():
    angle = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    radius = 1900 + 80 * np.sin(37 * angle)
    star = Polygons((2000 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1),))

    start = time.perf_counter()
    mask = inside(star, (4000, 4000))

    assert time.perf_counter() - start < 2  # a tenth of it on an idle core
    x, y = star.rings[0].T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert mask.sum() == pytest.approx(area, rel=1e-4)


def test_more_crossings_than_are_held_at_once_give_the_same():
    zigzag = points(*[(x * 0.03, y) for x in range(6000) for y in ((-5, 900) if x % 2 else (900, -5))])

    folded = inside(Polygons((zigzag,)), (800, 200))
    doubled = inside(Polygons((zigzag, zigzag)), (800, 200))

    assert folded.any()
    assert not doubled.any()


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        (Runs(np.array([10]), np.array([3])), r"shape 1: a run ends at pixel 13, the image has 12 \(4 x 3\): check"),
        (
            Runs(np.array([0]), np.array([3]), size=(3, 4)),
            "shape 1: run lengths are for an image of 3 x 4 pixels, it has 4 x 3: export",
        ),
        (Bitmap(png(np.ones((30, 30), np.uint8))[:-30], 0, 0), "shape 1: is truncated or damaged"),
    ],
)
def test_what_cannot_belong_to_the_image_is_named_with_its_place(outline, message):
    with pytest.raises(FileError, match=message):
        inside(outline, (4, 3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([(0, 0), (1, 1)], "polygon has 2 points: give it at least 3"),
        ([(0, 0), (1, 1), (2,)], "points are not pairs of numbers: correct"),
        ([(0, 0, 0)] * 3, "points are not pairs of numbers"),
        ([], "points are not pairs of numbers"),
        (None, "points are not pairs of numbers"),
        ({"x": 1}, "points are not pairs of numbers"),
        ([(0, 0), (1, float("nan")), (2, 2)], "points hold nan, infinite or absurdly large coordinates: correct"),
        ([(0, 0), (1, float("inf")), (2, 2)], "points hold nan, infinite"),
        ([(0, 0), (1, 1e12), (2, 2)], "absurdly large"),
        ([(0, 0), (1, 10**400), (2, 2)], "points are not pairs of numbers"),
    ],
)
def test_points_that_are_none_are_refused(given, message):
    with pytest.raises(FileError, match=message):
        ring(given)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a.png", "a"),
        ("train/a.JPG", "train/a"),
        (r"..\images\a.tif", "images/a"),
        (r"C:\data\a.png", "data/a"),
        ("/data/v1.2", "data/v1.2"),
        ("v1.2.png", "v1.2"),
        ("brain.nii.gz", "brain"),
        ("a\u0308.png", "ä"),
        ("", ""),
    ],
)
def test_names_of_images_lose_ending_drive_and_dots(text, name):
    assert image_name(text) == name


def test_the_digest_tells_shapes_apart_by_label_outline_and_order():
    box, circle = Polygons((points((0, 0), (1, 0), (1, 1)),)), Circle(1, 2, 3)
    variants = [
        [shape(box)],
        [shape(box, "other")],
        [shape(Polygons(box.rings, normalised=True))],
        [shape(circle)],
        [shape(Bitmap(b"png", 0, 0))],
        [shape(Bitmap(b"png", 0, 1))],
        [shape(Runs(np.array([1]), np.array([2])))],
        [shape(Runs(np.array([1]), np.array([2]), (2, 2)))],
        [shape(box), shape(circle)],
        [shape(circle), shape(box)],
    ]

    assert len({shapes_digest(variant) for variant in variants}) == len(variants)
    assert shapes_digest(variants[0]) == shapes_digest([shape(Polygons((box.rings[0].copy(),)))])
