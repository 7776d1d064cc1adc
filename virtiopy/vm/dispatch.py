"""What becomes of a vCPU's accesses to ports and to addresses without memory."""

from virtiopy.cpu.exits import IoExit, MmioExit
from virtiopy.metrics.exitlog import ExitKind, ExitLog
from virtiopy.vm.bus import Bus


class ExitDispatch:
    """Finds who answers an access, and counts the exit in the log of the vCPU that made it.

    With `ignore_unassigned`, accesses to addresses where no device is are read as all ones and
    write nothing, as on a PC; else they raise UnassignedAccessError.
    """

    def __init__(self, *, ignore_unassigned: bool = False) -> None:
        self.mmio = Bus("guest physical address")
        self.ports = Bus("port")
        self._ignore_unassigned = ignore_unassigned

    def answer(self, exit_: IoExit | MmioExit, log: ExitLog) -> None:
        """Let the device at the exit's address answer; on the vCPU's thread."""
        if isinstance(exit_, MmioExit):
            self._access(self.mmio, exit_.address, exit_.is_write, exit_.data, log)
            return
        for start in range(0, exit_.size * exit_.count, exit_.size):
            item = exit_.data[start : start + exit_.size]
            # A string instruction is one exit, whatever the number of its items.
            self._access(self.ports, exit_.port, exit_.is_write, item, log if not start else None)

    def _access(
        self, bus: Bus, address: int, is_write: bool, data: memoryview, log: ExitLog | None
    ) -> None:
        reason = "MMIO" if bus is self.mmio else "IO"
        direction = "write" if is_write else "read"
        place = bus.find(address)
        if place is None:
            if not self._ignore_unassigned:
                raise bus.refuse(address, len(data), is_write)
            if log is not None:
                log.count_unassigned(reason, address, direction)
            if not is_write:
                data[:] = b"\xff" * len(data)
            return
        offset = address - place.start
        if log is not None:
            register = place.device.register_name(offset)
            log.count(ExitKind(reason, place.name, register, direction))
        if is_write:
            place.device.write(offset, bytes(data))
        else:
            data[:] = place.device.read(offset, len(data))
