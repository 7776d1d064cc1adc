"""Files that are mapped, and that another process can make smaller meanwhile."""

from virtiopy._native import CData, ffi, lib
from virtiopy.closing import Closing
from virtiopy.errors import HostError


class Guard(Closing):
    """Keeps a file that shrinks under our mapping of it from ending the process (SIGBUS).

    `size` bytes from `address` on are guarded, in pages of `page` bytes. What is lost reads as
    zeroes, and `eventfd` is written. Raises HostError where there are too many guards already.
    """

    def __init__(self, address: int, size: int, page: int, eventfd: int) -> None:
        self._guard: CData | None = lib.vp_guard_new(address, size, page, eventfd)
        if self._guard == ffi.NULL:
            self._guard = None
            raise HostError(
                "This process has too many memory regions of others: serve fewer frontends."
            )

    @property
    def hit(self) -> bool:
        """Whether anything was lost."""
        return self._guard is not None and bool(lib.vp_guard_hit(self._guard))

    def close(self) -> None:
        """Guard no more: the mapping is not read any more."""
        if self._guard is not None:
            lib.vp_guard_free(self._guard)
            self._guard = None
