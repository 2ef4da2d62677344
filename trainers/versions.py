"""The versions of what computes a result."""

import platform
from collections.abc import Sequence
from importlib.metadata import version


def library_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names: Sequence[str] = ("iaunet", "torch", "numpy", "batchgenerators", "Pillow", "scipy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
