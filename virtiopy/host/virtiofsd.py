"""Folders of the host's that a guest has by virtio-fs: QEMU's virtiofsd serves them.

virtiofsd runs in a root of its own that its launcher has, and makes the folder its root in there:
no path leads out of it. It serves one connection, and ends with that.
"""

import os
import socket
from pathlib import Path

from virtiopy.closing import Closing
from virtiopy.errors import ConfigError
from virtiopy.host.folders import check_folder
from virtiopy.host.launcher import FILE_CAPABILITIES, Launcher, find_tool
from virtiopy.sandbox.launching import INSIDE

#: Where Debian's qemu-system-common has it: no PATH has it.
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")

#: What it gives up, once it has put itself into the folder.
_TO_CONFINE_ITSELF = ("CAP_SYS_CHROOT", "CAP_SETPCAP")


class FsDaemon(Closing):
    """virtiofsd for a folder; raises ConfigError where that cannot be shared."""

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        if not VIRTIOFSD.exists():
            raise ConfigError(
                f"The folder {folder} needs {VIRTIOFSD}, which is not here: apt-get install "
                "qemu-system-common, or attach vhost-user=SOCKET of a virtiofsd of your own."
            )
        check_folder(folder, "The shared folder")
        if os.geteuid() != 0:
            raise ConfigError(
                f"The folder {folder} needs root, as which alone virtiofsd runs: use --share for "
                "it, or attach vhost-user=SOCKET of a virtiofsd that root has started."
            )
        if find_tool("bwrap") is None:
            raise ConfigError(
                f"The folder {folder} needs bwrap, which is not here: apt-get install bubblewrap."
            )
        self.folder = folder.resolve()
        self.launcher = Launcher(
            self.folder,
            _command(),
            readonly=readonly,
            capabilities=(*FILE_CAPABILITIES, *_TO_CONFINE_ITSELF),
            admits=True,
        )

    def connect(self) -> socket.socket:
        """Start virtiofsd, in place of one that was there, and connect to it.

        Raises ConfigError where it cannot be started.
        """
        try:
            return self.launcher.connect()
        except OSError as error:
            raise ConfigError(
                f"virtiofsd cannot be started for {self.folder} ({error.strerror or error}): see "
                "to that."
            ) from error

    def close(self) -> None:
        """End it, and what starts it."""
        self.launcher.close()


def _command() -> list[str]:
    command = [str(VIRTIOFSD), "-f", "--fd=0", "-o", f"source={INSIDE}", "-o", "sandbox=chroot"]
    return [*command, "-o", "modcaps=-mknod:-setfcap", "-o", "xattr", "-o", "log_level=warn"]


def find_virtiofsd() -> Path | None:
    """Return where virtiofsd is, if it can be used."""
    found = VIRTIOFSD if VIRTIOFSD.exists() and os.geteuid() == 0 else None
    return found if found is not None and find_tool("bwrap") else None
