import subprocess
import sys

import pytest

import iaunet


@pytest.mark.parametrize("name", iaunet.STAGES)
def test_every_stage_is_found_under_its_name(name):
    assert getattr(iaunet, name).__name__ == name
    assert name in dir(iaunet)


def test_an_unknown_name_is_no_stage():
    with pytest.raises(AttributeError, match="has no attribute 'sing'"):
        iaunet.sing  # noqa: B018


def test_importing_iaunet_imports_no_stage_and_no_torch():
    code = "import sys, iaunet; print([m for m in sys.modules if m.startswith(('iaunet.', 'torch', 'numpy'))])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
