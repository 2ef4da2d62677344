"""A plan made without reading data, pictures of a page, and commands that do not wait for their threads."""

import base64
import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from iaunet.dataset import MaskCoding
from iaunet.planners.plan import InferencePlan, NetworkPlan, Normalisation, Plan
from iaunet.planners.recipes import find_recipe


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Each command estimates the time of training by a few small steps, which two threads make slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for the commands that are started as processes
        yield
    torch.set_num_threads(before)


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    """A plan for grey 8-bit images with one label unless ``fields`` say otherwise."""

    def make_plan(**fields: Any) -> Plan:
        usual: dict[str, Any] = {
            "planner": "auto",
            "dataset": "toy",
            "fingerprint": "0",
            "channels": 1,
            "depth": "uint8",
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


@pytest.fixture(scope="session")
def decode() -> Callable[[str], Image.Image]:
    """The picture of a data URI."""

    def decode(uri: str) -> Image.Image:
        kind, data = re.fullmatch(r"data:image/(jpeg|png);base64,([A-Za-z0-9+/=]+)", uri).groups()
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.format == kind.upper()
        return picture

    return decode
