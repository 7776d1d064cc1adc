"""The SCSI host device that is the kernel's: what it tells vhost-scsi, in which order."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.test_control import NoAccelerator
from virtiopy._native import ffi, lib
from virtiopy.accel.base import Accelerator
from virtiopy.cli.attachments import build, mode_of, parse
from virtiopy.cli.scsi import build_served_scsi
from virtiopy.devices.registry import entry_named
from virtiopy.devices.scsi.features import (
    CDB_SIZE,
    CDB_SIZE_AT,
    SENSE_SIZE,
    SENSE_SIZE_AT,
    ScsiFeature,
)
from virtiopy.errors import ConfigError, HostError
from virtiopy.memory import GuestMemory
from virtiopy.spec import DeviceStatus, Feature, feature_mask
from virtiopy.transport.driver import MmioDriver
from virtiopy.vhost.kernel.scsi import KernelScsi, VhostScsi
from virtiopy.virtqueue.driver import Allocator
from virtiopy.vm.machine import Machine
from virtiopy.vm.slots import IoMode, Slot

WWPN = "naa.5001405000000001"
FEATURES = feature_mask([Feature.VIRTIO_F_VERSION_1, ScsiFeature.VIRTIO_SCSI_F_HOTPLUG])
NEEDS_RESET = DeviceStatus.DEVICE_NEEDS_RESET
NAMES = {
    getattr(lib, f"VHOST_{name}"): name
    for name in (
        *("GET_FEATURES", "SET_FEATURES", "SET_OWNER", "SET_MEM_TABLE", "SET_VRING_ADDR"),
        *("SET_VRING_NUM", "SET_VRING_BASE", "GET_VRING_BASE"),
        *("SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"),
        *("SCSI_SET_ENDPOINT", "SCSI_CLEAR_ENDPOINT"),
    )
}


@dataclass
class FakeKernel:
    """Writes down what it is told: the call's name, and a ring's index or a target's name."""

    calls: list[tuple[str, int | str]] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)

    def ioctl(self, fd: int, request: int, argument: int) -> int:
        name = NAMES[request]
        if name in self.refusals:
            return -self.refusals[name]
        what: int | str = 0
        if name == "GET_FEATURES":
            ffi.cast("uint64_t *", argument)[0] = FEATURES
        elif name == "SET_FEATURES":
            what = int(ffi.cast("uint64_t *", argument)[0])
        elif name.startswith("SCSI_"):
            target = ffi.cast("struct vhost_scsi_target *", argument)
            assert target.abi_version == 1
            what = bytes(ffi.buffer(target.vhost_wwpn)).rstrip(b"\0").decode()
        elif "VRING" in name:
            what = int(ffi.cast("struct vhost_vring_state *", argument).index)
        self.calls.append((name, what))
        return 0

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    kernel = FakeKernel()
    monkeypatch.setattr(
        "virtiopy.vhost.kernel.scsi.VhostScsi",
        lambda: VhostScsi("/dev/null", ioctl=kernel.ioctl),
    )
    return kernel


@dataclass
class Rig:
    machine: Machine
    slot: Slot
    driver: MmioDriver


@pytest.fixture
def rig(kernel: FakeKernel) -> Iterator[Rig]:
    accelerator: Accelerator = NoAccelerator()  # type: ignore[assignment]
    with (
        GuestMemory.allocate(16 << 20) as memory,
        Machine(memory, accelerator, console=lambda data: None) as machine,
    ):
        slot = machine.add_device(KernelScsi(WWPN, num_queues=2), "scsi0", IoMode.VHOST)
        kernel.calls.clear()
        allocator = Allocator(0x10000, 16 << 20)
        yield Rig(machine, slot, MmioDriver(slot.transport, memory, allocator))


def test_that_there_is_such_a_target_is_known_from_the_start(kernel: FakeKernel) -> None:
    KernelScsi(WWPN).close()
    assert kernel.calls[-3:] == [
        ("SET_MEM_TABLE", 0),
        ("SCSI_SET_ENDPOINT", WWPN),
        ("SCSI_CLEAR_ENDPOINT", WWPN),
    ]
    kernel.refusals["SCSI_SET_ENDPOINT"] = errno.EEXIST
    with pytest.raises(ConfigError, match=f"no target {WWPN} for vhost"):
        KernelScsi(WWPN)
    kernel.refusals["SCSI_SET_ENDPOINT"] = errno.EFAULT
    with pytest.raises(HostError, match="VHOST_SCSI_SET_ENDPOINT"):
        KernelScsi(WWPN)


def test_what_to_do_without_it_is_an_option_of_scsis(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"modprobe vhost_scsi.*use disk=IMAGE without mode"):
        VhostScsi(str(tmp_path / "none"))


def test_a_driver_writes_the_sizes_that_are_there(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    # As Linux's does; vhost has no others.
    rig.driver.write_config(SENSE_SIZE_AT, 4, SENSE_SIZE)
    rig.driver.write_config(CDB_SIZE_AT, 4, CDB_SIZE)
    assert caplog.messages == []
    rig.driver.write_config(SENSE_SIZE_AT, 4, SENSE_SIZE + 1)
    assert len(caplog.messages) == 1
    assert rig.driver.read_config(SENSE_SIZE_AT, 4) == SENSE_SIZE


def test_all_rings_start_with_the_endpoint_as_the_last_step(kernel: FakeKernel, rig: Rig) -> None:
    rig.driver.start(features=[ScsiFeature.VIRTIO_SCSI_F_HOTPLUG])
    assert kernel.calls[0] == ("SET_FEATURES", FEATURES)
    assert kernel.names()[1] == "SET_MEM_TABLE"
    assert kernel.calls[-1] == ("SCSI_SET_ENDPOINT", WWPN)
    assert [index for name, index in kernel.calls if name == "SET_VRING_KICK"] == [0, 1, 2, 3]
    assert rig.slot.mode is IoMode.VHOST


def test_a_reset_stops_them_before_it_forgets_them(kernel: FakeKernel, rig: Rig) -> None:
    rig.driver.start()
    kernel.calls.clear()
    rig.driver.reset()
    assert kernel.calls[0] == ("SCSI_CLEAR_ENDPOINT", WWPN)
    assert sorted(index for name, index in kernel.calls if name == "GET_VRING_BASE") == [0, 1, 2, 3]
    kernel.calls.clear()
    rig.driver.start()
    assert kernel.calls[-1] == ("SCSI_SET_ENDPOINT", WWPN)


def test_a_kernel_that_refuses_breaks_the_device_until_a_reset(
    kernel: FakeKernel, rig: Rig
) -> None:
    kernel.refusals["SCSI_SET_ENDPOINT"] = errno.EFAULT
    rig.driver.start()
    assert rig.driver.status & NEEDS_RESET
    kernel.refusals.clear()
    rig.driver.reset()
    rig.driver.start()
    assert not rig.driver.status & NEEDS_RESET


def test_no_other_can_work_its_rings(rig: Rig) -> None:
    with pytest.raises(ConfigError, match="the kernel has its units"):
        rig.slot.change_mode(IoMode.IOEVENTFD)
    assert rig.slot.mode is IoMode.VHOST


def test_the_configuration_space_has_the_queues(rig: Rig) -> None:
    rig.driver.start()
    assert rig.driver.read_config(0, 4) == 2
    assert len(rig.driver.queues) == 4


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (f"vhost={WWPN},disk=a.img", "which has its own disk"),
        (f"vhost={WWPN},queue-size=8", "which has its own queue-size"),
        ("vhost=" + "x" * 300, "is none: name one as in naa"),
    ],
)
def test_a_value_that_cannot_be_is_said(kernel: FakeKernel, value: str, words: str) -> None:
    scsi = entry_named("scsi")
    with pytest.raises(ConfigError, match=words):
        build(scsi, parse(scsi, value))


def test_a_target_of_the_kernels_has_its_own_mode_and_is_not_served(kernel: FakeKernel) -> None:
    scsi = entry_named("scsi")
    options = parse(scsi, f"vhost={WWPN}")
    assert mode_of(scsi, options, "trapped").mode == "vhost"
    with pytest.raises(ConfigError, match="mode=trapped: use one of vhost"):
        mode_of(scsi, parse(scsi, f"vhost={WWPN},mode=trapped"), "trapped")
    with pytest.raises(ConfigError, match="the kernel's own"):
        build_served_scsi(options)
    device = build(scsi, options)
    assert device.facts() == {"target": WWPN}
    device.close()
