"""Tells in words what was read, decided and written."""

from collections import Counter
from pathlib import Path

import numpy as np

from iaunet.nnunet import find_splits_file
from iaunet.planners.folds import Splits
from iaunet.planners.plan import EDITED, Plan
from iaunet.preprocessing.arrays import Index
from iaunet.preprocessing.preparation import Prepared
from iaunet.preprocessing.preprocess import make_index


def describe(prepared: Prepared) -> list[str]:
    """The lines that tell about a prepared dataset: its data, its plan with the reasons, its files, what is next."""
    lines = _describe_data(prepared)
    if prepared.plan is None or prepared.splits is None:
        return [*lines, "checked; nothing was planned (--verify_only)"]
    lines += _describe_plan(prepared.plan)
    lines += _describe_splits(prepared.splits)
    foreign = find_splits_file(Path(prepared.dataset.source.root))
    if foreign is not None:
        lines.append(f"folds      those of nnU-Net are in {foreign}: train on them with --split and this path")
    index = prepared.index or make_index(prepared.fingerprint, prepared.plan)
    lines.append(f"arrays     {_describe_arrays(index)}")
    if prepared.index is None:
        return [*lines, "nothing was written (--dry_run)"]
    lines += [
        f"written    {prepared.folder.root}",
        f"look at    {prepared.folder.check_html}",
        f"next       iaunet_train {prepared.folder.name} 0 (one fold) or iaunet_train {prepared.folder.name} cv (all)",
    ]
    return lines


def _describe_data(prepared: Prepared) -> list[str]:
    fingerprint, dataset = prepared.fingerprint, prepared.dataset
    shares = [case.foreground_share for case in fingerprint.cases]
    sizes = Counter(case.size for case in fingerprint.cases)
    (height, width), n_usual = sizes.most_common(1)[0]
    slices = f", {sum(case.shape[0] for case in fingerprint.cases)} slices" if fingerprint.are_volumes else ""
    n_groups = len(set(dataset.groups.values()))
    duplicates = sum(len(group) - 1 for group in fingerprint.exact_duplicates)
    near = sum(map(len, fingerprint.near_duplicates))
    ceiling = np.median(fingerprint.ceilings) if len(fingerprint.ceilings) else float("nan")
    return [
        f"cases      {len(fingerprint.cases)}, {len(sizes)} sizes, most often {height} x {width} ({n_usual}){slices}",
        f"pixels     {fingerprint.channels} channels, {fingerprint.depth}",
        f"labels     {', '.join(dataset.labels)}; foreground {np.median(shares):.1%} of an image (median)",
        f"empty      {fingerprint.empty_masks} masks",
        f"groups     {n_groups or 'none'} ({dataset.groups_from})",
        f"duplicates {duplicates} exact copies, {near} cases nearly equal to another",
        f"ceiling    median Dice {ceiling:.3f} for masks taken to the network's size and back",
        *_describe_test_set(prepared),
    ]


def _describe_test_set(prepared: Prepared) -> list[str]:
    held_out = prepared.held_out
    if held_out is None:
        return []
    command = f"iaunet_predict -d {prepared.folder.name} --test -o FOLDER"
    lines = [f"test set   {held_out.understood}; read and compared, not planned on; when trained: {command}"]
    is_told = prepared.plan is not None  # among its warnings
    return [*lines, *([f"warning    {held_out.leakage}"] if held_out.leakage and not is_told else [])]


def _describe_plan(plan: Plan) -> list[str]:
    network, recipe = plan.network, plan.recipe
    options = ", ".join(f"{key} {value}" for key, value in network.options.items())
    variant = f" ({options})" if options else ""
    choices = {
        "input_mode": _describe_mode(plan),
        "normalisation": f"by {plan.normalisation.kind}",
        "network": f"{network.name}, width {network.width}, depth {network.depth}{variant}",
        "recipe": f"{recipe.name}, {recipe.epochs} epochs, batch {recipe.batch_size}, lr {recipe.lr:g}",
        "inference": f"mirroring {'on' if plan.inference.mirroring else 'off'}",
        "split": plan.split,
    }
    lines = [f"plan       by planner {plan.planner}{', edited by hand' if plan.is_edited else ''}"]
    for field, choice in choices.items():
        lines += [f"  {field:13} {choice}", f"  {'':13}   because: {plan.why.get(field, EDITED)}"]
    return lines + [f"warning    {warning}" for warning in plan.warnings]


def _describe_mode(plan: Plan) -> str:
    height, width = plan.input_size
    if plan.input_mode == "tiles":
        return f"tiles of {height} x {width} at {plan.tile_scale:g} of the native size"
    return f"{plan.input_mode} to {height} x {width}"


def _describe_splits(splits: Splits) -> list[str]:
    lines = []
    for name, split in splits.splits.items():
        sizes = ", ".join(str(len(fold.validation)) for fold in split.folds)
        lines.append(f"folds      {name}: {sizes} cases held out{f' ({split.inflated})' if split.inflated else ''}")
    return lines + [f"folds      {name}: not made: {why}" for name, why in splits.missing.items()]


def _describe_arrays(index: Index) -> str:
    return f"{len(index.rows)} rows, {index.n_bytes / 1e6:,.0f} MB"
