import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp

from iaunet.dataset import IGNORED
from iaunet.planners.plan import Normalisation
from iaunet.planners.recipes import RECIPES, Augmentation
from iaunet.trainers.augmentation import Augmenter
from iaunet.trainers.device_augmentation import Changes, DeviceAugmenter, sample_changes

SIZE = (32, 40)
DATASET = Normalisation(kind="dataset", mean=(100.0, 80.0, 60.0), sd=(40.0, 30.0, 20.0))
NOTHING = Augmentation(mirror_probability=0)
BEST = RECIPES["best"].augmentation
NAMES = ("brightness", "rotation", "scaling", "elastic", "contrast", "gamma", "noise", "blur")
ALWAYS = dataclasses.replace(BEST, **{f"{name}_probability": 1.0 for name in NAMES})
FIXED = {
    "brightness": {"brightness": (1.2, 1.2)},
    "rotation": {"rotation_degrees": (33.0, 33.0)},
    "scaling": {"scaling": (0.6, 0.6)},
    "contrast": {"contrast": (2.0, 2.0)},
    "gamma": {"gamma": (2.0, 2.0)},
    "blur": {"blur_sigma": (1.7, 1.7)},
}
"""Changes without noise, of one strength each."""


@pytest.fixture
def image():
    """Smooth, with channels unlike each other."""
    noise = np.random.default_rng(0).normal(0, 1, (3, *SIZE))
    return gaussian_filter(noise, (0, 1, 1)).astype(np.float32) * 3


@pytest.fixture
def mask():
    """Two labels and ignored pixels, unlike under every flip and turn."""
    mask = np.zeros(SIZE, np.uint8)
    mask[4:20, 6:12] = 1
    mask[15:20, 10:30] = 2
    mask[24:30, 28:36] = IGNORED
    return mask


def augment_one(plan, image, mask, seed, normalisation=DATASET):
    images, masks = DeviceAugmenter(plan, normalisation)(
        torch.from_numpy(image)[None], torch.from_numpy(mask)[None], [seed]
    )
    return images[0].numpy(), masks[0].numpy()


def alone(*names, probability=1.0, **changes):
    """A plan in which only these changes happen."""
    return dataclasses.replace(NOTHING, **{f"{name}_probability": probability for name in names}, **changes)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("names", [(name,) for name in FIXED] + [("rotation", "scaling"), tuple(FIXED)], ids="+".join)
def test_a_change_of_known_strength_is_that_of_the_cpu(names, order, image, mask):
    plan = alone(*names, interpolation_order=order)
    plan = dataclasses.replace(plan, **{key: value for name in names for key, value in FIXED[name].items()})

    ours, our_mask = augment_one(plan, image, mask, (0, 0, 0))
    theirs, their_mask = Augmenter(plan, DATASET, SIZE)(image, mask, (0, 0, 0))

    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    np.testing.assert_array_equal(our_mask, their_mask)
    assert not np.allclose(ours, image, atol=1e-2)


def statistics_of(augment, image, mask, seeds):
    """Figures of the results, one row a seed: intensities, what changed, and where the mask is."""
    rows = []
    for seed in seeds:
        new, new_mask = augment(image, mask, (seed, 0, 0))
        change = new - image
        ys, xs = np.nonzero(new_mask == 1)
        middle = (ys.mean(), xs.mean()) if len(ys) else (-1, -1)
        figures = (new.mean(), new.std(), *np.quantile(new, (0.01, 0.25, 0.5, 0.75, 0.99)), change.std())
        rough = np.diff(new, axis=2).std()
        rows.append((*figures, rough, (new_mask == 1).mean(), (new_mask == IGNORED).mean(), *middle))
    return np.array(rows)


@pytest.mark.parametrize("names", [(name,) for name in NAMES] + [NAMES], ids=[*NAMES, "the whole recipe"])
def test_results_are_distributed_as_those_of_the_cpu(names, image, mask):
    plan = alone(*names) if len(names) == 1 else BEST
    n = 200

    theirs = statistics_of(Augmenter(plan, DATASET, SIZE), image, mask, range(n))
    ours = statistics_of(lambda *row: augment_one(plan, *row), image, mask, range(n, 2 * n))

    assert ours.std(0).max() > 0.01
    for our, their in zip(ours.T, theirs.T, strict=True):
        # figures that no change touches differ by rounding alone, which ranks would tell apart
        our, their = our.round(3), their.round(3)
        assert ks_2samp(our, their).pvalue > 1e-3 / ours.shape[1]


def test_displacements_have_the_strength_and_smoothness_of_the_cpus(mask):
    ramps = np.stack(
        [np.broadcast_to(np.arange(side)[at], SIZE) for side, at in ((32, np.s_[:, None]), (40, np.s_[:]))]
    )
    ramps = ramps.astype(np.float32)
    plan = alone("elastic", elastic_alpha=(100.0, 100.0), elastic_sigma=(4.0, 4.0))
    inner = (slice(None), slice(8, -8), slice(8, -8))

    def fields(augment):
        return np.stack([(augment(ramps, mask, (seed, 0, 0))[0] - ramps)[inner] for seed in range(60)])

    theirs = fields(Augmenter(plan, DATASET, SIZE))
    ours = fields(lambda *row: augment_one(plan, *row))

    assert ours.std() == pytest.approx(theirs.std(), rel=0.05)
    assert np.diff(ours).std() == pytest.approx(np.diff(theirs).std(), rel=0.05)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.2)
    assert np.corrcoef(ours[:, 0].ravel(), ours[:, 1].ravel())[0, 1] == pytest.approx(0, abs=0.1)


# What is drawn ------------------------------------------------------------------------------------------------------


def drawn(plan, n=4000):
    return [sample_changes(np.random.default_rng((seed, 0, 0)), plan) for seed in range(n)]


def test_each_change_is_drawn_as_often_and_from_the_range_that_is_planned():
    plan = dataclasses.replace(BEST, mirror_probability=0.25)
    changes = drawn(plan)
    happened = {
        "brightness": [change.brightness for change in changes if change.brightness != 1],
        "rotation": [np.rad2deg(change.angle) for change in changes if change.angle != 0],
        "scaling": [1 / change.zoom for change in changes if change.zoom != 1],
        "elastic": [change.elastic[0] for change in changes if change.elastic],
        "noise": [change.noise_sd for change in changes if change.noise_sd],
        "blur": [change.blur_sigma for change in changes if change.blur_sigma],
        "contrast": [change.contrast for change in changes if change.contrast != 1],
        "gamma": [change.gamma for change in changes if change.gamma != 1],
    }
    ranges = {"rotation": "rotation_degrees", "elastic": "elastic_alpha", "noise": "noise_sd", "blur": "blur_sigma"}

    for name, values in happened.items():
        low, high = getattr(plan, ranges.get(name, name))
        assert len(values) / 4000 == pytest.approx(getattr(plan, f"{name}_probability"), abs=0.03)
        assert low <= min(values) < low + 0.02 * (high - low)
        assert high >= max(values) > high - 0.02 * (high - low)
    for name in ("scaling", "contrast", "gamma"):
        assert np.mean(np.array(happened[name]) < 1) == pytest.approx(0.5, abs=0.04)
    flips = np.array([change.mirrored for change in changes])
    assert flips.mean(0) == pytest.approx([0.25, 0.25], abs=0.03)
    assert flips.all(1).mean() == pytest.approx(0.125, abs=0.03)  # as on the CPU: both axes or none are asked
    assert len({change.seed for change in changes}) == 4000


def test_factors_of_a_range_above_1_are_spread_over_all_of_it():
    factors = [change.contrast for change in drawn(alone("contrast", contrast=(1.5, 2.5)))]

    assert np.quantile(factors, (0, 0.5, 1)) == pytest.approx([1.5, 2.0, 2.5], abs=0.03)


# Batches ------------------------------------------------------------------------------------------------------------


def test_a_row_is_changed_by_its_own_seed_whatever_else_is_in_the_batch(image, mask):
    augmenter = DeviceAugmenter(ALWAYS, DATASET)
    images = torch.from_numpy(np.stack([image, image[::-1], -image]))
    masks = torch.from_numpy(np.stack([mask, mask[:, ::-1], mask[::-1]]))
    seeds = [(0, 3, i) for i in range(3)]

    whole = augmenter(images, masks, seeds)
    again = augmenter(images, masks, seeds)
    parts = [augmenter(images[i : i + 1], masks[i : i + 1], seeds[i : i + 1]) for i in range(3)]
    other = augmenter(images, masks, [(0, 4, i) for i in range(3)])

    assert all(map(torch.equal, whole, again))
    torch.testing.assert_close(whole[0], torch.cat([part[0] for part in parts]), rtol=0, atol=1e-4)
    assert torch.equal(whole[1], torch.cat([part[1] for part in parts]))
    assert not torch.allclose(whole[0], other[0], atol=0.1)


def test_what_is_given_stays_and_comes_back_in_float32_with_labels_kept(image, mask):
    images, masks = torch.from_numpy(image)[None].half(), torch.from_numpy(mask)[None]
    before = images.clone(), masks.clone()

    for seed in range(20):
        new_images, new_masks = DeviceAugmenter(ALWAYS, DATASET)(images, masks, [(seed, 0, 0)])
        assert new_images.dtype == torch.float32
        assert new_masks.dtype == torch.uint8
        assert {*new_masks.unique().tolist()} <= {0, 1, 2, IGNORED}

    assert torch.equal(images, before[0])
    assert torch.equal(masks, before[1])


def test_a_default_changes_nothing(image, mask):
    images, masks = torch.from_numpy(image)[None], torch.from_numpy(mask)[None]

    new_images, new_masks = DeviceAugmenter(ALWAYS, DATASET).apply(images, masks, [Changes()])

    assert torch.equal(new_images, images)
    assert torch.equal(new_masks, masks)


@pytest.mark.parametrize("mirrored", [(True, False), (False, True), (True, True)])
def test_image_and_mask_are_mirrored_together(mirrored, image, mask):
    axes = [axis for axis in (0, 1) if mirrored[axis]]
    images, masks = torch.from_numpy(image)[None], torch.from_numpy(mask)[None]

    new_images, new_masks = DeviceAugmenter(NOTHING, DATASET).apply(images, masks, [Changes(mirrored=mirrored)])

    np.testing.assert_array_equal(new_images[0], np.flip(image, [axis + 1 for axis in axes]))
    np.testing.assert_array_equal(new_masks[0], np.flip(mask, axes))


def test_images_normalised_each_by_itself_have_no_brightness_to_change(image, mask):
    new, _ = augment_one(alone("brightness"), image, mask, (0, 0, 0), Normalisation(kind="case"))

    np.testing.assert_array_equal(new, image)


@pytest.mark.parametrize("value", [0.0, 64.0, -64.0])
def test_results_are_finite_for_rows_of_one_value(value, mask):
    for seed in range(5):
        flat = np.full((3, *SIZE), value, np.float32)
        assert np.isfinite(augment_one(ALWAYS, flat, mask, (seed, 0, 0))[0]).all()


@pytest.mark.parametrize("sigma", [0.2, 5.0, 30.0])
def test_a_blur_of_any_width_mirrors_the_picture_beyond_its_borders(sigma, image, mask):
    plan = alone("blur", blur_sigma=(sigma, sigma))

    blurred, _ = augment_one(plan, image, mask, (0, 0, 0))

    np.testing.assert_allclose(blurred, [gaussian_filter(channel, sigma) for channel in image], atol=1e-5)


def test_splines_that_devices_do_not_have_are_refused():
    with pytest.raises(ValueError, match="order 3 cannot be sampled on a device: plan an interpolation_order of 1"):
        DeviceAugmenter(dataclasses.replace(BEST, interpolation_order=3), DATASET)
