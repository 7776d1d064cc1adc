"""What a packet costs in each mode, with the real vhost-net: `virtiopy exits` from the inside."""

from collections.abc import Iterator

import pytest

from tests.namespace import Namespace
from virtiopy.cli.exits import device_setup
from virtiopy.devices.registry import entry_named
from virtiopy.exits.differences import differences, interprets
from virtiopy.exits.model import Costs, Row
from virtiopy.exits.runner import compare
from virtiopy.vm.slots import IoMode

pytestmark = pytest.mark.lab

PACKETS = 100
MODES = [IoMode.TRAPPED, IoMode.IOEVENTFD, IoMode.VHOST]


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


@pytest.fixture(scope="module", params=["send", "receive"])
def all_rows(request: pytest.FixtureRequest, namespace: Namespace) -> list[tuple[Row, Costs]]:
    """What each mode cost, with exits for registers and without; none is missing in the lab."""
    tap = f"tap=exits0,create=on,netns={namespace.name}"
    found, accelerator = compare(
        device_setup(entry_named("net"), tap, PACKETS, 1, request.param),
        MODES,
        (False, True),
        progress=lambda line: None,
    )
    assert accelerator == "kvm"
    return [(row, measured(row)) for row in found]


@pytest.fixture(scope="module")
def rows(all_rows: list[tuple[Row, Costs]]) -> dict[IoMode, Costs]:
    """What each mode cost with exits for registers."""
    return {IoMode(row.mode): costs for row, costs in all_rows if not row.exit_free}


@pytest.fixture(scope="module")
def exit_free(all_rows: list[tuple[Row, Costs]]) -> dict[IoMode, Costs]:
    """What each mode cost without."""
    return {IoMode(row.mode): costs for row, costs in all_rows if row.exit_free}


def measured(row: Row) -> Costs:
    assert row.costs is not None, row.missing
    assert row.costs.requests == PACKETS
    return row.costs


def test_a_packet_costs_one_queue_notify_exit_in_trapped_mode_and_none_in_the_others(
    rows: dict[IoMode, Costs],
) -> None:
    exits = {mode: costs.each(costs.of("QueueNotify")) for mode, costs in rows.items()}

    assert exits == {IoMode.TRAPPED: 1, IoMode.IOEVENTFD: 0, IoMode.VHOST: 0}


def test_without_exits_for_registers_a_packet_costs_none_at_all(
    exit_free: dict[IoMode, Costs],
) -> None:
    assert exit_free[IoMode.IOEVENTFD].userspace == 0
    assert exit_free[IoMode.VHOST].userspace == 0
    # A kick is one, and where the interrupt line is a level its acknowledgement has to be.
    trapped = exit_free[IoMode.TRAPPED]
    assert trapped.of("QueueNotify") == trapped.of("InterruptACK") == PACKETS
    assert trapped.userspace == 2 * PACKETS


def test_vhosts_thread_does_the_work_in_vhost_mode(rows: dict[IoMode, Costs]) -> None:
    for mode, costs in rows.items():
        assert (costs.cpu_seconds["vhost"] > 0) == (mode is IoMode.VHOST)
    loop = rows[IoMode.VHOST].cpu_seconds["loop"]
    assert loop < rows[IoMode.IOEVENTFD].cpu_seconds["loop"]


def test_the_kernels_own_counters_agree_and_make_up_every_difference(
    all_rows: list[tuple[Row, Costs]],
) -> None:
    for _, costs in all_rows:
        assert not interprets(costs)
        for difference in differences(costs):
            parts = sum(part.count for part in difference.parts)
            assert difference.ours + parts == difference.theirs
        assert costs.kernel["mmio_exits"] == costs.userspace
        untold = [
            part.count
            for difference in differences(costs)
            for part in difference.parts
            if difference.what == "exits" and not part.counter
        ]
        # Every exit but a few has a counter that tells of it.
        assert sum(untold) <= PACKETS / 10
