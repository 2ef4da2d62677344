"""Calibration: the temperatures that make a network's probabilities mean what they say, and how well they do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iaunet.dataset import IGNORED, where_any
from iaunet.inference.out_of_fold import LOWEST_PROBABILITY
from iaunet.records import require

N_BINS = 15
"""Of equal width, as in Guo et al. 2017."""

COLDEST, HOTTEST = 0.1, 10.0
"""Between these a temperature is sought."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How often what was said with a probability was so, over pixels of the network's input.

    Args:
        pixels: In bins of equal width over [0, 1]; each output of the network counts its own.
        probability: The mean that was said, None in empty bins.
        frequency: The share that was so, None in empty bins.
        ece: Expected calibration error: the mean over pixels of how far the two are apart in their bin.
        brier: The mean squared distance of probability and truth.
        log_loss: The mean binary cross entropy, in nats.
    """

    pixels: tuple[int, ...]
    probability: tuple[float | None, ...]
    frequency: tuple[float | None, ...]
    ece: float
    brier: float
    log_loss: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Temperatures by run and fold, and what they do to the probabilities of cases that the networks had not seen.

    ``before`` is without temperatures; ``after`` each fold has the temperature that the other folds ask for, so that
    none is judged on what it was fitted on. Both are of single networks, one a run: what averaging over folds does to
    calibration cannot be seen on cases that all but one of the folds were trained on.
    """

    version: int = 1
    temperatures: dict[str, dict[str, float]]
    before: Reliability
    after: Reliability

    def __post_init__(self) -> None:
        values = [value for folds in self.temperatures.values() for value in folds.values()]
        fits = all(COLDEST <= value <= HOTTEST for value in values)
        require(fits, "temperatures", values, f"numbers from {COLDEST:g} to {HOTTEST:g}")

    def of(self, run: str, fold: str) -> float:
        """The temperature of a network, 1 for one that held no cases out."""
        return self.temperatures.get(run, {}).get(fold, 1.0)


class LogitTable:
    """How often each logit was said, and how often it was so: all that a temperature depends on.

    Logits are kept as float16, of which there are 65,536: the table does not grow with the pixels, and tables add up.
    """

    def __init__(self, counts: NDArray[np.int64] | None = None) -> None:
        self._counts = np.zeros((2, 1 << 16), np.int64) if counts is None else counts

    def add(self, logits: NDArray[np.float16], truth: NDArray[np.bool_]) -> None:
        """Add pixels: their logits, and whether they are of the label."""
        codes = np.ascontiguousarray(logits).view(np.uint16).ravel()
        true = np.bincount(codes[truth.ravel()], minlength=1 << 16)
        self._counts += np.stack([np.bincount(codes, minlength=1 << 16) - true, true])

    def __add__(self, other: "LogitTable") -> "LogitTable":
        return LogitTable(self._counts + other._counts)

    def fit_temperature(self) -> float:
        """The temperature of the least binary cross entropy, 1 where one of the two kinds of pixels is missing."""
        from scipy.optimize import minimize_scalar  # slow to import, and prediction needs it not

        said = self._counts.any(axis=0)
        logits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)[said].astype(np.float64)
        false, true = self._counts[:, said]
        if not (false.any() and true.any()):
            return 1.0

        def loss(log_temperature: float) -> float:
            scaled = logits / np.exp(log_temperature)
            return float(true @ np.logaddexp(0, -scaled) + false @ np.logaddexp(0, scaled)) / int(true.sum())

        found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
        return round(float(np.clip(np.exp(found.x), COLDEST, HOTTEST)), 4)


class ReliabilityCounter:
    """Adds up pixels for a `Reliability`."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, N_BINS))  # pixels, probability, truth
        self._brier = self._log_loss = 0.0

    def add(self, probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> None:
        """Add pixels: the probabilities that were said, and whether they are of the label."""
        said = probabilities.ravel().astype(np.float64)
        true = truth.ravel()
        bins = np.minimum((said * N_BINS).astype(np.intp), N_BINS - 1)
        self._sums += [np.bincount(bins, weights, N_BINS) for weights in (None, said, true)]
        self._brier += float(((said - true) ** 2).sum())
        of_truth = np.where(true, said, 1 - said)
        self._log_loss -= float(np.log(of_truth.clip(LOWEST_PROBABILITY)).sum())

    @property
    def reliability(self) -> Reliability:
        """What was added up.

        Raises:
            ValueError: Nothing was added.
        """
        pixels, said, true = self._sums
        n = pixels.sum()
        if n == 0:
            raise ValueError("no pixels were added")
        return Reliability(
            pixels=tuple(map(int, pixels)),
            probability=_shares(said, pixels),
            frequency=_shares(true, pixels),
            ece=float(np.abs(said - true).sum() / n),
            brier=self._brier / n,
            log_loss=self._log_loss / n,
        )


def _shares(sums: NDArray[np.float64], pixels: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(float(total / n) if n else None for total, n in zip(sums, pixels, strict=True))


def output_truth(mask: NDArray[np.uint8], outputs: Sequence[tuple[int, ...]]) -> NDArray[np.bool_]:
    """Where each output of a network is true.

    Args:
        mask: Labels of any shape [...], `IGNORED` where pixels do not count.
        outputs: The labels that each output unites.

    Returns:
        [outputs, ...].
    """
    return np.stack([where_any(mask, output) for output in outputs])


def counted(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where pixels of a mask count."""
    return np.not_equal(mask, IGNORED)


def temperatures_of(tables: Mapping[int, LogitTable]) -> dict[int, float]:
    """The temperature of each fold, fitted on the cases it held out."""
    return {fold: table.fit_temperature() for fold, table in tables.items()}


def nested_temperatures(tables: Mapping[int, LogitTable]) -> dict[int, float]:
    """For each fold the temperature that the cases of the other folds ask for; 1 where there are no others."""
    found = {}
    for fold in tables:
        others = [table for other, table in tables.items() if other != fold]
        found[fold] = sum(others, LogitTable()).fit_temperature()
    return found
