"""A page that a guest reads a device's registers from without an exit.

It only shows what the transport says. Where it is a read-only memory slot of KVM's (api.rst 4.35),
reads are plain memory reads, and writes still go where they went before: to userspace, or an
ioeventfd.
"""

import contextlib
import mmap
import os

from virtiopy._native import ffi, lib
from virtiopy.closing import Closing
from virtiopy.errors import HostError
from virtiopy.memory import PAGE_SIZE

_WORD = 4


class RegisterPage(Closing):
    """A page of zeroes at `host_address`, for the guest to see; what it shows is set here.

    One thread at a time sets it, while the guest reads. Raises HostError where the host has no file
    or memory for it.
    """

    def __init__(self) -> None:
        try:
            with contextlib.ExitStack() as undo:
                # Two pages, of which the guest sees one: see `show`.
                self._fd = os.memfd_create("virtiopy-registers", os.MFD_CLOEXEC)
                undo.callback(os.close, self._fd)
                os.ftruncate(self._fd, 2 * PAGE_SIZE)
                self._pages = memoryview(mmap.mmap(self._fd, 2 * PAGE_SIZE))
                self._guests = mmap.mmap(self._fd, PAGE_SIZE, prot=mmap.PROT_READ)
                undo.pop_all()
        except OSError as error:
            raise HostError(
                f"The host has no page to show registers on ({error.strerror}): "
                "use --exit-free off."
            ) from error
        self._shown = 0
        self.host_address = int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", self._guests)))

    def close(self) -> None:
        """Unmap the page; the guest has no part in it any more."""
        self._guests.close()
        self._pages.release()
        os.close(self._fd)

    def _page(self, number: int) -> memoryview:
        return self._pages[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]

    def read(self) -> bytes:
        """Return what the guest sees."""
        return self._guests[:]

    def set(self, offset: int, value: int) -> None:
        """Show one register of 32 bits, at `offset` bytes; no guest sees half of it."""
        self._page(self._shown).cast("I")[offset // _WORD] = value

    def show(self, registers: bytes) -> None:
        """Show these, a whole page of them: the guest sees all that changed, or nothing of it.

        So a driver that finds ConfigGeneration as it was before it read the configuration space
        has read one version of that (4.2.2).
        """
        shown = self._page(self._shown)
        if registers == shown:
            return
        other = 1 - self._shown
        self._page(other)[:] = registers
        result = lib.vp_map_over(self.host_address, PAGE_SIZE, self._fd, other * PAGE_SIZE)
        if result < 0:
            raise HostError(f"The page of registers cannot be mapped: {os.strerror(-result)}.")
        self._shown = other
