"""File system devices of the command line: --fs PATH,tag=NAME."""

import contextlib
from pathlib import Path

from virtiopy.cli.attachments import ModeChoice
from virtiopy.cli.options import DeviceOptions, is_text
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError


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
