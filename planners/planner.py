"""Planners: they decide everything about a dataset from its fingerprint, and say why."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from iaunet.dataset import Dataset
from iaunet.errors import PlanError
from iaunet.planners import rules
from iaunet.planners.fingerprint import INPUT_SIZE, Fingerprint
from iaunet.planners.folds import Splits, make_splits
from iaunet.planners.plan import InferencePlan, NetworkOption, NetworkPlan, Normalisation, Plan, content_digest
from iaunet.planners.recipes import RECIPES, Recipe
from iaunet.planners.rules import Choice, InputMode

USUAL_WIDTH = 64

NO_GROUPS = "no groups: optimistic if images share patients"


class AutoPlanner:
    """Decides the best we know. Override one of its steps to decide one thing otherwise."""

    name = "auto"

    def plan(
        self,
        dataset: Dataset,
        fingerprint: Fingerprint,
        width: int | None = None,
        missing_splits: Mapping[str, str] | None = None,
        before: Plan | None = None,
    ) -> Plan:
        """Decide everything.

        Args:
            dataset: What was understood of the raw data.
            fingerprint: What was measured on it.
            width: Channels of the network's first stage, when the user wishes others than the planner's.
            missing_splits: The splits that could not be made, with the reason.
            before: The plan of an earlier state of the data.
        """
        mode = self.choose_input_mode(fingerprint)
        normalisation = self.choose_normalisation(dataset, fingerprint, before)
        network = self.choose_network(width)
        recipe = self.choose_recipe(fingerprint, mode.value)
        inference = self.choose_inference(dataset)
        split = self.choose_split(dataset, fingerprint, missing_splits or {})
        plan = Plan(
            planner=self.name,
            dataset=dataset.name,
            fingerprint=fingerprint.digest,
            channels=fingerprint.channels,
            depth=fingerprint.depth,
            labels=dataset.labels,
            coding=dataset.coding,
            slicing=dataset.slicing,
            channel_files=dataset.channel_files,
            input_mode=mode.value.mode,
            input_size=self.choose_input_size(),
            tile_scale=mode.value.tile_scale,
            equal_spacing=mode.value.equal_spacing,
            normalisation=normalisation.value,
            network=network.value,
            recipe=recipe.value,
            inference=inference.value,
            split=split.value,
            why={
                "input_mode": mode.why,
                "normalisation": normalisation.why,
                "network": network.why,
                "recipe": recipe.why,
                "inference": inference.why,
                "split": split.why,
            },
            warnings=_warnings(dataset, fingerprint, mode.value),
        )
        return dataclasses.replace(plan, planned=content_digest(plan))

    def choose_input_size(self) -> tuple[int, int]:
        """(height, width) of the network's input: the paper's."""
        return INPUT_SIZE

    def choose_input_mode(self, fingerprint: Fingerprint) -> Choice[InputMode]:
        """Stretched, with its aspect kept, or cut into tiles."""
        return rules.choose_input_mode(fingerprint, self.choose_input_size())

    def choose_normalisation(
        self, dataset: Dataset, fingerprint: Fingerprint, before: Plan | None
    ) -> Choice[Normalisation]:
        """By the dataset's statistics or by each case's own."""
        return rules.choose_normalisation(fingerprint, dataset.channel_kinds, before.normalisation if before else None)

    def choose_split(
        self, dataset: Dataset, fingerprint: Fingerprint, missing: Mapping[str, str]
    ) -> Choice[Literal["random", "grouped"]]:
        """Which folds are trained on unless the user says otherwise."""
        n_groups = len(set(dataset.groups.values()))
        return rules.choose_split(fingerprint, n_groups, len(dataset.cases), missing.get("grouped"))

    def choose_network(self, width: int | None) -> Choice[NetworkPlan]:
        """The integrated attention network in its full-resolution variant."""
        width = USUAL_WIDTH if width is None else width
        max_keys = rules.choose_max_keys(width)
        options: dict[str, NetworkOption] = {
            "variant": "fullres",
            "spatial_attention": "mean",
            "max_keys": max_keys,
            "separate_mlps": False,
        }
        why = (
            f"the paper's network at full resolution; spatial attention `mean` over at most {max_keys} pooled keys, "
            "since the equation as printed saturates"
        )
        if width != USUAL_WIDTH:
            why += f"; width {width} as asked instead of {USUAL_WIDTH}"
        if max_keys != rules.MANY_KEYS:
            why += f", and so narrow a network would spend most of its time on {rules.MANY_KEYS} keys"
        return Choice(NetworkPlan(name="iaunet", width=width, depth=5, options=options), why)

    def choose_recipe(self, fingerprint: Fingerprint, mode: InputMode) -> Choice[Recipe]:
        """The strongest recipe, for as long as the number of cases asks."""
        choice = rules.choose_epochs(fingerprint, mode, RECIPES["best"].batch_size)
        draws, epochs = choice.value
        recipe = dataclasses.replace(RECIPES["best"], draws_a_case=draws, epochs=epochs)
        return Choice(recipe, f"best: strong augmentation, cosine schedule, averaged weights; {choice.why}")

    def choose_inference(self, dataset: Dataset) -> Choice[InferencePlan]:
        """Mirroring, and thresholds of one half."""
        thresholds = (0.5,) * len(dataset.labels)
        why = "flips are part of training, so averaging over them helps; thresholds 0.5 until fitted"
        return Choice(InferencePlan(mirroring=True, thresholds=thresholds), why)


class PaperPlanner(AutoPlanner):
    """The paper's recipe to the letter: brightness and flips, Adam 1e-4, L2 1e-5, batch 16, 500 epochs."""

    name = "paper"

    def choose_recipe(self, fingerprint: Fingerprint, mode: InputMode) -> Choice[Recipe]:
        """The paper's."""
        why = "paper: brightness and flips, Adam 1e-4, L2 1e-5, batch 16, 500 epochs"
        return Choice(RECIPES["paper"], why)

    def choose_inference(self, dataset: Dataset) -> Choice[InferencePlan]:
        """One pass an image: the paper mentions no mirroring."""
        thresholds = (0.5,) * len(dataset.labels)
        return Choice(InferencePlan(mirroring=False, thresholds=thresholds), "the paper tells of one pass")


PLANNERS: Mapping[str, type[AutoPlanner]] = {"auto": AutoPlanner, "paper": PaperPlanner}


def plan_dataset(
    dataset: Dataset,
    fingerprint: Fingerprint,
    planner: AutoPlanner | None = None,
    *,
    width: int | None = None,
    n_folds: int = 5,
    known_folds: Mapping[str, Sequence[Sequence[str]]] | None = None,
    before: Plan | None = None,
) -> tuple[Plan, Splits]:
    """Decide everything about a dataset: how it is trained on, and its folds.

    Args:
        dataset: What was understood of the raw data.
        fingerprint: What was measured on it.
        planner: Decides; None for `AutoPlanner`.
        width: Channels of the network's first stage, when the user wishes others than the planner's.
        n_folds: Folds of each split.
        known_folds: The held-out cases of each fold of an earlier planning, by split: known cases keep their fold.
        before: The plan of an earlier state of the data.

    Raises:
        PlanError: Folds cannot be made of so few cases or groups.
    """
    splits = make_splits(fingerprint, dataset.groups, n_folds, known_folds)
    return (planner or AutoPlanner()).plan(dataset, fingerprint, width, splits.missing, before), splits


def find_planner(name: str) -> AutoPlanner:
    """The planner of a name.

    Raises:
        PlanError: There is none; the message lists the known ones.
    """
    if name not in PLANNERS:
        raise PlanError(f"planner {name!r} is not known: choose one of {', '.join(PLANNERS)}")
    return PLANNERS[name]()


def _warnings(dataset: Dataset, fingerprint: Fingerprint, mode: InputMode) -> tuple[str, ...]:
    lost = rules.find_lost_detail(fingerprint, mode)
    shared = fingerprint.shared_look
    found = [
        lost,
        None if dataset.groups else NO_GROUPS,
        f"{shared} cases look alike in large groups: taken for a shared look, not for duplicates" if shared else None,
    ]
    return tuple(warning for warning in found if warning)
