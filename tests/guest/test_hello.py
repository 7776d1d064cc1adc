import pytest

from tests.guest.support import assert_one_sentence, greeting, needs_kvm, virtiopy
from virtiopy.accel.kvm.accelerator import KvmAccelerator
from virtiopy.cpu.exits import ExitReason
from virtiopy.memory import GuestMemory
from virtiopy.vm.hello import Mode, mode_works, run_hello

pytestmark = needs_kvm

TIMEOUT = 20.0


def make_accelerator(memory: GuestMemory) -> KvmAccelerator:
    return KvmAccelerator(memory, interrupts=False)


def skip_unless_it_works(mode: Mode) -> None:
    if not mode_works(mode, make_accelerator, TIMEOUT):
        pytest.skip(f"this host's KVM cannot execute a lone HLT in {mode} mode")


@pytest.mark.parametrize("mode", Mode)
def test_the_guest_prints_stores_and_returns_what_it_should(mode: Mode) -> None:
    skip_unless_it_works(mode)

    result = run_hello(mode, make_accelerator, TIMEOUT)

    assert result.output == "Hello, World!\n"
    assert result.stored == 42
    assert result.accumulator == 42
    assert result.last_exit is not None
    assert result.last_exit.reason is ExitReason.HLT
    assert result.passed


@pytest.mark.parametrize("mode", Mode)
def test_the_command_passes_or_says_that_the_host_lacks_the_mode(mode: Mode) -> None:
    outcome = virtiopy("hello", "--mode", mode)

    if mode_works(mode, make_accelerator, TIMEOUT):
        assert (outcome.status, outcome.output) == (0, greeting(mode))
    else:
        assert_one_sentence(outcome, f"cannot execute {mode} mode", "KVM_EXIT_SHUTDOWN")


def test_all_modes_together_pass_where_one_is_lacking() -> None:
    outcome = virtiopy("hello")

    assert outcome.status == 0
    assert [line.partition(":")[0] for line in outcome.output.splitlines()] == list(Mode)
