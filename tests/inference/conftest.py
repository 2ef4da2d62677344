"""A plan made without reading data."""

from collections.abc import Callable
from typing import Any

import pytest

from iaunet.dataset import MaskCoding
from iaunet.planners.plan import InferencePlan, NetworkPlan, Normalisation, Plan
from iaunet.planners.recipes import find_recipe


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    """A plan of 64x64 px tiles for grey 8-bit images with one label, 255, unless ``fields`` say otherwise."""

    def make_plan(**fields: Any) -> Plan:
        labels, channels = fields.get("labels", ("foreground",)), fields.get("channels", 1)
        usual: dict[str, Any] = {
            "planner": "auto",
            "dataset": "toy",
            "fingerprint": "0",
            "channels": 1,
            "depth": "uint8",
            "labels": labels,
            "coding": MaskCoding(kind="values", values=(255,), written=(255,)),
            "input_mode": "tiles",
            "input_size": (64, 64),
            "normalisation": Normalisation(kind="dataset", mean=(100.0,) * channels, sd=(50.0,) * channels),
            "network": NetworkPlan(name="unet", width=4, depth=3),
            "recipe": find_recipe("paper"),
            "inference": InferencePlan(mirroring=False, thresholds=(0.5,) * len(labels)),
            "split": "random",
            "why": {},
        }
        return Plan(**(usual | fields))

    return make_plan
