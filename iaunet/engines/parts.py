"""Work shared out by number, for launchers that know nothing of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from iaunet.engines.tasks import EngineError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """One of ``count`` parts of a work, counted from 1. Together the parts are the whole, each item once."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise EngineError(f"there is no part {self}: give one from 1/{self.count} to {self.count}/{self.count}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """The part that a text like ``3/8`` names.

        Raises:
            EngineError: It names none.
        """
        if not re.fullmatch(r"[0-9]{1,9}/0*[1-9][0-9]{0,8}", text):
            raise EngineError(f"{text!r} is no part: give K/N, such as 3/8 for the third of eight")
        number, count = map(int, text.split("/"))
        return cls(number, count)

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items of this part, in turns: the first item is the first part's, the second the second's, and so on."""
        return items[self.number - 1 :: self.count]
