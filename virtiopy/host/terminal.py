"""The host's side of a console port: the terminal that we were started from, raw while we run.

Standard input and output may as well be files or pipes, which are left as they are.
"""

import atexit
import contextlib
import os
import signal
import stat
import termios
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from virtiopy.devices.streams import Size, StreamUser
from virtiopy.errors import ConfigError
from virtiopy.eventloop import BottomHalf, EventLoop
from virtiopy.host.stream import Channel
from virtiopy.virtqueue.buffers import Buffers

#: Ctrl-a introduces a command, as in QEMU: `x` leaves, a second Ctrl-a sends one.
ESCAPE = 0x01
LEAVE = ord("x")

#: What is read of the terminal ahead of the guest, bytes: the way out must stay open.
TYPED_BYTES = 1 << 16

#: Signals that end the process, unless the program sees to them.
_FATAL = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)

_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6


def end_program() -> None:
    """Ask the program to end as Ctrl-C does; by SIGTERM where a shell has us ignore SIGINT."""
    main = threading.main_thread().ident
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if main is not None:
        signal.pthread_kill(main, signal.SIGTERM if ignored else signal.SIGINT)


class RawMode:
    """A terminal in raw mode from `enter` to `leave`, and however the program ends but SIGKILL.

    Output is still processed, so that what others print there has its line ends. Signals are seen
    to when `enter` is called on the main thread, and only where the program leaves them alone:
    what stops the process gives the terminal back meanwhile.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[int | list[bytes | int]] | None = None
        self._handlers: dict[int, Callable[[int, FrameType | None], None]] = {}

    def enter(self) -> None:
        """Make the terminal raw."""
        self._saved = termios.tcgetattr(self._fd)
        atexit.register(self._restore)
        self._make_raw()
        if threading.current_thread() is threading.main_thread():
            for number in _FATAL:
                self._handle(number, self._die)
            self._handle(signal.SIGTSTP, self._suspend)
            self._handle(signal.SIGCONT, self._resume)

    def leave(self) -> None:
        """Give the terminal back as it was."""
        self._restore()
        self._saved = None
        atexit.unregister(self._restore)
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                if signal.getsignal(number) == handler:
                    signal.signal(number, signal.SIG_DFL)
        self._handlers.clear()

    def _make_raw(self) -> None:
        mode = termios.tcgetattr(self._fd)
        flags = [mode[index] for index in (_IFLAG, _CFLAG, _LFLAG)]
        iflag, cflag, lflag = (flag for flag in flags if isinstance(flag, int))
        mode[_IFLAG] = iflag & ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        mode[_LFLAG] = lflag & ~(
            termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN
        )
        mode[_CFLAG] = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        characters = mode[_CC]
        if isinstance(characters, list):
            characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)

    def _restore(self) -> None:
        # Not TCSADRAIN: output may be stopped, and this must not wait. A terminal that has hung
        # up has no mode any more.
        if self._saved is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)

    # Signals

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, handler)
            self._handlers[number] = handler

    def _die(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        # Here we are again: SIGCONT came, or there is no shell that could send it.
        signal.signal(number, self._suspend)
        self._resume(number, frame)

    def _resume(self, number: int, frame: FrameType | None) -> None:
        # In the background it would stop us again (SIGTTOU).
        with contextlib.suppress(OSError, termios.error):
            if os.tcgetpgrp(self._fd) == os.getpgrp():
                self._make_raw()


class StdioStream:
    """Standard input and output, or two other files, which stay open.

    A terminal is raw while the stream is open, and Ctrl-a x calls `on_leave`; whatever its mode
    was comes back. Its size is the stream's, and SIGWINCH is followed if `open` is called on the
    main thread.
    """

    connected = True
    _taken = False

    def __init__(
        self,
        input_fd: int = 0,
        output_fd: int = 1,
        *,
        on_leave: Callable[[], None] = end_program,
    ) -> None:
        if StdioStream._taken:
            raise ConfigError(
                "stdio can be the host's side of one port only: give the others a pty, a socket "
                "or a file."
            )
        self._on_leave = on_leave
        self._made_nonblocking: list[int] = []
        self._output_fd = output_fd
        self._input_is_terminal = os.isatty(input_fd)
        self._raw = RawMode(input_fd)
        self._size: Size | None = None
        self._measure()
        try:
            self._input = Channel(self._open_again(input_fd, os.O_RDONLY), "standard input")
            self._output = Channel(self._open_again(output_fd, os.O_WRONLY), "standard output")
        except OSError as error:
            raise ConfigError(
                f"Standard input or output cannot be used ({error.strerror}): give the console a "
                "pty, a socket or a file."
            ) from error
        StdioStream._taken = True
        self._typed = bytearray()
        self._escaped = False
        self._wants_input = False
        self._user: StreamUser | None = None
        self._loop: EventLoop | None = None
        self._offer: BottomHalf
        self._before_winch: list[Any] = []

    def _open_again(self, fd: int, flags: int) -> int:
        """Open a file descriptor's file once more, so as not to block, where it can be.

        O_NONBLOCK belongs to the open file, which we may share with our shell and with whatever
        else prints; so it is not set there. Regular files never block, and share their position.
        """
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        if not is_regular:
            with contextlib.suppress(OSError):
                extra = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                return os.open(f"/proc/self/fd/{fd}", flags | extra)
        copy = os.dup(fd)
        if not is_regular and os.get_blocking(copy):
            # A socket, or what is not ours to open: there is no other way.
            os.set_blocking(copy, False)
            self._made_nonblocking.append(fd)
        return copy

    @property
    def size(self) -> Size | None:
        """The terminal's size as the device was told it."""
        return self._size

    def _measure(self) -> bool:
        """Look how large the terminal is; returns whether that is news."""
        before = self._size
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(self._output_fd)
            self._size = Size(size.columns, size.lines)
        return self._size != before

    def open(self, loop: EventLoop, user: StreamUser) -> None:
        """Start; a terminal becomes raw."""
        self._loop, self._user = loop, user
        self._offer = loop.bottom_half(self._offer_typed, "typed input")
        for channel in (self._input, self._output):
            channel.start(
                loop,
                user.lock,
                input_ready=self._take_input,
                room_ready=user.room_ready,
                hung_up=user.connection_changed,
            )
        if self._input_is_terminal:
            self._raw.enter()
            self._input.want(input=True)
        if self._size is not None and threading.current_thread() is threading.main_thread():
            self._before_winch.append(signal.signal(signal.SIGWINCH, self._winch))

    def _winch(self, number: int, frame: FrameType | None) -> None:
        # The lock is for the loop's thread to take: it may be held by what this interrupts.
        if self._loop is not None:
            self._loop.call_soon(self._resized, "resize")

    def _resized(self) -> None:
        if self._user is not None:
            with self._user.lock:
                if self._loop is not None and self._measure():
                    self._user.size_changed()

    # Input

    def _take_input(self) -> None:
        if not self._input_is_terminal:
            if self._user is not None:
                self._user.input_ready()
            return
        self._typed += self._without_commands(self._input.read(TYPED_BYTES - len(self._typed)))
        self._follow_typing()

    def _follow_typing(self) -> None:
        self._input.want(input=len(self._typed) < TYPED_BYTES)
        if self._wants_input and self._typed:
            self._offer.schedule()

    def _offer_typed(self) -> None:
        if self._user is not None:
            with self._user.lock:
                if self._loop is not None and self._wants_input and self._typed:
                    self._user.input_ready()

    def _without_commands(self, data: bytes) -> bytes:
        """Obey what follows a Ctrl-a, and return the rest; what is no command is left there."""
        if not self._escaped and ESCAPE not in data:
            return data
        rest = bytearray()
        for byte in data:
            if not self._escaped:
                self._escaped = byte == ESCAPE
                if not self._escaped:
                    rest.append(byte)
                continue
            self._escaped = False
            if byte == LEAVE:
                self._on_leave()
            elif byte == ESCAPE:
                rest.append(byte)
            else:
                rest += bytes([ESCAPE, byte])
        return bytes(rest)

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes of what was typed or piped in."""
        if not self._input_is_terminal:
            return self._input.read(count)
        data = bytes(self._typed[:count])
        del self._typed[:count]
        return data

    def watch_input(self, on: bool) -> None:
        """Say when there is input."""
        self._wants_input = on
        if self._loop is None:
            return
        if self._input_is_terminal:
            self._follow_typing()
        else:
            self._input.want(input=on)

    # Output

    def write(self, buffers: Buffers) -> int:
        """Write to standard output; when its reader is gone, output is dropped."""
        return self._output.write(buffers)

    def watch_room(self, on: bool) -> None:
        """Say when more can be written."""
        self._output.want(room=on)

    def close(self) -> None:
        """Give the terminal back."""
        if self._loop is not None:
            if self._input_is_terminal:
                self._raw.leave()
            while self._before_winch:
                signal.signal(signal.SIGWINCH, self._before_winch.pop())
        self._loop = None
        for channel in (self._input, self._output):
            channel.close()
        for fd in self._made_nonblocking:
            os.set_blocking(fd, True)
        StdioStream._taken = False
