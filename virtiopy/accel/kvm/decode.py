"""`struct kvm_run` decoded (api.rst 5)."""

from virtiopy._native import CData, ffi, lib
from virtiopy.cpu.exits import Exit, ExitReason, IoExit, MmioExit


def _io(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    io = run.io
    start = io.data_offset
    return IoExit(
        reason,
        io.port,
        io.size,
        io.count,
        io.direction == lib.KVM_EXIT_IO_OUT,
        data[start : start + io.size * io.count],
    )


_MMIO_DATA = ffi.offsetof("struct kvm_run", "mmio", "data")


def _mmio(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    mmio = run.mmio
    return MmioExit(
        reason, mmio.phys_addr, bool(mmio.is_write), data[_MMIO_DATA : _MMIO_DATA + mmio.len]
    )


def _rare(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    # Imported late: most guests end without such an exit, and it brings a dozen classes.
    from virtiopy.cpu.rare_exits import decode_rare  # noqa: PLC0415

    return decode_rare(reason, run)


def _plain(reason: ExitReason, run: CData, data: memoryview) -> Exit:
    return Exit(reason)


#: The reasons that runs of guests are made of.
_DECODERS = {ExitReason.IO: _io, ExitReason.MMIO: _mmio, ExitReason.HLT: _plain}


def decode(run: CData, data: memoryview) -> Exit:
    """Decode `struct kvm_run`; `data` is the whole of the mapping that it starts."""
    number = run.exit_reason
    try:
        reason = ExitReason(number)
    except ValueError:
        return _rare(ExitReason.UNKNOWN, run, data)
    return _DECODERS.get(reason, _rare)(reason, run, data)
