"""Planners: they decide everything about a dataset from its fingerprint, and say why."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from iaunet.dataset import Dataset
from iaunet.errors import PlanError
from iaunet.planners import rules
from iaunet.planners.fingerprint import INPUT_SIZE, Fingerprint
from iaunet.planners.plan import InferencePlan, NetworkPlan, Normalisation, Plan, content_digest
from iaunet.planners.recipes import RECIPES, Recipe
from iaunet.planners.rules import Choice

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
    ) -> Plan:
        """Decide everything.

        Args:
            dataset: What was understood of the raw data.
            fingerprint: What was measured on it.
            width: Channels of the network's first stage, when the user wishes others than the planner's.
            missing_splits: The splits that could not be made, with the reason.
        """
        mode = self.choose_input_mode(fingerprint)
        normalisation = self.choose_normalisation(fingerprint)
        network = self.choose_network(width)
        recipe = self.choose_recipe(fingerprint)
        inference = self.choose_inference(fingerprint)
        split = self.choose_split(dataset, fingerprint, missing_splits or {})
        plan = Plan(
            planner=self.name,
            dataset=dataset.name,
            fingerprint=fingerprint.digest,
            channels=fingerprint.channels,
            depth=fingerprint.depth,
            labels=dataset.labels,
            coding=dataset.coding,
            input_mode=mode.value,
            input_size=self.choose_input_size(),
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
            warnings=_warnings(dataset, fingerprint),
        )
        return dataclasses.replace(plan, planned=content_digest(plan))

    def choose_input_size(self) -> tuple[int, int]:
        """(height, width) of the network's input: the paper's."""
        return INPUT_SIZE

    def choose_input_mode(self, fingerprint: Fingerprint) -> Choice[Literal["resize", "letterbox"]]:
        """Stretched or with its aspect kept."""
        return rules.choose_input_mode(fingerprint, self.choose_input_size())

    def choose_normalisation(self, fingerprint: Fingerprint) -> Choice[Normalisation]:
        """By the dataset's statistics or by each image's own."""
        return rules.choose_normalisation(fingerprint)

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
        options: dict[str, str | int | float | bool | None] = {
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

    def choose_recipe(self, fingerprint: Fingerprint) -> Choice[Recipe]:
        """The strongest recipe, for as long as the number of cases asks."""
        epochs = rules.choose_epochs(fingerprint, RECIPES["best"].batch_size)
        recipe = dataclasses.replace(RECIPES["best"], epochs=epochs.value)
        return Choice(recipe, f"best: strong augmentation, cosine schedule, averaged weights; {epochs.why}")

    def choose_inference(self, fingerprint: Fingerprint) -> Choice[InferencePlan]:
        """Mirroring, and thresholds of one half."""
        thresholds = (0.5,) * len(fingerprint.labels)
        why = "flips are part of training, so averaging over them helps; thresholds 0.5 until fitted"
        return Choice(InferencePlan(mirroring=True, thresholds=thresholds), why)


class PaperPlanner(AutoPlanner):
    """The paper's recipe to the letter: brightness and flips, Adam 1e-4, L2 1e-5, batch 16, 500 epochs."""

    name = "paper"

    def choose_recipe(self, fingerprint: Fingerprint) -> Choice[Recipe]:
        """The paper's."""
        why = "paper: brightness and flips, Adam 1e-4, L2 1e-5, batch 16, 500 epochs"
        return Choice(RECIPES["paper"], why)

    def choose_inference(self, fingerprint: Fingerprint) -> Choice[InferencePlan]:
        """One pass an image: the paper mentions no mirroring."""
        thresholds = (0.5,) * len(fingerprint.labels)
        return Choice(InferencePlan(mirroring=False, thresholds=thresholds), "the paper tells of one pass")


PLANNERS: Mapping[str, type[AutoPlanner]] = {"auto": AutoPlanner, "paper": PaperPlanner}


def find_planner(name: str) -> AutoPlanner:
    """The planner of a name.

    Raises:
        PlanError: There is none; the message lists the known ones.
    """
    if name not in PLANNERS:
        raise PlanError(f"planner {name!r} is not known: choose one of {', '.join(PLANNERS)}")
    return PLANNERS[name]()


def _warnings(dataset: Dataset, fingerprint: Fingerprint) -> tuple[str, ...]:
    lost = rules.find_lost_detail(fingerprint)
    shared = fingerprint.shared_look
    found = [
        lost,
        None if dataset.groups else NO_GROUPS,
        f"{shared} cases look alike in large groups: taken for a shared look, not for duplicates" if shared else None,
    ]
    return tuple(warning for warning in found if warning)
