"""A network namespace of a test's own."""

import os
import secrets
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest

from tests.patience import PATIENCE
from virtiopy.host.tap import NAMESPACES
from virtiopy.host.tapconfig import TapConfig

MAY_HAVE_TAPS = os.geteuid() == 0 and Path("/dev/net/tun").exists()

needs_taps = pytest.mark.skipif(
    not MAY_HAVE_TAPS,
    reason="taps and network namespaces need root and /dev/net/tun",
)


_NO_IPV6 = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")

T = TypeVar("T")


class Namespace:
    """A network namespace, which is deleted at the end. It has no IPv6, so that it is quiet."""

    def __init__(self) -> None:
        self.name = f"virtiopy-{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.inside(lambda: _NO_IPV6.write_text("1"))
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def allow_ipv6(self) -> None:
        """Let interfaces that are made from now on have IPv6."""
        self.inside(lambda: _NO_IPV6.write_text("0"))

    def ip(self, *arguments: str) -> str:
        """Run ip(8) in it; returns what it prints."""
        command = ["nsenter", f"--net={NAMESPACES / self.name}", "ip", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def links(self) -> set[str]:
        """Name its interfaces, but for the loopback."""
        lines = self.ip("-o", "link").splitlines()
        return {line.split(":")[1].split("@")[0].strip() for line in lines} - {"lo"}

    def config(self, name: str = "t0", **settings: Any) -> TapConfig:  # noqa: ANN401
        """Describe a tap in it."""
        return TapConfig(name, netns=self.name, **settings)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        # Not `ip netns exec`: that mounts a /sys as well, which a chroot does not allow.
        inside = ["nsenter", f"--net={NAMESPACES / self.name}", *command]
        return subprocess.run(inside, capture_output=True, text=True, check=False, timeout=PATIENCE)

    def inside(self, function: Callable[[], T]) -> T:
        """Call `function` in it, on a thread that goes away again."""
        from pyroute2.netns import setns

        results: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                with (NAMESPACES / self.name).open() as stream:
                    setns(stream.fileno())
                results.append(function())
            except BaseException as error:  # noqa: BLE001 - raised again below
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]
