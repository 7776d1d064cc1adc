"""The judge of drivers against a guest that makes one mistake, and against sound guests.

On the software CPU, in trapped mode: each access and each kick is seen before the driver goes on.
"""

import contextlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.accelerators import needs_unicorn
from tests.patience import PATIENCE, timed
from virtiopy.accel import select
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.guests import guest_path
from virtiopy.check.dress import Dressing
from virtiopy.check.hostile import HOSTILE
from virtiopy.check.judge import Verdict
from virtiopy.check.variants import VARIANTS
from virtiopy.check.watch import DriverCheck
from virtiopy.conformance.targets.builders import BUILDERS, Rig
from virtiopy.conformance.targets.hosts import ConsoleHost, NetHost
from virtiopy.devices.balloon import Balloon
from virtiopy.memory import GuestMemory
from virtiopy.metrics.exitlog import ExitKind
from virtiopy.transport.placement import Transport
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode

pytestmark = needs_unicorn

SOURCE = Path(__file__).parents[2] / "guest_drivers" / "mistakes" / "mistakes.h"


@dataclass(slots=True, frozen=True)
class Mistake:
    """A mistake that the guest can make, as its source says."""

    name: str
    statement: str
    device: str


def read_mistakes() -> list[Mistake]:
    text = SOURCE.read_text().split("#define MISTAKES(M)")[1].split("enum mistake")[0]
    entries = text.replace("\\\n", " ").split("M(")[1:]
    return [
        Mistake(*(word.strip().strip('"') for word in entry.split(",")[1:4])) for entry in entries
    ]


MISTAKES = read_mistakes()

#: Mistakes that no driver can make without another: what is found besides.
BESIDES = {"refused-goes-on": {"2.2.1:1"}}


def run(
    guest: str,
    arguments: str,
    kind: str,
    *,
    timeout: float = 60,
    dressing: Dressing | None = None,
    statuses: Collection[int | None] = (0,),
) -> Verdict:
    """Run a guest with one device, and return what its driver came to."""
    with contextlib.ExitStack() as stack:
        rig = make(kind)
        stack.callback(rig.host.close)
        memory = stack.enter_context(GuestMemory.allocate(16 << 20))
        accelerator = select("tcg", memory)
        stack.callback(accelerator.close)
        machine = stack.enter_context(
            Machine(memory, accelerator, console=bytearray().extend, ignore_unassigned=True)
        )
        check = DriverCheck()

        def watch(name: str, transport: Transport, trapped: bool) -> Transport:
            if dressing is not None:
                transport = dressing.dress(transport)
            return check.watch_registers(name, transport, sees_reads=True, sees_kicks=trapped)

        if dressing is not None:
            dressing.device(rig.device)
        machine.add_device(rig.device, f"{kind}0", IoMode.TRAPPED, watch=watch)
        machine.boot(GuestImage.open(guest_path(guest)), arguments)
        result = machine.run(timeout)
        assert result.status in statuses
        return check.finish()


def make(kind: str) -> Rig:
    """Make a device that has something to do for its driver: a frame, a line, pages to give."""
    if kind == "balloon":
        return Rig(Balloon(target=8 << 12))
    rig = BUILDERS[kind]()
    assert isinstance(rig, Rig)
    if isinstance(rig.host, NetHost):
        rig.host.link.inject(bytes(12) + bytes.fromhex("ffffffffffff02000000000288b5").ljust(60))
    elif isinstance(rig.host, ConsoleHost):
        rig.host.terminals[0].type(b"hello")
    return rig


def test_there_are_many_mistakes_and_each_has_a_name_of_its_own() -> None:
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 60


@pytest.mark.parametrize("kind", ["blk", "net", "console", "rng", "balloon"])
def test_a_sound_driver_breaks_nothing(kind: str) -> None:
    verdict = run("mistakes", "", kind)
    assert [str(finding) for finding in verdict.findings] == []
    assert sum(outcome == "kept" for _, outcome, _ in verdict.outcomes()) > 30


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_finding_of_its_statement(mistake: Mistake) -> None:
    verdict = run("mistakes", f"mistake={mistake.name}", mistake.device)
    found = {finding.statement.id for finding in verdict.findings}
    assert found == {mistake.statement} | BESIDES.get(mistake.name, set())


#: What the guest drivers break on purpose, to see what the device answers.
ON_PURPOSE = {
    ("probe", "blk"): set[str](),
    ("probe", "net"): set[str](),
    ("rng", "rng"): {"2.2.1:5"},  # feature bit 63
    ("blk", "blk"): {
        "2.2.1:5",  # feature bit 63
        "5.2.6.1:2",  # beyond capacity
        "5.2.6.1:6",  # 511 and 513 bytes
        "5.2.6.1:7",  # 17 bytes of segments
        "5.2.6.1:9",  # a segment too many
        "5.2.6.1:10",  # secure erase, which is not offered
        "5.2.6.1:11",  # a segment too many
        "5.2.6.1:14",  # discard with the unmap bit
    },
    # A driver that does not tell the host, and one that takes pages back unasked.
    ("balloon", "balloon"): {"2.2.1:5", "5.5.3.1:1", "5.5.6.1:4"},
    # It takes no events.
    ("scsi", "scsi"): {"2.2.1:5", "5.6.6.3.1:1"},
    # Some features at a time, and sockets of types that were not negotiated.
    ("vsock", "vsock"): {"2.2.1:5", "5.10.3.1:1", "5.10.3.1:2"},
    # Two fields by one access.
    ("console", "console"): {"2.2.1:5", "4.2.2.2:5"},
}


@pytest.mark.parametrize(("guest", "kind"), ON_PURPOSE, ids=lambda name: name)
def test_the_guest_drivers_break_what_they_mean_to_and_nothing_else(guest: str, kind: str) -> None:
    verdict = run(guest, "", kind, timeout=PATIENCE)
    assert {finding.statement.id for finding in verdict.findings} == ON_PURPOSE[guest, kind]


def exits(*, judged: bool) -> Counter[ExitKind]:
    """Count the exits of a guest that reads 50 blocks, by kind."""
    with contextlib.ExitStack() as stack:
        rig = make("blk")
        stack.callback(rig.host.close)
        memory = stack.enter_context(GuestMemory.allocate(64 << 20))
        accelerator = select("tcg", memory)
        stack.callback(accelerator.close)
        machine = stack.enter_context(
            Machine(memory, accelerator, console=bytearray().extend, exit_free=False)
        )

        def watch(name: str, transport: Transport, trapped: bool) -> Transport:
            return DriverCheck().watch_registers(
                name, transport, sees_reads=True, sees_kicks=trapped
            )

        machine.add_device(rig.device, "blk0", IoMode.TRAPPED, watch=watch if judged else None)
        machine.boot(GuestImage.open(guest_path("blk")), "blk.requests=50")
        result = machine.run(60)
        assert result.status == 0
        return result.exits.counts


# A turn of the device's that takes too long, on a busy machine, goes on later, and saves a kick.
@timed
def test_a_judge_leaves_the_exits_as_they_are() -> None:
    without = exits(judged=False)
    assert sum(n for kind, n in without.items() if kind.register == "QueueNotify") == 50
    assert exits(judged=True) == without


# Unusual and hostile devices


@pytest.mark.parametrize("kind", ["blk", "net", "rng"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_sound_driver_takes_a_legal_device(name: str, kind: str) -> None:
    verdict = run("mistakes", "", kind, dressing=VARIANTS[name].dressing())
    assert [str(finding) for finding in verdict.errors] == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_device_is_the_guests_trouble_alone(name: str) -> None:
    # The guest may hang on it, as with a device that is silent; the VM ends at its time.
    run("mistakes", "", "rng", dressing=HOSTILE[name].dressing(), timeout=3, statuses=(0, 1, None))
