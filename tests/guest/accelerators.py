"""Which accelerators a test can run on; the IDs of those that run on each say which."""

import pytest

from tests.guest.support import needs_kvm
from virtiopy.accel import AcceleratorName
from virtiopy.vm.slots import IoMode


def has_unicorn() -> bool:
    try:
        import virtiopy.accel.tcg.accelerator  # noqa: F401
    except ImportError:
        return False
    return True


needs_unicorn = pytest.mark.skipif(not has_unicorn(), reason="unicorn is not installed")

KVM = pytest.param(AcceleratorName.KVM, marks=needs_kvm)
TCG = pytest.param(AcceleratorName.TCG, marks=needs_unicorn)
each_accelerator = pytest.mark.parametrize("name", [KVM, TCG])

#: The modes that any device can be in: nobody else works its queues.
OWN_MODES = [IoMode.TRAPPED, IoMode.IOEVENTFD]

#: Seconds after which a guest is taken to hang.
TIMEOUT = 60.0
