import dataclasses
import random
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from iaunet.planners.plan import Normalisation
from iaunet.planners.recipes import RECIPES, Augmentation
from iaunet.preprocessing.normalisation import Normaliser
from iaunet.trainers.augmentation import Augmenter, apply_brightness, sample_brightness

SIZE = (64, 64)
DATASET = Normalisation(kind="dataset", mean=(100.0, 80.0, 60.0), sd=(40.0, 30.0, 20.0))
NOTHING = Augmentation(mirror_probability=0)
ALWAYS = dataclasses.replace(
    RECIPES["best"].augmentation,
    mirror_probability=0.5,
    **{
        f"{name}_probability": 1.0
        for name in ("brightness", "rotation", "scaling", "elastic", "contrast", "gamma", "noise", "blur")
    },
)


def augmenter(plan=NOTHING, normalisation=DATASET, size=SIZE, **changes):
    return Augmenter(dataclasses.replace(plan, **changes), normalisation, size)


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(0, 1, (3, *SIZE)).astype(np.float32)


@pytest.fixture
def mask():
    """Two labels, unlike under every flip and turn."""
    mask = np.zeros(SIZE, np.uint8)
    mask[8:40, 12:24] = 1
    mask[30:40, 20:50] = 2
    return mask


def test_equal_seeds_give_equal_rows_and_other_seeds_others(image, mask):
    first = augmenter(ALWAYS)(image, mask, (1, 2, 3))
    again = augmenter(ALWAYS)(image, mask, (1, 2, 3))
    other = augmenter(ALWAYS)(image, mask, (1, 2, 4))

    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])


def test_the_global_random_states_are_given_back_and_have_no_influence(image, mask):
    results = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        results.append(augmenter(ALWAYS)(image, mask, (0, 0, 0)))
        assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
        assert random.getstate() == before[1]

    assert np.array_equal(results[0][0], results[1][0])


def test_the_rows_given_stay_as_they_are(image, mask):
    image.flags.writeable = mask.flags.writeable = False
    before = image.copy(), mask.copy()

    for plan in (ALWAYS, NOTHING):
        new_image, new_mask = augmenter(plan)(image, mask, (0, 0, 0))
        assert new_image.dtype == np.float32
        assert new_mask.dtype == np.uint8
        assert not np.shares_memory(new_image, image)
        assert not np.shares_memory(new_mask, mask)

    assert np.array_equal(image, before[0])
    assert np.array_equal(mask, before[1])


def test_without_augmentation_nothing_changes(image, mask):
    new_image, new_mask = augmenter(NOTHING)(image, mask, (0, 0, 0))

    assert np.array_equal(new_image, image)
    assert np.array_equal(new_mask, mask)


@pytest.mark.parametrize("seed", range(12))
def test_image_and_mask_get_the_same_geometry(mask, seed):
    geometry = {
        f"{name}_probability": probability
        for name, probability in (("mirror", 0.5), ("rotation", 1.0), ("scaling", 1.0), ("elastic", 1.0))
    }
    painted = mask[None].astype(np.float32).repeat(3, axis=0)

    image, new_mask = augmenter(interpolation_order=0, **geometry)(painted, mask, (seed, 0, 0))

    assert not np.array_equal(new_mask, mask)
    assert np.array_equal(image[1], new_mask)


def test_masks_keep_their_labels_under_smooth_sampling(mask):
    labels = {label for seed in range(20) for label in np.unique(augmenter(ALWAYS)(mask[None] * 1.0, mask, (seed,))[1])}

    assert labels == {0, 1, 2}


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((3, *SIZE)),
        np.full((3, *SIZE), 64.0),
        np.where(np.indices((3, *SIZE)).sum(0) % 2, -64.0, 64.0),
        np.indices((3, *SIZE))[1] * 1e-7,
    ],
    ids=["zeros", "all at the largest", "between the extremes", "tiny"],
)
@pytest.mark.parametrize("normalisation", [DATASET, Normalisation(kind="dataset", mean=(0.0,) * 3, sd=(0.0,) * 3)])
def test_results_are_finite_whatever_the_row_holds(values, normalisation, mask):
    augment = augmenter(ALWAYS, normalisation)

    for seed in range(10):
        assert np.isfinite(augment(values.astype(np.float16).astype(np.float32), mask, (seed, 0, 0))[0]).all()


# Brightness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.1, 1.25])
def test_brightness_multiplies_the_intensities_from_before_normalisation(factor):
    raw = np.random.default_rng(1).uniform(0, 255, (3, *SIZE)).astype(np.float32)
    normalise = Normaliser.of(DATASET, raw).apply

    brightened = apply_brightness(normalise(raw), factor, DATASET)

    np.testing.assert_allclose(brightened, normalise(factor * raw), atol=1e-5)


def test_images_normalised_each_by_itself_have_no_brightness_to_change(image):
    assert apply_brightness(image, 1.25, Normalisation(kind="case")) is image


def test_a_factor_is_drawn_as_often_and_as_far_as_planned():
    plan = dataclasses.replace(NOTHING, brightness_probability=0.5, brightness=(0.8, 1.4))
    rng = np.random.default_rng(0)
    factors = np.array([sample_brightness(rng, plan) for _ in range(4000)])

    changed = factors[factors != 1]
    assert len(changed) / 4000 == pytest.approx(0.5, abs=0.03)
    assert changed.min() == pytest.approx(0.8, abs=0.01)
    assert changed.max() == pytest.approx(1.4, abs=0.01)
    assert changed.mean() == pytest.approx(1.1, abs=0.02)


def test_the_papers_recipe_draws_flips_and_brightness_and_nothing_else():
    size = (8, 8)
    image = np.random.default_rng(0).normal(0, 1, (3, *size)).astype(np.float32)
    mask = (image[0] > 0).astype(np.uint8)
    augment = augmenter(RECIPES["paper"].augmentation, size=size)
    flips = {"none": (), "up-down": (0,), "left-right": (1,), "both": (0, 1)}
    seen, factors = Counter(), []

    for seed in range(800):
        new_image, new_mask = augment(image, mask, (seed, 0, 0))
        [flip] = [name for name, axes in flips.items() if np.array_equal(np.flip(mask, axes), new_mask)]
        seen[flip] += 1
        flipped = np.flip(image, [axis + 1 for axis in flips[flip]])
        # x <- f x + (f - 1) mean / sd: one factor must explain every pixel of every channel
        offset = (np.array(DATASET.mean) / DATASET.sd)[:, None, None]
        factor = float(np.median((new_image + offset) / (flipped + offset)))
        np.testing.assert_allclose(new_image, factor * flipped + (factor - 1) * offset, atol=1e-4)
        factors.append(factor)

    assert all(count / 800 == pytest.approx(0.25, abs=0.05) for count in seen.values())
    assert len(seen) == 4
    assert min(factors) == pytest.approx(0.75, abs=0.01)
    assert max(factors) == pytest.approx(1.25, abs=0.01)


# Every parameter reaches batchgenerators ----------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5])
def test_each_axis_is_mirrored_with_its_probability(probability):
    size = (4, 4)
    mask = np.arange(16, dtype=np.uint8).reshape(size)
    augment = augmenter(mirror_probability=probability, size=size)
    results = [augment(np.zeros((1, *size), np.float32), mask, (seed, 0, 0))[1] for seed in range(1500)]

    up_down = np.mean([result[:, 0].argmin() == 3 or result[:, 3].argmin() == 3 for result in results])
    left_right = np.mean([result[0].argmin() == 3 or result[3].argmin() == 3 for result in results])
    assert up_down == pytest.approx(probability, abs=0.04)
    assert left_right == pytest.approx(probability, abs=0.04)


def test_rotation_turns_by_the_degrees_planned(image, mask):
    augment = augmenter(rotation_probability=1.0, rotation_degrees=(90.0, 90.0), interpolation_order=0)
    turned, turned_mask = augment(image, mask, (0, 0, 0))

    k = 1 if np.array_equal(turned_mask, np.rot90(mask)) else -1
    np.testing.assert_array_equal(turned_mask, np.rot90(mask, k))
    np.testing.assert_array_equal(turned, np.rot90(image, k, axes=(1, 2)))


@pytest.mark.parametrize(("scaling", "low", "high"), [((0.5, 0.5), 0.5, 0.5), ((1.0, 2.0), 1.0, 2.0)])
def test_scaling_shows_things_by_the_factor_planned(scaling, low, high):
    mask = np.zeros(SIZE, np.uint8)
    mask[24:40, 24:40] = 1
    augment = augmenter(scaling_probability=1.0, scaling=scaling)
    sides = [
        augment(np.zeros((1, *SIZE), np.float32), mask, (seed, 0, 0))[1][16:48, 16:48].sum(0).max() / 16
        for seed in range(40)
    ]

    assert min(sides) == pytest.approx(low, abs=0.07)
    assert max(sides) == pytest.approx(high, abs=0.13)


def test_elastic_deformation_displaces_by_its_strength_and_smoothness(image):
    smooth = np.broadcast_to(np.arange(64, dtype=np.float32), (3, *SIZE))
    nothing = np.zeros(SIZE, np.uint8)

    def displacements(alpha, sigma):
        augment = augmenter(elastic_probability=1.0, elastic_alpha=(alpha, alpha), elastic_sigma=(sigma, sigma))
        inner = (slice(None), slice(8, -8), slice(8, -8))
        return [(augment(smooth, nothing, (seed, 0, 0))[0] - smooth)[inner] for seed in range(8)]

    still, weak, strong = displacements(0.0, 9.0), displacements(100.0, 9.0), displacements(200.0, 9.0)
    rough = displacements(100.0, 4.0)
    assert np.abs(still).max() < 1e-4
    assert np.std(weak) > 0.1
    assert np.std(strong) / np.std(weak) == pytest.approx(2, rel=0.05)
    assert np.std(np.diff(rough)) > 3 * np.std(np.diff(weak))


def test_contrast_stretches_around_the_mean_within_the_range(image):
    stretched, _ = augmenter(contrast_probability=1.0, contrast=(2.0, 2.0))(image, np.zeros(SIZE, np.uint8), (0,))

    mean, low, high = (getattr(image, name)((1, 2), keepdims=True) for name in ("mean", "min", "max"))
    np.testing.assert_allclose(stretched, ((image - mean) * 2 + mean).clip(low, high), atol=1e-5)


def test_gamma_bends_intensities_and_keeps_mean_and_sd(image):
    bent, _ = augmenter(gamma_probability=1.0, gamma=(2.0, 2.0))(image, np.zeros(SIZE, np.uint8), (0,))

    squared = (image - image.min()) ** 2
    expected = (squared - squared.mean()) / squared.std() * image.std() + image.mean()
    np.testing.assert_allclose(bent, expected, atol=1e-4)


def test_noise_has_the_sd_planned(image):
    noisy, _ = augmenter(noise_probability=1.0, noise_sd=(0.3, 0.3))(image, np.zeros(SIZE, np.uint8), (0,))

    assert (noisy - image).std() == pytest.approx(0.3, rel=0.03)
    assert (noisy - image).mean() == pytest.approx(0, abs=0.01)


def test_blur_has_the_sigma_planned_and_leaves_channels_apart(image):
    blurred, _ = augmenter(blur_probability=1.0, blur_sigma=(2.0, 2.0))(image, np.zeros(SIZE, np.uint8), (0,))

    np.testing.assert_allclose(blurred, [ndimage.gaussian_filter(channel, 2.0) for channel in image], atol=1e-5)


def test_images_are_sampled_with_splines_of_the_order_planned(image, mask):
    turned = [
        augmenter(rotation_probability=1.0, rotation_degrees=(30.0, 30.0), interpolation_order=order)(image, mask, (0,))
        for order in (0, 1, 3)
    ]

    assert np.isin(turned[0][0][0], image[0]).all()
    sds = [row[0].std() for row in turned]
    assert sds[1] < sds[2] < sds[0]  # linear sampling smooths most
    assert all(np.array_equal(turned[0][1], row[1]) for row in turned)


@pytest.mark.parametrize("name", ["rotation", "scaling", "elastic", "contrast", "gamma", "noise", "blur"])
def test_each_change_happens_as_often_as_planned(name):
    size = (16, 16)
    image = np.random.default_rng(0).normal(0, 1, (1, *size)).astype(np.float32)
    augment = augmenter(size=size, noise_sd=(0.1, 0.2), **{f"{name}_probability": 0.3})
    results = [augment(image, np.zeros(size, np.uint8), (seed, 0, 0))[0] for seed in range(600)]

    assert np.mean([not np.array_equal(result, image) for result in results]) == pytest.approx(0.3, abs=0.06)
