"""The commands that a logical unit has: what their CDBs look like, and what serves them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from virtiopy.devices.scsi.command import Additional, Command, illegal, invalid_field

#: Serves a command; returns the bytes that were transferred, in whichever direction.
Handler = Callable[[Command], int]

#: Operation codes whose CDB has a service action in byte 1, bits 0 to 4, of those in use here.
SERVICE_ACTION_IN_16 = 0x9E
MAINTENANCE_IN = 0xA3
_WITH_SERVICE_ACTION = {SERVICE_ACTION_IN_16, MAINTENANCE_IN}
_SERVICE_ACTION = 0x1F


@dataclass(slots=True, frozen=True)
class Definition:
    """A command: its CDB, with a bit set for each that is looked at (SPC-4, 6.35.3).

    Byte 0 is the operation code, and bits 0 to 4 of byte 1 the service action where there is one.
    A command that `waits` uses the medium. One that is `always` served reports no unit attention.
    """

    usage: bytes
    handler: Handler
    #: The bits of bytes 1 and on that must be 0, as a big-endian number.
    forbidden: int
    waits: bool
    always: bool

    @property
    def opcode(self) -> int:
        """The operation code."""
        return self.usage[0]

    @property
    def service_action(self) -> int | None:
        """The service action, if the operation code has them."""
        return self.usage[1] & _SERVICE_ACTION if self.opcode in _WITH_SERVICE_ACTION else None

    def check(self, cdb: bytes) -> None:
        """Refuse a CDB that is cut short, or has a bit set that must be 0."""
        length = len(self.usage)
        if len(cdb) < length:
            raise invalid_field(len(cdb))
        if wrong := int.from_bytes(cdb[1:length], "big") & self.forbidden:
            # The first byte that has one.
            raise invalid_field(length - -(-wrong.bit_length() // 8))


def define(
    usage: str, handler: Handler, *, waits: bool = False, always: bool = False
) -> Definition:
    """Return a command whose CDB is written in hexadecimal."""
    cdb = bytes.fromhex(usage)
    looked_at = bytearray(cdb[1:])
    if cdb[0] in _WITH_SERVICE_ACTION:
        looked_at[0] |= _SERVICE_ACTION
    forbidden = int.from_bytes(bytes(0xFF ^ byte for byte in looked_at), "big")
    return Definition(cdb, handler, forbidden, waits, always)


class CommandSet:
    """Commands by operation code and service action."""

    def __init__(self, definitions: Iterable[Definition]) -> None:
        self._by_code = {(item.opcode, item.service_action): item for item in definitions}
        self._opcodes = {opcode for opcode, _ in self._by_code}

    @property
    def definitions(self) -> Sequence[Definition]:
        """All of them, by their codes."""
        return sorted(
            self._by_code.values(), key=lambda item: (item.opcode, item.service_action or 0)
        )

    def find(self, opcode: int, service_action: int | None) -> Definition | None:
        """Return a command; None where there is none."""
        return self._by_code.get((opcode, service_action))

    def of(self, cdb: bytes) -> Definition:
        """Return the command that a CDB, of a byte at least, is; refuses one that is none."""
        opcode = cdb[0]
        action = None
        if opcode in _WITH_SERVICE_ACTION:
            action = cdb[1] & _SERVICE_ACTION if len(cdb) > 1 else 0
        found = self._by_code.get((opcode, action))
        if found is None:
            if opcode in self._opcodes:
                raise invalid_field(1)
            raise illegal(Additional.INVALID_COMMAND_OPERATION_CODE, 0)
        return found
