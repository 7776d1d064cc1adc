"""What each vCPU's CPUID says of its number, from a host's answer that a test wrote down."""

from pathlib import Path

import pytest

from virtiopy._native import CData, ffi
from virtiopy.accel.kvm.cpuid import cpuid_of, sees_spinning

BASIC, CACHES, TOPOLOGY, TOPOLOGY_2 = 0x1, 0x4, 0xB, 0x1F
AMD_SIZES, AMD_TOPOLOGY = 0x8000_0008, 0x8000_001E
KVM_FEATURES, PV_UNHALT = 0x4000_0001, 1 << 7
HTT = 1 << 28
HYPERVISOR = 1 << 31


def supported() -> CData:
    """What KVM may say on a host whose thread is on its CPU 9 of 12."""
    entries = [
        {"function": 0x0, "eax": 0x1F},
        {"function": BASIC, "eax": 0x306C3, "ebx": 0x090C_0800, "ecx": 0x1234, "edx": HTT | 7},
        {"function": CACHES, "index": 0, "flags": 1, "eax": 0x1C00_4121, "ebx": 5},
        {"function": CACHES, "index": 1, "flags": 1, "eax": 0},
        {"function": TOPOLOGY, "index": 0, "flags": 1, "eax": 1, "ebx": 2, "ecx": 0x100, "edx": 9},
        {"function": TOPOLOGY, "index": 1, "flags": 1, "eax": 4, "ebx": 12, "ecx": 0x201, "edx": 9},
        {"function": KVM_FEATURES, "eax": PV_UNHALT | 0x41},
        {"function": AMD_SIZES, "eax": 0x3030, "ecx": 0x400B},
        {"function": AMD_TOPOLOGY, "eax": 9, "ebx": 0x104, "ecx": 1},
    ]
    cpuid = ffi.new("struct kvm_cpuid2 *", {"entries": len(entries)})
    cpuid.nent = len(entries)
    for index, entry in enumerate(entries):
        cpuid.entries[index] = ffi.new("struct kvm_cpuid_entry2 *", entry)[0]
    return cpuid


def leaf(cpuid: CData, function: int, index: int = 0) -> CData:
    entry: CData
    [entry] = [
        cpuid.entries[n]
        for n in range(cpuid.nent)
        if (cpuid.entries[n].function, cpuid.entries[n].index) == (function, index)
    ]
    return entry


@pytest.mark.parametrize(("number", "count"), [(0, 1), (0, 2), (1, 2), (4, 5), (254, 255)])
def test_a_cpu_finds_its_number_wherever_cpuid_has_an_apic_id(number: int, count: int) -> None:
    cpuid = cpuid_of(supported(), number, count)

    assert leaf(cpuid, BASIC).ebx >> 24 == number
    assert [leaf(cpuid, TOPOLOGY, level).edx for level in range(3)] == [number] * 3
    assert leaf(cpuid, AMD_TOPOLOGY).eax == number


@pytest.mark.parametrize(
    ("count", "bits", "htt"), [(1, 0, 0), (2, 1, HTT), (5, 3, HTT), (8, 3, HTT), (255, 8, HTT)]
)
def test_cpuid_tells_how_many_cpus_there_are(count: int, bits: int, htt: int) -> None:
    cpuid = cpuid_of(supported(), 0, count)

    assert leaf(cpuid, BASIC).ebx >> 16 & 0xFF == count
    assert leaf(cpuid, BASIC).edx & HTT == htt
    threads, cores, end = (leaf(cpuid, TOPOLOGY, level) for level in range(3))
    assert (threads.eax, threads.ebx, threads.ecx) == (0, 1, 0x100)
    assert (cores.eax, cores.ebx, cores.ecx) == (bits, count, 0x201)
    assert (end.eax, end.ebx, end.ecx) == (0, 0, 2)
    assert leaf(cpuid, AMD_SIZES).ecx == bits << 12 | (count - 1)
    # Cores of the package, less one, in six bits; one CPU has the cache.
    assert leaf(cpuid, CACHES).eax >> 26 == min((1 << bits) - 1, 63)
    assert leaf(cpuid, CACHES).eax >> 14 & 0xFFF == 0


def test_the_rest_is_as_the_host_has_it() -> None:
    cpuid = cpuid_of(supported(), 1, 2)

    assert leaf(cpuid, 0).eax == 0x1F
    basic = leaf(cpuid, BASIC)
    assert (basic.eax, basic.ebx & 0xFFFF) == (0x306C3, 0x0800)
    assert basic.ecx & ~HYPERVISOR == 0x1234
    assert basic.edx & ~HTT == 7
    assert leaf(cpuid, CACHES).eax & 0x3FFF == 0x121
    assert leaf(cpuid, CACHES, 1).eax == 0


def test_a_guest_is_told_that_there_is_a_hypervisor() -> None:
    """KVM's answer does not have it, and Linux uses KVM's clock only where it is."""
    assert leaf(cpuid_of(supported(), 0, 1), BASIC).ecx & HYPERVISOR


def test_a_leaf_that_the_host_lacks_is_not_made_up() -> None:
    cpuid = cpuid_of(supported(), 1, 2)

    assert TOPOLOGY_2 not in {cpuid.entries[n].function for n in range(cpuid.nent)}


def test_the_answer_of_the_host_is_left_as_it_is() -> None:
    host = supported()
    cpuid_of(host, 1, 2)

    assert leaf(host, BASIC).ebx == 0x090C_0800
    assert leaf(host, AMD_TOPOLOGY).eax == 9


@pytest.mark.parametrize("seen", [True, False])
def test_locks_that_halt_are_offered_where_kvm_sees_a_cpu_spin(seen: bool) -> None:
    cpuid = cpuid_of(supported(), 1, 2, spinning_is_seen=seen)

    assert leaf(cpuid, KVM_FEATURES).eax == 0x41 | (PV_UNHALT if seen else 0)


@pytest.mark.parametrize(
    ("file", "text", "seen"),
    [
        ("kvm_amd/parameters/pause_filter_count", "3000\n", True),
        ("kvm_amd/parameters/pause_filter_count", "0\n", False),
        ("kvm_intel/parameters/ple_gap", "128\n", True),
        ("kvm_intel/parameters/ple_gap", "0\n", False),
        # Another KVM, of which it is not known.
        ("kvm_pvm/parameters/anything", "0\n", True),
    ],
)
def test_kvms_modules_say_whether_it_sees_a_cpu_spin(
    tmp_path: Path, file: str, text: str, seen: bool
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert sees_spinning(tmp_path) == seen
