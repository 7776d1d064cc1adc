"""What one system call takes at most."""

import os

#: Buffers of one readv, writev, preadv or pwritev: UIO_MAXIOV of the kernel.
IOV_MAX = os.sysconf("SC_IOV_MAX")

#: Bytes of a file that a guest fills, unless the user says otherwise: a console's, a record's.
OUTPUT_LIMIT = 1 << 30
