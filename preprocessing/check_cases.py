"""The cases that the page ``check.html`` shows: a spread of all, the strangest ones, and equal images."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iaunet.planners.fingerprint import CaseFingerprint, Fingerprint
from iaunet.preprocessing.check_facts import counted
from iaunet.preprocessing.check_figures import Figure, Group

N_SPREAD = 12
N_STRANGEST = 6
STRANGE_Z = 3.5
"""A robust z beyond this is marked, as is usual (Iglewicz and Hoaglin, 1993)."""

MOST_DUPLICATES, MOST_COPIES_SHOWN = 30, 4

SD_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Respect:
    """One respect in which a case can be strange.

    ``figure`` is what the robust z is taken of, None for a case that has none; ``end`` says which end is strange.
    """

    title: str
    meaning: str
    figure: Callable[[CaseFingerprint], float | None]
    say: Callable[[CaseFingerprint], str]
    end: Literal["both", "high", "low"]


def spread_cases(fingerprint: Fingerprint) -> list[Figure]:
    """Cases from the least foreground to the most: of each twelfth the one whose name has the smallest hash."""
    ranked = sorted(fingerprint.cases, key=lambda case: (case.foreground_share, case.name))
    parts = np.array_split(np.arange(len(ranked)), N_SPREAD)
    chosen = [min((ranked[i] for i in part), key=_name_hash) for part in parts if len(part)]
    return [Figure(name=case.name, says=(_say_share(case),)) for case in chosen]


def find_strangest(fingerprint: Fingerprint) -> list[Group]:
    """The strangest cases in each respect, the strangest first; no group where all are alike."""
    return [
        Group(title=respect.title, meaning=respect.meaning, figures=figures)
        for respect in _respects(fingerprint)
        if (figures := _strangest(respect, fingerprint.cases))
    ]


def find_duplicates(fingerprint: Fingerprint, group_of: Mapping[str, str]) -> list[Group]:
    """Equal images, then nearly equal ones; the first few of each group."""
    masks = {case.name: case.mask_sha256 for case in fingerprint.cases}
    exact = set(map(frozenset, fingerprint.exact_duplicates))
    near = [names for names in fingerprint.near_duplicates if frozenset(names) not in exact]
    groups = []
    for names in [*fingerprint.exact_duplicates, *near][:MOST_DUPLICATES]:
        is_exact = frozenset(names) in exact
        differ = is_exact and len({masks[name] for name in names}) > 1
        shown = names[:MOST_COPIES_SHOWN]
        how = "equal to the byte" if is_exact else "nearly equal"
        more = f" (the first {len(shown)} shown)" if len(shown) < len(names) else ""
        figures = tuple(
            Figure(name=name, says=(f"group {group_of[name]}",) if name in group_of else (), marked=differ)
            for name in shown
        )
        title = f"{len(names)} cases {how}{', but their mask files differ' if differ else ''}{more}"
        groups.append(Group(title=title, figures=figures))
    return groups


def count_duplicates(fingerprint: Fingerprint | None) -> int:
    """How many groups of equal or nearly equal images there are."""
    if fingerprint is None:
        return 0
    return len({*map(frozenset, fingerprint.exact_duplicates), *map(frozenset, fingerprint.near_duplicates)})


def robust_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far values [n] lie from their median, in robust standard deviations.

    These are 1.4826 median absolute deviations, or where more than half of the values are equal 1.2533 mean absolute
    deviations: both are the standard deviation of normal values. All 0 where all are equal.
    """
    distance = values - np.median(values)
    spread = 1.4826 * np.median(np.abs(distance)) or 1.2533 * np.mean(np.abs(distance))
    return np.asarray(distance / spread if spread else np.zeros_like(distance))


def _strangest(respect: Respect, cases: Sequence[CaseFingerprint]) -> tuple[Figure, ...]:
    """The cases furthest out, none that lie on the median."""
    measured = [(case, figure) for case in cases if (figure := respect.figure(case)) is not None]
    if not measured:
        return ()
    z = robust_z(np.array([figure for _, figure in measured]))
    strangeness = {"both": np.abs(z), "high": z, "low": -z}[respect.end]
    order = np.argsort(-strangeness, kind="stable")[:N_STRANGEST]
    return tuple(
        Figure(
            name=measured[i][0].name,
            says=(respect.say(measured[i][0]), f"robust z {z[i]:+.1f}"),
            marked=bool(strangeness[i] >= STRANGE_Z),
        )
        for i in order
        if strangeness[i] > 0
    )


def _respects(fingerprint: Fingerprint) -> list[Respect]:
    mean = np.array([channel.mean for channel in fingerprint.intensity])
    sd = np.maximum([channel.sd for channel in fingerprint.intensity], SD_FLOOR)

    def distance(case: CaseFingerprint) -> float:
        """Root mean square over the channels; a grey case counts in each."""
        own = np.array([channel.mean for channel in case.intensity])
        return float(np.sqrt(np.mean(((own - mean) / sd) ** 2)))

    def say_distance(case: CaseFingerprint) -> str:
        means = ", ".join(f"{channel.mean:.4g}" for channel in case.intensity)
        return f"mean {means}: {distance(case):.2f} sd from the data set's"

    usual = ", ".join(f"{value:.4g}" for value in mean)
    share = "share of the pixels that have a label, compared by its logarithm"
    return [
        Respect(
            title="Size",
            meaning="area in pixels, compared by its logarithm",
            figure=lambda case: math.log(case.size[0] * case.size[1]),
            say=lambda case: f"{case.size[0]} x {case.size[1]} px",
            end="both",
        ),
        Respect(
            title="Aspect",
            meaning="height divided by width, compared by its logarithm",
            figure=lambda case: math.log(case.size[0] / case.size[1]),
            say=lambda case: f"{case.size[0]} x {case.size[1]} px, aspect {case.size[0] / case.size[1]:.2f}",
            end="both",
        ),
        Respect(
            title="Colour or intensity",
            meaning=f"distance of the channels' means from the data set's ({usual}), in sd of its pixels",
            figure=distance,
            say=say_distance,
            end="high",
        ),
        Respect(title="Most foreground", meaning=share, figure=_log_share, say=_say_share, end="high"),
        Respect(title="Least foreground above none", meaning=share, figure=_log_share, say=_say_share, end="low"),
        Respect(
            title="Number of components",
            meaning="connected parts of all labels",
            figure=_components,
            say=lambda case: counted(_components(case), "component"),
            end="high",
        ),
        Respect(
            title="Lowest ceiling",
            meaning="Dice of the true mask at the network's size and back: without tiles no prediction can score more",
            figure=lambda case: case.ceiling,
            say=lambda case: f"ceiling {case.ceiling:.3f}",
            end="low",
        ),
    ]


def _log_share(case: CaseFingerprint) -> float | None:
    return math.log(case.foreground_share) if case.foreground_share > 0 else None


def _say_share(case: CaseFingerprint) -> str:
    return f"foreground {case.foreground_share:.2%}"


def _components(case: CaseFingerprint) -> int:
    return sum(label.components for label in case.labels if label)


def _name_hash(case: CaseFingerprint) -> bytes:
    return hashlib.sha256(case.name.encode()).digest()
