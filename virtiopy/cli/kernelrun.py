"""Running a kernel from the command line: its serial port, its end, and where it hangs."""

import os
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path

import click

from virtiopy.cli.attachments import open_target
from virtiopy.cli.ending import Ending, Reason, backends_gone, name_code, run_to_end
from virtiopy.cli.main import EXIT_ERROR, EXIT_GUEST_FAILED
from virtiopy.devices.streams import Stream
from virtiopy.errors import GuestError
from virtiopy.vm.machine import Machine
from virtiopy.vm.pc import Pc
from virtiopy.vm.power import PowerEvent

#: Words that every kernel is given first: what comes later goes before.
#: Without an EFI a hardware-reduced machine is reset by ACPI only when the kernel is told.
DEFAULT_WORDS = "console=ttyS0 reboot=a panic=-1"

#: How much memory a kernel has where it is not said.
DEFAULT_MEMORY = 512 << 20

_PANIC = "Kernel panic - not syncing"
_LINES_SHOWN = 24


class SerialOutput:
    """The guest's output: to standard output where it is ours to show, and its end kept."""

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self._at_once = shown and os.isatty(sys.stdout.fileno())
        self._line = bytearray()
        self._pending = bytearray()
        #: The last lines, without their ends.
        self.lines: deque[str] = deque(maxlen=200)
        self.panicked = False

    def write(self, data: bytes) -> None:
        """Take some output, on the CPU's thread."""
        if self.shown:
            self._pending += data
            if self._at_once or data.endswith(b"\n") or len(self._pending) >= 1 << 12:
                self.flush()
        self._line += data
        if data.endswith(b"\n"):
            line = self._line.decode(errors="replace").strip("\r\n")
            self._line.clear()
            self.lines.append(line)
            self.panicked = self.panicked or _PANIC in line

    def flush(self) -> None:
        """Show what has not been shown."""
        pending, self._pending = bytes(self._pending), bytearray()
        sys.stdout.buffer.write(pending)
        sys.stdout.buffer.flush()

    @property
    def last_line(self) -> str:
        """The last line that says anything, whole or not."""
        unfinished = self._line.decode(errors="replace").strip()
        return unfinished or next((line for line in reversed(self.lines) if line.strip()), "")


def open_serial(target: str) -> tuple[Stream | None, bool]:
    """Return the serial port's stream, and whether its output is to be shown without one."""
    if target == "none":
        return None, False
    if target == "stdout":
        return None, True
    opened = open_target(target, wait=False, option="--serial", others="none, stdout, ")
    return opened, False


def run_to_the_end(
    machine: Machine, pc: Pc, output: SerialOutput, kernel: Path, timeout: float
) -> tuple[int, Ending]:
    """Run a kernel until it switches itself off or tells a status; return the status.

    A panic is 1, with the last lines on standard error. What ended the run otherwise is in the
    ending, to be raised. A `timeout` of 0 is none.
    """
    ending = run_to_end(machine, timeout, kernel)
    if ending.error is None or not isinstance(ending.error, OSError):
        output.flush()
    if ending.reason is Reason.TIMEOUT:
        late = GuestError(
            f"The guest was not done after {timeout:g} seconds; {_where(machine, output, kernel)} "
            "Give it more with --timeout, or find out what it waits for."
        )
        return EXIT_ERROR, replace(ending, error=late)
    if ending.reason is Reason.GUEST_FAULT:
        click.echo(f"virtiopy: {ending.error} {_last_lines(output)}", err=True)
        return EXIT_GUEST_FAILED, replace(ending, error=None)
    if ending.result.status is None or ending.error is not None:
        return EXIT_ERROR, ending
    if output.panicked:
        click.echo(f"virtiopy: the kernel panicked. {_last_lines(output)}", err=True)
        return EXIT_GUEST_FAILED, ending
    if pc.power is PowerEvent.RESET:
        # A restart that was asked for is an end like any other here.
        return 0, ending
    return ending.result.status, ending


def _last_lines(output: SerialOutput) -> str:
    """Word the last lines; where they are on the screen already, the last of all will do."""
    lines = [line for line in output.lines if line.strip()]
    if not lines:
        return "It had said nothing on the serial port."
    shown = lines[-1 if output.shown else -_LINES_SHOWN :]
    return "\n    ".join(["Its last lines:", *shown])


def _where(machine: Machine, output: SerialOutput, kernel: Path) -> str:
    """Say where the guest is: each CPU, the last line, the devices."""
    cpus = []
    for cpu in machine.cpus:
        rip = cpu.cpu.get_registers().rip
        symbol = name_code(kernel, rip)
        cpus.append(f"CPU {cpu.number} is at rip {rip:#x}" + (f" ({symbol})" if symbol else ""))
    line = output.last_line
    said = f'it said last "{line}"' if line else "it has said nothing on the serial port"
    devices = ", ".join(
        f"{slot.name} has device status {slot.transport.lifecycle.status:#x}"
        for slot in machine.slots
    )
    return "; ".join(filter(None, [*cpus, said, devices, backends_gone(machine)])) + "."
