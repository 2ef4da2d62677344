"""What tests share: a toy dataset of bright ellipses, and the real data where they lie beside the checkout."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TOY_SIDE = 64


def toy_case(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image [64, 64, 3] uint8 and its mask [64, 64] of 0 and 255: a bright ellipse on clouds, unlike the others."""
    rng = np.random.default_rng(number)
    clouds = rng.integers(20, 110, (4, 4, 3), dtype=np.uint8)
    ground = np.asarray(Image.fromarray(clouds).resize((TOY_SIDE, TOY_SIDE), Image.Resampling.BICUBIC)).astype(float)
    rows, columns = np.mgrid[:TOY_SIDE, :TOY_SIDE] / TOY_SIDE
    centre, radii = rng.uniform(0.35, 0.65, 2), rng.uniform(0.12, 0.3, 2)
    inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1
    image = ground + inside[..., None] * (90.0, 60.0, 40.0) + rng.normal(0, 8, ground.shape)
    return image.clip(0, 255).astype(np.uint8), np.where(inside, np.uint8(255), np.uint8(0))


def write_toy_dataset(folder: Path, n_cases: int = 12) -> Path:
    """Write ``images/case_00.png`` ... and ``masks/case_00.png`` ...: the same bytes each time. Returns the folder."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(n_cases):
        image, mask = toy_case(number)
        Image.fromarray(image).save(folder / "images" / f"case_{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"case_{number:02d}.png")
    return folder


@pytest.fixture
def write_toy() -> Callable[..., Path]:
    """`write_toy_dataset`, for tests that say where and how much."""
    return write_toy_dataset


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A toy dataset of 12 cases, the test's own to spoil."""
    return write_toy_dataset(tmp_path / "toy")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real datasets, $IAUNET_REAL_DATA or ../shared/data; the test is skipped without it."""
    folder = Path(os.environ.get("IAUNET_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder
