"""What docs/python.md says, done as it says."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def here(tmp_path, write_toy, monkeypatch):
    """A folder with the data the page speaks of."""
    toy = write_toy(tmp_path / "polyps", 10)
    for name, number in (("a", 3), ("b", 5)):
        for part, target in (("images", "new"), ("masks", "truth")):
            (tmp_path / target).mkdir(exist_ok=True)
            shutil.copyfile(toy / part / f"case_{number:02d}.png", tmp_path / target / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_of_the_page_run_one_after_the_other(here, capsys):
    values = {}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), values)

    assert len(BLOCKS) == 3
    for name in ("a", "b"):
        written = np.asarray(Image.open(here / "masks" / f"{name}.png"))
        np.testing.assert_array_equal(values["masks"]["ab".index(name)], written)
    np.testing.assert_array_equal(values["mask"], values["again"])
    np.testing.assert_array_equal(values["mask"], values["masks"][0])
    truths = [np.asarray(Image.open(here / "truth" / f"{name}.png")) > 0 for name in ("a", "b")]
    found = [mask > 0 for mask in values["masks"]]
    dice = [2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask, truth in zip(found, truths, strict=True)]
    shown = capsys.readouterr().out.splitlines()
    assert float(shown[-2]) == pytest.approx(np.mean(dice))
    assert shown[-1] == "8 5 10"
    assert shown[0].startswith("sizes 64 x 64")
    assert {path.name for path in (here / "arrays").iterdir()} >= {"images.npy", "masks.npy", "index.json"}


def test_every_function_of_the_table_is_one_of_the_package(here):
    import iaunet

    named = re.findall(r"`(\w+)\(", PAGE[PAGE.index("| function |") :])
    assert len(named) == 10
    assert set(named) <= {*iaunet.STAGES}
