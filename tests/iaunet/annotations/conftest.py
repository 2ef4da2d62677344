"""What tests of annotations share: small images to annotate."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def add_image(tmp_path):
    """Writes a grey image of a size (height, width) below tmp_path and gives its path."""

    def add_image(name, size=(8, 10), **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros(size, np.uint8)).save(path, **options)
        return path

    return add_image
