"""vhost-user, both sides: virtqueues shared with another process over a Unix socket.

It follows QEMU's docs/interop/vhost-user. The frontend is the VMM, which has the guest's memory and
the driver; the backend works the rings.
"""
