"""Mode pages, and the commands that read and change them (SPC-4, 6.11 to 6.14 and 7.5)."""

import enum
from collections.abc import Callable, Mapping, Sequence

from virtiopy.devices.scsi.command import Additional, Command, illegal, invalid_field
from virtiopy.devices.scsi.commandset import Definition, define
from virtiopy.devices.scsi.spc import PrimaryUnit


class PageControl(enum.IntEnum):
    """Which values a mode page is asked for (SPC-4, 6.13.1)."""

    CURRENT = 0
    CHANGEABLE = 1
    DEFAULT = 2
    SAVED = 3


class ModePage(enum.IntEnum):
    """Mode pages (SPC-4, 7.5; SBC-3, 6.5; MMC-6, 7.2)."""

    ERROR_RECOVERY = 0x01
    CACHING = 0x08
    CONTROL = 0x0A
    CD_CAPABILITIES = 0x2A
    ALL = 0x3F


#: Gives a mode page: its bytes after the two of its header.
PageReader = Callable[[PageControl], bytes]

#: Subpages: the page itself, and all that it has.
_NO_SUBPAGE, _ALL_SUBPAGES = 0x00, 0xFF

#: QUEUE ALGORITHM MODIFIER of the control page: commands complete in any order.
_UNRESTRICTED_REORDERING = 0x10


class ModeUnit(PrimaryUnit):
    """A logical unit with mode pages."""

    def commands(self) -> Sequence[Definition]:
        """Return the commands of mode pages, too."""
        return [
            *super().commands(),
            define("1a 08 ff ff ff 00", self._mode_sense_6),
            define("5a 18 ff ff 00 00 00 ff ff 00", self._mode_sense_10),
            define("15 10 00 00 ff 00", self._mode_select_6),
            define("55 10 00 00 00 00 00 ff ff 00", self._mode_select_10),
        ]

    def mode_pages(self) -> Mapping[int, PageReader]:
        """Return what gives each page."""
        return {ModePage.CONTROL: self._control_page}

    def change_page(self, page: int, values: bytes) -> None:
        """Take a page that differs from the current one in nothing but changeable bits."""

    def device_specific(self) -> int:
        """Return the device-specific parameter of the header."""
        return 0

    def block_descriptor(self, *, long: bool) -> bytes:
        """Return how many blocks there are of what size, where there are blocks."""
        return b""

    # MODE SENSE

    def _mode_sense_6(self, command: Command) -> int:
        descriptor, pages = self._sense(command, long=False)
        length = 3 + len(descriptor) + len(pages)
        header = bytes([length, 0, self.device_specific(), len(descriptor)])
        return command.answer(header + descriptor + pages, command.number(4, 1))

    def _mode_sense_10(self, command: Command) -> int:
        long = command.bit(1, 4)
        descriptor, pages = self._sense(command, long=long)
        length = 6 + len(descriptor) + len(pages)
        header = length.to_bytes(2, "big") + bytes([0, self.device_specific()])
        # LONGLBA says which form the block descriptor has.
        header += bytes([long and bool(descriptor), 0]) + len(descriptor).to_bytes(2, "big")
        return command.answer(header + descriptor + pages, command.number(7, 2))

    def _sense(self, command: Command, *, long: bool) -> tuple[bytes, bytes]:
        """Return the block descriptor, and the pages that are asked for."""
        control, wanted = PageControl(command.cdb[2] >> 6), command.cdb[2] & ModePage.ALL
        if control is PageControl.SAVED:
            raise illegal(Additional.SAVING_PARAMETERS_NOT_SUPPORTED)
        pages = self.mode_pages()
        if wanted not in {ModePage.ALL, *pages}:
            raise invalid_field(2)
        if command.cdb[3] not in {_NO_SUBPAGE, _ALL_SUBPAGES}:
            raise invalid_field(3)
        found = b""
        for code in sorted(pages) if wanted == ModePage.ALL else [wanted]:
            body = pages[code](control)
            found += bytes([code, len(body)]) + body
        descriptor = b"" if command.bit(1, 3) else self.block_descriptor(long=long)
        return descriptor, found

    def _control_page(self, control: PageControl) -> bytes:
        if control is PageControl.CHANGEABLE:
            return bytes(10)
        return bytes([0, _UNRESTRICTED_REORDERING]) + bytes(8)

    # MODE SELECT

    def _mode_select_6(self, command: Command) -> int:
        data = command.parameters(command.number(4, 1))
        if data:
            self._select(data, header_size=4, descriptor_size=data[3] if len(data) > 3 else 0)
        return len(data)

    def _mode_select_10(self, command: Command) -> int:
        data = command.parameters(command.number(7, 2))
        if data:
            self._select(data, 8, int.from_bytes(data[6:8], "big"))
        return len(data)

    def _select(self, data: bytes, header_size: int, descriptor_size: int) -> None:
        """Check all pages, and then take them."""
        if len(data) < header_size + descriptor_size:
            raise illegal(Additional.PARAMETER_LIST_LENGTH_ERROR)
        descriptor = data[header_size : header_size + descriptor_size]
        if descriptor not in {b"", self.block_descriptor(long=False)}:
            # The capacity and the block size are the medium's.
            raise illegal(Additional.INVALID_FIELD_IN_PARAMETER_LIST)
        pages, rest = self.mode_pages(), data[header_size + descriptor_size :]
        taken: list[tuple[int, bytes]] = []
        while rest:
            if len(rest) < 2 or len(rest) < 2 + rest[1]:
                raise illegal(Additional.PARAMETER_LIST_LENGTH_ERROR)
            code, body, rest = rest[0] & 0x3F, rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
            if code not in pages or not _changes_only_what_may(body, pages[code]):
                raise illegal(Additional.INVALID_FIELD_IN_PARAMETER_LIST)
            taken.append((code, body))
        for code, body in taken:
            self.change_page(code, body)


def _changes_only_what_may(body: bytes, page: PageReader) -> bool:
    current, mask = page(PageControl.CURRENT), page(PageControl.CHANGEABLE)
    return len(body) == len(current) and not any(
        (new ^ old) & ~changeable for new, old, changeable in zip(body, current, mask, strict=True)
    )
