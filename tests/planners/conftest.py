"""Fingerprints made by hand, for the rules and the folds that follow from them."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from iaunet.planners.fingerprint import CaseFingerprint, Fingerprint, LabelFingerprint
from iaunet.planners.histogram import Intensity

INTENSITY = Intensity(mean=100.0, sd=20.0, percentiles=(0.0, 1.0, 5.0, 100.0, 200.0, 250.0, 255.0))


def make_case(
    name: str,
    size: tuple[int, int] = (100, 100),
    share: float = 0.1,
    ceiling: float = 0.99,
    width: float | None = 20.0,
    mean: float = 100.0,
    tile_ceilings: tuple[float, ...] = (),
    slices: int = 1,
    spacing_mm: tuple[float, float, float] | None = None,
    percentiles: tuple[float, ...] = INTENSITY.percentiles,
) -> CaseFingerprint:
    """A grey case with one label, or an empty mask where ``share`` is 0."""
    measured = LabelFingerprint(share=share, components=1, diameter=30.0, ceiling=ceiling, tile_ceilings=tile_ceilings)
    label = measured if share else None
    intensity = Intensity(mean=mean, sd=20.0, percentiles=percentiles)
    return CaseFingerprint(
        name=name,
        shape=(slices, *size),
        spacing_mm=spacing_mm,
        channels=1,
        image_sha256="0" * 64,
        mask_sha256=None,
        intensity=(intensity,),
        foreground=(intensity,) if share else (),
        labels=(label,),
        local_width=width if share else None,
    )


def make_fingerprint_of(cases: Sequence[CaseFingerprint], **fields: Any) -> Fingerprint:
    """A fingerprint of these cases, 8-bit grey with one label unless ``fields`` say otherwise."""
    usual: dict[str, Any] = {
        "channels": 1,
        "depth": "uint8",
        "labels": ("foreground",),
        "intensity": (INTENSITY,),
        "foreground": (INTENSITY,),
        "exact_duplicates": (),
        "near_duplicates": (),
        "shared_look": 0,
    }
    return Fingerprint(cases=tuple(cases), **(usual | fields))


@pytest.fixture(scope="session")
def case() -> Callable[..., CaseFingerprint]:
    """`make_case`."""
    return make_case


@pytest.fixture(scope="session")
def fingerprint() -> Callable[..., Fingerprint]:
    """`make_fingerprint_of`."""
    return make_fingerprint_of
