import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import iaunet


@pytest.mark.parametrize("name", iaunet.STAGES)
def test_every_stage_is_found_under_its_name(name):
    assert getattr(iaunet, name).__name__ == iaunet.STAGES[name].partition(":")[2]
    assert name in dir(iaunet)


def test_type_checkers_know_the_same_stages_from_the_same_places():
    tree = ast.parse(Path(iaunet.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]

    typed = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == iaunet.STAGES
    assert {*iaunet.__all__} == {*iaunet.STAGES}


def test_the_version_is_that_of_the_package():
    assert iaunet.__version__ == version("iaunet")


def test_an_unknown_name_is_no_stage():
    with pytest.raises(AttributeError, match="has no attribute 'sing'"):
        iaunet.sing  # noqa: B018


def test_importing_iaunet_imports_no_stage_and_no_torch():
    code = "import sys, iaunet; print([m for m in sys.modules if m.startswith(('iaunet.', 'torch', 'numpy'))])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
