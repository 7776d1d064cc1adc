"""The compiled part: kernel structs, ioctls, memory fences.

``ffi`` and ``lib`` are what cffi makes of ``cdef.h``. Struct layouts, ioctl numbers and constants
come from the kernel's headers at build time.
"""

import sys
from typing import TYPE_CHECKING

from virtiopy._native._lib import ffi, lib

if TYPE_CHECKING:
    from virtiopy._native._lib import CData
else:
    CData = ffi.CData

if sys.byteorder != "little":
    # Rings and configuration spaces are little-endian (1.4) and are read here as native structs.
    raise ImportError("virtiopy needs a little-endian host")

__all__ = ["CData", "ffi", "lib"]
