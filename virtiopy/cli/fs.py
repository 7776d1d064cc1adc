"""File system devices of the command line: --fs PATH,tag=NAME."""

import contextlib
from pathlib import Path

from virtiopy.cli.attachments import ModeChoice
from virtiopy.cli.options import DeviceOptions, is_text
from virtiopy.cli.sandboxed import Needs
from virtiopy.devices.base import VirtioDevice
from virtiopy.errors import ConfigError


def choose_fs_mode(options: DeviceOptions, default: str) -> ModeChoice:
    """Return the one mode that there is."""
    return ModeChoice(options.choice("mode", ("vhost-user",), "vhost-user"))


def build_fs(options: DeviceOptions) -> VirtioDevice:
    """Make the device of `PATH,tag=NAME[,readonly=on]`: virtiofsd is started."""
    from virtiopy.host.virtiofsd import FsDaemon
    from virtiopy.vhost.user.fs import VhostUserFs

    tag = _tag(options)
    with contextlib.ExitStack() as opened:
        daemon = FsDaemon(Path(options.main), readonly=options.flag("readonly"))
        opened.callback(daemon.close)
        try:
            device = VhostUserFs(
                daemon.connect(), daemon.connect, tag=tag, renews=True, release=daemon.close
            )
        except ConfigError as error:
            if not (said := daemon.said()):
                raise
            raise ConfigError(
                f"virtiofsd cannot share {options.main} ({said}): see to that."
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


def needs_of_fs(options: DeviceOptions) -> Needs:
    """Say what a device that we start virtiofsd for needs: it is started for each driver anew."""
    return Needs(beyond="--fs starts virtiofsd as root while the VM runs")
