"""CPUID of one vCPU: all that KVM can give, and the vCPU's number where CPUs tell themselves apart.

A guest learns a CPU's APIC ID and the topology from CPUID leaves (SDM volume 2, CPUID), which
KVM_GET_SUPPORTED_CPUID fills from the CPU that the host's thread runs on (api.rst 4.46).
"""

from collections.abc import Iterable

from virtiopy._native import CData, ffi, lib

#: xAPIC IDs have 8 bits, and the last is for all CPUs (SDM volume 3, 11.6.2.1).
CPUS_MAX = 255

_BASIC = 0x1
_CACHES = 0x4
_TOPOLOGY = (0xB, 0x1F)
_AMD_SIZES = 0x8000_0008
_AMD_TOPOLOGY = 0x8000_001E

# Leaf 1.
_ECX_HYPERVISOR = 1 << 31
_EDX_HTT = 1 << 28
# Leaves 0xB and 0x1F: what a level is of.
_LEVEL_THREAD = 1 << 8
_LEVEL_CORE = 2 << 8


def cpuid_of(supported: CData, number: int, count: int) -> CData:
    """Return the `struct kvm_cpuid2` of vCPU `number` of `count`, from the host's `supported`.

    Each vCPU is a core of one package, with one thread.
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
