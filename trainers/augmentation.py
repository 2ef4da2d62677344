"""Random changes of training rows: batchgenerators' transforms, and the paper's brightness."""

import contextlib
import random
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iaunet.planners.plan import Normalisation
from iaunet.planners.recipes import Augmentation
from iaunet.preprocessing.normalisation import SD_FLOOR

if TYPE_CHECKING:
    from batchgenerators.transforms.abstract_transforms import AbstractTransform


class Augmenter:
    """Augments one row at a time; equal seeds give equal results.

    Args:
        augmentation: What is changed, how often and how much.
        normalisation: How intensities were normalised, since brightness is meant before it.
        input_size: (height, width) of the rows.
    """

    def __init__(self, augmentation: Augmentation, normalisation: Normalisation, input_size: tuple[int, int]) -> None:
        self._augmentation = augmentation
        self._normalisation = normalisation
        self._input_size = input_size

    @cached_property
    def _transform(self) -> "AbstractTransform":
        """Made at the first row: where others load the rows, batchgenerators need not be imported, which takes time."""
        from batchgenerators.transforms.abstract_transforms import Compose

        return Compose(_transforms(self._augmentation, self._input_size))

    def __call__(
        self, image: NDArray[np.float32], mask: NDArray[np.uint8], seed: tuple[int, ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Augment a row.

        Args:
            image: [C, H, W], normalised.
            mask: [H, W].
            seed: Decides everything.

        Returns:
            New arrays of the same shapes.
        """
        rng = np.random.default_rng(seed)
        image = apply_brightness(image, sample_brightness(rng, self._augmentation), self._normalisation)
        with _seeded(rng):
            # as float: batchgenerators resamples a mask of floats with few values label by label
            batch: dict[str, Any] = {"data": image[None].copy(), "seg": mask[None, None].astype(np.float32)}
            batch = self._transform(**batch)
        return batch["data"][0], batch["seg"][0, 0].astype(np.uint8)


def sample_brightness(rng: np.random.Generator, augmentation: Augmentation) -> float:
    """A factor for the intensities; 1 when the image keeps its brightness."""
    if rng.random() >= augmentation.brightness_probability:
        return 1.0
    return float(rng.uniform(*augmentation.brightness))


def apply_brightness(image: NDArray[np.float32], factor: float, normalisation: Normalisation) -> NDArray[np.float32]:
    """Multiply the intensities an image had before normalisation: x <- f x + (f - 1) mean / sd.

    Images that were normalised each by itself are returned as they are: a factor would not have changed them.

    Args:
        image: [C, H, W], normalised.
        factor: f, 1 for no change.
        normalisation: Gives mean and sd of each channel.
    """
    if factor == 1.0 or normalisation.kind == "case":
        return image
    mean = np.asarray(normalisation.mean, np.float32)
    sd = np.maximum(np.asarray(normalisation.sd, np.float32), SD_FLOOR)
    shift = (factor - 1) * mean / sd
    return (factor * image + shift[:, None, None]).astype(np.float32)


def _transforms(plan: Augmentation, input_size: tuple[int, int]) -> "list[AbstractTransform]":
    """The transforms with every parameter given, those that never happen left out."""
    from batchgenerators.transforms.color_transforms import ContrastAugmentationTransform, GammaTransform
    from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
    from batchgenerators.transforms.spatial_transforms import MirrorTransform

    transforms: list[AbstractTransform] = []
    if max(plan.rotation_probability, plan.scaling_probability, plan.elastic_probability) > 0:
        transforms.append(_spatial(plan, input_size))
    if plan.noise_probability > 0:
        transforms.append(
            GaussianNoiseTransform(
                noise_variance=plan.noise_sd,  # its name notwithstanding, a standard deviation
                p_per_sample=plan.noise_probability,
                p_per_channel=1.0,
                per_channel=False,
            )
        )
    if plan.blur_probability > 0:
        transforms.append(
            GaussianBlurTransform(
                blur_sigma=plan.blur_sigma,
                different_sigma_per_channel=False,
                different_sigma_per_axis=False,
                p_isotropic=0.0,
                p_per_channel=1.0,
                p_per_sample=plan.blur_probability,
            )
        )
    if plan.contrast_probability > 0:
        transforms.append(
            ContrastAugmentationTransform(
                contrast_range=plan.contrast,
                preserve_range=True,
                per_channel=False,
                p_per_sample=plan.contrast_probability,
                p_per_channel=1.0,
            )
        )
    if plan.gamma_probability > 0:
        transforms.append(
            GammaTransform(
                gamma_range=plan.gamma,
                invert_image=False,
                per_channel=False,
                retain_stats=True,
                p_per_sample=plan.gamma_probability,
            )
        )
    if plan.mirror_probability > 0:
        # batchgenerators flips each axis with one half; the probability that it is asked makes up the rest
        transforms.append(MirrorTransform(axes=(0, 1), p_per_sample=min(1.0, 2 * plan.mirror_probability)))
    return transforms


def _spatial(plan: Augmentation, input_size: tuple[int, int]) -> "AbstractTransform":
    from batchgenerators.transforms.spatial_transforms import SpatialTransform

    low, high = np.deg2rad(plan.rotation_degrees)
    smallest, largest = plan.scaling
    return SpatialTransform(
        patch_size=input_size,
        patch_center_dist_from_border=0,
        do_elastic_deform=plan.elastic_probability > 0,
        alpha=plan.elastic_alpha,
        sigma=plan.elastic_sigma,
        do_rotation=plan.rotation_probability > 0,
        angle_x=(float(low), float(high)),
        do_scale=plan.scaling_probability > 0,
        scale=(1 / largest, 1 / smallest),  # it scales coordinates, so the picture by the inverse
        border_mode_data="reflect",
        border_mode_seg="reflect",
        order_data=plan.interpolation_order,
        order_seg=0,
        random_crop=False,
        p_el_per_sample=plan.elastic_probability,
        p_scale_per_sample=plan.scaling_probability,
        p_rot_per_sample=plan.rotation_probability,
        p_rot_per_axis=1.0,
        independent_scale_for_each_axis=False,
        p_independent_scale_per_axis=0.0,
    )


@contextlib.contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed the two global generators batchgenerators draws from, and give them back as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(int(rng.integers(2**32)))  # noqa: NPY002
    random.seed(int(rng.integers(2**32)))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
