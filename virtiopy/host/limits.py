"""What one system call takes at most."""

import os

#: Buffers of one readv, writev, preadv or pwritev: UIO_MAXIOV of the kernel.
IOV_MAX = os.sysconf("SC_IOV_MAX")
