"""Where tiles lie along an axis."""

TILE_OVERLAP = 0.5
"""Least share of a tile that its neighbour covers as well."""


def tile_origins(length: int, side: int) -> list[int]:
    """Where tiles begin along one axis, so that they cover it evenly with `TILE_OVERLAP` at least.

    Args:
        length: Length of the axis in pixels, 1 at least.
        side: Length of a tile in pixels.

    Returns:
        The first pixel of each tile, rising from 0; the last tile ends at ``length``. One tile if it holds all.
    """
    last = max(0, length - side)
    stride = max(1, int(side * (1 - TILE_OVERLAP)))
    steps = -(-last // stride)  # rounded up, so that no step is longer than the stride
    return [last * step // max(steps, 1) for step in range(steps + 1)]
