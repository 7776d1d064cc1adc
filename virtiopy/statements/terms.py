"""What is common to the statements of both sides: how binding one is, and when it applies."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from virtiopy.spec import has_feature


class Keyword(enum.Enum):
    """How binding a statement is (RFC 2119)."""

    MUST = "MUST"
    MUST_NOT = "MUST NOT"
    SHOULD = "SHOULD"
    SHOULD_NOT = "SHOULD NOT"
    MAY = "MAY"


@dataclass(frozen=True, slots=True)
class Condition:
    """Which features have to be offered: all of at least one of the alternatives."""

    alternatives: tuple[frozenset[int], ...]  # sets of bit numbers

    @classmethod
    def parse(cls, text: str, bits: Mapping[str, int]) -> Self:
        """Read "A", "A and B", "A or B", "A and B or C".

        Raises KeyError for a name that `bits`, of names to bit numbers, does not have.
        """
        return cls(
            tuple(
                frozenset(bits[name] for name in names.split(" and "))
                for names in text.split(" or ")
            )
        )

    def holds(self, offered: int) -> bool:
        """Say whether the feature set `offered` is one that the condition asks for."""
        return any(all(has_feature(offered, bit) for bit in bits) for bits in self.alternatives)
