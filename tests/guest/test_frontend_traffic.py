"""Profiles of frontends, held against what QEMU and DPDK say to a backend: order, flags, features.

The profiles are read from sources. Here each frontend runs, with a proxy between it and a backend
of virtiopy's that records what it says.
"""

import base64
import contextlib
import itertools
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.guest.dpdk import Testpmd, needs_dpdk
from tests.guest.support import VIRTIOPY
from tests.guest.vhost_user import Backend
from tests.patience import PATIENCE
from virtiopy.closing import Closing
from virtiopy.conformance.clauses.features import bits
from virtiopy.conformance.frontends.player import NEEDS
from virtiopy.conformance.frontends.profile import Part, Profile, Step, profile_of
from virtiopy.conformance.targets.builders import BUILDERS
from virtiopy.conformance.targets.target import InprocTarget
from virtiopy.spec import DeviceId, Feature, feature_mask, has_feature
from virtiopy.vhost.user.messages import (
    VHOST_USER_F_PROTOCOL_FEATURES,
    Flag,
    ProtocolFeature,
    Request,
)

pytestmark = pytest.mark.nightly

QEMU = "qemu-system-x86_64"

needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is missing")

#: What shares memory: as often as the guest's memory has parts, and as those change.
MEMORY = {Request.SET_MEM_TABLE, Request.ADD_MEM_REG, Request.REM_MEM_REG}

#: What a guest that goes on, or is reset, need not have said again; and a reconnection.
ONCE = {"memory", Request.GET_INFLIGHT_FD.name, Request.GET_CONFIG.name}

#: Steps of a ring whose payload is an index and a number, and steps with a number alone.
STATES, NUMBERS = {Request.SET_VRING_ENABLE}, {Request.SET_STATUS}


@dataclass(slots=True, frozen=True)
class Said:
    """A message of a frontend's, or of the backend's reply."""

    request: Request
    flags: int
    payload: bytes

    @property
    def number(self) -> int:
        """What the payload is, as a number of 64 bits; the second half of a ring's state."""
        return int.from_bytes(self.payload[:8], "little")

    @property
    def word(self) -> str:
        """Return what a step of a profile says of it."""
        if self.request in MEMORY:
            return "memory"
        if self.request in STATES:
            return f"{self.request.name} {self.number >> 32}"
        if self.request in NUMBERS:
            return f"{self.request.name} {self.number:#x}"
        return self.request.name


def said(recording: Path, side: str = "frontend") -> list[Said]:
    """Return the messages of one side; what the proxy is about to write is left out."""
    if not recording.exists():
        return []
    lines = recording.read_text().split("\n")[:-1]
    events = [json.loads(line) for line in lines]
    return [
        Said(Request(event["request"]), event["flags"], base64.b64decode(event["payload"]))
        for event in events
        if event.get("from") == side
    ]


def words(messages: Sequence[Said]) -> list[str]:
    """Return messages as steps; what enables rings over and over is said once for each."""
    found = [word for word, _ in itertools.groupby(one.word for one in messages)]
    return [word for word in found if word]


def expected(profile: Profile, parts: Sequence[Part], rings: int, taken: int) -> list[str]:
    """Return the steps of a profile as words, for so many rings."""
    found: list[str] = []
    for part in parts:
        steps = [part] if isinstance(part, Step) else [*part] * rings
        for step in steps:
            needed = NEEDS.get(step.request)
            if needed is not None and not has_feature(taken, needed):
                continue
            found.append(Said(step.request, 0, _payload(step)).word)
    return [word for word, _ in itertools.groupby(found)]


def _payload(step: Step) -> bytes:
    shift = 32 if step.request in STATES else 0
    return (step.number << shift).to_bytes(8, "little")


def without(found: Sequence[str]) -> list[str]:
    """Leave out what is not said again each time."""
    left = [word for word in found if word not in ONCE]
    return [word for word, _ in itertools.groupby(left)]


@dataclass(slots=True)
class Seen:
    """A recording that goes on, and the profile that it is held against."""

    recording: Path
    profile: Profile
    rings: int

    @property
    def taken(self) -> int:
        """The protocol features that the frontend negotiated."""
        return next(
            one.number
            for one in said(self.recording)
            if one.request is Request.SET_PROTOCOL_FEATURES
        )

    def wait_for(self, *phases: Sequence[Part]) -> None:
        """Wait until the frontend has said what a profile has for these phases; see that it is."""
        deadline = time.monotonic() + PATIENCE
        while len(found := words(said(self.recording))) < 5 or self._is_short(found, phases):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        first = self._expected(*phases[:2])
        assert found[: len(first)] == first
        later = without(self._expected(*phases[2:]))
        assert without(found[len(first) :])[: len(later)] == later

    def _expected(self, *phases: Sequence[Part]) -> list[str]:
        parts = [part for phase in phases for part in phase]
        return expected(self.profile, parts, self.rings, self.taken)

    def _is_short(self, found: Sequence[str], phases: Sequence[Sequence[Part]]) -> bool:
        if Request.SET_PROTOCOL_FEATURES.name not in found:
            return True
        first = self._expected(*phases[:2])
        later = without(self._expected(*phases[2:]))
        return len(found) < len(first) or len(without(found[len(first) :])) < len(later)

    def check_flags_and_features(self) -> None:
        """See what was negotiated, and which messages need a reply."""
        messages = said(self.recording)
        offered = next(
            one.number
            for one in said(self.recording, "backend")
            if one.request is Request.GET_PROTOCOL_FEATURES
        )
        assert self.taken == offered & self.profile.protocol
        start = next(
            place
            for place, one in enumerate(messages)
            if one.request is Request.SET_PROTOCOL_FEATURES
        )
        assert has_feature(self.taken, ProtocolFeature.REPLY_ACK)
        needing = {one.request.name for one in messages[start + 1 :] if one.flags & Flag.NEED_REPLY}
        not_needing = {one.request.name for one in messages if not one.flags & Flag.NEED_REPLY}
        acknowledged = {
            one.request.name for one in messages if self.profile.acknowledges(one.request)
        }
        assert needing == acknowledged
        assert not needing & not_needing
        for one in messages:
            if one.request is Request.SET_FEATURES:
                self._check_features(one.number)

    def _check_features(self, features: int) -> None:
        assert has_feature(features, VHOST_USER_F_PROTOCOL_FEATURES) == self.profile.protocol_bit
        if self.profile.features is not None:
            known = [
                VHOST_USER_F_PROTOCOL_FEATURES,
                Feature.VIRTIO_F_VERSION_1,
                *bits(self.profile.features),
            ]
            assert not features & ~feature_mask(known)


@contextlib.contextmanager
def recorded(device: str, folder: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Serve a device of virtiopy's; yields its socket, that of a proxy and the recording."""
    served = InprocTarget(BUILDERS[device], device, served=True).serve(PATIENCE)
    try:
        yield served.backend.path, folder / "seen.sock", folder / "said.rec"
    finally:
        served.backend.close()
        served.host.close()


def proxy(backend: Path, listen: Path, recording: Path) -> Backend:
    """Stand between a frontend and the backend, and record."""
    command = [*VIRTIOPY, "proxy", "--listen", str(listen), "--connect", str(backend)]
    return Backend([*command, "--record", str(recording)], listen, recording.with_suffix(".log"))


class Qemu(Closing):
    """QEMU with one vhost-user device, and its own firmware as the guest that drives it."""

    def __init__(self, device: str, path: Path) -> None:
        control = path.with_name("qmp.sock")
        devices = {
            "blk": ["-device", "vhost-user-blk-pci,chardev=c,num-queues=1"],
            "net": [
                *("-netdev", "vhost-user,chardev=c,id=n,queues=1"),
                *("-device", "virtio-net-pci,netdev=n,bootindex=1"),
            ],
        }[device]
        self._process = subprocess.Popen(
            [
                *(QEMU, "-machine", "q35,memory-backend=ram", "-m", "64", "-display", "none"),
                *("-object", "memory-backend-memfd,id=ram,size=64M,share=on"),
                *("-chardev", f"socket,id=c,path={path},reconnect=1", "-serial", "none"),
                *("-qmp", f"unix:{control},server=on,wait=off", *devices),
            ]
        )
        self._control = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + PATIENCE
        while self._control.connect_ex(str(control)):
            assert self._process.poll() is None, "QEMU has ended"
            assert time.monotonic() < deadline, "QEMU does not listen"
            time.sleep(0.05)
        self._file: IO[str] = self._control.makefile("rw")
        self._file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str) -> None:
        """Have it do something, and wait until that is done."""
        self._file.write(json.dumps({"execute": command}) + "\n")
        self._file.flush()
        while "return" not in (answer := json.loads(self._file.readline())):
            assert "error" not in answer, answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._file.close()
        self._control.close()


@needs_qemu
@pytest.mark.parametrize(
    ("device", "device_id", "rings"),
    [("blk", DeviceId.BLOCK, 1), ("net", DeviceId.NETWORK, 2)],
    ids=["blk", "net"],
)
def test_qemu_speaks_as_its_profile_has_it(
    tmp_path: Path, device: str, device_id: DeviceId, rings: int
) -> None:
    """A guest runs, is stopped, goes on, resets its device; the backend is left and is back."""
    profile = profile_of("qemu-7.2", device_id)
    assert profile is not None
    assert profile.stop is not None
    assert profile.reset is not None
    phases: list[Sequence[Part]] = [profile.connect, profile.start]
    with recorded(device, tmp_path) as (backend, listen, recording):
        seen = Seen(recording, profile, rings)
        with proxy(backend, listen, recording), Qemu(device, listen) as qemu:
            seen.wait_for(*phases)
            qemu.ask("stop")
            seen.wait_for(*phases, profile.stop)
            qemu.ask("cont")
            seen.wait_for(*phases, profile.stop, profile.resume)
            qemu.ask("system_reset")
            seen.wait_for(*phases, profile.stop, profile.resume, profile.reset, profile.start)
    seen.check_flags_and_features()


@needs_qemu
def test_qemu_goes_on_in_a_new_session_as_its_profile_has_it(tmp_path: Path) -> None:
    profile = profile_of("qemu-7.2", DeviceId.BLOCK)
    assert profile is not None
    with recorded("blk", tmp_path) as (backend, listen, recording):
        first = proxy(backend, listen, recording)
        with Qemu("blk", listen):
            Seen(recording, profile, 1).wait_for(profile.connect, profile.start)
            first.close()
            again = tmp_path / "again.rec"
            with proxy(backend, listen, again):
                deadline = time.monotonic() + PATIENCE
                seen = Seen(again, profile, 1)
                wanted = without(words_of_connecting(seen, profile))
                while len(without(words(said(again)))) < len(wanted):
                    assert time.monotonic() < deadline, words(said(again))
                    time.sleep(0.05)
                assert without(words(said(again)))[: len(wanted)] == wanted


def words_of_connecting(seen: Seen, profile: Profile) -> list[str]:
    """Return what a frontend says from its connection on until the rings run, once it has begun."""
    deadline = time.monotonic() + PATIENCE
    while Request.SET_PROTOCOL_FEATURES.name not in words(said(seen.recording)):
        assert time.monotonic() < deadline, "it does not connect again"
        time.sleep(0.05)
    return expected(profile, [*profile.connect, *profile.start], seen.rings, seen.taken)


@needs_dpdk
def test_dpdks_virtio_user_speaks_as_its_profile_has_it(tmp_path: Path) -> None:
    profile = profile_of("dpdk-virtio-user", DeviceId.NETWORK)
    assert profile is not None
    assert profile.stop is not None
    with recorded("net", tmp_path) as (backend, listen, recording):
        seen = Seen(recording, profile, 2)
        with proxy(backend, listen, recording):
            driver = f"net_virtio_user0,path={listen},packed_vq=0"
            with Testpmd(tmp_path / "driver.log", [driver], "rxonly") as user:
                user.wait_for("rxonly packet forwarding - ports=1")
                seen.wait_for(profile.connect, profile.start)
            seen.wait_for(profile.connect, profile.start, profile.stop)
    seen.check_flags_and_features()
