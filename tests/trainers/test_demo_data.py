from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, label
from skimage.filters import threshold_otsu

from iaunet.trainers.demo_data import (
    LARGEST_SHARE,
    SMALLEST_SHARE,
    generate_case,
    patient_of,
    render,
    sample_patient,
    sample_scene,
    write_demo_dataset,
)

N_TRAIN, N_TEST = 80, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(folder):
    """All pictures and masks (bool) of the default dataset, read from its files, sorted by name."""
    images = sorted([*folder.glob("dataset/images/*.png"), *folder.glob("new_images/*.png")])
    masks = sorted([*folder.glob("dataset/masks/*.png"), *folder.glob("new_masks/*.png")])
    assert [path.name for path in images] == [path.name for path in masks]
    return [(read(image), read(mask) == 255) for image, mask in zip(images, masks, strict=True)]


def read(path: Path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def contents(folder: Path):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def names(folder: Path):
    return {path.stem for path in folder.iterdir()}


def dice(one, other):
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def dice_of_thresholds(image, mask):
    """Dice of what lies above and below Otsu's threshold, for each of red, green and blue."""
    above = [image[..., channel] > threshold_otsu(image[..., channel]) for channel in range(3)]
    return [dice(side, mask) for each in above for side in (each, ~each)]


def test_a_seed_writes_the_same_bytes_every_time_and_another_seed_others(tmp_path):
    for name, seed in (("first", 3), ("second", 3), ("third", 4)):
        write_demo_dataset(tmp_path / name, n_train=5, n_test=2, seed=seed)

    first, second, third = (contents(tmp_path / name) for name in ("first", "second", "third"))

    assert len(first) == 14
    assert first == second
    assert first.keys() == third.keys()
    assert all(first[name] != third[name] for name in first)


def test_a_case_is_the_same_alone_as_within_its_dataset(folder):
    case = generate_case(seed=0, index=41)

    assert np.array_equal(read(folder / "dataset" / "images" / f"{case.name}.png"), case.image)
    assert np.array_equal(read(folder / "dataset" / "masks" / f"{case.name}.png"), case.mask)
    assert np.unique(case.mask).tolist() == [0, 255]


def test_the_default_dataset_has_as_many_cases_as_promised(folder):
    assert len(names(folder / "dataset" / "images")) == N_TRAIN
    assert len(names(folder / "new_images")) == N_TEST
    assert names(folder / "dataset" / "images") == names(folder / "dataset" / "masks")
    assert names(folder / "new_images") == names(folder / "new_masks")


@pytest.mark.parametrize("n_train", [0, 1, 4, 6, 14])
def test_patients_to_learn_from_are_others_than_those_to_predict(tmp_path, n_train):
    write_demo_dataset(tmp_path, n_train=n_train, n_test=2)

    learned, new = (
        {name.split("_")[0] for name in names(tmp_path / each)} for each in ("dataset/images", "new_images")
    )

    assert len(names(tmp_path / "dataset" / "images")) == n_train
    assert len(names(tmp_path / "new_images")) == 2
    assert learned.isdisjoint(new)


def test_patients_of_the_default_dataset_are_disjoint_and_have_three_or_four_pictures(folder):
    learned = [name.split("_")[0] for name in names(folder / "dataset" / "images")]
    new = {name.split("_")[0] for name in names(folder / "new_images")}

    assert new.isdisjoint(learned)
    assert {learned.count(patient) for patient in learned} == {3, 4}


def test_pictures_of_a_patient_share_tissue_and_those_of_others_do_not():
    scenes = [sample_scene(seed=0, index=index) for index in range(N_TRAIN)]

    tissues = {scene.name.split("_")[0]: scene.patient.tissue for scene in scenes}

    assert all(scene.patient == sample_patient(0, patient_of(i)[0]) for i, scene in enumerate(scenes))
    assert len(set(tissues.values())) == len(tissues) == 23


def test_the_mask_has_exactly_the_drawn_share_of_the_picture():
    for index in range(0, N_TRAIN, 3):
        scene = sample_scene(seed=0, index=index)
        mask = render(scene).mask
        assert np.count_nonzero(mask) == round(scene.share * mask.size), scene.name


def test_lesions_are_of_all_sizes_between_the_bounds(pairs):
    shares = np.array([mask.mean() for _, mask in pairs])

    assert shares.min() >= SMALLEST_SHARE - 1e-4
    assert shares.max() <= LARGEST_SHARE + 1e-4
    assert np.count_nonzero(shares < 0.03) >= 15
    assert np.count_nonzero(shares > 0.15) >= 15


def test_one_lesion_in_four_is_unlike_the_rest():
    kinds = [sample_scene(seed=0, index=index).kind for index in range(N_TRAIN)]

    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"dark": 60, "bright": 10, "texture": 10}


def test_dark_lesions_are_darker_than_what_surrounds_them_and_bright_ones_brighter():
    for index in range(N_TRAIN):
        scene = sample_scene(seed=0, index=index)
        if scene.kind == "texture":
            continue
        case = render(replace(scene, hairs=(), specks=np.inf, light=replace(scene.light, aperture=np.inf)))
        grey, inside = case.image.mean(axis=2), case.mask == 255
        ring = binary_dilation(inside, iterations=15) & ~binary_dilation(inside, iterations=3)
        is_darker = np.median(grey[inside]) < np.median(grey[ring])
        assert is_darker == (scene.kind == "dark"), scene.name


def test_hairs_and_specks_change_the_picture_but_not_the_truth():
    scene = next(s for s in (sample_scene(0, index) for index in range(N_TRAIN)) if s.hairs and s.specks < np.inf)

    with_all, without = render(scene), render(replace(scene, hairs=(), specks=np.inf))

    assert np.array_equal(with_all.mask, without.mask)
    changed = np.any(with_all.image != without.image, axis=2).mean()
    assert 0.01 < changed < 0.3


def test_there_are_several_shapes_and_some_pictures_with_two_lesions(pairs):
    scenes = [sample_scene(seed=0, index=index) for index in range(N_TRAIN)]
    outlines = [outline for scene in scenes for outline in scene.outlines]

    concave, lobed, round_ = (
        sum(outline.bite > 0 for outline in outlines),
        sum(len(outline.waves) == 1 for outline in outlines),
        sum(not outline.waves and outline.bite == 0 for outline in outlines),
    )

    assert min(concave, lobed, round_, len(outlines) - concave - lobed - round_) >= 10
    assert sum(label(mask)[1] >= 2 for _, mask in pairs) >= 8


def test_sizes_and_aspects_vary_within_the_bounds(pairs):
    sizes = {mask.shape for _, mask in pairs}

    assert all(image.shape == (*mask.shape, 3) for image, mask in pairs)
    assert len(sizes) > 80
    assert all(160 <= side <= 420 for size in sizes for side in size)
    assert sum(height > width for height, width in sizes) >= 10
    assert max(width / height for height, width in sizes) > 1.35


def test_no_threshold_solves_the_dataset(pairs):
    scores = np.array([dice_of_thresholds(image, mask) for image, mask in pairs])

    best_for_the_dataset = scores.mean(axis=0).max()
    best_for_each_picture_knowing_the_truth = scores.max(axis=1).mean()

    assert best_for_the_dataset < 0.4
    assert best_for_each_picture_knowing_the_truth < 0.5


def test_no_two_pictures_are_near_duplicates(pairs):
    thumbnails = [Image.fromarray(image).convert("L").resize((32, 32)) for image, _ in pairs]
    correlations = np.corrcoef([np.asarray(thumbnail, dtype=float).ravel() for thumbnail in thumbnails])

    assert np.max(correlations - 2 * np.eye(len(pairs))) < 0.98
