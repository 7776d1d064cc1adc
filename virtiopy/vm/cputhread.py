"""One vCPU: the thread that runs it, and the log of its exits."""

import threading
from collections.abc import Callable

from virtiopy.accel.base import Cpu
from virtiopy.cpu.exits import Exit, ExitReason, IoExit, MmioExit
from virtiopy.errors import GuestError
from virtiopy.metrics.exitlog import ExitKind, ExitLog

#: Answers an access of a vCPU, which is counted in its log; False ends the vCPU's turn.
AnswerAccess = Callable[[IoExit | MmioExit, ExitLog], bool]


class CpuThread:
    """A vCPU with a thread and an exit log of its own.

    `number` counts from 0, the CPU that boots, and is the CPU's APIC ID. `who` begins a sentence
    about it. A turn is what a CPU does in one run of the machine: `begin` starts it, on a new
    thread; `stop` and then `join` end it. `failure` is what the turn ended with, if not well.
    """

    def __init__(self, number: int, cpu: Cpu, answer: AnswerAccess, *, who: str) -> None:
        self.number = number
        self.cpu = cpu
        self.exits = ExitLog()
        self.failure: BaseException | None = None
        self._answer = answer
        self._who = who
        self._turn = _Turn()
        self._thread: threading.Thread | None = None

    @property
    def thread(self) -> threading.Thread | None:
        """The thread of the last turn."""
        return self._thread

    def statistics(self) -> dict[str, int]:
        """Read the accelerator's own counters of this CPU."""
        return self.cpu.statistics()

    def prepare(self) -> None:
        """Forget the turn before, which is over."""
        self.failure = None
        self._turn = _Turn()
        self._thread = None

    def begin(self, ended: threading.Event) -> None:
        """Run the CPU on a thread of its own; `ended` is set when its turn is over."""
        turn = self._turn
        self._thread = threading.Thread(
            target=self._run, args=(turn, ended), name=f"cpu{self.number}"
        )
        self._thread.start()

    def stop(self) -> None:
        """End the turn, begun or not; from any thread."""
        if self._turn.cancel() and not self._turn.done.is_set():
            self.cpu.stop()

    def join(self) -> None:
        """Wait for the end of the turn, which `stop` asked for."""
        if not self._turn.begun:
            return
        # A join() that Ctrl-C interrupts takes the thread for dead (Python 3.11).
        self._turn.done.wait()
        assert self._thread is not None
        self._thread.join()

    def _run(self, turn: "_Turn", ended: threading.Event) -> None:
        if not turn.begin():
            return
        try:
            while (exit_ := self.cpu.run(self._answer_access)) is not None:
                self._handle(exit_)
        except BaseException as error:  # noqa: BLE001 - raised again by Machine.run, on its thread
            self.failure = error
        finally:
            turn.done.set()
            ended.set()

    def _answer_access(self, exit_: IoExit | MmioExit) -> bool:
        return self._answer(exit_, self.exits)

    def _handle(self, exit_: Exit) -> None:
        self.exits.count(ExitKind(exit_.reason.name))
        if exit_.reason is not ExitReason.IRQ_WINDOW_OPEN:
            raise self._explain(exit_)

    def _explain(self, exit_: Exit) -> GuestError:
        rip = self.cpu.get_registers().rip
        if exit_.reason is ExitReason.SHUTDOWN:
            return GuestError(
                f"{self._who} triple-faulted at rip {rip:#x}: look at what it does there, "
                "for instance with objdump -d."
            )
        return GuestError(f"{self._who} stopped at rip {rip:#x} with {exit_.describe()}.")


class _Turn:
    """One turn of a thread: begun or cancelled, whichever comes first."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.begun = False
        self._lock = threading.Lock()
        self._cancelled = False

    def begin(self) -> bool:
        """Say, on the thread, whether the turn is to be taken."""
        with self._lock:
            self.begun = not self._cancelled
            return self.begun

    def cancel(self) -> bool:
        """Say whether the turn was begun; if not, it never is."""
        with self._lock:
            self._cancelled = True
            return self.begun
