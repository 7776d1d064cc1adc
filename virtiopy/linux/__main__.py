"""Have a kernel ready before it is wanted: python -m virtiopy.linux."""

import sys

from virtiopy.cache import cache_folder
from virtiopy.errors import VirtiopyError
from virtiopy.linux.kernels import find_kernel
from virtiopy.linux.unpacked import unpacked


def main() -> int:
    """Find a kernel, or fetch one, and unpack it; the status is 1 where there is none."""
    cache = cache_folder()
    try:
        kernel = find_kernel(cache, lambda line: print(f"virtiopy: {line}"))  # noqa: T201
        unpacked(kernel.image, cache)
    except VirtiopyError as error:
        print(f"virtiopy: there is no Linux to boot yet: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
