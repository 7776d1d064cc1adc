"""The VM core on a KVM with SVM under it, which is what most users have."""

from pathlib import Path

import pytest

from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.boot.elf import GuestImage
from virtiopy.boot.guests import guest_path
from virtiopy.cli.tapresults import parse_tap
from virtiopy.cpu.exits import ExitReason
from virtiopy.devices.blk import Blk
from virtiopy.host.disk import DiskImage
from virtiopy.memory import GuestMemory
from virtiopy.vm.hello import Mode, run_hello
from virtiopy.vm.machine import Machine, RunResult
from virtiopy.vm.slots import IoMode

pytestmark = pytest.mark.lab

REQUESTS = 20


def make_accelerator(memory: GuestMemory) -> KvmAccelerator:
    return KvmAccelerator(memory, interrupts=False)


@pytest.mark.parametrize("mode", Mode)
def test_hello_runs_in_every_cpu_mode(mode: Mode) -> None:
    result = run_hello(mode, make_accelerator, 60)

    assert result.passed, result.explain()
    assert result.last_exit is not None
    assert result.last_exit.reason is ExitReason.HLT


class BlkRun:
    """A run of the blk guest, which does REQUESTS reads."""

    def __init__(self, image: Path, mode: IoMode) -> None:
        image.write_bytes(bytes(1 << 20))
        output = bytearray()
        with GuestMemory.allocate(32 << 20) as memory:
            accelerator = KvmAccelerator(memory)
            with Machine(memory, accelerator, console=output.extend) as machine:
                machine.add_device(Blk(DiskImage(image)), "blk0", mode)
                guest = GuestImage.open(guest_path("blk"))
                machine.boot(guest, f"blk.requests={REQUESTS}")
                self.result: RunResult = machine.run(100)
            accelerator.close()
        self.output = output.decode()

    def exits(self, register: str) -> int:
        """Exits to userspace about one register of the disk."""
        counts = self.result.exits.counts
        return sum(
            n for kind, n in counts.items() if (kind.device, kind.register) == ("blk0", register)
        )


@pytest.fixture(scope="module", params=[IoMode.TRAPPED, IoMode.IOEVENTFD])
def blk_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BlkRun:
    return BlkRun(tmp_path_factory.mktemp("blk") / "disk.img", request.param)


def test_the_blk_guest_passes(blk_run: BlkRun) -> None:
    report = parse_tap(blk_run.output)

    assert [test for test in report.tests if test.outcome == "failed"] == []
    assert blk_run.result.status == 0, blk_run.output
    assert report.passed


def test_kicks_leave_the_vm_in_trapped_mode_only(
    blk_run: BlkRun, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["blk_run"] is IoMode.TRAPPED:
        assert blk_run.exits("QueueNotify") >= REQUESTS
    else:
        assert blk_run.exits("QueueNotify") == 0


def test_the_kernel_counts_the_exits_too(blk_run: BlkRun) -> None:
    kernel, exits = blk_run.result.kernel, blk_run.result.exits
    mmio = sum(count for kind, count in exits.counts.items() if kind.reason == "MMIO")

    assert kernel["mmio_exits"] >= mmio > 0
    assert kernel["exits"] >= exits.total


@pytest.mark.parametrize("way", ["spin", "halt"])
def test_a_guest_that_never_ends_is_stopped_at_its_time(way: str) -> None:
    with GuestMemory.allocate(32 << 20) as memory:
        accelerator = KvmAccelerator(memory)
        with Machine(memory, accelerator, console=lambda data: None) as machine:
            machine.boot(GuestImage.open(guest_path("misbehave")), f"misbehave={way}")
            assert machine.run(0.5).status is None
        accelerator.close()
