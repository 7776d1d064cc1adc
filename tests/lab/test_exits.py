"""What a packet costs in each mode, with the real vhost-net: `virtiopy exits` from the inside."""

from collections.abc import Iterator

import pytest

from tests.namespace import Namespace
from virtiopy.cli.exits import network_setup
from virtiopy.exits.differences import differences, interprets
from virtiopy.exits.model import Costs, Row
from virtiopy.exits.runner import compare
from virtiopy.machine import IoMode

pytestmark = pytest.mark.lab

PACKETS = 100
MODES = [IoMode.TRAPPED, IoMode.IOEVENTFD, IoMode.VHOST]


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


@pytest.fixture(scope="module", params=["send", "receive"])
def rows(request: pytest.FixtureRequest, namespace: Namespace) -> dict[IoMode, Costs]:
    """What each mode cost; none is missing in the lab."""
    tap = f"tap=exits0,create=on,netns={namespace.name}"
    found, accelerator = compare(
        network_setup(tap, PACKETS, 1, request.param), MODES, progress=lambda line: None
    )
    assert accelerator == "kvm"
    return {IoMode(row.mode): measured(row) for row in found}


def measured(row: Row) -> Costs:
    assert row.costs is not None, row.missing
    assert row.costs.requests == PACKETS
    return row.costs


def test_a_packet_costs_one_queue_notify_exit_in_trapped_mode_and_none_in_the_others(
    rows: dict[IoMode, Costs],
) -> None:
    exits = {mode: costs.each(costs.of("QueueNotify")) for mode, costs in rows.items()}

    assert exits == {IoMode.TRAPPED: 1, IoMode.IOEVENTFD: 0, IoMode.VHOST: 0}


def test_vhosts_thread_does_the_work_in_vhost_mode(rows: dict[IoMode, Costs]) -> None:
    for mode, costs in rows.items():
        assert (costs.cpu_seconds["vhost"] > 0) == (mode is IoMode.VHOST)
    loop = rows[IoMode.VHOST].cpu_seconds["loop"]
    assert loop < rows[IoMode.IOEVENTFD].cpu_seconds["loop"]


def test_the_kernels_own_counters_agree_and_make_up_every_difference(
    rows: dict[IoMode, Costs],
) -> None:
    for costs in rows.values():
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
