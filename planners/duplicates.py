"""Images that occur more than once: exactly, by their hash, or nearly, by their thumbnails."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

NEAR_CORRELATION = 0.98
"""Zero-mean 32x32 thumbnails that correlate at least this well show nearly the same."""

_BLOCK = 512

Groups = tuple[tuple[str, ...], ...]


def exact_duplicates(names: Sequence[str], hashes: Sequence[str]) -> Groups:
    """Cases whose image files are equal to the byte, a tuple each group of two and more."""
    by_hash: dict[str, list[str]] = defaultdict(list)
    for name, value in zip(names, hashes, strict=True):
        by_hash[value].append(name)
    return tuple(tuple(group) for group in by_hash.values() if len(group) > 1)


def near_duplicates(names: Sequence[str], thumbnails: Sequence[NDArray[np.uint8]]) -> Groups:
    """Cases whose thumbnails correlate at `NEAR_CORRELATION` or more, chained into groups of two and more.

    Args:
        names: The cases' names.
        thumbnails: A small grey image each, all of one size.
    """
    pairs = np.array([*_correlated_pairs(thumbnails)], np.int64).reshape(-1, 2)
    return join(names, pairs)


def correlations_between(
    first: Sequence[NDArray[np.uint8]], second: Sequence[NDArray[np.uint8]]
) -> NDArray[np.float32]:
    """How well each thumbnail correlates with each of others, [first, second] in [-1, 1]."""
    return _standardised(first) @ _standardised(second).T


def join(names: Sequence[str], pairs: Iterable[Sequence[int]] | NDArray[np.int64]) -> Groups:
    """The connected groups of two and more names, given pairs of their indices."""
    edges = np.asarray([*pairs], np.int64).reshape(-1, 2)
    members: dict[int, list[str]] = defaultdict(list)
    for name, first in zip(names, _first_connected(len(names), edges).tolist(), strict=True):
        members[first].append(name)
    return tuple(tuple(group) for group in members.values() if len(group) > 1)


def _first_connected(n: int, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first of ``n`` that each is connected with, [n]; scipy's graphs take longer to import than this to run."""
    first = np.arange(n)
    while True:
        here, there = first[edges[:, 0]], first[edges[:, 1]]
        if (here == there).all():
            return first
        lower = np.minimum(here, there)
        np.minimum.at(first, here, lower)
        np.minimum.at(first, there, lower)
        while (first != first[first]).any():
            first = first[first]


def _correlated_pairs(thumbnails: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[int, int]]:
    """Pairs of indices, compared block by block: memory holds the small pictures and two blocks of numbers."""
    starts = range(0, len(thumbnails), _BLOCK)
    for first in starts:
        rows = _standardised(thumbnails[first : first + _BLOCK])
        for second in starts[first // _BLOCK :]:
            columns = _standardised(thumbnails[second : second + _BLOCK])
            found = np.nonzero(rows @ columns.T >= NEAR_CORRELATION)
            for row, column in zip(*(indices.tolist() for indices in found), strict=True):
                if first + row < second + column:
                    yield first + row, second + column


def _standardised(thumbnails: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """A row each of mean 0 and length 1, so that products are correlations; all 0 for a picture of one grey."""
    flat = np.stack(thumbnails).reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return flat
