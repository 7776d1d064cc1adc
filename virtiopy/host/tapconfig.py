"""What a user can say of a tap, and what of it cannot be meant."""

import hashlib
import ipaddress
import os
import re
from dataclasses import dataclass

from virtiopy._native import lib
from virtiopy.errors import ConfigError

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface

#: MTUs that a tap can have, bytes (drivers/net/tun.c, for taps).
MTU_MIN = 68
MTU_MAX = 65521

#: The most queues of a tap (MAX_TAP_QUEUES).
QUEUES_MAX = 256


@dataclass(slots=True, frozen=True)
class TapConfig:
    """Which tap to use, and how.

    With `create` a new one is made, up, with these settings; `persistent` lets it outlive us, and
    `owner` (a user ID) may use it then. Without, it has to be there: `address` and `bridge` are
    not for changing it, and `mtu`, bytes, is at most its own.

    `netns` is the name of the network namespace it is in (default: ours); `queues` are opened.
    """

    name: str
    create: bool = False
    persistent: bool = False
    owner: int | None = None
    address: Address | None = None
    bridge: str | None = None
    mtu: int | None = None
    netns: str | None = None
    queues: int = 1

    def check(self) -> None:
        """Raise ConfigError for what cannot be meant."""
        check_interface_name(self.name)
        if self.bridge is not None:
            check_interface_name(self.bridge)
        if not self.create and (self.address is not None or self.bridge is not None):
            what = "address" if self.address is not None else "bridge"
            raise ConfigError(
                f"The tap {self.name} is not virtiopy's to change: leave out {what}=..., "
                "or have virtiopy make a tap with create=on."
            )
        if self.address is not None and self.bridge is not None:
            raise ConfigError(
                f"The tap {self.name} cannot have an address as a port of {self.bridge}: "
                "leave out address=... and give the address to the bridge."
            )
        if self.mtu is not None and not MTU_MIN <= self.mtu <= MTU_MAX:
            raise ConfigError(
                f"The tap {self.name} cannot have an MTU of {self.mtu}: "
                f"use a number from {MTU_MIN} to {MTU_MAX}."
            )

    @property
    def where(self) -> str:
        """Name the namespace, for a sentence."""
        return f" in the namespace {self.netns}" if self.netns else ""

    @property
    def ip(self) -> str:
        """The start of a command of iproute2 where the tap is, for a remedy."""
        return f"ip -n {self.netns}" if self.netns else "ip"


def check_interface_name(name: str) -> None:
    """Raise ConfigError for what cannot be an interface's name (dev_valid_name)."""
    most = lib.IFNAMSIZ - 1
    bad = not name or len(name.encode()) > most or name in {".", ".."}
    if bad or any(character in "/:%" or character.isspace() for character in name):
        raise ConfigError(
            f"{name!r} is no interface name: use up to {most} characters, "
            "none of them a space, a slash, a colon or a percent sign."
        )


def parse_address(text: str) -> Address:
    """Read an address with its prefix length, as in 192.0.2.1/24; raises ConfigError."""
    try:
        if "/" in text:
            return ipaddress.ip_interface(text)
    except ValueError:
        pass
    raise ConfigError(f"{text!r} is no address with a prefix length: use one like 192.0.2.1/24.")


def parse_mac(text: str) -> bytes:
    """Read a unicast MAC address, as in 02:00:00:00:00:01; raises ConfigError."""
    if re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        mac = bytes.fromhex(text.replace(":", ""))
        if any(mac) and not mac[0] & 1:
            return mac
    raise ConfigError(f"{text!r} is no unicast MAC address: use one like 02:00:00:00:00:01.")


def default_mac(config: TapConfig) -> bytes:
    """Return a locally administered MAC address for the guest's side of a tap.

    The same for the same host, namespace and tap, so that neighbours and leases last.
    """
    key = f"{os.uname().nodename}/{config.netns or ''}/{config.name}".encode()
    return b"\x02" + hashlib.blake2s(key, digest_size=5).digest()
