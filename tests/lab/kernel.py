"""Debian's kernel for the lab, and what is missing for one."""

from pathlib import Path

from virtiopy.linux.kernels import LinuxKernel, NoKernelError, debian_kernel


class LabMissingError(Exception):
    """The lab is not to be had here; the text says what is missing, and how to get it."""


def get_kernel(cache: Path) -> LinuxKernel:
    """Return Debian's newest kernel in the folder `cache`, fetched there if there is none.

    Raises LabMissingError.
    """
    try:
        return debian_kernel(cache)
    except NoKernelError as error:
        raise LabMissingError(str(error)) from error
