"""/dev/kvm itself: capabilities, and making VMs (Documentation/virt/kvm/api.rst, 4.1 to 4.5)."""

import enum
import errno
import os

from virtiopy._native import CData, ffi, lib
from virtiopy.accel.kvm.vm import Vm
from virtiopy.closing import Closing
from virtiopy.errors import HostError

DEVICE = "/dev/kvm"


class Capability(enum.IntEnum):
    """The KVM_CAP_* that virtiopy uses or reports."""

    NR_VCPUS = lib.KVM_CAP_NR_VCPUS
    MAX_VCPUS = lib.KVM_CAP_MAX_VCPUS
    NR_MEMSLOTS = lib.KVM_CAP_NR_MEMSLOTS
    USER_MEMORY = lib.KVM_CAP_USER_MEMORY
    IRQCHIP = lib.KVM_CAP_IRQCHIP
    PIT2 = lib.KVM_CAP_PIT2
    SET_TSS_ADDR = lib.KVM_CAP_SET_TSS_ADDR
    SET_IDENTITY_MAP_ADDR = lib.KVM_CAP_SET_IDENTITY_MAP_ADDR
    EXT_CPUID = lib.KVM_CAP_EXT_CPUID
    IMMEDIATE_EXIT = lib.KVM_CAP_IMMEDIATE_EXIT
    IOEVENTFD = lib.KVM_CAP_IOEVENTFD
    IRQFD = lib.KVM_CAP_IRQFD
    READONLY_MEM = lib.KVM_CAP_READONLY_MEM
    BINARY_STATS_FD = lib.KVM_CAP_BINARY_STATS_FD
    SYNC_REGS = lib.KVM_CAP_SYNC_REGS


class Kvm(Closing):
    """An open /dev/kvm. Raises HostError, with the remedy, when there is none to open."""

    def __init__(self, device: str = DEVICE) -> None:
        try:
            self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(_why_not(device, error)) from error
        version = lib.vp_ioctl(self.fd, lib.KVM_GET_API_VERSION, 0)
        if version < 0:
            os.close(self.fd)
            raise HostError(
                f"{device} is not KVM ({os.strerror(-version)}): load the kvm module, or pass the "
                "real device into this container."
            )
        if version != lib.KVM_API_VERSION:
            os.close(self.fd)
            raise HostError(
                f"{device} speaks KVM API version {version}, virtiopy {lib.KVM_API_VERSION}: "
                "use a kernel of this century."
            )

    def close(self) -> None:
        """Close /dev/kvm; VMs that were made live on."""
        os.close(self.fd)

    def check_extension(self, capability: Capability) -> int:
        """Return KVM_CHECK_EXTENSION's answer: 0 for no, else yes or a number."""
        return lib.vp_ioctl(self.fd, lib.KVM_CHECK_EXTENSION, capability)

    @property
    def cpus_max(self) -> int:
        """The most vCPUs of a VM; the fallbacks are api.rst's (4.7)."""
        return (
            self.check_extension(Capability.MAX_VCPUS)
            or self.check_extension(Capability.NR_VCPUS)
            or 4
        )

    def create_vm(self) -> Vm:
        """Make a VM without memory or CPUs; raises HostError."""
        # It is interrupted by signals, and by io_uring's task work, and then not restarted.
        while (fd := lib.vp_ioctl(self.fd, lib.KVM_CREATE_VM, 0)) == -errno.EINTR:
            pass
        if fd < 0:
            raise HostError(
                f"/dev/kvm makes no VM ({os.strerror(-fd)}): "
                "see whether another hypervisor holds the CPU's virtualization."
            )
        mmap_size = lib.vp_ioctl(self.fd, lib.KVM_GET_VCPU_MMAP_SIZE, 0)
        return Vm(fd, mmap_size, self.supported_cpuid())

    def supported_cpuid(self) -> CData:
        """Return the `struct kvm_cpuid2` of all that a guest's CPU can have (4.46)."""
        entries = 64
        while True:
            cpuid = ffi.new("struct kvm_cpuid2 *", {"entries": entries})
            cpuid.nent = entries
            result = lib.vp_ioctl(self.fd, lib.KVM_GET_SUPPORTED_CPUID, _address(cpuid))
            if result == 0:
                return cpuid
            if result != -errno.E2BIG:
                raise HostError(f"KVM_GET_SUPPORTED_CPUID fails: {os.strerror(-result)}.")
            entries *= 2

    def msr_indices(self) -> list[int]:
        """List the model-specific registers that KVM can save and restore (4.3)."""
        count = 0
        while True:
            indices = ffi.new("struct kvm_msr_list *", {"indices": count})
            indices.nmsrs = count
            result = lib.vp_ioctl(self.fd, lib.KVM_GET_MSR_INDEX_LIST, _address(indices))
            if result == 0:
                return [indices.indices[i] for i in range(indices.nmsrs)]
            if result != -errno.E2BIG:
                raise HostError(f"KVM_GET_MSR_INDEX_LIST fails: {os.strerror(-result)}.")
            count = indices.nmsrs


def _address(struct: CData) -> int:
    return int(ffi.cast("uintptr_t", struct))


def _why_not(device: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return (
            f"{device} does not exist: enable virtualization in the firmware and load the kvm "
            "module, or pass the device into this container."
        )
    if isinstance(error, PermissionError):
        return f"{device} may not be opened by this user: join the group kvm, or run as root."
    return f"{device} cannot be opened ({error.strerror}): see what `virtiopy doctor` says."
