"""What all guests share: guest_drivers/runtime."""

from tests.guest.support import needs_qemu, run_in_qemu


@needs_qemu
def test_an_interrupt_between_sti_and_hlt_is_not_slept_through() -> None:
    """No CPU lets one in there, but QEMU 7.2 does where it emulates SVM, as in the lab."""
    run_in_qemu("misbehave", append="misbehave=early-interrupt", accel="tcg")
