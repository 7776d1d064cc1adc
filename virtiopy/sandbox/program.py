"""A filter of system calls, as the kernel's seccomp takes it: a program in classic BPF.

See seccomp(2) and the kernel's userspace-api/seccomp_filter. What is not allowed is trapped, and so
fails with EPERM and is told. The program is for x86-64.
"""

import errno
import os
import socket
from collections.abc import Iterable, Sequence

from virtiopy._native import ffi, lib
from virtiopy.sandbox.calls import ADMITTING, CONNECTING, SERVING, STARTING, STEADY, Ability

# linux/bpf_common.h
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

# struct seccomp_data: offsets in bytes; of an argument, its lower half.
_NUMBER = 0
_ARCHITECTURE = 4
_ARGUMENTS = 16

#: Numbers from here on are those of the x32 ABI.
_X32 = 0x4000_0000

_CLONE_THREAD = 0x0001_0000
_CLONE_FS = 0x0000_0200
_PR_SET_NAME, _PR_GET_NAME = 15, 16
#: The byte of an ioctl's number that says whose it is: KVM, vhost, terminals and taps, block
#: devices, sockets.
_IOCTL_TYPES = (0xAE, 0xAF, 0x54, 0x12, 0x89)

#: Instructions: code, jump if true, jump if false, constant.
Instruction = tuple[int, int, int, int]


def _result(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _argument(number: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * number)


def _one_of(values: Iterable[int], result: int) -> list[Instruction]:
    """Return `result` where the accumulator is one of `values`."""
    return [step for value in values for step in ((_EQUAL, 0, 1, value), _result(result))]


def assemble(abilities: Ability, pid: int | None = None) -> Sequence[Instruction]:
    """Write the filter for a process that needs these abilities; `pid` is this one's."""
    pid = os.getpid() if pid is None else pid
    allow, kill = lib.SECCOMP_RET_ALLOW, lib.SECCOMP_RET_KILL_PROCESS
    starts = bool(abilities & (Ability.START | Ability.SERVE))
    # A program that is started later does not have our handler: the trap would be its end.
    refuse = lib.SECCOMP_RET_ERRNO | errno.EPERM if starts else lib.SECCOMP_RET_TRAP
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, lib.AUDIT_ARCH_X86_64),
        _result(kill),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        _result(kill),
    ]

    def when(name: str, steps: list[Instruction], otherwise: int = refuse) -> None:
        # Each ends in a result: what follows finds the call's number loaded still.
        steps = [*steps, _result(otherwise)]
        program.extend([(_EQUAL, 0, len(steps), _number(name)), *steps])

    #: What types text into another program's terminal, and what makes a tap another's.
    harmful = (lib.TIOCSTI, lib.TIOCLINUX, lib.TUNSETIFF, lib.TUNSETPERSIST, lib.TUNSETOWNER)
    when(
        "ioctl",
        [
            _argument(1),
            *_one_of(harmful, refuse),
            (_AND, 0, 0, 0xFF00),
            *_one_of((kind << 8 for kind in _IOCTL_TYPES), allow),
        ],
    )
    if not starts:
        # The C library makes a thread by clone where there is no clone3, whose flags a filter
        # cannot read.
        program.extend(_one_of([_number("clone3")], lib.SECCOMP_RET_ERRNO | errno.ENOSYS))
        when(
            "clone",
            [_argument(0), (_AND, 0, 0, _CLONE_THREAD), *_one_of([_CLONE_THREAD], allow)],
        )
        for name in ("kill", "tgkill"):
            when(name, [_argument(0), *_one_of([pid], allow)])
        when("prlimit64", [_argument(0), *_one_of([0, pid], allow)])
        when("prctl", [_argument(0), *_one_of([_PR_SET_NAME, _PR_GET_NAME], allow)])
        if Ability.CONNECT in abilities:
            when("socket", [_argument(0), *_one_of([socket.AF_UNIX], allow)])
    names = STEADY.split()
    if Ability.ADMIT in abilities:
        names += ADMITTING.split()
        when("socket", [_argument(0), *_one_of([socket.AF_UNIX], allow)])
        # A thread has a working folder of its own.
        when("unshare", [_argument(0), *_one_of([_CLONE_FS], allow)])
    if starts:
        names += STARTING.split()
        names += (SERVING if Ability.SERVE in abilities else CONNECTING).split()
    elif Ability.CONNECT in abilities:
        names.append("connect")
    program += _one_of(sorted(_number(name) for name in names), allow)
    program.append(_result(refuse))
    return program


def _number(name: str) -> int:
    number = lib.vp_syscall_number(name.encode())
    assert number >= 0, f"{name} is no system call"
    return number


def as_bytes(abilities: Ability) -> bytes:
    """Write the filter as programs take it that put it on for another: an array in memory."""
    return bytes(ffi.buffer(ffi.new("struct vp_bpf[]", assemble(abilities))))
