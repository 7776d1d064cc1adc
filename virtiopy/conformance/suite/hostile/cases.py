"""A test for each of many named things."""

from collections.abc import Iterable
from typing import Protocol

import pytest


class Named(Protocol):
    """What a case is called by."""

    @property
    def name(self) -> str:
        """Its name."""


def each(argument: str, cases: Iterable[Named]) -> pytest.MarkDecorator:
    """Parametrize a test by named cases, one after the other in the test's `argument`."""
    return pytest.mark.parametrize(argument, [pytest.param(case, id=case.name) for case in cases])
