"""KVM: a guest is stopped, whatever it does."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

from tests.openfiles import open_files
from tests.patience import PATIENCE
from tests.unit.kvm.guest import (
    COUNTER,
    HLT,
    QUIT,
    CpuThread,
    Guest,
    PatchedLib,
    guest_of,
    needs_kvm,
    wait_until,
)
from virtiopy._native import ffi
from virtiopy.accel.kvm import vcpu as vcpu_module
from virtiopy.cpu.exits import Exit, ExitReason

#: inc dword [COUNTER]; cmp byte [QUIT], 0; je to the start; hlt
SPIN = bytes.fromhex("66 ff06 0004  80 3e 0005 00  74 f4  f4")


@dataclass
class Spinner:
    """A guest that counts until it is told to quit, and the thread that runs it."""

    guest: Guest
    thread: CpuThread

    def start(self) -> "Future[Exit | None]":
        return self.thread.start(self.guest.cpu.run)

    def stop(self) -> None:
        self.guest.cpu.stop()

    def wait_until_it_counts(self) -> None:
        before = self.guest.memory.read(COUNTER, 4)
        wait_until(lambda: self.guest.memory.read(COUNTER, 4) != before)

    def quit(self) -> None:
        self.guest.memory.write(QUIT, b"\1")

    def runs_to_its_end(self) -> bool:
        """Let it count and quit, and say whether nothing came between."""
        future = self.start()
        self.wait_until_it_counts()
        self.quit()
        return future.result(PATIENCE) == Exit(ExitReason.HLT)


@pytest.fixture(params=["io_uring", "signal"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How stop() reaches the thread."""
    way: str = request.param
    if way == "signal":
        patched = PatchedLib(vp_wake_new=lambda eventfd, error: ffi.NULL)
        monkeypatch.setattr(vcpu_module, "lib", patched)
    return way


@pytest.fixture
def spinner(way: str) -> Iterator[Spinner]:
    with guest_of(SPIN) as guest, CpuThread() as thread:
        spinner = Spinner(guest, thread)
        spinner.stop()
        spinner.thread.do(spinner.guest.cpu.run)
        if spinner.guest.cpu.wakes_by != way:
            pytest.skip("this kernel lets nobody use io_uring")
        yield spinner
        # Whatever the test did, the guest leaves KVM_RUN before its memory goes.
        spinner.quit()


@needs_kvm
def test_stop_takes_a_spinning_guest_out_of_run(spinner: Spinner) -> None:
    future = spinner.start()
    spinner.wait_until_it_counts()
    spinner.stop()
    assert future.result(PATIENCE) is None


@needs_kvm
def test_stop_before_run_makes_run_return_at_once(spinner: Spinner) -> None:
    spinner.stop()
    before = spinner.guest.memory.read(COUNTER, 4)
    assert spinner.start().result(PATIENCE) is None
    assert spinner.guest.memory.read(COUNTER, 4) == before


@needs_kvm
def test_a_stopped_guest_goes_on_at_the_next_run(spinner: Spinner) -> None:
    future = spinner.start()
    spinner.wait_until_it_counts()
    spinner.stop()
    assert future.result(PATIENCE) is None
    assert spinner.runs_to_its_end()


@needs_kvm
def test_of_a_thousand_stops_none_is_lost_and_none_invented(spinner: Spinner) -> None:
    for number in range(1000):
        future = spinner.start()
        if number % 4 == 0:
            spinner.wait_until_it_counts()
        spinner.stop()
        assert future.result(PATIENCE) is None
    assert spinner.runs_to_its_end()


@needs_kvm
def test_stops_before_a_run_count_as_one(spinner: Spinner) -> None:
    for _ in range(3):
        spinner.stop()
    assert spinner.start().result(PATIENCE) is None
    assert spinner.runs_to_its_end()


@needs_kvm
def test_many_stops_while_the_thread_is_elsewhere_do_not_lose_a_later_one(spinner: Spinner) -> None:
    for _ in range(10):
        spinner.stop()
        # The thread passes through the kernel, which tells it of the stop.
        spinner.thread.do(lambda: None)
    assert spinner.start().result(PATIENCE) is None
    future = spinner.start()
    spinner.wait_until_it_counts()
    spinner.stop()
    assert future.result(PATIENCE) is None


@needs_kvm
def test_stops_by_several_threads_at_once_are_not_lost(spinner: Spinner) -> None:
    with contextlib.ExitStack() as stack:
        threads = [stack.enter_context(CpuThread()) for _ in range(4)]
        for _ in range(50):
            future = spinner.start()
            stops = [thread.start(spinner.stop) for thread in threads]
            assert future.result(PATIENCE) is None
            for stop in stops:
                stop.result(PATIENCE)
            # One of them may have come after run() returned: take it with one more.
            spinner.stop()
            assert spinner.start().result(PATIENCE) is None
    assert spinner.runs_to_its_end()


@needs_kvm
def test_a_cpu_that_moved_to_another_thread_can_be_stopped_there(spinner: Spinner) -> None:
    with CpuThread() as other:
        future = other.start(spinner.guest.cpu.run)
        spinner.wait_until_it_counts()
        spinner.stop()
        assert future.result(PATIENCE) is None


@needs_kvm
def test_a_cpu_that_moves_between_threads_leaves_no_file_open(way: str) -> None:
    before = open_files()
    with guest_of(HLT * 5) as guest:
        for _ in range(5):
            with CpuThread() as thread:
                thread.do(guest.cpu.run)
    assert open_files() == before


@needs_kvm
def test_before_any_run_nobody_knows_how_a_stop_will_reach_the_thread() -> None:
    with guest_of(HLT) as guest:
        assert guest.cpu.wakes_by == ""


#: mov byte [COUNTER], 1; hlt, with interrupts off
HALT = bytes.fromhex("c6 06 0004 01 f4")


@needs_kvm
def test_stop_takes_a_guest_that_halted_in_the_kernel_out_of_run(way: str) -> None:
    with guest_of(HALT, interrupts=True) as guest, CpuThread() as thread:
        future = thread.start(guest.cpu.run)
        wait_until(lambda: guest.flag(COUNTER) == 1)
        guest.cpu.stop()
        assert future.result(PATIENCE) is None
