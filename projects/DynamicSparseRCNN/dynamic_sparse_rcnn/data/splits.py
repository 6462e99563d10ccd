"""Seeded splits of one annotation file into disjoint parts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

_PERCENT = r"(\d+(?:\.\d+)?)"
_RANGE = re.compile(rf"{_PERCENT}-{_PERCENT}%")
_EXAMPLES = "'0-80%' and '80-100%' (with a seed '0-80%:7' and '80-100%:7')"


@dataclass(frozen=True)
class SplitPart:
    """The images between two fractions of a data set, shuffled in an order that only the seed decides.

    Parts with the same seed and disjoint ranges share no image; ranges that together cover 0 to 1 leave no image out.

    Attributes:
        start: fraction at which the part starts, in [0, 1).
        end: fraction before which it ends, in (start, 1].
        seed: decides the order.
    """

    start: Fraction
    end: Fraction
    seed: int = 0

    @classmethod
    def parse(cls, share: str, seed: str = "0") -> SplitPart:
        """Parses ``<from>-<to>%``, which may have decimals, and a seed.

        Raises:
            ValueError: if they do not have this form, or the range is empty or not within 0 to 100.
        """
        match = _RANGE.fullmatch(share)
        if match is None or re.fullmatch(r"\d{1,18}", seed) is None:
            raise ValueError(f"{f'{share}:{seed}'!r} is not a part of a data set. Write it as {_EXAMPLES}.")
        start, end = (Fraction(percent) / 100 for percent in match.groups())
        if not start < end <= 1:
            raise ValueError(f"The part {share!r} must not be empty or exceed 100, as in {_EXAMPLES}.")
        return cls(start, end, int(seed))

    def select(self, keys: Iterable[str]) -> set[str]:
        """The keys that belong to this part; a key's place in the order depends only on its text and the seed."""
        ordered = sorted(set(keys), key=self._place)
        return set(ordered[round(self.start * len(ordered)) : round(self.end * len(ordered))])

    def _place(self, key: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{self.seed}:{key}".encode()).digest(), key
