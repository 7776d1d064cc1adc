"""Entering the sandbox: what is given up, and what of it the kernel can take."""

import contextlib
import enum
import os
import platform
import pwd
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from virtiopy._native import ffi, lib
from virtiopy.errors import ConfigError, HostError
from virtiopy.sandbox.calls import Ability
from virtiopy.sandbox.files import interpreter_rules, open_file_rules
from virtiopy.sandbox.landlock import Rule, Ruleset, landlock_version
from virtiopy.sandbox.program import assemble


class SandboxMode(enum.StrEnum):
    """What is done on a kernel that lacks a part of the sandbox: refuse, nothing, or go on."""

    ON = "on"
    OFF = "off"
    AUTO = "auto"


@dataclass(slots=True, frozen=True)
class User:
    """Another user of the host, whom root's process becomes: the numbers of user and group."""

    user: int
    group: int

    @classmethod
    def named(cls, name: str) -> "User":
        """Find one by name or number; raises ConfigError."""
        try:
            found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
        except (KeyError, OverflowError, ValueError) as error:
            raise ConfigError(
                f"--user has {name!r}, and this host has no such user: name one of /etc/passwd, "
                "as in --user daemon."
            ) from error
        if os.geteuid() != 0 and found.pw_uid != os.geteuid():
            raise ConfigError("Only root can become another user: leave --user out.")
        return cls(found.pw_uid, found.pw_gid)

    def become(self, signal_number: int) -> None:
        """Be this user from now on, in all threads, with no other groups, and get no capability.

        Raises HostError. For `signal_number` see `enter`.
        """
        if os.geteuid() == 0:
            # While it may: no other user drops what the programs that it starts could get.
            if (error := lib.vp_drop_bounding_set(signal_number)) < 0:
                raise HostError(
                    f"Capabilities cannot be dropped ({os.strerror(-error)}): leave --user out."
                )
            os.setgroups([])
        os.setresgid(self.group, self.group, self.group)
        os.setresuid(self.user, self.user, self.user)


def has_filters() -> bool:
    """Say whether system calls can be filtered, as we write filters."""
    return platform.machine() == "x86_64" and bool(lib.vp_has_seccomp())


def lacking() -> list[str]:
    """Name what the kernel lacks for a whole sandbox."""
    present = {"Landlock": landlock_version() > 0, "seccomp": has_filters()}
    return [name for name, here in present.items() if not here]


def enter(
    mode: SandboxMode,
    abilities: Ability,
    rules: Iterable[Rule],
    *,
    signal_number: int,
    note: Callable[[str], None],
    user: User | None = None,
) -> None:
    """Give up all that `abilities` and `rules` do not need, for good, in all threads.

    That is every capability, files that are not in use, and all system calls but those of
    `sandbox.calls`. `signal_number` is what takes threads out of what they do: none may block it.
    The process becomes `user`, whatever the mode. Raises ConfigError where the mode is ON and the
    kernel lacks a part, and HostError.
    """
    if mode is SandboxMode.OFF:
        if user is not None:
            user.become(signal_number)
        return
    missing = lacking()
    if missing and mode is SandboxMode.ON:
        raise ConfigError(
            f"This kernel has no {' and no '.join(missing)}, so there is no whole sandbox: use "
            "--sandbox auto to do with what there is."
        )
    if missing:
        note(
            f"this kernel has no {' and no '.join(missing)}, so the sandbox is less: "
            "`virtiopy doctor` says what there is."
        )
    program = [] if "seccomp" in missing else assemble(abilities)
    native = ffi.new("struct vp_bpf[]", program) if program else ffi.NULL
    with contextlib.ExitStack() as opened:
        ruleset = -1
        if "Landlock" not in missing:
            # A helper that is started again inherits the rules.
            network = Ability.START in abilities
            landlock = opened.enter_context(Ruleset(landlock_version(), network=network))
            landlock.allow(interpreter_rules())
            landlock.allow(open_file_rules())
            landlock.allow(rules)
            ruleset = landlock.fd
        if user is not None:
            user.become(signal_number)
        error = lib.vp_sandbox_enter(ruleset, native, len(program), signal_number)
    if error < 0:
        raise HostError(
            f"The sandbox cannot be entered ({os.strerror(-error)}): use --sandbox off to do "
            "without."
        )
