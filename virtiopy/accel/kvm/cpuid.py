"""CPUID of one vCPU: all that KVM can give, and the vCPU's number where CPUs tell themselves apart.

A guest learns a CPU's APIC ID and the topology from CPUID leaves (SDM volume 2, CPUID), which
KVM_GET_SUPPORTED_CPUID fills from the CPU that the host's thread runs on (api.rst 4.46).
"""

from collections.abc import Iterable
from os import PathLike, fspath

from virtiopy._native import CData, ffi, lib

#: xAPIC IDs have 8 bits, and the last is for all CPUs (SDM volume 3, 11.6.2.1).
CPUS_MAX = 255

_BASIC = 0x1
_CACHES = 0x4
_TOPOLOGY = (0xB, 0x1F)
_AMD_SIZES = 0x8000_0008
_AMD_TOPOLOGY = 0x8000_001E

_KVM_FEATURES = 0x4000_0001

#: What says how many PAUSEs of a guest's CPU, close together, bring it back to KVM: AMD, Intel.
PAUSE_FILTERS = ("kvm_amd/parameters/pause_filter_count", "kvm_intel/parameters/ple_gap")

# Leaf 1.
_ECX_HYPERVISOR = 1 << 31
_EDX_HTT = 1 << 28
# Leaves 0xB and 0x1F: what a level is of.
_LEVEL_THREAD = 1 << 8
_LEVEL_CORE = 2 << 8
# _KVM_FEATURES, EAX (cpuid.rst).
_PV_UNHALT = 1 << 7


def sees_spinning(modules: str | PathLike[str] = "/sys/module") -> bool:
    """Say whether KVM notices that a guest's CPU spins: whether PAUSEs in a row are an exit.

    They are not where the host's CPU is without the filter, as QEMU's emulation of SVM is.
    """
    for name in PAUSE_FILTERS:
        try:
            with open(f"{fspath(modules)}/{name}", encoding="ascii") as file:
                return int(file.read()) > 0
        except (OSError, ValueError):
            # The module of the other kind of CPU, or of neither.
            continue
    return True


def cpuid_of(supported: CData, number: int, count: int, *, spinning_is_seen: bool = True) -> CData:
    """Return the `struct kvm_cpuid2` of vCPU `number` of `count`, from the host's `supported`.

    Each vCPU is a core of one package, with one thread. With KVM_FEATURE_PV_UNHALT a Linux guest's
    CPU spins for 32,768 PAUSEs for a lock before it halts; where KVM does not see it spin, and give
    its time to the CPU that has the lock, the feature is left out.
    """
    entries = [
        _numbered(supported.entries[index], number, count)
        for index in range(supported.nent)
        if supported.entries[index].function not in _TOPOLOGY
    ]
    leaves = {supported.entries[index].function for index in range(supported.nent)}
    for leaf in _TOPOLOGY:
        if leaf in leaves:
            entries += _topology(leaf, number, count)
    for entry in entries:
        if entry.function == _KVM_FEATURES and not spinning_is_seen:
            entry.eax &= ~_PV_UNHALT
    cpuid = ffi.new("struct kvm_cpuid2 *", {"entries": len(entries)})
    cpuid.nent = len(entries)
    for index, entry in enumerate(entries):
        cpuid.entries[index] = entry[0]
    return cpuid


def _numbered(supported: CData, number: int, count: int) -> CData:
    """Copy an entry, with the vCPU's number in it where it has one."""
    entry = ffi.new("struct kvm_cpuid_entry2 *", supported)
    if entry.function == _BASIC:
        # Initial APIC ID, and how many IDs the package has.
        entry.ebx = entry.ebx & 0xFFFF | count << 16 | number << 24
        # KVM leaves it to userspace to say that there is a hypervisor (cpuid.rst). A kernel that is
        # not told looks for no clock of KVM's, and without an 8254 has no other to measure by.
        entry.ecx |= _ECX_HYPERVISOR
        entry.edx = entry.edx | _EDX_HTT if count > 1 else entry.edx & ~_EDX_HTT
    elif entry.function == _CACHES and entry.eax & 0x1F:
        # Each core has the cache for itself; how many core IDs the package has, less one.
        cores = min((1 << _bits(count)) - 1, 0x3F)
        entry.eax = entry.eax & 0x3FFF | cores << 26
    elif entry.function == _AMD_SIZES:
        entry.ecx = entry.ecx & ~0xF0FF | _bits(count) << 12 | (count - 1)
    elif entry.function == _AMD_TOPOLOGY:
        entry.eax, entry.ebx, entry.ecx = number, number & 0xFF, 0
    return entry


def _topology(leaf: int, number: int, count: int) -> Iterable[CData]:
    """Return the levels of an extended topology leaf: threads, cores, and the end of the list."""
    levels = ((0, 1, _LEVEL_THREAD), (_bits(count), count, _LEVEL_CORE), (0, 0, 0))
    for index, (shift, processors, kind) in enumerate(levels):
        yield ffi.new(
            "struct kvm_cpuid_entry2 *",
            {
                "function": leaf,
                "index": index,
                "flags": lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                "eax": shift,
                "ebx": processors,
                "ecx": index | kind,
                "edx": number,
            },
        )


def _bits(count: int) -> int:
    """Return how many bits of an APIC ID tell `count` CPUs apart."""
    return (count - 1).bit_length()
