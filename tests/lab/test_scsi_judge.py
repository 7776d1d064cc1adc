"""A disk of ours and one of the kernel's target (LIO), on the same content, command by command.

The kernel's is asked through its own loopback fabric, by SG_IO. Where the two answer otherwise, the
standard's words judge: docs/scsi.md has the table.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.scsi_commands import BLOCK, BLOCKS, CASES, WHOLE, Case, blocks
from tests.lab.scsi_generic import Answered, GenericUnit
from tests.lab.target import scsi_target
from tests.unit.scsi_bench import DISK, Bench
from virtiopy.devices.scsi import ScsiDisk
from virtiopy.devices.scsi.requests import Response
from virtiopy.host.disk import DiskImage
from virtiopy.host.target import TARGETS
from virtiopy.memory import GuestMemory

pytestmark = pytest.mark.lab

WWPN = "naa.5001405000000b01"


@dataclass(slots=True, frozen=True)
class Difference:
    """What both answer, and what the standard says of it."""

    ours: str
    kernels: str
    words: str


RESERVED = "SBC-4, 3.4.8: a unit need not check bits that are reserved or obsolete; ours does."
NO_DATA = "SBC-4, 5.33 and 5.36: no data is transferred; the kernel counts the blocks as data."
OPTIONAL = "SPC-4 and SBC-3: the command is optional."

#: The commands that both answer otherwise. All others have one answer.
DIFFERENCES = {
    "REQUEST SENSE, descriptors": Difference(
        "00 left 0 72000000",
        "02 5/2400",
        "SPC-4, 6.39: without the descriptor format DESC is refused; ours has it.",
    ),
    "REPORT LUNS, a selection that is none": Difference(
        "02 5/2400",
        "00 left 48 00000008000000000000000000000000",
        "SBC-4, 3.4.8: a reserved value of a field in use is an error; the kernel does not look.",
    ),
    "MODE SENSE(6), saved": Difference(
        "02 5/3900",
        "00 left 231 170010000812040000000000000000002000000000000000",
        "SPC-4, 6.13.5: without saved values, SAVING PARAMETERS NOT SUPPORTED.",
    ),
    "START STOP UNIT, start": Difference(
        "00 left 0 ",
        "02 5/2400",
        "SBC-4, 5.31: IMMED may be 0; the kernel takes no other than 1.",
    ),
    "REPORT SUPPORTED OPERATION CODES": Difference("00 left 0 ", "02 5/2000", OPTIONAL),
    "PERSISTENT RESERVE IN, keys": Difference("02 5/2000", "00 left 0 ", OPTIONAL),
    "PERSISTENT RESERVE OUT, no list": Difference("02 5/2000", "02 5/1a00", OPTIONAL),
    "RESERVE(6)": Difference("02 5/2000", "00 left 0 ", "Obsolete since SPC-3."),
    "RELEASE(6)": Difference("02 5/2000", "00 left 0 ", "Obsolete since SPC-3."),
    "TEST UNIT READY, a reserved bit": Difference("02 5/2400", "00 left 0 ", RESERVED),
    "READ CAPACITY(10), RELADR": Difference("02 5/2400", "00 left 0 000007ff00000200", RESERVED),
    "NACA": Difference(
        "02 5/2400",
        "00 left 0 ",
        "SPC-4, 6.6.2: without NORMACA a unit has no NACA; the kernel does not look.",
    ),
    "READ(10), more room than data": Difference(
        f"00 left 1024 {'05' * 32}",
        "02 2/0800",
        "virtio 1.4, 5.6.6.1: what the room has beyond the data is residual; the kernel fails.",
    ),
    "VERIFY(10)": Difference("00 left 0 ", "00 left 1024 ", NO_DATA),
    "VERIFY(16)": Difference("00 left 0 ", "00 left 1024 ", NO_DATA),
    "SYNCHRONIZE CACHE(10), blocks": Difference("00 left 0 ", "00 left 2048 ", NO_DATA),
    "UNMAP, a list cut in its header": Difference(
        "02 5/1a00",
        "00 left 20 ",
        "SBC-4, 5.35.1: less than 8 bytes is PARAMETER LIST LENGTH ERROR.",
    ),
}


@dataclass(slots=True, frozen=True)
class Outcome:
    """What a command came to: status, sense key, additional sense code, data, what is left."""

    status: int
    key: int | None
    additional: int | None
    data: bytes
    residual: int

    @classmethod
    def of(cls, answered: Answered, head: int) -> "Outcome":
        if answered.status:
            fixed = answered.sense[0] & 0x7F in {0x70, 0x71}
            key = answered.sense[2 if fixed else 1] & 0xF
            where = slice(12, 14) if fixed else slice(2, 4)
            additional = int.from_bytes(answered.sense[where], "big")
            # What was transferred before is not said by the standard.
            return cls(answered.status, key, additional, b"", 0)
        # How much of a unit's own answer there is, is its own too.
        residual = answered.residual if head == WHOLE else 0
        return cls(answered.status, None, None, answered.data[:head], residual)

    def __str__(self) -> str:
        if self.key is not None:
            return f"{self.status:02x} {self.key:x}/{self.additional:04x}"
        return f"{self.status:02x} left {self.residual} {self.data.hex()[:64]}"


@dataclass(slots=True, frozen=True)
class Judged:
    """Both outcomes of each command, and what both have left on their disks."""

    ours: dict[str, Outcome]
    theirs: dict[str, Outcome]
    contents: tuple[bytes, bytes]


def our_answer(bench: Bench, case: Case) -> Answered:
    reply = bench.request(case.cdb, case.data, room=case.room)
    assert reply.response == Response.OK, f"{case.name}: {Response(reply.response).name}"
    return Answered(reply.status, reply.sense, reply.data, reply.residual)


def find_generic() -> Path:
    """Return the /dev/sgN of the loopback target's unit."""
    address = (TARGETS / "loopback" / WWPN / "tpgt_1" / "address").read_text().strip()
    device = Path(f"/sys/class/scsi_device/{address}:0/device/generic")
    return Path("/dev") / os.readlink(device).rpartition("/")[2]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    folder = tmp_path_factory.mktemp("judge")
    ours, theirs = folder / "ours.img", folder / "theirs.img"
    for path in (ours, theirs):
        path.write_bytes(blocks(BLOCKS, 1))
    found: dict[str, Outcome] = {}
    kernels: dict[str, Outcome] = {}
    with GuestMemory.allocate(8 << 20) as memory:
        bench = Bench(memory, {DISK: ScsiDisk(DiskImage(ours), serial="S1", rotational=False)})
        bench.start()
        for case in CASES:
            found[case.name] = Outcome.of(our_answer(bench, case), case.head)
        bench.device.close()
    with (
        scsi_target(theirs, WWPN, fabric="loopback", target=1),
        GenericUnit(find_generic()) as unit,
    ):
        # What it has to tell first, as that it is new.
        while unit.ask(bytes(6), b"", 0).status:
            pass
        for case in CASES:
            answered = unit.ask(case.cdb, case.data, case.room)
            kernels[case.name] = Outcome.of(answered, case.head)
    return Judged(found, kernels, (ours.read_bytes(), theirs.read_bytes()))


def test_both_answer_the_same_but_for_what_the_standard_judges(judged: Judged) -> None:
    different = {
        name: (str(judged.ours[name]), str(judged.theirs[name]))
        for name in judged.ours
        if judged.ours[name] != judged.theirs[name]
    }
    expected = {name: (one.ours, one.kernels) for name, one in DIFFERENCES.items()}
    assert different == expected, json.dumps(different, indent=1)


def test_both_disks_have_the_same_content_in_the_end(judged: Judged) -> None:
    ours, theirs = judged.contents
    astray = [
        number
        for number in range(BLOCKS)
        if ours[number * BLOCK :][:BLOCK] != theirs[number * BLOCK :][:BLOCK]
    ]
    assert astray == []
