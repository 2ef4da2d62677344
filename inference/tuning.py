"""What was learnt on out-of-fold predictions and is used when new images are predicted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from iaunet.inference.calibration import Calibration
from iaunet.inference.expected_dice import DiceModel, ExpectedDice, features_of
from iaunet.inference.postprocessing import Postprocessing
from iaunet.planners.plan import Plan


@dataclass(frozen=True, kw_only=True)
class NetworkName:
    """A network of an ensemble: its run, its fold, and the hash of its weights."""

    run: str = ""
    fold: str = ""
    weights_sha256: str = ""


@dataclass(frozen=True, eq=False)
class Judge:
    """The models of the Dice of an ensemble's networks, and below which expected Dice an image is flagged."""

    models: tuple[DiceModel, ...]
    flag_below: float

    def expect(self, statistics: NDArray[np.float64]) -> float:
        """The expected Dice of a mask, the mean over networks.

        Args:
            statistics: [networks, L, S] of a case, see `iaunet.inference.expected_dice.STATISTICS`.
        """
        features = features_of(statistics)
        return float(np.mean([model.expect(of) for model, of in zip(self.models, features, strict=True)]))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What ``iaunet_find_best`` learnt of a model; None for what it did not."""

    postprocessing: Postprocessing | None = None
    calibration: Calibration | None = None
    expected_dice: ExpectedDice | None = None

    def without_postprocessing(self, plan: Plan) -> "Tuning":
        """The same for masks as the plan makes them; what Dice to expect was learnt of the others, if they differ."""
        nothing = self.postprocessing is None or self.postprocessing.is_nothing(plan.inference.thresholds)
        return replace(self, postprocessing=None, expected_dice=self.expected_dice if nothing else None)

    def temperatures(self, members: Sequence[NetworkName]) -> tuple[float, ...] | None:
        """The temperatures of an ensemble's networks, None where none are known."""
        if self.calibration is None:
            return None
        return tuple(self.calibration.of(member.run, member.fold) for member in members)

    def judge(self, members: Sequence[NetworkName], mirroring: bool) -> Judge | None:
        """What tells the expected Dice, None where it was not learnt for these networks or this mirroring."""
        learnt = self.expected_dice
        if learnt is None or learnt.flag_below is None or learnt.mirroring != mirroring:
            return None
        models = [learnt.models.get(member.run, {}).get(member.fold) for member in members]
        known = tuple(model for model in models if model is not None)
        return Judge(known, learnt.flag_below) if len(known) == len(models) else None
