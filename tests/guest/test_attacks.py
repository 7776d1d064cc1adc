"""A device that is served stays in its bounds, whatever its frontend does."""

from pathlib import Path

import pytest

from tests.guest.attacks import ATTACKS, Cost, measure

#: How long each attack goes on, seconds; and how often it is made where the machine has other
#: things to do: what is not bounded is never in bounds.
DURATION = 1.5
ATTEMPTS = 3


@pytest.mark.parametrize("mode", ["native", "ioeventfd"])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_keeps_no_good_request_waiting(name: str, mode: str, tmp_path: Path) -> None:
    costs: list[Cost] = []
    while len(costs) < ATTEMPTS and not any(cost.is_in_bounds for cost in costs):
        folder = tmp_path / str(len(costs))
        folder.mkdir()
        costs.append(measure(ATTACKS[name], mode, folder, DURATION))
    assert costs[-1].is_in_bounds, costs
