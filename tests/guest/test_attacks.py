"""A device that is served stays in its bounds, whatever its frontend does."""

import os
from pathlib import Path

import pytest

from tests.guest.accelerators import has_unicorn
from tests.guest.attacks import ANSWER_BOUND, ATTACKS, GROWTH_BOUND, Cost, measure
from tests.guest.vm_attacks import NEVER, VM_ATTACKS, measure_vm

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


@pytest.mark.nightly
@pytest.mark.skipif(not has_unicorn(), reason="unicorn is not installed")
@pytest.mark.parametrize("name", VM_ATTACKS)
def test_an_attack_on_a_vm_keeps_no_command_waiting_and_it_ends(name: str, tmp_path: Path) -> None:
    if VM_ATTACKS[name].needs_root and os.geteuid() != 0:
        pytest.skip("a tap in a network namespace of its own takes root")
    costs: list[Cost] = []
    while len(costs) < ATTEMPTS and not any(_is_answered(cost) for cost in costs):
        (folder := tmp_path / str(len(costs))).mkdir()
        costs.append(measure_vm(name, folder, DURATION))
    assert _is_answered(costs[-1]), costs


def _is_answered(cost: Cost) -> bool:
    # When it ends is held to its bound in tests/unit/test_bounded_runs.py.
    return cost.answer < ANSWER_BOUND and cost.end != NEVER and cost.growth < GROWTH_BOUND
