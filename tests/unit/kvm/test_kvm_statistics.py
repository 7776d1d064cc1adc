"""KVM: statistics (api.rst 4.133), eventfds, and a machine on it."""

import contextlib
import os
from collections.abc import Callable

import pytest

from tests.openfiles import open_files
from tests.patience import PATIENCE
from tests.unit.kvm.guest import (
    CODE,
    HLT,
    MEMORY_SIZE,
    PatchedLib,
    _why_no_kvm,
    guest_of,
    needs_kvm,
)
from virtiopy.accel.kvm import statistics as statistics_module
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.accel.kvm.statistics import read_statistics
from virtiopy.accel.kvm.system import Capability, Kvm
from virtiopy.cpu.x86 import (
    Registers,
    SystemRegisters,
    protected_mode,
    real_mode,
)
from virtiopy.errors import HostError
from virtiopy.memory import GuestMemory
from virtiopy.vm.bus import UnassignedAccessError
from virtiopy.vm.machine import Machine

# Statistics (api.rst 4.133)


def _has_statistics() -> bool:
    with contextlib.suppress(HostError), Kvm() as kvm:
        return bool(kvm.check_extension(Capability.BINARY_STATS_FD))
    return False


needs_statistics = pytest.mark.skipif(
    not _has_statistics(), reason=_why_no_kvm() or "this KVM has no binary statistics"
)


@needs_statistics
def test_the_counter_of_exits_grows_with_exits() -> None:
    with guest_of(HLT * 10) as guest:
        seen = [guest.cpu.statistics()["exits"]]
        for _ in range(10):
            guest.next_exit()
            seen.append(guest.cpu.statistics()["exits"])
    assert seen == sorted(set(seen))


@needs_statistics
def test_the_vm_has_counters_of_its_own() -> None:
    with guest_of(HLT) as guest:
        names = set(guest.accelerator.statistics())
        assert "remote_tlb_flush" in names
        assert "exits" not in names


@needs_statistics
def test_reading_statistics_leaves_nothing_open() -> None:
    with guest_of(HLT) as guest:
        before = open_files()
        for _ in range(10):
            guest.cpu.statistics()
        assert open_files() == before


def test_a_kernel_without_statistics_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "lib", PatchedLib(vp_ioctl=lambda *arguments: -25))
    assert read_statistics(0) == {}


# x86 state as data


@pytest.mark.parametrize("make", [real_mode, protected_mode])
def test_the_start_states_share_nothing_from_one_call_to_the_next(
    make: Callable[[], SystemRegisters],
) -> None:
    state = make()
    state.idt.limit = 0x123
    state.cs.base = 0x456
    assert make() != state


# Eventfds


@needs_kvm
def test_an_ioeventfd_that_was_removed_leaves_its_address_to_another() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        first, second = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2))
        remove = vm.add_ioeventfd(0xD000_0050, 0, first)
        with pytest.raises(HostError, match="KVM_IOEVENTFD fails: File exists"):
            vm.add_ioeventfd(0xD000_0050, 0, second)
        remove()
        vm.add_ioeventfd(0xD000_0050, 0, second)
        os.close(first)
        os.close(second)


# A machine on KVM


@needs_kvm
def test_an_unassigned_access_is_what_the_caller_of_a_kvm_machine_sees() -> None:
    with GuestMemory.allocate(MEMORY_SIZE) as memory:
        memory.write(CODE, bytes.fromhex("e6 55"))
        accelerator = KvmAccelerator(memory)

        def run() -> None:
            with Machine(memory, accelerator, console=lambda data: None) as machine:
                machine.cpus[0].cpu.set_system_registers(real_mode())
                machine.cpus[0].cpu.set_registers(Registers(rip=CODE))
                machine.run(PATIENCE)

        with (
            contextlib.closing(accelerator),
            pytest.raises(UnassignedAccessError, match="wrote 1 byte at port 0x55"),
        ):
            run()
