"""Linux as a guest: a kernel to boot, its modules, and an initramfs to boot it with."""
