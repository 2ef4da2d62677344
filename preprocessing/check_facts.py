"""What the page ``check.html`` says of a dataset and its plan in words, numbers and a chart."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iaunet.dataset import Dataset, Problem
from iaunet.planners.fingerprint import Fingerprint
from iaunet.planners.folds import Splits
from iaunet.planners.plan import EDITED, Plan
from iaunet.preprocessing.arrays import Arrays
from iaunet.records import to_json

N_BARS = 25
CHART_WIDTH, CHART_HEIGHT = 600.0, 120.0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A histogram in SVG units: ``bars`` are (x, y, width, height, text), ``ticks`` (x, text)."""

    bars: tuple[tuple[float, float, float, float, str], ...]
    ticks: tuple[tuple[float, str], ...]
    median_x: float
    median: float
    lowest: float
    total: int


def describe_state(
    dataset: Dataset, problems: Sequence[Problem], plan: Plan | None, arrays: Arrays | None
) -> tuple[str, str, str]:
    """How far it got: a tone, a headline and what to do."""
    n = sum(problem.level == "fault" for problem in problems)
    faults = counted(n, "fault")
    if plan is None and n:
        advice = "Mend the files shown here, or leave such cases out with --skip_faulty, and plan again."
        return "bad", f"Planning stopped: {faults}", advice
    left_out = f" Cases with faults are left out ({faults})." if n else ""
    if plan is None:
        return "good", "Read and checked", f"Nothing was planned yet.{left_out}"
    if arrays is None:
        return "good", "Planned", f"No arrays were written yet, so raw files are shown.{left_out}"
    return "good", "Ready to train", f"Look through this page, then run iaunet_train {dataset.name} cv.{left_out}"


def describe_data(dataset: Dataset, fingerprint: Fingerprint) -> list[tuple[str, str]]:
    """What was found: names of facts, and what each is."""
    sizes = Counter(case.size for case in fingerprint.cases)
    (height, width), n_usual = sizes.most_common(1)[0]
    others = f" most often ({n_usual} cases), {len(sizes)} sizes in all" if len(sizes) > 1 else ""
    share = np.median([case.foreground_share for case in fingerprint.cases])
    group_sizes = Counter(dataset.groups.values()).values()
    groups = f"{len(group_sizes)}, {min(group_sizes)} to {max(group_sizes)} cases each" if group_sizes else "none"
    copies = sum(len(group) - 1 for group in fingerprint.exact_duplicates)
    near = sum(map(len, fingerprint.near_duplicates))
    facts = [
        ("Cases", f"{len(fingerprint.cases)}"),
        ("Size", f"{height} x {width} px{others}"),
        ("Pixels", f"{counted(fingerprint.channels, 'channel')}, {fingerprint.depth}"),
        ("Labels", ", ".join(dataset.labels or fingerprint.labels)),
        ("Foreground", f"{share:.1%} of an image (median)"),
        ("Empty masks", f"{fingerprint.empty_masks}"),
        ("Groups", f"{groups} ({dataset.groups_from})"),
        ("Duplicates", f"{counted(copies, 'exact copy', 'exact copies')}, {near} cases nearly equal to another"),
    ]
    if len(fingerprint.ceilings):
        ceiling = np.median(fingerprint.ceilings)
        facts.append(("Ceiling", f"median Dice {ceiling:.3f} for masks taken to the network's size and back"))
    return facts


def describe_choices(plan: Plan) -> list[tuple[str, str, str]]:
    """What was chosen, its value and why."""
    values = to_json(plan)
    network, recipe = plan.network, plan.recipe
    said = {
        "input_mode": f"{plan.input_mode} to {plan.input_size[0]} x {plan.input_size[1]} px",
        "normalisation": f"by {plan.normalisation.kind}",
        "network": f"{network.name}, width {network.width}, depth {network.depth}, {_plain(network.options)}",
        "recipe": f"{recipe.name}, {recipe.epochs} epochs, batch {recipe.batch_size}, lr {recipe.lr:g}",
        "inference": f"mirroring {'on' if plan.inference.mirroring else 'off'}",
        "split": plan.split,
    }
    fields = [*said, *(field for field in plan.why if field not in said)]
    return [
        (field.replace("_", " "), said.get(field) or _plain(values.get(field)), plan.why.get(field, EDITED))
        for field in fields
    ]


def ceiling_chart(ceilings: NDArray[np.float64]) -> Chart:
    """The histogram of the Dice [n] of true masks taken to the network's size and back."""
    low = min(0.9, math.floor(float(ceilings.min()) * 10) / 10)
    counts, edges = np.histogram(ceilings, N_BARS, (low, 1))

    def place(value: float) -> float:
        return round((value - low) / (1 - low) * CHART_WIDTH, 1)

    bars = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        height = round(CHART_HEIGHT * count / counts.max(), 1)
        text = f"{left:.3f} to {right:.3f}: {counted(int(count), 'case')}"
        bars.append((place(left) + 1, CHART_HEIGHT - height, CHART_WIDTH / N_BARS - 2, height, text))
    median = float(np.median(ceilings))
    return Chart(
        bars=tuple(bars),
        ticks=tuple((place(tick), f"{tick:.2f}") for tick in np.linspace(low, 1, 6)),
        median_x=place(median),
        median=median,
        lowest=float(ceilings.min()),
        total=len(ceilings),
    )


def describe_splits(splits: Splits, dataset: Dataset, fingerprint: Fingerprint) -> list[dict[str, Any]]:
    """For each split its name, why it is inflated, and of each fold the cases, groups and median foreground."""
    shares = {case.name: case.foreground_share for case in fingerprint.cases}
    described = []
    for name, split in splits.splits.items():
        folds = []
        for fold in split.folds:
            n_groups = len({dataset.groups[case] for case in fold.validation if case in dataset.groups})
            share = np.median([shares.get(case, 0.0) for case in fold.validation])
            folds.append((len(fold.train), len(fold.validation), n_groups, f"{share:.1%}"))
        described.append({"name": name, "inflated": split.inflated, "folds": folds})
    return described


def counted(n: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 case", "2 cases"."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def _plain(value: Any) -> str:
    """A plain value in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
