"""Every guest on each accelerator, and the same from both."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.accelerators import OWN_MODES, TIMEOUT, each_accelerator, needs_unicorn
from tests.guest.support import make_image, needs_kvm
from tests.namespace import Namespace, needs_taps
from tests.patience import timed
from virtiopy.accel import AcceleratorName, select
from virtiopy.accel.base import Accelerator
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.guests import guest_path
from virtiopy.devices.balloon import Balloon
from virtiopy.devices.base import VirtioDevice
from virtiopy.devices.blk import Blk
from virtiopy.devices.console import Console
from virtiopy.devices.net import Net
from virtiopy.devices.rng import Rng
from virtiopy.errors import GuestError
from virtiopy.host.disk import DiskImage
from virtiopy.host.stream import FileStream
from virtiopy.host.tap import Tap
from virtiopy.host.tapconfig import default_mac, parse_address
from virtiopy.memory import GuestMemory
from virtiopy.metrics.exitlog import ExitKind
from virtiopy.vm.hello import Mode, mode_works, run_hello
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode


@dataclass
class Run:
    """What a guest did."""

    output: str
    status: int | None
    exits: Counter[ExitKind]


def run_guest(
    name: str,
    guest: str,
    arguments: str = "",
    *,
    disks: tuple[Path, ...] = (),
    more: tuple[VirtioDevice, ...] = (),
    mode: IoMode = IoMode.TRAPPED,
    timeout: float = TIMEOUT,
    ignore_unassigned: bool = False,
    exit_free: bool = False,
) -> Run:
    output = bytearray()
    with GuestMemory.allocate(64 << 20) as memory:
        accelerator = select(name, memory)
        try:
            with Machine(
                memory,
                accelerator,
                console=output.extend,
                ignore_unassigned=ignore_unassigned,
                exit_free=exit_free,
            ) as machine:
                for number, disk in enumerate(disks):
                    machine.add_device(Blk(DiskImage(disk)), f"blk{number}", mode)
                for number, device in enumerate(more):
                    machine.add_device(device, f"more{number}", mode)
                machine.boot(GuestImage.open(guest_path(guest)), arguments)
                status = machine.run(timeout).status
                return Run(output.decode("ascii"), status, machine.exits.counts)
        finally:
            accelerator.close()


@each_accelerator
@pytest.mark.parametrize("mode", Mode)
def test_the_hello_guest_passes_in_each_mode(name: str, mode: Mode) -> None:
    def make_accelerator(memory: GuestMemory) -> Accelerator:
        return select(name, memory, interrupts=False)

    if name == AcceleratorName.KVM and not mode_works(mode, make_accelerator, TIMEOUT):
        pytest.skip(f"this host's KVM cannot execute a lone HLT in {mode} mode")

    result = run_hello(mode, make_accelerator, TIMEOUT)

    assert result.passed, result.explain()


@each_accelerator
@pytest.mark.parametrize("mode", OWN_MODES)
def test_the_blk_guest_passes(name: str, mode: IoMode, tmp_path: Path) -> None:
    run = run_guest(name, "blk", disks=(make_image(tmp_path / "disk"),), mode=mode)

    assert "not ok" not in run.output
    assert run.status == 0


# A turn of the device's that takes over 100 ms has the driver kick once less.
@timed
@needs_kvm
@needs_unicorn
@pytest.mark.parametrize("guest", ["probe", "blk", "greet"])
def test_both_give_the_same_tap_and_the_same_exits(guest: str, tmp_path: Path) -> None:
    runs = []
    for name in ("kvm", "tcg"):
        disks = () if guest == "greet" else (make_image(tmp_path / f"{name}.img"),)
        runs.append(run_guest(name, guest, disks=disks))

    by_kvm, by_tcg = runs
    assert by_tcg.output == by_kvm.output
    assert by_tcg.exits == by_kvm.exits
    assert by_tcg.status == by_kvm.status == 0


def make_device(guest: str, folder: Path) -> VirtioDevice:
    """What the guest's driver wants, and what does nothing unless it is asked to."""
    match guest:
        case "rng":
            return Rng()
        case "balloon":
            return Balloon()
        case _:
            return Console(FileStream(folder / "console.log"))


# As above.
@timed
@needs_kvm
@needs_unicorn
@pytest.mark.parametrize(
    ("guest", "arguments"),
    [("rng", ""), ("console", ""), ("balloon", ""), ("balloon", "balloon.mode=hostile")],
)
def test_both_give_the_same_with_every_device(guest: str, arguments: str, tmp_path: Path) -> None:
    by_kvm, by_tcg = (
        run_guest(name, guest, arguments, more=(make_device(guest, tmp_path),))
        for name in ("kvm", "tcg")
    )

    assert by_tcg.output == by_kvm.output
    assert by_tcg.exits == by_kvm.exits
    assert by_tcg.status == by_kvm.status == 0


@needs_kvm
@needs_unicorn
@needs_taps
def test_both_pass_the_same_tests_on_a_tap() -> None:
    # Frames come when they come: how often a guest looks for them is not the same twice.
    verdicts = []
    for name in ("kvm", "tcg"):
        with Namespace() as namespace:
            address = parse_address("192.0.2.1/24")
            config = namespace.config("t0", create=True, address=address)
            device = Net(Tap(config), mac=default_mac(config))
            run = run_guest(name, "net", more=(device,))
        assert run.status == 0, run.output
        verdicts.append([line for line in run.output.splitlines() if not line.startswith("#")])

    assert verdicts[0] == verdicts[1]


@needs_kvm
@needs_unicorn
@pytest.mark.parametrize("way", ["fail", "bail", "silent", "exception", "bad-tap"])
def test_both_give_the_same_of_a_guest_that_misbehaves(way: str) -> None:
    arguments = f"misbehave={way}"

    assert run_guest("tcg", "misbehave", arguments) == run_guest("kvm", "misbehave", arguments)


@each_accelerator
def test_an_exception_reaches_the_guests_handler(name: str) -> None:
    run = run_guest(name, "misbehave", "misbehave=exception")

    assert "Bail out! exception 6 at 0x" in run.output
    assert run.status == 1


@each_accelerator
def test_a_triple_fault_ends_the_run(name: str) -> None:
    with pytest.raises(GuestError, match="triple-faulted at rip 0x1"):
        run_guest(name, "misbehave", "misbehave=triple-fault")


@each_accelerator
@pytest.mark.parametrize("way", ["spin", "halt", "flood"])
def test_a_guest_without_end_is_stopped_at_its_time(name: str, way: str) -> None:
    assert run_guest(name, "misbehave", f"misbehave={way}", timeout=0.2).status is None


@each_accelerator
@pytest.mark.parametrize(("way", "where"), [("stray-mmio", "0xc0000000"), ("stray-port", "0x5555")])
def test_a_stray_access_ends_the_run_at_the_first(name: str, way: str, where: str) -> None:
    with pytest.raises(GuestError, match=f"wrote . bytes? at .* {where}, where no device is"):
        run_guest(name, "misbehave", f"misbehave={way}")


@each_accelerator
@pytest.mark.parametrize("way", ["stray-mmio", "stray-port"])
def test_a_stray_access_can_be_let_pass(name: str, way: str) -> None:
    run = run_guest(name, "misbehave", f"misbehave={way}", ignore_unassigned=True)

    assert "read 0xff" in run.output
    assert run.status == 0


@needs_unicorn
def test_counters_that_only_kvm_has_are_not_there() -> None:
    with GuestMemory.allocate(1 << 20) as memory:
        accelerator = select("tcg", memory)
        cpu = accelerator.create_cpu()
        assert accelerator.statistics() == cpu.statistics() == {}
        cpu.close()
        accelerator.close()
