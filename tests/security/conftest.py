"""What tests of hostile and damaged files share."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mutate() -> Callable[..., bytes]:
    """`mutations.mutate`: the bytes of a sound file, a generator of numpy (and another file), a damaged file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        return import_module("mutations").mutate
