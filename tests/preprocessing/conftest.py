"""A plan of the toy dataset, made without reading it."""

from collections.abc import Callable
from typing import Any

import pytest

from iaunet.dataset import MaskCoding
from iaunet.planners.plan import InferencePlan, NetworkPlan, Normalisation, Plan
from iaunet.planners.recipes import find_recipe


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    """A plan for grey 8-bit images with one label unless ``fields`` say otherwise."""

    def make_plan(**fields: Any) -> Plan:
        usual: dict[str, Any] = {
            "planner": "auto",
            "dataset": "toy",
            "fingerprint": "0",
            "channels": 1,
            "labels": ("foreground",),
            "coding": MaskCoding(kind="values", values=(255,), written=(255,)),
            "input_mode": "letterbox",
            "input_size": (64, 64),
            "normalisation": Normalisation(kind="dataset", mean=(100.0,), sd=(50.0,)),
            "network": NetworkPlan(name="unet", width=4, depth=3),
            "recipe": find_recipe("paper"),
            "inference": InferencePlan(mirroring=False, thresholds=(0.5,)),
            "split": "random",
            "why": {},
        }
        return Plan(**(usual | fields))

    return make_plan
