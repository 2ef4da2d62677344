"""Judges what the values of all masks together mean."""

from collections import Counter
from collections.abc import Sequence

from iaunet.dataset import MaskCoding, Problem
from iaunet.errors import FileError
from iaunet.planners.measures import MOST_MASK_VALUES, Measurement
from iaunet.planners.suspicions import ALL_MASKS

RAREST_VALUE = 1e-4
"""A value with a smaller share of all pixels is taken for noise, not for a label."""

LARGEST_VALUE = 65535
BINARY_TOLERANCE = 16
BINARY_SHARE = 0.98
MOST_UNNAMED_LABELS = 8
NUMBERED_SHARE = 0.9
"""Share of the cases whose values must number components for values to be taken for instances."""


def judge_masks(measurements: Sequence[Measurement]) -> tuple[MaskCoding, list[Problem]]:
    """Decide how mask values stand for labels.

    Args:
        measurements: Of all cases, by their masks' own values.

    Returns:
        The coding, and notes where it is not the plain one.

    Raises:
        FileError: All masks are empty, or the values fit no reading; the message shows their histogram.
    """
    totals: Counter[int] = Counter()
    for measurement in measurements:
        totals.update(measurement.mask_values or {})
    positive = sorted(value for value in totals if value > 0)
    pixels = totals.total()
    if not positive:
        raise FileError(
            "all masks are empty", "check that the masks are those of these images and that foreground is above 0"
        )
    if min(totals) < 0 or max(totals) > LARGEST_VALUE:
        raise FileError(f"masks hold values from {min(totals)} to {max(totals)}", f"bring them to 0 to {LARGEST_VALUE}")
    if 0 not in totals:
        raise FileError(f"no mask has background, the values are {_shares(totals)}", "set background to 0")
    if _are_instances(measurements):
        coding = MaskCoding(kind="nonzero", values=(), written=(255,))
        what = f"values up to {positive[-1]} number connected components: read as one label"
        return coding, [_note(what, "give label maps if they are labels")]
    has_no_noise = len(positive) == 1 or min(totals.values()) >= RAREST_VALUE * pixels
    if len(totals) <= MOST_MASK_VALUES and has_no_noise:
        if len(positive) > MOST_UNNAMED_LABELS:
            raise FileError(
                f"masks hold {len(positive)} labels without names ({_shares(totals)})",
                f"unite them to {MOST_UNNAMED_LABELS} at most, or save 0 and 255 if they are one label",
            )
        return MaskCoding(kind="values", values=tuple(positive), written=tuple(positive)), []
    near_ends = sum(n for value, n in totals.items() if min(value, abs(255 - value)) <= BINARY_TOLERANCE)
    has_foreground = sum(n for value, n in totals.items() if abs(255 - value) <= BINARY_TOLERANCE)
    if near_ends >= BINARY_SHARE * pixels and has_foreground >= RAREST_VALUE * pixels:
        share = near_ends / pixels
        what = f"masks are binary with noise ({share:.1%} of pixels within 16 of 0 or 255): cut at 127"
        note = _note(what, "save them as PNG to keep them exact")
        return MaskCoding(kind="binary", values=(), written=(255,)), [note]
    raise FileError(
        f"mask values are neither labels (at most {MOST_MASK_VALUES}, none under {RAREST_VALUE:.2%} of the pixels) "
        f"nor black and white ({_shares(totals)})",
        "save masks as PNG with 0 for background and one value a label",
    )


def _are_instances(measurements: Sequence[Measurement]) -> bool:
    """Whether the values number connected components: 1..n, a component each, with n unlike from case to case."""
    with_foreground = [m for m in measurements if any(value > 0 for value in m.mask_values or ())]
    numbers = [m.instances for m in with_foreground if m.instances]
    is_usual = len(numbers) >= NUMBERED_SHARE * len(with_foreground)
    return is_usual and len(set(numbers)) >= 3 and max(numbers) >= 3


def _shares(totals: Counter[int]) -> str:
    pixels = totals.total()
    common = totals.most_common(6)
    text = ", ".join(f"{value}: {n / pixels:.2%}" for value, n in sorted(common))
    return text + (f", {len(totals) - 6} more" if len(totals) > 6 else "")


def _note(what: str, mend: str) -> Problem:
    return Problem(level="note", file=ALL_MASKS, what=what, mend=mend)
