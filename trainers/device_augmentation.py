"""The recipe's random changes as torch code for whole batches, to run where the network runs.

The changes of a row are drawn from its own seed, so they depend neither on its batch nor on the process that loads it.
They are those of `iaunet.trainers.augmentation` in distribution, not in their very values.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iaunet.planners.plan import Normalisation
from iaunet.planners.recipes import Augmentation, Range
from iaunet.preprocessing.normalisation import SD_FLOOR
from iaunet.trainers.augmentation import sample_brightness

MOST_ORDER = 1
"""The highest order of splines that batches are sampled with: nearest and linear, as devices offer."""

REACH = 4.0
"""Sigmas after which a Gaussian is cut, as SciPy does."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is done to one row; a default changes nothing.

    ``elastic`` is (strength, sigma in pixels) of the displacement, ``angle`` in radians, ``zoom`` what coordinates are
    multiplied with: above 1, things are shown smaller. ``mirrored`` says which of (up-down, left-right) is flipped.
    ``seed`` is that of the pixels of noise and displacement.
    """

    brightness: float = 1.0
    elastic: tuple[float, float] | None = None
    angle: float = 0.0
    zoom: float = 1.0
    noise_sd: float = 0.0
    blur_sigma: float = 0.0
    contrast: float = 1.0
    gamma: float = 1.0
    mirrored: tuple[bool, bool] = (False, False)
    seed: int = 0

    @property
    def moves(self) -> bool:
        """Whether the row is sampled anew."""
        return self.elastic is not None or self.angle != 0 or self.zoom != 1


def sample_changes(rng: np.random.Generator, plan: Augmentation) -> Changes:
    """Draw what is done to a row."""

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability)

    brightness = sample_brightness(rng, plan)
    elastic = None
    if happens(plan.elastic_probability):
        elastic = float(rng.uniform(*plan.elastic_alpha)), float(rng.uniform(*plan.elastic_sigma))
    smallest, largest = plan.scaling
    mirrors = happens(2 * plan.mirror_probability)
    return Changes(
        brightness=brightness,
        elastic=elastic,
        angle=radians(rng.uniform(*plan.rotation_degrees)) if happens(plan.rotation_probability) else 0.0,
        zoom=_around_one(rng, (1 / largest, 1 / smallest)) if happens(plan.scaling_probability) else 1.0,
        noise_sd=float(rng.uniform(*plan.noise_sd)) if happens(plan.noise_probability) else 0.0,
        blur_sigma=float(rng.uniform(*plan.blur_sigma)) if happens(plan.blur_probability) else 0.0,
        contrast=_around_one(rng, plan.contrast) if happens(plan.contrast_probability) else 1.0,
        gamma=_around_one(rng, plan.gamma) if happens(plan.gamma_probability) else 1.0,
        mirrored=(mirrors and happens(0.5), mirrors and happens(0.5)),
        seed=int(rng.integers(2**63)),
    )


def _around_one(rng: np.random.Generator, ends: Range) -> float:
    """A factor that is below and above 1 equally often, where the range allows."""
    low, high = ends
    if low < 1 and rng.random() < 0.5:
        return float(rng.uniform(low, 1))
    return float(rng.uniform(max(low, 1), high))


class DeviceAugmenter:
    """Augments batches on the device they lie on; equal seeds give equal rows there, whatever else is in the batch.

    Args:
        augmentation: What is changed, how often and how much.
        normalisation: How intensities were normalised, since brightness is meant before it.

    Raises:
        ValueError: Splines of a higher order than `MOST_ORDER` are planned.
    """

    def __init__(self, augmentation: Augmentation, normalisation: Normalisation) -> None:
        if augmentation.interpolation_order > MOST_ORDER:
            raise ValueError(
                f"splines of order {augmentation.interpolation_order} cannot be sampled on a device: "
                f"plan an interpolation_order of {MOST_ORDER} or less, or augment while loading"
            )
        self._augmentation = augmentation
        self._normalisation = normalisation

    def __call__(self, images: Tensor, masks: Tensor, seeds: Iterable[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            images: [B, C, H, W], normalised, of any floating type.
            masks: [B, H, W] uint8, on the same device.
            seeds: Decides everything about each row.

        Returns:
            New images in float32 and new masks, of the same shapes.
        """
        return self.apply(images, masks, [sample_changes(np.random.default_rng(s), self._augmentation) for s in seeds])

    def apply(self, images: Tensor, masks: Tensor, changes: Sequence[Changes]) -> tuple[Tensor, Tensor]:
        """Do to each row of a batch what is said; the arguments are left as they are."""
        images, masks = images.to(torch.float32, copy=True), masks.clone()
        self._brighten(images, changes)
        order = ("nearest", "bilinear")[self._augmentation.interpolation_order]
        _move(images, masks, changes, order)
        _add_noise(images, changes)
        _blur(images, changes)
        _stretch(images, changes)
        _bend(images, changes)
        _mirror(images, masks, changes)
        return images, masks

    def _brighten(self, images: Tensor, changes: Sequence[Changes]) -> None:
        chosen = [i for i, change in enumerate(changes) if change.brightness != 1]
        if not chosen or self._normalisation.kind == "case":
            return
        offset = np.asarray(self._normalisation.mean) / np.maximum(self._normalisation.sd, SD_FLOOR)
        factor = _column(images, [changes[i].brightness for i in chosen])
        shift = _as_tensor(images, offset)[:, None, None]
        rows = _indices(images, chosen)
        images[rows] = factor * images[rows] + (factor - 1) * shift


def _move(images: Tensor, masks: Tensor, changes: Sequence[Changes], order: str) -> None:
    """Sample rows at displaced, turned and scaled coordinates; the picture is mirrored beyond its borders."""
    chosen = [i for i, change in enumerate(changes) if change.moves]
    if not chosen:
        return
    moved = [changes[i] for i in chosen]
    height, width = images.shape[2:]
    ys = torch.arange(height, device=images.device) - (height - 1) / 2
    xs = torch.arange(width, device=images.device) - (width - 1) / 2
    places = torch.stack(torch.meshgrid(ys, xs, indexing="ij")).expand(len(chosen), -1, -1, -1).clone()
    _displace(places, moved)
    turns = [
        [[change.zoom * cos(change.angle), change.zoom * sin(change.angle)],
         [-change.zoom * sin(change.angle), change.zoom * cos(change.angle)]]
        for change in moved
    ]  # fmt: skip
    # only two products a pixel: plain sums are exact where a matrix product may round to fewer bits
    y, x = (_as_tensor(images, turns)[..., None, None] * places[:, None]).sum(2).unbind(1)
    grid = torch.stack([x * (2 / width), y * (2 / height)], dim=-1)

    def sampled(maps: Tensor, mode: str) -> Tensor:
        # the border lies half a pixel beyond the last centre, where scipy's `reflect` mirrors as well
        return F.grid_sample(maps, grid, mode=mode, padding_mode="reflection", align_corners=False)

    rows = _indices(images, chosen)
    images[rows] = sampled(images[rows], order)
    masks[rows] = sampled(masks[rows][:, None].float(), "nearest")[:, 0].to(masks.dtype)


def _displace(places: Tensor, changes: Sequence[Changes]) -> None:
    """Add smooth fields of noise to coordinates [N, 2, H, W]."""
    chosen = [(i, change.elastic, change.seed) for i, change in enumerate(changes) if change.elastic is not None]
    if not chosen:
        return
    rows = _indices(places, [i for i, _, _ in chosen])
    fields = torch.stack(
        [torch.empty_like(places[0]).uniform_(-1, 1, generator=_generator(places, seed)) for _, _, seed in chosen]
    )
    alphas = _column(places, [alpha for _, (alpha, _), _ in chosen])
    sigmas = [sigma for _, (_, sigma), _ in chosen]
    places[rows] += alphas * _smooth(fields, sigmas, reflect=False)


def _add_noise(images: Tensor, changes: Sequence[Changes]) -> None:
    for image, change in zip(images, changes, strict=True):
        if change.noise_sd > 0:
            # another stream than that of the displacement
            generator = _generator(images, change.seed + 1)
            image += change.noise_sd * torch.empty_like(image).normal_(generator=generator)


def _blur(images: Tensor, changes: Sequence[Changes]) -> None:
    chosen = [i for i, change in enumerate(changes) if change.blur_sigma > 0]
    if chosen:
        rows = _indices(images, chosen)
        images[rows] = _smooth(images[rows], [changes[i].blur_sigma for i in chosen], reflect=True)


def _stretch(images: Tensor, changes: Sequence[Changes]) -> None:
    """Contrast: intensities away from their channel's mean, within its range."""
    chosen = [i for i, change in enumerate(changes) if change.contrast != 1]
    if not chosen:
        return
    rows = _indices(images, chosen)
    before = images[rows]
    mean, low, high = before.mean((2, 3), keepdim=True), before.amin((2, 3), True), before.amax((2, 3), True)
    factor = _column(images, [changes[i].contrast for i in chosen])
    images[rows] = ((before - mean) * factor + mean).clamp(low, high)


def _bend(images: Tensor, changes: Sequence[Changes]) -> None:
    """Gamma: intensities between a row's extremes to a power; its mean and sd stay."""
    chosen = [i for i, change in enumerate(changes) if change.gamma != 1]
    if not chosen:
        return
    rows = _indices(images, chosen)
    before = images[rows]
    axes = (1, 2, 3)
    low, span = before.amin(axes, True), before.amax(axes, True) - before.amin(axes, True)
    bent = ((before - low) / (span + 1e-7)).pow(_column(images, [changes[i].gamma for i in chosen])) * span
    (sd, mean), (bent_sd, bent_mean) = (torch.std_mean(x, axes, correction=0, keepdim=True) for x in (before, bent))
    images[rows] = (bent - bent_mean) / (bent_sd + 1e-8) * sd + mean


def _mirror(images: Tensor, masks: Tensor, changes: Sequence[Changes]) -> None:
    for axis in (0, 1):
        chosen = [i for i, change in enumerate(changes) if change.mirrored[axis]]
        if chosen:
            rows = _indices(images, chosen)
            images[rows] = images[rows].flip(2 + axis)
            masks[rows] = masks[rows].flip(1 + axis)


def _smooth(maps: Tensor, sigmas: Sequence[float], reflect: bool) -> Tensor:
    """Filter maps [N, C, H, W], each with a Gaussian of its own sigma.

    ``reflect`` mirrors maps beyond their borders, where they are 0 otherwise.
    """
    down, across = (_gaussian(maps, side, sigmas, reflect)[:, None] for side in maps.shape[2:])
    return down @ maps @ across.mT


def _gaussian(like: Tensor, length: int, sigmas: Sequence[float], reflect: bool) -> Tensor:
    """Filtering along an axis as a matrix [N, length, length], one for each sigma."""
    reach = int(REACH * max(sigmas) + 0.5)
    sigma = _column(like, sigmas)[:, 0]
    places = torch.arange(-reach, length + reach, device=like.device)
    distance = places - torch.arange(length, device=like.device)[:, None]
    weights = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() <= torch.floor(REACH * sigma + 0.5))
    weights = weights / weights.sum(-1, keepdim=True)
    if not reflect:
        return weights[..., reach : reach + length]
    turned = places % (2 * length)
    return weights @ F.one_hot(torch.minimum(turned, 2 * length - 1 - turned), length).to(weights.dtype)


def _generator(like: Tensor, seed: int) -> torch.Generator:
    return torch.Generator(like.device).manual_seed(seed)


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    """One number a row, [N, 1, 1, 1]."""
    return _as_tensor(like, values)[:, None, None, None]


def _indices(like: Tensor, chosen: Sequence[int]) -> Tensor:
    """Numbers of rows where ``like`` lies: a list of them would be copied there at each use, waiting for what runs."""
    return _as_tensor(like, chosen, torch.int64)


def _as_tensor(like: Tensor, values: object, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers where ``like`` lies, copied without waiting for what runs there."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else tensor.to(like.device)
