"""File system devices of the command line: --fs PATH,tag=NAME."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from virtiopy.cli.attachments import ModeChoice
from virtiopy.cli.options import DeviceOptions, is_text
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError
from virtiopy.exits.backend import Served


def choose_fs_mode(options: DeviceOptions, default: str) -> ModeChoice:
    """Return the one mode that there is."""
    return ModeChoice(options.choice("mode", ("vhost-user",), "vhost-user"))


def build_fs(options: DeviceOptions) -> VirtioDevice:
    """Make the device of `PATH,tag=NAME[,readonly=on]`: virtiofsd is started."""
    from virtiopy.host.virtiofsd import VIRTIOFSD, FsDaemon
    from virtiopy.vhost.user.fs import VhostUserFs

    tag = _tag(options)
    with contextlib.ExitStack() as opened:
        daemon = FsDaemon(options.folder, readonly=options.flag("readonly"))
        opened.callback(daemon.close)
        try:
            device = VhostUserFs(
                daemon.connect(), daemon.connect, tag=tag, renews=True, release=daemon.close
            )
        except ConfigError as error:
            raise ConfigError(
                f"virtiofsd cannot share {options.main} ({error}): see whether "
                f"`{VIRTIOFSD} -f -o source={daemon.folder} --socket-path=SOCKET` does."
            ) from error
        opened.pop_all()
    return device


class ServedFs(Served):
    """A folder that virtiofsd serves in order to be measured; raises ConfigError."""

    def __init__(self, options: DeviceOptions) -> None:
        from virtiopy.host.virtiofsd import FsDaemon

        self._tag = _tag(options)
        self._daemon = FsDaemon(options.folder, readonly=options.flag("readonly"))

    def open_device(self) -> VirtioDevice:
        """Return the VM's side; raises ConfigError."""
        from virtiopy.vhost.user.fs import VhostUserFs

        connect = self._daemon.connect
        return VhostUserFs(connect(), connect, tag=self._tag, renews=True)

    def threads(self) -> Iterator[Path]:
        """Find the threads of the launcher's, and of all that it has started."""
        parents: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The name before it may have spaces and brackets.
                parents[int(path.parent.name)] = int(
                    path.read_text().rpartition(") ")[2].split()[1]
                )
        found = {self._daemon.launcher.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        for pid in found:
            yield from Path("/proc", str(pid), "task").glob("*")

    def close(self) -> None:
        """End virtiofsd."""
        self._daemon.close()


def connect_fs(socket: Path, options: DeviceOptions) -> VirtioDevice:
    """Make the device that a virtiofsd serves at a socket; raises ConfigError."""
    from virtiopy.vhost.user.fs import open_fs

    return open_fs(socket, _tag(options))


def _tag(options: DeviceOptions) -> str:
    from virtiopy.vhost.user.fs import TAG_MAX

    tag = options.text("tag", "")
    if not tag or not is_text(tag) or len(tag.encode()) > TAG_MAX:
        raise ConfigError(
            f"--fs has tag={tag}: give it a name of up to {TAG_MAX} bytes, by which the guest "
            "mounts it, as in --fs folder,tag=files."
        )
    return tag
