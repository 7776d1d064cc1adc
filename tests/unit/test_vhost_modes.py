"""Vhost mode as a user asks for it: on the command line, and over the control socket."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.unit.test_control import serving
from tests.unit.vhost_model import RX, TX
from tests.unit.vhost_rig import IOEVENTFD, Rig
from virtiopy.cli.attachments import ModeChoice, mode_of, parse
from virtiopy.cli.main import cli
from virtiopy.control.client import Json, ask, device_facts
from virtiopy.control.server import ControlServer
from virtiopy.devices.registry import entries, entry_named
from virtiopy.errors import ConfigError, HostError


@pytest.fixture
def by_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """In ioeventfd mode, its driver up."""
    rig = Rig(monkeypatch, IOEVENTFD)
    yield rig
    rig.close()


# From the control socket


@pytest.fixture
def served(by_loop: Rig, tmp_path: Path) -> Iterator[tuple[Rig, Path]]:
    """A machine whose loop runs, with a control socket."""
    path = tmp_path / "vm.sock"
    with ControlServer(by_loop.machine, path):
        by_loop.machine.loop.start()
        yield by_loop, path
        by_loop.machine.loop.stop()


def test_the_control_socket_switches(served: tuple[Rig, Path]) -> None:
    rig, path = served
    for mode in ("vhost", "ioeventfd", "vhost"):
        answer = ask(path, {"command": "mode", "device": "net0", "mode": mode})
        assert answer == {"device": "net0", "mode": mode}
        facts = device_facts(ask(path, {"command": "status"}), "net0")
        assert facts["mode"] == rig.slot.mode == mode
        assert facts["pairs_delegated"] == (mode == "vhost")
    # There is one: it need not be named.
    assert ask(path, {"command": "mode", "mode": "ioeventfd"})["device"] == "net0"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"mode": "vdpa"}, "There is no mode 'vdpa': use one of trapped, ioeventfd, native, vhost"),
        ({}, "The request has no mode"),
        ({"mode": 3}, "mode is 3: give a string"),
        (
            {"mode": "vhost", "device": "rng0"},
            r"no network device or socket device 'rng0'.*one of net0",
        ),
        ({"mode": "trapped"}, "start it in trapped mode"),
    ],
)
def test_a_switch_that_cannot_be_is_answered_with_the_reason(
    served: tuple[Rig, Path], request_: dict[str, Json], words: str
) -> None:
    rig, path = served
    with pytest.raises(ConfigError, match=words):
        ask(path, {"command": "mode", **request_})
    assert rig.slot.mode is IOEVENTFD


def test_a_machine_without_network_devices_has_nothing_to_switch(tmp_path: Path) -> None:
    with serving(tmp_path / "vm.sock"), pytest.raises(ConfigError, match="start it with --net"):
        ask(tmp_path / "vm.sock", {"command": "mode", "mode": "vhost"})


def test_virtiopy_ctl_switches(served: tuple[Rig, Path]) -> None:
    rig, path = served
    done = CliRunner().invoke(cli, ["ctl", str(path), "mode", "vhost"], catch_exceptions=False)
    assert done.output == "net0: vhost\n"
    assert rig.kernel.running == [(0, RX), (0, TX)]


def test_virtiopy_ctl_passes_on_why_not(served: tuple[Rig, Path]) -> None:
    rig, path = served
    rig.kernel.refusal = HostError("There is none: load it.")
    arguments = ["ctl", str(path), "mode", "vhost", "--device", "net0"]
    with pytest.raises(ConfigError, match="net0 stays in ioeventfd mode: There is none"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)


# How it is written


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", ModeChoice("ioeventfd")),
        (",mode=trapped", ModeChoice("trapped")),
        (",mode=vhost", ModeChoice("vhost")),
        (",vhost=on", ModeChoice("vhost")),
        (",vhost=on,mode=vhost", ModeChoice("vhost")),
        (",vhost=auto", ModeChoice("vhost", required=False)),
        (",vhost=off", ModeChoice("ioeventfd")),
        (",vhost=off,mode=trapped", ModeChoice("trapped")),
    ],
)
def test_vhost_and_mode_say_the_same(text: str, chosen: ModeChoice) -> None:
    net = entry_named("net")
    assert mode_of(net, parse(net, f"tap=t0{text}"), "ioeventfd") == chosen


@pytest.mark.parametrize(
    ("text", "default", "chosen"),
    [
        ("", "auto", ModeChoice("native", required=False, quiet=True)),
        (",vhost=off", "auto", ModeChoice("native", required=False, quiet=True)),
        (",mode=auto", "trapped", ModeChoice("native", required=False, quiet=True)),
        (",mode=native", "auto", ModeChoice("native")),
        (",mode=ioeventfd", "auto", ModeChoice("ioeventfd")),
        ("", "native", ModeChoice("native", required=False)),
    ],
)
def test_a_network_device_is_worked_without_the_interpreter_where_that_can_be_had(
    text: str, default: str, chosen: ModeChoice
) -> None:
    net = entry_named("net")
    assert mode_of(net, parse(net, f"tap=t0{text}"), default) == chosen


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vhost=on,mode=trapped", "vhost=on and mode=trapped"),
        ("vhost=on,mode=ioeventfd", "vhost=on and mode=ioeventfd"),
        ("vhost=off,mode=vhost", "vhost=off and mode=vhost"),
        ("vhost=auto,mode=vhost", "vhost=auto and mode=vhost"),
        ("vhost=auto,mode=trapped", "vhost=auto and mode=trapped"),
        ("vhost=yes", "vhost=yes: use one of on, off, auto"),
        ("mode=fast", "mode=fast: use one of trapped, ioeventfd, native, vhost"),
    ],
)
def test_vhost_and_mode_that_contradict_each_other_are_refused(text: str, words: str) -> None:
    net = entry_named("net")
    with pytest.raises(ConfigError, match=words):
        mode_of(net, parse(net, f"tap=t0,{text}"), "ioeventfd")


def test_only_devices_that_a_vhost_works_have_that_mode() -> None:
    for entry in entries():
        if "vhost" in (*entry.device_class.workers, *entry.built_in):
            continue
        text = "x,mode=vhost" if entry.option.has_main else "mode=vhost"
        with pytest.raises(ConfigError, match="mode=vhost: use one of"):
            mode_of(entry, parse(entry, text), "ioeventfd")
