"""Taps: an Ethernet link between a network device and the host's network stack.

A tap that is made here is gone once it is closed, also by a crash, as are its addresses and its
place in a bridge: it belongs to its file (Documentation/networking/tuntap.rst). One that was there
before is used as it is, and left as it was.
"""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from virtiopy._native import CData, ffi, lib
from virtiopy.closing import Closing
from virtiopy.errors import ConfigError, HostError
from virtiopy.host.linkcounts import LinkCounts
from virtiopy.host.tapconfig import TapConfig
from virtiopy.virtqueue.buffers import Buffers

if TYPE_CHECKING:
    from pyroute2 import IPRoute

#: Where ip-netns(8) keeps the names of network namespaces.
NAMESPACES = Path("/run/netns")

_TUN = "/dev/net/tun"

_HEADER_SIZE = ffi.sizeof("struct virtio_net_hdr_v1")

_T = TypeVar("_T")


@dataclass(slots=True, frozen=True)
class _Found:
    """What the kernel says of an interface that is there."""

    index: int
    mtu: int
    kind: str | None
    is_tap: bool
    multi_queue: bool
    attached: int
    tx_dropped: int


class Tap(Closing):
    """An open tap, with a struct virtio_net_hdr before each frame: a FrameLink.

    Raises ConfigError or HostError, with a remedy, where that cannot be had.
    """

    def __init__(self, config: TapConfig) -> None:
        config.check()
        self.config = config
        self.name = config.name
        self.pairs = config.queues
        self._made = False
        self._header_size_before: int | None = None
        self._fds: list[int] = []
        self._attached = [True] * config.queues
        self._namespace = _open_namespace(config.netns)
        self._netlink: socket.socket | None = None
        self._counts: LinkCounts | None = None
        try:
            self._in_namespace(self._open)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the tap, and so take it away if it was made here; else leave it as it was."""
        if self._fds and not self._made:
            with _gone_is_fine():
                self._set_offloads(0)
                if self._header_size_before is not None:
                    self._set_int(lib.TUNSETVNETHDRSZ, self._header_size_before)
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        if self._counts is not None:
            self._counts.close()
            self._counts = None
        if self._namespace is not None:
            os.close(self._namespace)
            self._namespace = None

    def _in_namespace(self, function: Callable[["IPRoute"], _T]) -> _T:
        """Call `function` where the tap is, with an rtnetlink socket there.

        Namespaces are a thread's, so this is done by one that goes away afterwards.
        """
        results: list[_T] = []
        errors: list[BaseException] = []

        def work() -> None:
            # Imported late: it takes a quarter of a second.
            from pyroute2 import IPRoute  # noqa: PLC0415
            from pyroute2.netns import setns  # noqa: PLC0415

            try:
                if self._namespace is not None:
                    setns(self._namespace)
                with IPRoute() as route:
                    results.append(function(route))
            except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
                errors.append(error)

        thread = threading.Thread(target=work, name=f"{self.name} namespace")
        thread.start()
        thread.join()
        if errors:
            error = errors[0]
            if isinstance(error, PermissionError) and self._namespace is not None:
                raise HostError(
                    f"The network namespace {self.config.netns} may not be entered "
                    f"({error.strerror}): run as root."
                ) from error
            raise error
        return results[0]

    # Opening, in the tap's namespace

    def _open(self, route: "IPRoute") -> None:
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

        config = self.config
        self._netlink = _link_events()
        found = _find(route, self.name)
        if config.create:
            if found is not None:
                raise ConfigError(
                    f"An interface {self.name} exists already{config.where}: leave out create=on "
                    f"to use it as it is, or delete it with `{config.ip} link del {self.name}`."
                )
            self._make()
            try:
                self._configure(route)
            except NetlinkError as error:
                raise HostError(
                    f"The tap {self.name} cannot be configured ({error}): "
                    "look at its address, bridge and mtu."
                ) from error
            found = _find(route, self.name)
        else:
            self._use(found)
        if found is None:
            raise HostError(f"The tap {self.name} vanished{config.where}: make it again.")
        self._prepare_headers()
        if config.mtu is not None and config.mtu > found.mtu:
            raise ConfigError(
                f"The tap {self.name} has an MTU of {found.mtu}, less than {config.mtu}: raise it "
                f"with `{config.ip} link set {self.name} mtu {config.mtu}`."
            )
        self.mtu = found.mtu if config.mtu is None else config.mtu
        self._counts = LinkCounts(found.index)
        self._dropped_before = found.tx_dropped
        if config.create and config.persistent:
            # Last, so that nothing stays of one that failed.
            _ioctl(self._fds[0], lib.TUNSETPERSIST, 1)
            self._made = False

    def _make(self) -> None:
        flags = lib.IFF_TUN_EXCL
        if self.config.queues > 1:
            flags |= lib.IFF_MULTI_QUEUE
        self._attach(flags)
        self._made = True
        for _ in range(1, self.config.queues):
            self._attach(flags & ~lib.IFF_TUN_EXCL)
        if self.config.owner is not None:
            _ioctl(self._fds[0], lib.TUNSETOWNER, self.config.owner)

    def _configure(self, route: "IPRoute") -> None:
        config = self.config
        index = socket.if_nametoindex(self.name)
        if config.mtu is not None:
            route.link("set", index=index, mtu=config.mtu)
        if config.bridge is not None:
            bridge = _find(route, config.bridge)
            if bridge is None:
                raise ConfigError(
                    f"There is no bridge {config.bridge}{config.where}: make it with "
                    f"`{config.ip} link add {config.bridge} type bridge`."
                )
            if bridge.kind != "bridge":
                raise ConfigError(
                    f"The interface {config.bridge}{config.where} is no bridge: name one that is."
                )
            route.link("set", index=index, master=bridge.index)
        if config.address is not None:
            route.addr(
                "add",
                index=index,
                address=str(config.address.ip),
                prefixlen=config.address.network.prefixlen,
            )
        route.link("set", index=index, state="up")

    def _use(self, found: _Found | None) -> None:
        """Open a tap that is there."""
        config = self.config
        if found is None:
            raise ConfigError(
                f"There is no tap {self.name}{config.where}: have virtiopy make it with create=on, "
                f"or make it with `{config.ip} tuntap add {self.name} mode tap`."
            )
        if not found.is_tap:
            raise ConfigError(
                f"The interface {self.name}{config.where} is no tap: name one that is, "
                "or another name with create=on."
            )
        if config.queues > 1 and not found.multi_queue:
            raise ConfigError(
                f"The tap {self.name} has a single queue, not {config.queues}: leave out "
                f"queues=..., or make it with "
                f"`{config.ip} tuntap add {self.name} mode tap multi_queue`."
            )
        if found.attached:
            raise _busy(self.name)
        for _ in range(config.queues):
            self._attach(lib.IFF_MULTI_QUEUE if found.multi_queue else 0)

    def _attach(self, flags: int) -> None:
        """Open one more queue of the tap; raises ConfigError, HostError."""
        try:
            fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            remedy = (
                "load it with `modprobe tun`"
                if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
                else "run as root, or let your user read and write it"
            )
            raise HostError(
                f"The host's {_TUN} cannot be opened ({error.strerror}): {remedy}."
            ) from error
        self._fds.append(fd)
        request = _request(self.name, lib.IFF_TAP | lib.IFF_NO_PI | lib.IFF_VNET_HDR | flags)
        try:
            _ioctl(fd, lib.TUNSETIFF, request)
        except OSError as error:
            raise self._why_not(error, created=bool(flags & lib.IFF_TUN_EXCL)) from error

    def _why_not(self, error: OSError, *, created: bool) -> ConfigError | HostError:
        config = self.config
        match error.errno:
            case errno.EPERM | errno.EACCES:
                what = "made" if created else "opened"
                return HostError(
                    f"The tap {self.name} may not be {what} ({error.strerror}): run as root, or "
                    f"have root make it for you with "
                    f"`{config.ip} tuntap add {self.name} mode tap user NAME`."
                )
            case errno.EBUSY if not created:
                return _busy(self.name)
            case errno.EBUSY | errno.EEXIST:
                return ConfigError(
                    f"An interface {self.name} exists already{config.where}: leave out create=on."
                )
            case errno.EINVAL:
                return ConfigError(
                    f"The tap {self.name} was made with other flags than asked: make it again "
                    f"with `{config.ip} tuntap add {self.name} mode tap`."
                )
            case _:
                return HostError(
                    f"The tap {self.name} cannot be opened ({error.strerror}): try another name."
                )

    def _prepare_headers(self) -> None:
        """Have frames with the header of virtio 1.0 and later, and nothing offloaded yet."""
        if not self._made:
            before = ffi.new("int *")
            _ioctl(self._fds[0], lib.TUNGETVNETHDRSZ, before)
            self._header_size_before = before[0]
        self._set_int(lib.TUNSETVNETHDRSZ, _HEADER_SIZE)
        for fd in self._fds:
            _ioctl(fd, lib.TUNSETVNETLE, ffi.new("int *", 1))
        self._set_offloads(0)

    def _set_int(self, request: int, value: int) -> None:
        _ioctl(self._fds[0], request, ffi.new("int *", value))

    def _set_offloads(self, flags: int) -> None:
        _ioctl(self._fds[0], lib.TUNSETOFFLOAD, flags)

    # What the device asks for: its FrameLink

    def fileno(self, pair: int) -> int:
        """Return the file of one queue."""
        return self._fds[pair]

    def read(self, pair: int, buffers: Buffers) -> int:
        """Read the next frame, its header first; what finds no room is lost."""
        return os.readv(self._fds[pair], buffers)

    def write(self, pair: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Send one frame, its header first."""
        os.writev(self._fds[pair], buffers)

    def set_offloads(self, *, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        """Say what may be in the frames that are read (TUNSETOFFLOAD)."""
        flags = 0
        if checksum:
            flags |= lib.TUN_F_CSUM
        if tso4:
            flags |= lib.TUN_F_TSO4
        if tso6:
            flags |= lib.TUN_F_TSO6
        if ecn:
            flags |= lib.TUN_F_TSO_ECN
        with _gone_is_fine():
            self._set_offloads(flags)

    def set_pairs(self, count: int) -> None:
        """Let frames come by the first `count` queues only (TUNSETQUEUE)."""
        for pair, fd in enumerate(self._fds):
            attach = pair < count
            if attach == self._attached[pair]:
                continue
            flags = lib.IFF_ATTACH_QUEUE if attach else lib.IFF_DETACH_QUEUE
            with _gone_is_fine():
                _ioctl(fd, lib.TUNSETQUEUE, _request("", flags))
            self._attached[pair] = attach

    def worker_file(self, pair: int, mtu: int) -> int:
        """Return the file of one queue, for vhost to move the frames by.

        Raises ConfigError where frames longer than `mtu` could come: no worker drops them.
        """
        longest = self._ask_interface(lib.SIOCGIFMTU)
        if longest is None:
            raise ConfigError(f"The tap {self.name} is no more{self.config.where}: make it again.")
        if longest.ifr_mtu > mtu:
            raise ConfigError(
                f"The tap {self.name} has an MTU of {longest.ifr_mtu}, more than the device's "
                f"{mtu}, and the worker would not drop what is longer: set it with "
                f"`{self.config.ip} link set {self.name} mtu {mtu}`."
            )
        return self._fds[pair]

    # State

    def state_fileno(self) -> int:
        """Return the file where rtnetlink tells of links that change."""
        assert self._netlink is not None
        return self._netlink.fileno()

    def is_up(self) -> bool:
        """Say whether the tap is up and running; no for one that was deleted."""
        assert self._netlink is not None
        # Whatever the news are: what counts is how things are now.
        _drain(self._netlink)
        answer = self._ask_interface(lib.SIOCGIFFLAGS)
        wanted = lib.IFF_UP | lib.IFF_RUNNING
        return answer is not None and bool(answer.ifr_flags & wanted == wanted)

    def _ask_interface(self, request: int) -> CData | None:
        """Do an ioctl of netdevice(7) about the interface; None for one that was deleted."""
        assert self._netlink is not None
        answer = _request("", 0)
        try:
            # It may have another name by now.
            _ioctl(self._fds[0], lib.TUNGETIFF, answer)
            _ioctl(self._netlink.fileno(), request, answer)
        except OSError:
            return None
        return answer

    def dropped(self) -> int:
        """Count the frames that the tap dropped because they were not read, since it was opened."""
        assert self._counts is not None
        dropped = self._counts.tx_dropped()
        return 0 if dropped is None else dropped - self._dropped_before


def _open_namespace(name: str | None) -> int | None:
    if name is None:
        return None
    if not name or "/" in name or name in {".", ".."}:
        raise ConfigError(f"{name!r} is no name of a network namespace: see `ip netns list`.")
    try:
        return os.open(NAMESPACES / name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no network namespace {name}: make it with `ip netns add {name}`."
        ) from error
    except OSError as error:
        raise HostError(
            f"The network namespace {name} cannot be opened ({error.strerror}): run as root."
        ) from error


def _link_events() -> socket.socket:
    """Open a socket that hears of changed links in the thread's namespace (rtnetlink(7))."""
    events = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
        socket.NETLINK_ROUTE,
    )
    events.bind((0, lib.RTMGRP_LINK))
    return events


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    """Do what has no effect on a tap that was deleted meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EBADFD:
            raise


def _drain(events: socket.socket) -> None:
    while True:
        try:
            events.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            # More came than the socket holds: that is no loss.
            if error.errno != errno.ENOBUFS:
                raise


def _find(route: "IPRoute", name: str) -> _Found | None:
    """Look an interface up by its name; None without one."""
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    try:
        link = route.link("get", ifname=name)[0]
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise
    kind = link.get(("linkinfo", "kind"))
    data = link.get(("linkinfo", "data")) if kind == "tun" else None
    return _Found(
        index=link["index"],
        mtu=link.get("mtu"),
        kind=kind,
        is_tap=data is not None and data.get("IFLA_TUN_TYPE") == lib.IFF_TAP,
        multi_queue=data is not None and bool(data.get("IFLA_TUN_MULTI_QUEUE")),
        attached=(data.get("IFLA_TUN_NUM_QUEUES") or 0) if data is not None else 0,
        tx_dropped=link.get("stats64")["tx_dropped"],
    )


def _request(name: str, flags: int) -> CData:
    request = ffi.new("struct ifreq *")
    request.ifr_name = name.encode()
    # A signed field, as flags above 0x7fff show.
    request.ifr_flags = flags - (1 << 16) if flags & 0x8000 else flags
    return request


def _ioctl(fd: int, request: int, argument: CData | int) -> None:
    """Do an ioctl with a pointer or a number; raises OSError."""
    value = argument if isinstance(argument, int) else int(ffi.cast("uintptr_t", argument))
    result = lib.vp_ioctl(fd, request, value)
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _busy(name: str) -> ConfigError:
    return ConfigError(
        f"The tap {name} is in use already: give each device a tap of its own, "
        "or stop what uses this one."
    )
