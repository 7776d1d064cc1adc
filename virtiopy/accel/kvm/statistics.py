"""KVM's own counters, from KVM_GET_STATS_FD (api.rst 4.133)."""

import os

from virtiopy._native import ffi, lib

_SCALAR_TYPES = (
    lib.KVM_STATS_TYPE_CUMULATIVE,
    lib.KVM_STATS_TYPE_INSTANT,
    lib.KVM_STATS_TYPE_PEAK,
)


def read_statistics(fd: int) -> dict[str, int]:
    """Return the scalar counters of a VM's or a vCPU's file by the kernel's names.

    Empty on a kernel without KVM_CAP_BINARY_STATS_FD. Histograms are left out.
    """
    stats_fd = lib.vp_ioctl(fd, lib.KVM_GET_STATS_FD, 0)
    if stats_fd < 0:
        return {}
    try:
        return _parse(stats_fd)
    finally:
        os.close(stats_fd)


def _parse(stats_fd: int) -> dict[str, int]:
    header_size = ffi.sizeof("struct kvm_stats_header")
    header = ffi.new("struct kvm_stats_header *")
    ffi.buffer(header)[:] = os.pread(stats_fd, header_size, 0)
    # The name follows each descriptor, in a field of name_size bytes.
    name_offset = ffi.sizeof("struct kvm_stats_desc")
    stride = name_offset + header.name_size
    descriptors = os.pread(stats_fd, header.num_desc * stride, header.desc_offset)

    statistics = {}
    for start in range(0, len(descriptors), stride):
        entry = ffi.new("struct kvm_stats_desc *")
        ffi.buffer(entry)[:] = descriptors[start : start + name_offset]
        if entry.size != 1 or entry.flags & lib.KVM_STATS_TYPE_MASK not in _SCALAR_TYPES:
            continue
        name = descriptors[start + name_offset : start + stride].split(b"\0")[0].decode()
        value = os.pread(stats_fd, 8, header.data_offset + entry.offset)
        statistics[name] = int.from_bytes(value, "little")
    return statistics
