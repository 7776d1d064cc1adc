"""Disk images in formats that are not virtiopy's own: qemu-storage-daemon has them.

It is started for one image, serves that as a vhost-user-blk device at a private socket, and ends
with us, also when we are killed. What format an image has is never found out from its content: a
guest could write a qcow2 header into its raw disk, and name a file of the host in it.
"""

import contextlib
import json
import logging
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit
from weakref import WeakSet

from virtiopy.closing import Closing
from virtiopy.errors import ConfigError
from virtiopy.host.disk import CacheMode
from virtiopy.host.references import check_references
from virtiopy.sandbox.helper import Confinement, capability_options, helper_rules
from virtiopy.sandbox.landlock import Rule

log = logging.getLogger(__name__)

#: Those of this process, which its own sandbox has to let start again.
running: "WeakSet[StorageDaemon]" = WeakSet()

DAEMON = "qemu-storage-daemon"

#: Seconds that it may take to open an image, as one that is far away, and to end.
OPENING_TIME = 60.0
ENDING_TIME = 10.0

#: Formats by the suffixes of their files' names, in QEMU's words; all other names are of raw ones.
_SUFFIXES = {
    ".qcow2": "qcow2",
    ".qcow": "qcow",
    ".qed": "qed",
    ".vmdk": "vmdk",
    ".vhdx": "vhdx",
    ".vdi": "vdi",
    ".vhd": "vpc",
    ".vpc": "vpc",
    ".hdd": "parallels",
    ".dmg": "dmg",
}

FORMATS = ("raw", *dict.fromkeys(_SUFFIXES.values()))

#: Protocols of URLs; those of the first kind are for reading alone.
_CURL = ("http", "https", "ftp", "ftps")
_NBD = ("nbd", "nbd+tcp", "nbd+unix")

_NBD_PORT = 10809

#: What an image is called that the daemon serves by NBD.
NBD_NAME = "disk"

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")

#: A part of QEMU's --blockdev and --export, which take JSON.
_Node: TypeAlias = "dict[str, str | bool | int | _Node]"


def is_url(name: str) -> bool:
    """Say whether an image's name is a URL, and not a path."""
    return _URL.match(name) is not None


def format_of(name: str) -> str:
    """Return the format that the name of an image, a path or a URL, stands for.

    Raises ConfigError for what begins as a URL and is none.
    """
    try:
        path = urlsplit(name).path if is_url(name) else name
    except ValueError as error:
        raise ConfigError(
            f"{name} is no URL ({error}): write it as in http://host/disk.img."
        ) from error
    return _SUFFIXES.get(PurePosixPath(path).suffix.lower(), "raw")


@dataclass(slots=True, frozen=True)
class Image:
    """An image for the daemon: a path or a URL, its format in QEMU's words, how it is used.

    `readonly` left at None is on for what cannot be written, as over http. `reaches` are the other
    files that it may name, as a backing file.
    """

    name: str
    format: str
    readonly: bool | None = None
    cache: CacheMode = CacheMode.WRITEBACK
    num_queues: int = 1
    reaches: tuple[Path, ...] = ()

    @property
    def files(self) -> list[Path]:
        """The files that it is in: its own, and those that it may name."""
        return [*([] if is_url(self.name) else [Path(self.name)]), *self.reaches]

    @property
    def is_readonly(self) -> bool:
        """Whether it is opened for reading alone."""
        return self._is_curl if self.readonly is None else self.readonly

    @property
    def _is_curl(self) -> bool:
        return is_url(self.name) and urlsplit(self.name).scheme in _CURL

    def blockdev(self) -> str:
        """Return the value of --blockdev; raises ConfigError for what cannot be attached."""
        node: _Node = {
            "driver": self.format,
            "node-name": "disk",
            "read-only": self.is_readonly,
            "discard": "unmap",
            "cache": {"direct": self.cache is CacheMode.NONE},
            "file": self._protocol(),
        }
        return json.dumps(node)

    def serving(self, path: Path) -> list[str]:
        """Return the options that serve it as a block device at a socket."""
        return ["--export", self.export(path)]

    def export(self, path: Path) -> str:
        """Return the value of --export, for a socket at `path`."""
        node: _Node = {
            "type": "vhost-user-blk",
            "id": "disk",
            "node-name": "disk",
            "writable": not self.is_readonly,
            "writethrough": self.cache is CacheMode.WRITETHROUGH,
            "num-queues": self.num_queues,
            "addr": {"type": "unix", "path": str(path)},
        }
        return json.dumps(node)

    def _protocol(self) -> _Node:
        if is_url(self.name):
            return self._url_protocol(urlsplit(self.name))
        path = Path(self.name)
        try:
            is_device = stat.S_ISBLK(path.stat().st_mode)
        except FileNotFoundError as error:
            raise ConfigError(
                f"The image {path} does not exist: make it with "
                f"`qemu-img create -f {self.format} {path} 64M`."
            ) from error
        except OSError as error:
            raise ConfigError(
                f"The image {path} cannot be looked at ({error.strerror}): name one that can."
            ) from error
        return {
            "driver": "host_device" if is_device else "file",
            "filename": str(path),
            "discard": "unmap",
        }

    def _url_protocol(self, url: SplitResult) -> _Node:
        if self._is_curl:
            if not self.is_readonly:
                raise ConfigError(
                    f"The image {self.name} is for reading alone over {url.scheme}: "
                    "leave out readonly=off."
                )
            return {"driver": url.scheme, "url": self.name}
        if url.scheme not in _NBD:
            raise ConfigError(
                f"The image {self.name} is at a kind of URL that is not known: "
                f"use one of {', '.join((*_CURL, *_NBD))}, or serve it with qemu-storage-daemon "
                "yourself and attach vhost-user=SOCKET."
            )
        node: _Node = {"driver": "nbd", "server": self._nbd_server(url)}
        if export := unquote(url.path.removeprefix("/")):
            node["export"] = export
        return node

    def _nbd_server(self, url: SplitResult) -> _Node:
        if url.scheme == "nbd+unix":
            paths = parse_qs(url.query).get("socket", [])
            if len(paths) != 1:
                raise ConfigError(
                    f"The image {self.name} names no socket: write it as in "
                    "nbd+unix:///EXPORT?socket=PATH."
                )
            return {"type": "unix", "path": paths[0]}
        try:
            host, port = url.hostname, url.port
        except ValueError as error:
            raise ConfigError(f"The image {self.name} has a wrong port: {error}.") from error
        if not host:
            raise ConfigError(f"The image {self.name} names no host: use nbd://HOST/EXPORT.")
        return {"type": "inet", "host": host, "port": str(port or _NBD_PORT)}


@dataclass(slots=True, frozen=True)
class NbdImage(Image):
    """An image that is served by the NBD protocol, for virtiopy's own devices to use."""

    def serving(self, path: Path) -> list[str]:
        """Return the options that serve it at a socket."""
        server: _Node = {"addr": {"type": "unix", "path": str(path)}, "max-connections": 0}
        node: _Node = {
            "type": "nbd",
            "id": "disk",
            "node-name": "disk",
            "name": NBD_NAME,
            "writable": not self.is_readonly,
        }
        return ["--nbd-server", json.dumps(server), "--export", json.dumps(node)]


class StorageDaemon(Closing):
    """A qemu-storage-daemon with one image; raises ConfigError, with what it says, when it cannot.

    It is ended by SIGTERM, so that it completes what is in flight and closes the image, by
    `close`, or by the kernel when the thread that started it is gone.
    """

    def __init__(self, image: Image) -> None:
        for tool, package in ((DAEMON, "qemu-system-common"), ("setpriv", "util-linux")):
            if shutil.which(tool) is None:
                raise ConfigError(
                    f"{image.name} is {image.format} and needs {tool}, which is not here: "
                    f"install Debian's {package}, or convert the image to a raw one."
                )
        self.image = image
        self._blockdev = image.blockdev()
        if not is_url(image.name):
            check_references(Path(image.name), image.format, image.reaches, format_of)
        with contextlib.ExitStack() as opened:
            # mkdtemp: no other user may enter.
            self._folder = Path(opened.enter_context(tempfile.TemporaryDirectory("", "virtiopy-")))
            self.path = self._folder / "blk.sock"
            self._ready = self._folder / "ready"
            self._stderr = self._folder / "stderr"
            self._confinement = opened.enter_context(Confinement(self.rules()))
            self._process = self._start()
            opened.callback(self._end)
            self._wait_until_ready()
            self._release = opened.pop_all()
        running.add(self)

    def close(self) -> None:
        """End it, once what is in flight is done."""
        self._release.close()

    def rules(self) -> list[Rule]:
        """Return what it needs of the host's files."""
        return list(helper_rules(self._folder, self.image.files))

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def connect(self) -> socket.socket:
        """Connect to it, and start it again where it has ended by itself.

        Raises ConfigError when it is not ready, yet or for good.
        """
        if self._process.poll() is not None and self._ready.exists():
            log.warning("%s, and is started again", self._state())
            self._process = self._start()
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            stream.connect(str(self.path))
        except OSError as error:
            stream.close()
            raise ConfigError(f"{self._state()}: see to {self.image.name}.") from error
        return stream

    def _start(self) -> subprocess.Popen[bytes]:
        self._ready.unlink(missing_ok=True)
        command = [
            *("setpriv", "--pdeathsig", signal.Signals.SIGTERM.name.removeprefix("SIG")),
            *capability_options(self.image.files),
            DAEMON,
            *("--blockdev", self._blockdev, *self.image.serving(self.path)),
            *("--pidfile", str(self._ready)),
        ]
        with self._stderr.open("wb") as stderr:
            # In a process group of its own, as the terminal's Ctrl-C is for us alone.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                process_group=0,
                # No more than system calls, and no lock of ours.
                preexec_fn=self._confinement.before_exec(),  # noqa: PLW1509
            )

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + OPENING_TIME
        while not self._ready.exists():
            try:
                self._process.wait(0.01)
            except subprocess.TimeoutExpired:
                if time.monotonic() < end:
                    continue
                raise ConfigError(
                    f"The image {self.image.name} is not open after {OPENING_TIME:g} seconds: "
                    "see whether its server answers."
                ) from None
            raise self._fault()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(ENDING_TIME)
        except subprocess.TimeoutExpired:
            log.warning("%s does not end, and is killed", DAEMON)
            self._process.kill()
            self._process.wait()

    def _said(self) -> str:
        """Return what it says on standard error, without our own words."""
        text = self._stderr.read_text(errors="replace")
        text = text.replace(f"--blockdev {self._blockdev}: ", "").replace(f"{DAEMON}: ", "")
        return "; ".join(line.strip() for line in text.splitlines() if line.strip())

    def _state(self) -> str:
        status, said = self._process.poll(), self._said()
        if status is None:
            return f"{DAEMON} is not ready yet"
        return f"{DAEMON} ended with status {status}{said and f' ({said})'}"

    def _fault(self) -> ConfigError:
        name, said = self.image.name, self._said()
        if " lock" in said:
            return ConfigError(
                f"The image {name} is in use by another program: stop what uses it, or attach it "
                "with readonly=on everywhere."
            )
        if "Unknown driver" in said or "Unknown protocol" in said:
            return ConfigError(
                f"The image {name} needs a part of QEMU that is not here ({said}): install "
                "Debian's qemu-block-extra."
            )
        return ConfigError(
            f"The image {name} cannot be attached as {self.image.format} "
            f"({said or f'status {self._process.returncode}'}): see that it can be read and "
            "written, or say readonly=on or another format=..."
        )
