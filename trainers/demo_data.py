"""A small generated dataset that looks like dermoscopy and endoscopy, for `iaunet_demo` to learn from.

A picture is drawn as a `Scene` of plain numbers and then rendered from it. Tissue absorbs light as layers of two
pigments do (brown melanin, red haemoglobin), so that the colours of skin and mucosa, of darker, brighter and
redder lesions all come from two densities. No threshold solves the dataset: light and tissue vary within a picture
as much as lesions differ from what surrounds them, and one lesion in four differs in another way than the rest.
Lengths are shares of the geometric mean of a picture's sides unless they say otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit

FloatArray = NDArray[np.float64]

MELANIN = np.array([0.42, 0.68, 0.95])
HAEMOGLOBIN = np.array([0.14, 0.88, 0.72])

IMAGES_OF_A_PATIENT = (4, 3, 4, 3)
IMAGES_OF_A_BLOCK = sum(IMAGES_OF_A_PATIENT)
PATIENTS_OF_A_BLOCK = len(IMAGES_OF_A_PATIENT)

# One lesion in four is unlike the rest.
KINDS = ("dark", "dark", "bright", "dark", "dark", "dark", "texture", "dark")

SMALLEST_SHARE, LARGEST_SHARE = 0.012, 0.35


@dataclass(frozen=True)
class DemoCase:
    """One picture with its truth: image uint8 (H, W, 3) RGB; mask uint8 (H, W), 0 and 255 on the lesions."""

    name: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What the pictures of one patient share. Pigments are (melanin, haemoglobin) densities.

    `changes` holds, for each kind of lesion, what it adds to the pigments of the tissue.
    """

    tissue: tuple[float, float]
    changes: Mapping[str, tuple[float, float]]
    blotches: float
    pores: float
    vessels: float
    grains: Mapping[str, float]
    grain_wavelength: float


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The border of a lesion about its centre: a circle with waves, stretched, perhaps with a bite.

    `waves` are (order, height, phase) around the circle, heights and `bite` in radii (0: none); `part` is the
    lesion's share of the area of all lesions in the picture.
    """

    centre: tuple[float, float]
    angle: float
    stretch: float
    waves: tuple[tuple[int, float, float], ...]
    bite: float
    part: float


@dataclass(frozen=True, kw_only=True)
class Light:
    """How a picture is lit and taken. Gradient and vignette are falls of the logarithm of brightness.

    Beyond `aperture`, a share of the way to the corners, a picture is black; `noise` is the sensor's, of 1 for white.
    """

    exposure: float
    balance: tuple[float, float, float]
    gradient: tuple[float, float]
    vignette: float
    aperture: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class Hair:
    """A parabola of constant width: the offset of its vertex from the picture's centre, its angle and bend."""

    offset: tuple[float, float]
    angle: float
    bend: float
    length: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a picture is rendered from. `size` is (height, width) in pixels; `share` is the lesions' area.

    `kind` says how the lesions differ from the tissue: "dark" (three in four), "bright", or "texture" (about as
    bright as the tissue, of another hue and a stronger grain). `softness` is the width of their border; `specks` the
    height above which the wet surface mirrors the lamp, in standard deviations of its relief.
    """

    name: str
    patient: Patient
    kind: str
    size: tuple[int, int]
    share: float
    outlines: tuple[Outline, ...]
    softness: float
    light: Light
    hairs: tuple[Hair, ...]
    specks: float
    noise_seed: int


def patient_of(index: int) -> tuple[int, int]:
    """The patient of a case and the number of the case among the patient's own, both counted from 0."""
    block, left = divmod(index, IMAGES_OF_A_BLOCK)
    slot = 0
    while left >= IMAGES_OF_A_PATIENT[slot]:
        left -= IMAGES_OF_A_PATIENT[slot]
        slot += 1
    return block * PATIENTS_OF_A_BLOCK + slot, left


def sample_patient(seed: int, number: int) -> Patient:
    """Draw what the pictures of one patient share."""
    rng = np.random.default_rng([seed, 1, number])
    tissue = _sample_tissue(rng)
    return Patient(
        tissue=tissue,
        changes=_sample_changes(rng, tissue),
        blotches=rng.uniform(0.08, 0.16),
        pores=rng.uniform(0.03, 0.08),
        vessels=0.0 if is_skin(tissue) else rng.uniform(0.10, 0.35),
        grains={"dark": rng.uniform(0.0, 0.16), "bright": rng.uniform(0.0, 0.16), "texture": rng.uniform(0.22, 0.35)},
        grain_wavelength=float(np.exp(rng.uniform(np.log(0.025), np.log(0.09)))),
    )


def is_skin(tissue: tuple[float, float]) -> bool:
    """Whether a tissue is skin, which has hairs; the other is mucosa, which is wet and has vessels."""
    melanin, haemoglobin = tissue
    return melanin > haemoglobin


def _sample_tissue(rng: np.random.Generator) -> tuple[float, float]:
    if rng.random() < 0.5:
        return rng.uniform(0.35, 0.75), rng.uniform(0.15, 0.35)
    return rng.uniform(0.10, 0.30), rng.uniform(0.55, 0.95)


def _sample_changes(rng: np.random.Generator, tissue: tuple[float, float]) -> dict[str, tuple[float, float]]:
    bleached = rng.uniform(0.58, 0.75)
    swapped = rng.uniform(0.6, 0.8) * max(tissue)
    return {
        "dark": (rng.uniform(0.25, 0.75), rng.uniform(0.05, 0.35)),
        "bright": (-bleached * tissue[0], -bleached * tissue[1]),
        "texture": (-swapped, swapped) if is_skin(tissue) else (swapped, -swapped),
    }


def sample_scene(seed: int, index: int) -> Scene:
    """Draw the case of an index: a value that `render` turns into the picture without further chance."""
    number, image = patient_of(index)
    rng = np.random.default_rng([seed, 2, index])
    patient = sample_patient(seed, number)
    share = float(np.exp(rng.uniform(np.log(SMALLEST_SHARE), np.log(LARGEST_SHARE))))
    return Scene(
        name=f"P{number + 1:02d}_{image + 1:02d}",
        patient=patient,
        kind=KINDS[index % len(KINDS)],
        size=_sample_size(rng),
        share=share,
        outlines=_sample_outlines(rng, share),
        softness=rng.uniform(0.009, 0.022) * share**0.25,
        light=_sample_light(rng),
        hairs=_sample_hairs(rng) if is_skin(patient.tissue) else (),
        specks=_sample_specks(rng, patient.tissue),
        noise_seed=int(rng.integers(2**32)),
    )


def _sample_size(rng: np.random.Generator) -> tuple[int, int]:
    short = rng.integers(160, 321)
    long = min(420, round(short * rng.uniform(1.0, 1.5)))
    return (int(long), int(short)) if rng.random() < 0.2 else (int(short), int(long))


def _sample_outlines(rng: np.random.Generator, share: float) -> tuple[Outline, ...]:
    if share > 0.15 or rng.random() < 0.75:
        spread = max(0.0, 0.33 - 0.45 * np.sqrt(share))
        return (_sample_outline(rng, tuple(rng.uniform(-spread, spread, 2)), 1.0),)
    side = rng.uniform(0, 2 * np.pi)
    away = np.array([np.sin(side), np.cos(side)]) * rng.uniform(0.22, 0.28)
    part = rng.uniform(0.4, 0.7)
    return (
        _sample_outline(rng, tuple(away), part),
        _sample_outline(rng, tuple(-away), 1 - part),
    )


def _sample_outline(rng: np.random.Generator, centre: tuple[float, ...], part: float) -> Outline:
    shape = rng.choice(["ellipse", "blob", "lobed", "crescent"], p=[0.25, 0.35, 0.2, 0.2])
    orders = {"blob": (2, 3, 4, 5, 7), "lobed": (int(rng.integers(3, 6)),)}.get(shape, ())
    heights = {"blob": 0.28, "lobed": 0.42}.get(shape, 0.0)
    return Outline(
        centre=(centre[0], centre[1]),
        angle=rng.uniform(0, 2 * np.pi),
        stretch=rng.uniform(1.0, 1.15 if shape == "lobed" else 1.5),
        waves=tuple((k, heights * rng.uniform(0.5, 1) / np.sqrt(k), rng.uniform(0, 2 * np.pi)) for k in orders),
        bite=rng.uniform(0.55, 0.8) if shape == "crescent" else 0.0,
        part=part,
    )


def _sample_light(rng: np.random.Generator) -> Light:
    fall, direction = rng.uniform(0.0, 0.6), rng.uniform(0, 2 * np.pi)
    return Light(
        exposure=rng.uniform(0.85, 1.15),
        balance=(rng.uniform(0.92, 1.06), 1.0, rng.uniform(0.88, 1.08)),
        gradient=(fall * np.sin(direction), fall * np.cos(direction)),
        vignette=rng.uniform(0.1, 0.7),
        aperture=rng.uniform(0.84, 0.97) if rng.random() < 0.2 else np.inf,
        noise=rng.uniform(0.006, 0.018),
    )


def _sample_hairs(rng: np.random.Generator) -> tuple[Hair, ...]:
    count = int(rng.integers(3, 13)) if rng.random() < 0.5 else 0
    combed = rng.uniform(0, np.pi)
    return tuple(
        Hair(
            offset=(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)),
            angle=combed + rng.normal(0, 0.5),
            bend=rng.normal(0, 0.7),
            length=rng.uniform(0.3, 1.2),
            width=rng.uniform(0.006, 0.012),
        )
        for _ in range(count)
    )


def _sample_specks(rng: np.random.Generator, tissue: tuple[float, float]) -> float:
    is_wet = rng.random() < (0.2 if is_skin(tissue) else 0.8)
    return rng.uniform(2.3, 3.1) if is_wet else np.inf


def render(scene: Scene) -> DemoCase:
    """Render a scene; the same scene gives the same bytes."""
    rng = np.random.default_rng(scene.noise_seed)
    visible = _radius(scene.size) < scene.light.aperture
    alpha = _lesion_alpha(scene, rng, visible)
    colours = _transmission(_pigments(scene, alpha, rng))
    lit = _with_specks(colours, scene, rng) * _light(scene)
    seen = np.where(visible[..., None], lit, 0.02) + rng.normal(0, scene.light.noise, (*scene.size, 3))
    return DemoCase(
        name=scene.name,
        image=np.round(255 * np.clip(seen, 0, 1)).astype(np.uint8),
        mask=np.where(alpha >= 0.5, 255, 0).astype(np.uint8),
    )


def generate_case(seed: int, index: int) -> DemoCase:
    """The case of an index in the endless dataset of a seed: cases of one patient follow each other."""
    return render(sample_scene(seed, index))


def write_demo_dataset(folder: Path, n_train: int = 80, n_test: int = 12, seed: int = 0) -> None:
    """Write pictures to learn from and pictures of other patients to predict, all as PNG.

    Args:
        folder: Gets `dataset/images`, `dataset/masks`, `new_images` and `new_masks`; made if missing.
        n_train: Cases in `dataset`.
        n_test: Cases in `new_images`, with their truth in `new_masks`.
        seed: Chooses the dataset; the same seed writes the same bytes.
    """
    first_new = n_train
    while first_new > 0 and patient_of(first_new)[0] == patient_of(n_train - 1)[0]:
        first_new += 1
    _write_cases(folder / "dataset" / "images", folder / "dataset" / "masks", seed, range(n_train))
    _write_cases(folder / "new_images", folder / "new_masks", seed, range(first_new, first_new + n_test))


def _write_cases(images: Path, masks: Path, seed: int, indices: range) -> None:
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for index in indices:
        case = generate_case(seed, index)
        Image.fromarray(case.image).save(images / f"{case.name}.png")
        Image.fromarray(case.mask).save(masks / f"{case.name}.png")


def _positions(size: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Rows and columns of the pixels from the picture's centre, as (height, 1) and (1, width)."""
    unit = np.sqrt(size[0] * size[1])
    rows, columns = ((np.arange(side) - (side - 1) / 2) / unit for side in size)
    return rows[:, None], columns[None, :]


def _radius(size: tuple[int, int]) -> FloatArray:
    """Distance from the picture's centre, 1 in the corners."""
    distance = np.hypot(*_positions(size))
    relative: FloatArray = distance / distance.max()
    return relative


def _rotated(y: FloatArray, x: FloatArray, angle: float) -> tuple[FloatArray, FloatArray]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * y - sine * x, sine * y + cosine * x


def _frequency(size: tuple[int, int]) -> FloatArray:
    """Waves per geometric mean of the sides, for each entry of a real Fourier transform."""
    unit = np.sqrt(size[0] * size[1])
    frequency: FloatArray = unit * np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None, :])
    return frequency


def _shaped_noise(rng: np.random.Generator, size: tuple[int, int], spectrum: FloatArray) -> FloatArray:
    """White noise filtered by a spectrum, brought to mean 0 and standard deviation 1."""
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(size)) * spectrum, s=size)
    standard: FloatArray = (noise - noise.mean()) / noise.std()
    return standard


def _cloud(rng: np.random.Generator, size: tuple[int, int], slope: float) -> FloatArray:
    """Noise of all octaves whose amplitude falls with frequency to the power of `slope`."""
    return _shaped_noise(rng, size, np.maximum(_frequency(size), 1.0) ** -slope)


def _grain(rng: np.random.Generator, size: tuple[int, int], wavelength: float) -> FloatArray:
    """Noise of about one octave around a wavelength."""
    octaves = np.log2(np.maximum(_frequency(size), 1e-3) * wavelength)
    return _shaped_noise(rng, size, np.exp(-2 * octaves**2))


def _lesion_alpha(scene: Scene, rng: np.random.Generator, visible: NDArray[np.bool_]) -> FloatArray:
    """How much of each pixel is lesion; at least 0.5 on exactly the scene's share of the picture."""
    warp = [_cloud(rng, scene.size, slope=2.2) for _ in range(2)]
    depths = [_depth(outline, scene, warp) for outline in scene.outlines]
    depth = np.where(visible, np.max(depths, axis=0), -np.inf)
    inside = round(scene.share * depth.size)
    level = np.partition(depth, -inside, axis=None)[-inside]
    alpha: FloatArray = expit((depth - level) / scene.softness)
    return alpha


def _depth(outline: Outline, scene: Scene, warp: list[FloatArray]) -> FloatArray:
    """Depth below the outline's border, negative outside."""
    radius = np.sqrt(scene.share * outline.part / np.pi)
    rows, columns = _positions(scene.size)
    crooked = 0.14 * radius
    y, x = _rotated(
        rows - outline.centre[0] + crooked * warp[0],
        columns - outline.centre[1] + crooked * warp[1],
        outline.angle,
    )
    y, x = y / radius * np.sqrt(outline.stretch), x / radius / np.sqrt(outline.stretch)
    theta = np.arctan2(y, x)
    border = 1 + sum(height * np.cos(order * theta + phase) for order, height, phase in outline.waves)
    within = border - np.hypot(y, x)
    if outline.bite > 0:
        beyond_bite = np.hypot(y, x - 0.9) - outline.bite
        within = -np.logaddexp(-8 * within, -8 * beyond_bite) / 8  # a minimum that rounds the horns
    depth: FloatArray = within * radius
    return depth


def _pigments(scene: Scene, alpha: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Densities of melanin and haemoglobin of the tissue with its lesion."""
    patient = scene.patient
    blotches = [patient.blotches * (1 - 0.5 * alpha) * _cloud(rng, scene.size, slope=1.6) for _ in range(2)]
    vessels = (1 - alpha) * patient.vessels * np.exp(-((_cloud(rng, scene.size, slope=1.9) / 0.08) ** 2))
    pores = patient.pores * _grain(rng, scene.size, 0.02)
    grain = patient.grains[scene.kind] * _grain(rng, scene.size, patient.grain_wavelength)
    relief = 1 + (1 - alpha) * pores + alpha * grain
    change = [alpha * each * (1 + 0.25 * _cloud(rng, scene.size, slope=1.5)) for each in patient.changes[scene.kind]]
    melanin = patient.tissue[0] * (1 + blotches[0]) + change[0]
    haemoglobin = patient.tissue[1] * (1 + blotches[1]) + change[1] + vessels
    hairs = sum((_hair_alpha(hair, scene.size) for hair in scene.hairs), np.zeros(scene.size))
    return np.maximum(melanin * relief, 0) + 1.5 * np.minimum(hairs, 1), np.maximum(haemoglobin * relief, 0)


def _hair_alpha(hair: Hair, size: tuple[int, int]) -> FloatArray:
    rows, columns = _positions(size)
    y, x = _rotated(rows - hair.offset[0], columns - hair.offset[1], hair.angle)
    across = np.abs(y - hair.bend * x**2) / np.hypot(1, 2 * hair.bend * x)
    pixel = 1 / np.sqrt(size[0] * size[1])
    alpha: FloatArray = np.clip((hair.width / 2 - across) / pixel + 0.5, 0, 1) * (np.abs(x) < hair.length / 2)
    return alpha


def _transmission(pigments: tuple[FloatArray, FloatArray]) -> FloatArray:
    """Colours (H, W, 3) of white light after it passed the pigments (Lambert-Beer)."""
    melanin, haemoglobin = pigments
    colours: FloatArray = np.exp(-melanin[..., None] * MELANIN - haemoglobin[..., None] * HAEMOGLOBIN)
    return colours


def _with_specks(colours: FloatArray, scene: Scene, rng: np.random.Generator) -> FloatArray:
    """Wet spots that mirror the lamp."""
    relief = (_grain(rng, scene.size, 0.05) + _cloud(rng, scene.size, slope=1.5)) / np.sqrt(2)
    alpha = expit((relief - scene.specks) / 0.08)[..., None]
    mirrored: FloatArray = colours + alpha * (1.1 - colours)
    return mirrored


def _light(scene: Scene) -> FloatArray:
    """Light on each pixel and channel."""
    light = scene.light
    rows, columns = _positions(scene.size)
    fall = light.gradient[0] * rows + light.gradient[1] * columns + light.vignette * _radius(scene.size) ** 2
    brightness: FloatArray = light.exposure * np.exp(0.1 - fall)[..., None] * np.array(light.balance)
    return brightness
