import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iaunet.resample import (
    ceiling_dice,
    one_hot,
    resize_around,
    resize_image,
    resize_mask,
    resize_probabilities,
    resize_strip,
    rows_needed,
    rows_ready,
)

SIDES = st.integers(1, 60)
SIZES = st.tuples(SIDES, SIDES)
SEEDS = st.integers(0, 2**32 - 1)
FACTORS = st.integers(1, 12)


def triangle_weights(length, target):
    """Anti-aliased bilinear weights (target, length) from the textbook: triangles at half-pixel centres."""
    scale = length / target
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def resize_by_the_textbook(planes, size):
    down, across = (triangle_weights(*sides) for sides in zip(planes.shape[1:], size, strict=True))
    return down @ planes.astype(np.float64) @ across.T


def random_mask(seed, size, values):
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), size)


@given(SEEDS, SIZES, SIZES, st.sampled_from(["uint16", "int16", "float32", "float64"]))
def test_images_are_resized_as_the_textbook_says(seed, size, target, dtype):
    image = (np.random.default_rng(seed).random((2, *size)) * 1000).astype(dtype)

    resized = resize_image(image, target)

    assert resized.shape == (2, *target)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, resize_by_the_textbook(image, target), atol=2e-3)


@given(SEEDS, SIZES, SIZES, st.integers(1, 4))
def test_8_bit_images_are_within_one_of_the_float_result(seed, size, target, channels):
    image = np.random.default_rng(seed).integers(0, 256, (channels, *size), dtype=np.uint8)

    resized = resize_image(image, target)

    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, resize_image(image.astype(np.float32), target), atol=1.01)


@given(SIZES, SIZES, st.sampled_from(["uint8", "uint16", "float32"]), st.integers(0, 255))
def test_a_constant_image_stays_constant(size, target, dtype, value):
    np.testing.assert_allclose(resize_image(np.full((1, *size), value, dtype), target), value, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_an_image_of_another_memory_order_is_resized_alike(dtype):
    rows_last = np.random.default_rng(0).integers(0, 256, (12, 9, 3)).astype(dtype)
    image = rows_last.transpose(2, 0, 1)

    np.testing.assert_array_equal(resize_image(image, (5, 7)), resize_image(image.copy(), (5, 7)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_same_size_is_an_exact_copy(dtype):
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 9)).astype(dtype)
    mask = random_mask(0, (8, 9), range(4))

    same_image, same_mask = resize_image(image, (8, 9)), resize_mask(mask, (8, 9))

    np.testing.assert_array_equal(same_image, image)
    np.testing.assert_array_equal(same_mask, mask)
    assert not np.shares_memory(same_image, image)
    assert not np.shares_memory(same_mask, mask)


@pytest.mark.parametrize("resize", [resize_image, resize_probabilities])
@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_size_without_pixels_is_refused(resize, size):
    with pytest.raises(ValueError, match="must be > 0"):
        resize(np.ones((1, 4, 4), np.float32), size)


@given(SEEDS, SIZES, SIZES)
def test_probabilities_stay_between_their_extremes(seed, size, target):
    probabilities = np.random.default_rng(seed).random((2, *size), np.float32).round()

    resized = resize_probabilities(probabilities, target)

    assert resized.dtype == np.float32
    assert probabilities.min() <= resized.min()
    assert resized.max() <= probabilities.max()


@given(SEEDS, SIZES, SIZES, st.sampled_from([(0, 1), (0, 255), (0, 1, 2, 3), (3, 7, 9), (5,), (0,)]))
def test_a_pixel_of_a_resized_mask_has_a_label_that_covers_most_of_it(seed, size, target, values):
    mask = random_mask(seed, size, values)

    resized = resize_mask(mask, target)

    coverage = {value: resize_by_the_textbook((mask == value)[None], target)[0] for value in values}
    assert set(np.unique(resized)) <= set(values)
    for value in values:
        most = np.max(list(coverage.values()), axis=0)
        assert np.all(coverage[value][resized == value] >= most[resized == value] - 3e-6)


@given(SEEDS, SIZES, SIZES, st.sampled_from([1, 255]))
def test_a_binary_mask_is_its_coverage_of_a_half_or_more(seed, size, target, value):
    mask = random_mask(seed, size, (0, value))

    coverage = resize_by_the_textbook((mask == value)[None], target)[0]

    np.testing.assert_array_equal(resize_mask(mask, target), np.where(coverage >= 0.5 - 1e-6, value, 0))


@st.composite
def small_parts(draw):
    """Pixels in a corner, in the middle or at the side of a larger picture, whose two sizes may have much in common."""
    size, target = (tuple(side * draw(FACTORS) for side in (5, 7)) for _ in range(2))
    edges = [sorted((draw(st.integers(0, side)), draw(st.integers(0, side)))) for side in size]
    where = np.zeros(size, bool)
    where[tuple(slice(*edge) for edge in edges)] = True
    return where, target


@given(SEEDS, small_parts())
def test_a_mask_is_resized_alike_whether_or_not_it_is_empty_around_a_part(seed, part):
    where, target = part
    mask = np.where(where, random_mask(seed, where.shape, [0, 1, 2]), 0).astype(np.uint8)
    coverage = resize_image(one_hot(mask, [1, 2]), target)

    resized = resize_mask(mask, target)

    background = 1 - coverage.sum(axis=0)
    most = np.maximum(coverage.max(axis=0), background) - 1e-6
    expected = np.where(coverage[0] >= most, 1, np.where(coverage[1] >= most, 2, 0))
    np.testing.assert_array_equal(resized, mask if where.shape == target else expected)


@given(SEEDS, small_parts())
def test_the_ceiling_of_a_small_part_is_that_of_the_whole_picture(seed, part):
    where, target = part
    mask = (where & random_mask(seed, where.shape, [0, 1]).astype(bool)).astype(np.uint8)
    restored = resize_probabilities(one_hot(resize_mask(mask, target), [1]), mask.shape)[0] >= 0.5

    ceiling = ceiling_dice(mask[None], target, [1])[1]

    total = restored.sum() + mask.sum()
    assert ceiling == (2 * (restored & (mask > 0)).sum() / total if total else 1.0)


@given(SEEDS, small_parts())
def test_what_depends_on_a_part_is_resized_as_in_the_whole(seed, part):
    where, target = part
    maps = np.random.default_rng(seed).random((2, *where.shape), np.float32)
    whole = resize_probabilities(maps, target)

    found = resize_around(maps, where, target)

    if not where.any():
        assert found is None
        return
    area, resized = found
    depends = resize_probabilities(where[None].astype(np.float32), target)[0] > 0
    outside = depends.copy()
    outside[area] = False
    assert not outside.any()
    np.testing.assert_allclose(resized[:, depends[area]], whole[:, *area][:, depends[area]], rtol=0, atol=6e-8)


def test_ties_go_to_the_lowest_label_and_to_the_background_last():
    assert resize_mask(np.array([[7, 3]], np.uint8), (1, 1)) == 3
    assert resize_mask(np.array([[0, 9]], np.uint8), (1, 1)) == 9
    assert resize_mask(np.array([[0, 5], [8, 2]], np.uint8), (1, 1)) == 2


@given(SEEDS, SIZES, SIZES, st.sampled_from([0, 1]))
def test_masks_and_flips_commute(seed, size, target, axis):
    mask = random_mask(seed, size, range(4))

    flipped = resize_mask(np.flip(mask, axis), target)

    np.testing.assert_array_equal(flipped, np.flip(resize_mask(mask, target), axis))


def test_one_hot_maps_each_label_to_its_own_plane():
    maps = one_hot(np.array([[0, 2], [5, 2]], np.uint8), [2, 5, 6])

    np.testing.assert_array_equal(maps, [[[0, 1], [0, 1]], [[0, 0], [1, 0]], [[0, 0], [0, 0]]])


def disc(side, radius):
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    return (rows**2 + columns**2 <= radius**2).astype(np.uint8)


def test_the_ceiling_is_one_at_the_same_size_and_for_absent_labels():
    mask = random_mask(0, (20, 30), range(4))

    assert ceiling_dice(mask[None], (20, 30), [1, 2, 3, 4]) == {1: 1, 2: 1, 3: 1, 4: 1}


def test_the_ceiling_is_high_for_a_large_disc_and_falls_with_the_size():
    mask = disc(200, 60) * 255

    dices = [ceiling_dice(mask[None], (side, side), [255])[255] for side in (100, 50, 25, 12)]

    assert dices[0] > 0.99
    assert dices == sorted(dices, reverse=True)


def test_the_ceiling_of_lines_that_the_size_cannot_hold_is_zero():
    mask = np.zeros((256, 256), np.uint8)
    mask[::16] = 1

    assert ceiling_dice(mask[None], (64, 64), [1]) == {1: 0}


def test_the_ceiling_takes_soft_coverage_down_and_soft_maps_up():
    mask = disc(40, 13)

    small = resize_by_the_textbook(mask[None], (9, 7)) >= 0.5
    back = resize_by_the_textbook(small, (40, 40))[0] >= 0.5
    dice = 2 * (back & (mask == 1)).sum() / (back.sum() + mask.sum())

    assert ceiling_dice(mask[None], (9, 7), [1])[1] == pytest.approx(dice)


def test_the_ceiling_of_a_volume_counts_its_slices_together():
    full, thin = disc(40, 15), np.zeros((40, 40), np.uint8)
    thin[20] = 1
    small = resize_by_the_textbook(full[None], (9, 7)) >= 0.5
    back = resize_by_the_textbook(small, (40, 40))[0] >= 0.5

    dice = ceiling_dice(np.stack([full, np.zeros_like(full), thin]), (9, 7), [1])[1]

    assert ceiling_dice(thin[None], (9, 7), [1]) == {1: 0}
    assert dice == pytest.approx(2 * (back & (full == 1)).sum() / (back.sum() + full.sum() + thin.sum()))


LARGE_SIDES = st.integers(1, 900)
LARGE_SIZES = st.tuples(LARGE_SIDES, LARGE_SIDES)
SCALES = st.sampled_from([1.0, 0.5, 0.25, 0.37, 1.7, 3.0])


def scaled(size, scale):
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def draw_window(data, size):
    """A window inside a size, (top, left, height, width)."""
    lengths = [data.draw(st.integers(1, min(side, 256))) for side in size]
    starts = [data.draw(st.integers(0, side - length)) for side, length in zip(size, lengths, strict=True)]
    return (*starts, *lengths)


def crop(array, window):
    top, left, height, width = window
    return array[..., top : top + height, left : left + width]


@given(st.data(), SEEDS, LARGE_SIZES, SCALES, st.sampled_from(["uint8", "uint16", "float32"]))
def test_a_window_of_a_resized_image_is_that_part_of_the_whole(data, seed, size, scale, dtype):
    height, width = scaled(size, scale)
    if height * width > 700_000:
        height, width = height // 2, width // 2
    window = draw_window(data, (height, width))
    image = (np.random.default_rng(seed).random((2, *size)) * (1 if dtype == "float32" else 255)).astype(dtype)

    part = resize_image(image, (height, width), window)

    whole = crop(resize_image(image, (height, width)), window)
    assert part.dtype == np.float32
    assert part.shape == whole.shape
    # Corners of windows are float32. 8 bits are rounded after each axis, and the order of the axes depends on the
    # sizes: either result is at most 1 from the exact one, so they are 2 apart at most
    np.testing.assert_allclose(part, whole, atol={"uint8": 2, "uint16": 255 * 5e-5, "float32": 5e-5}[dtype])


@given(st.data(), SEEDS, LARGE_SIZES, st.sampled_from([1.0, 0.5, 0.25, 2.0]))
def test_a_window_at_a_scale_of_a_power_of_two_is_exact(data, seed, size, scale):
    size = tuple(-(-side // 4) * 4 for side in size)
    window = draw_window(data, scaled(size, scale))
    rng = np.random.default_rng(seed)
    image, mask = rng.random((1, *size), np.float32), rng.integers(0, 3, size, dtype=np.uint8)

    part, labels = resize_image(image, scaled(size, scale), window), resize_mask(mask, scaled(size, scale), window)

    np.testing.assert_allclose(part, crop(resize_image(image, scaled(size, scale)), window), atol=1e-6)
    np.testing.assert_array_equal(labels, crop(resize_mask(mask, scaled(size, scale)), window))


@given(st.data(), SEEDS, LARGE_SIZES, SCALES, st.sampled_from([(0, 1), (0, 255), (0, 1, 2, 3)]))
def test_a_window_of_a_resized_mask_is_that_part_of_the_whole(data, seed, size, scale, values):
    window = draw_window(data, scaled(size, scale))
    coarse = random_mask(seed, tuple(-(-side // 8) for side in size), values)
    mask = np.kron(coarse, np.ones((8, 8), np.uint8))[: size[0], : size[1]]

    part = resize_mask(mask, scaled(size, scale), window)

    whole = crop(resize_mask(mask, scaled(size, scale)), window)
    assert part.shape == whole.shape
    assert (part != whole).mean() <= 0.02  # ties between labels


def test_a_window_of_an_equal_size_is_a_copy():
    image, mask = np.arange(30, dtype=np.uint16).reshape(1, 5, 6), np.eye(6, dtype=np.uint8)[:5]

    part, labels = resize_image(image, (5, 6), (1, 2, 3, 4)), resize_mask(mask, (5, 6), (1, 2, 3, 4))

    np.testing.assert_array_equal(part, image[:, 1:4, 2:6])
    np.testing.assert_array_equal(labels, mask[1:4, 2:6])
    assert not np.shares_memory(part, image)
    assert not np.shares_memory(labels, mask)


@given(
    SEEDS,
    st.tuples(st.integers(1, 400), st.integers(1, 12)),
    st.tuples(st.integers(1, 900), st.integers(1, 12)),
    st.integers(1, 80),
)
def test_strips_of_only_the_rows_they_need_put_together_are_the_whole(seed, size, target, step):
    maps = np.random.default_rng(seed).random((2, *size), np.float32)

    rows, parts = 0, []
    for n in [*range(0, size[0], step), size[0]]:
        ready = rows_ready(n, size[0], target[0])
        if ready > rows:
            first = rows_needed(rows, size[0], target[0])
            parts.append(resize_strip(maps[:, first:n], first, size, target, range(rows, ready)))
            rows = ready

    np.testing.assert_allclose(np.concatenate(parts, axis=1), resize_probabilities(maps, target), atol=1e-5)


@given(st.integers(1, 500), st.integers(1, 900))
def test_rows_are_ready_in_order_and_all_of_them_at_the_end(height, target):
    ready = [rows_ready(n, height, target) for n in range(height + 1)]

    assert ready == sorted(ready)
    assert (ready[0], ready[-1]) == (0, target)
    needed = [rows_needed(row, height, target) for row in range(target)]
    assert needed == sorted(needed)
    assert needed[0] == 0
    assert max(needed) < height


@given(st.integers(1, 60), st.integers(1, 200))
def test_ready_rows_have_no_weight_beyond_and_needed_rows_none_before(height, target):
    weights = triangle_weights(height, target)

    for n in range(height):
        assert not weights[: rows_ready(n, height, target), n:].any()
    for row in range(target):
        assert not weights[row, : rows_needed(row, height, target)].any()
