"""What tests of annotations share: tracing a mask's borders, and small images to annotate."""

from collections import defaultdict

import numpy as np
import pytest
from PIL import Image


def trace_rings(mask):
    """The rings along the pixel borders of a mask [H, W] bool, each a list of (x, y); holes are rings as well."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    onward = defaultdict(list)
    for (down, right), begin, end in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        beside = padded[1 + down : 1 + down + mask.shape[0], 1 + right : 1 + right + mask.shape[1]]
        for y, x in np.argwhere(inside & ~beside).tolist():
            onward[x + begin[0], y + begin[1]].append((x + end[0], y + end[1]))
    rings = []
    while onward:
        start = point = next(iter(onward))
        points = []
        while point in onward:
            points.append(point)
            ends = onward[point]
            following = ends.pop()
            if not ends:
                del onward[point]
            point = following
        assert point == start
        rings.append(_without_straights(points))
    return rings


def _without_straights(points):
    kept = []
    for i, (x, y) in enumerate(points):
        (before_x, before_y), (after_x, after_y) = points[i - 1], points[(i + 1) % len(points)]
        if (x - before_x) * (after_y - y) != (y - before_y) * (after_x - x):
            kept.append((x, y))
    return kept


@pytest.fixture(scope="session")
def rings():
    """`trace_rings`."""
    return trace_rings


@pytest.fixture(scope="session")
def polygon():
    """One polygon along all borders of a mask: rings joined by cuts of no width, there and back."""

    def polygon(mask):
        first, *others = trace_rings(mask)
        points = [*first, first[0]]
        for other in others:
            points += [*other, other[0], first[0]]
        return points

    return polygon


@pytest.fixture
def add_image(tmp_path):
    """Writes a grey image of a size (height, width) below tmp_path and gives its path."""

    def add_image(name, size=(8, 10), **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros(size, np.uint8)).save(path, **options)
        return path

    return add_image
