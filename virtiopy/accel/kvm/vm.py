"""A VM: memory slots, the in-kernel interrupt chips, interrupt lines."""

import itertools
import os
from collections.abc import Callable
from functools import partial

from virtiopy._native import CData, ffi, lib
from virtiopy.accel.kvm.cpuid import cpuid_of, sees_spinning
from virtiopy.accel.kvm.statistics import read_statistics
from virtiopy.accel.kvm.vcpu import Vcpu
from virtiopy.closing import Closing
from virtiopy.errors import HostError
from virtiopy.memory import GuestMemory

#: Three pages below the firmware's place for what KVM needs on CPUs without unrestricted guest
#: (api.rst 4.36, 4.41): they must lie below 4 GiB, in no memory slot.
IDENTITY_MAP_ADDRESS = 0xFFFB_C000
TSS_ADDRESS = 0xFFFB_D000


class Vm(Closing):
    """A KVM VM. Made by `Kvm.create_vm`."""

    def __init__(self, fd: int, vcpu_mmap_size: int, supported_cpuid: CData) -> None:
        self.fd = fd
        self._vcpu_mmap_size = vcpu_mmap_size
        self._supported_cpuid = supported_cpuid
        self._free_slots = itertools.count()
        self._left_slots: list[int] = []

    def close(self) -> None:
        """Close the VM's file; the VM goes when its vCPUs are closed too."""
        os.close(self.fd)

    def _ioctl(self, name: str, argument: int) -> int:
        result = lib.vp_ioctl(self.fd, getattr(lib, name), argument)
        if result < 0:
            raise HostError(f"{name} fails: {os.strerror(-result)}.")
        return result

    def set_memory(self, memory: GuestMemory) -> None:
        """Give the guest `memory`, one slot a region (api.rst 4.35)."""
        for region in memory.regions:
            self.set_memory_slot(
                next(self._free_slots), region.guest_address, region.size, region.host_address
            )

    def add_read_only_memory(
        self, guest_address: int, size: int, host_address: int
    ) -> Callable[[], None]:
        """Have the guest read this memory, and its writes be MMIO exits: KVM_MEM_READONLY.

        Returns what takes it away again.
        """
        # A page of registers comes and goes, and slots are limited.
        slot = self._left_slots.pop() if self._left_slots else next(self._free_slots)
        self.set_memory_slot(slot, guest_address, size, host_address, lib.KVM_MEM_READONLY)

        def take_away() -> None:
            self.set_memory_slot(slot, guest_address, 0, host_address)
            self._left_slots.append(slot)

        return take_away

    def set_memory_slot(
        self, slot: int, guest_address: int, size: int, host_address: int, flags: int = 0
    ) -> None:
        """Map, move or (with `size` 0) unmap one memory slot; addresses and size in bytes."""
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot = slot
        region.flags = flags
        region.guest_phys_addr = guest_address
        region.memory_size = size
        region.userspace_addr = host_address
        self._ioctl("KVM_SET_USER_MEMORY_REGION", int(ffi.cast("uintptr_t", region)))

    def place_private_pages(self) -> None:
        """Say where KVM may put its identity map and TSS (api.rst 4.36, 4.41)."""
        address = ffi.new("uint64_t *", IDENTITY_MAP_ADDRESS)
        self._ioctl("KVM_SET_IDENTITY_MAP_ADDR", int(ffi.cast("uintptr_t", address)))
        self._ioctl("KVM_SET_TSS_ADDR", TSS_ADDRESS)

    def create_irqchip(self) -> None:
        """Make the 8259s, the IOAPIC, and a local APIC for each vCPU to come (api.rst 4.24)."""
        self._ioctl("KVM_CREATE_IRQCHIP", 0)

    def create_pit(self) -> None:
        """Make the 8254 timer, whose speaker port answers too (api.rst 4.71)."""
        config = ffi.new("struct kvm_pit_config *")
        config.flags = lib.KVM_PIT_SPEAKER_DUMMY
        self._ioctl("KVM_CREATE_PIT2", int(ffi.cast("uintptr_t", config)))

    def set_irq_line(self, gsi: int, level: bool) -> None:
        """Set the level of an interrupt line of the in-kernel chips (api.rst 4.25)."""
        line = ffi.new("struct kvm_irq_level *")
        line.irq = gsi
        line.level = int(level)
        self._ioctl("KVM_IRQ_LINE", int(ffi.cast("uintptr_t", line)))

    def add_ioeventfd(self, address: int, value: int, eventfd: int) -> Callable[[], None]:
        """Signal `eventfd` for 32-bit writes of `value` at `address`, in the kernel (4.59).

        Returns what ends that, before the eventfd is closed: that alone does not.
        """
        flags = lib.KVM_IOEVENTFD_FLAG_DATAMATCH
        self._set_ioeventfd(address, value, eventfd, flags)
        flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        return partial(self._set_ioeventfd, address, value, eventfd, flags)

    def _set_ioeventfd(self, address: int, value: int, eventfd: int, flags: int) -> None:
        ioeventfd = ffi.new("struct kvm_ioeventfd *")
        ioeventfd.addr = address
        ioeventfd.len = 4
        ioeventfd.datamatch = value
        ioeventfd.fd = eventfd
        ioeventfd.flags = flags
        self._ioctl("KVM_IOEVENTFD", int(ffi.cast("uintptr_t", ioeventfd)))

    def add_irqfd(self, gsi: int, eventfd: int) -> None:
        """Pulse line `gsi` of the in-kernel chips whenever `eventfd` is written (api.rst 4.75)."""
        irqfd = ffi.new("struct kvm_irqfd *")
        irqfd.fd = eventfd
        irqfd.gsi = gsi
        self._ioctl("KVM_IRQFD", int(ffi.cast("uintptr_t", irqfd)))

    def create_vcpu(self, number: int = 0, count: int = 1) -> Vcpu:
        """Make vCPU `number` of `count`, with all that KVM can give one (api.rst 4.7, 4.20)."""
        fd = self._ioctl("KVM_CREATE_VCPU", number)
        vcpu = Vcpu(fd, self._vcpu_mmap_size)
        seen = count == 1 or sees_spinning()
        vcpu.set_cpuid(cpuid_of(self._supported_cpuid, number, count, spinning_is_seen=seen))
        return vcpu

    def statistics(self) -> dict[str, int]:
        """Read the kernel's counters for the VM as a whole; empty where it has none."""
        return read_statistics(self.fd)
