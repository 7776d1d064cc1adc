"""The compiled part: kernel structs, ioctls, memory fences.

``ffi`` and ``lib`` are what cffi makes of the headers that ``build.py`` names. Struct layouts,
ioctl numbers and constants come from the kernel's headers at build time.
"""

import binascii
import os
import sys
from typing import TYPE_CHECKING

from virtiopy.errors import ConfigError

_REMEDY = "build it with scripts/setup, or `pip install` the package again"

try:
    from virtiopy._native._lib import ffi, lib
except ModuleNotFoundError as error:
    raise ConfigError(f"the compiled part of virtiopy is missing: {_REMEDY}.") from error

#: What the compiled part was made for, beside it: another is left from before a change.
_NAMES = ("vhost_user.h", "sandbox.h", "cdef.h", "cdef_rings.h")
_sum = 0
for _name in _NAMES:
    with open(os.path.join(os.path.dirname(__file__), _name), "rb") as _file:
        _sum = binascii.crc32(_file.read(), _sum)
if getattr(lib, "VP_DECLARATIONS", None) != _sum:
    raise ConfigError(f"the compiled part of virtiopy is of another version: {_REMEDY}.")

if TYPE_CHECKING:
    from virtiopy._native._lib import CData
else:
    CData = ffi.CData

if sys.byteorder != "little":
    # Rings and configuration spaces are little-endian (1.4) and are read here as native structs.
    raise ImportError("virtiopy needs a little-endian host")

__all__ = ["CData", "ffi", "lib"]
