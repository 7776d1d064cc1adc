"""Registers without exits, on this host's KVM: what a guest reads, and what its drivers say."""

from pathlib import Path

import pytest

from tests.guest.accelerators import OWN_MODES, needs_unicorn
from tests.guest.support import assert_one_sentence, make_image, needs_kvm, run_guest, virtiopy
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.boot.elf import GuestImage, LoadSegment
from virtiopy.devices.balloon import Balloon
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.blk import Blk
from virtiopy.host.disk import DiskImage
from virtiopy.memory import GuestMemory
from virtiopy.transport.registers import Register
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import MMIO_BASE, IoMode

CODE, COPIES = 0x10_0000, 0x20_0000

#: Bytes of registers that are copied: the control registers, and the configuration space.
SIZE = 0x200

#: mov al, 0; out 0xf4, al
END = b"\xb0\x00\xe6\xf4"

#: A life in pieces, each a few writes to registers.
LIFE: list[list[tuple[int, int]]] = [
    [],
    [(Register.Status, 1), (Register.Status, 3), (Register.DeviceFeaturesSel, 1)],
    [(Register.DriverFeaturesSel, 1), (Register.DriverFeatures, 1), (Register.Status, 11)],
    [(Register.QueueSel, 1)],
    [(Register.QueueSel, 0), (Register.QueueSize, 8), (Register.QueueReady, 1)],
    [(Register.QueueSel, 99), (Register.Config + 4, 1)],
    [(Register.Status, 0)],
]


def write(register: int, value: int) -> bytes:
    """mov eax, VALUE; mov [REGISTER], eax."""
    address = MMIO_BASE + register
    return b"\xb8" + value.to_bytes(4, "little") + b"\xa3" + address.to_bytes(4, "little")


def copy(destination: int) -> bytes:
    """Copy all registers, the last one first: mov eax, [FROM]; mov [TO], eax."""
    return b"".join(
        b"\xa1"
        + (MMIO_BASE + offset).to_bytes(4, "little")
        + b"\xa3"
        + (destination + offset).to_bytes(4, "little")
        for offset in reversed(range(0, SIZE, 4))
    )


def make_device(kind: str, folder: Path) -> VirtioDevice:
    return Balloon() if kind == "balloon" else Blk(DiskImage(make_image(folder / "disk")))


def live(device: VirtioDevice, mode: IoMode, *, exit_free: bool) -> tuple[bytes, int]:
    """Let a guest live, and copy all registers after each step; returns the copies, and reads."""
    code = b"".join(
        b"".join(write(*operands) for operands in step) + copy(COPIES + number * SIZE)
        for number, step in enumerate(LIFE)
    )
    code += END
    with GuestMemory.allocate(4 << 20) as memory:
        accelerator = KvmAccelerator(memory)
        with Machine(memory, accelerator, console=bytearray().extend, exit_free=exit_free) as vm:
            vm.add_device(device, "device", mode)
            vm.boot(GuestImage(Path(), CODE, CODE, (LoadSegment(CODE, code, len(code)),)))
            assert vm.run(60).status == 0
            reads = [
                count
                for kind, count in vm.exits.counts.items()
                if (kind.reason, kind.direction) == ("MMIO", "read")
            ]
            copies = memory.read(COPIES, len(LIFE) * SIZE)
        accelerator.close()
    return copies, sum(reads)


@needs_kvm
@pytest.mark.parametrize("mode", OWN_MODES)
@pytest.mark.parametrize("kind", ["blk", "balloon"])
def test_a_guest_reads_the_same_without_exits(kind: str, mode: IoMode, tmp_path: Path) -> None:
    by_exits, reads = live(make_device(kind, tmp_path), mode, exit_free=False)
    without, none = live(make_device(kind, tmp_path), mode, exit_free=True)

    assert without == by_exits
    assert (reads, none) == (len(LIFE) * SIZE // 4, 0)


@needs_kvm
@pytest.mark.parametrize("exit_free", ["on", "off"])
@pytest.mark.parametrize("mode", OWN_MODES)
@pytest.mark.parametrize(
    ("guest", "device"),
    [
        ("blk", "--disk={image}"),
        ("console", "--console=file:{folder}/log"),
        ("balloon", "--balloon="),
        ("rng", "--rng="),
    ],
)
def test_the_drivers_pass_with_registers_of_either_kind(
    tmp_path: Path, guest: str, device: str, mode: str, exit_free: str
) -> None:
    image = make_image(tmp_path / "disk")
    option = device.format(image=image, folder=tmp_path)
    outcome = run_guest(
        *(tmp_path, guest, option, "--mode", mode, "--exit-free", exit_free, "--accel", "kvm")
    )
    assert outcome.failures() == []
    assert outcome.status == 0, outcome.errors
    assert (outcome.exits(f"{guest}0", "InterruptStatus") == 0) == (exit_free == "on")
    assert outcome.report["exit_free"] == (exit_free == "on")


@needs_unicorn
def test_where_registers_cannot_do_without_exits_that_is_an_error_and_auto_does_without() -> None:
    refused = virtiopy("run", "--guest", "greet", "--accel", "tcg", "--exit-free", "on")
    assert_one_sentence(refused, "registers without exits", "--accel kvm")

    assert virtiopy("run", "--guest", "greet", "--accel", "tcg").status == 0
