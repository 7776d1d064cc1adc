"""What no tap can be made of or used for is refused in a sentence that says what to do."""

import ipaddress
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.namespace import Namespace, needs_taps
from virtiopy.errors import ConfigError, HostError, VirtiopyError
from virtiopy.host.tap import Tap
from virtiopy.host.tapconfig import (
    TapConfig,
    check_interface_name,
    default_mac,
    parse_address,
    parse_mac,
)

pytestmark = needs_taps

NOBODY = 65534


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


def refused(config: TapConfig) -> str:
    """The sentence that a tap is refused with."""
    with pytest.raises(VirtiopyError) as caught:
        Tap(config).close()
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert ": " in sentence
    return sentence


def test_a_namespace_that_does_not_exist_is_refused() -> None:
    assert "ip netns add nope" in refused(TapConfig("t0", create=True, netns="nope"))


@pytest.mark.parametrize("name", ["", "../x", "/run/netns/x", ".."])
def test_a_name_that_no_namespace_can_have_is_refused(name: str) -> None:
    assert "namespace" in refused(TapConfig("t0", create=True, netns=name))


def test_a_tap_that_does_not_exist_is_not_made_unasked(namespace: Namespace) -> None:
    assert "create=on" in refused(namespace.config())
    assert namespace.links() == set()


def test_a_tap_that_exists_is_not_made_again(namespace: Namespace) -> None:
    namespace.ip("tuntap", "add", "t0", "mode", "tap")
    assert f"ip -n {namespace.name} link del t0" in refused(namespace.config(create=True))


@pytest.mark.parametrize("flags", [[], ["multi_queue"]])
def test_a_tap_that_is_in_use_is_refused(namespace: Namespace, flags: list[str]) -> None:
    namespace.ip("tuntap", "add", "t0", "mode", "tap", *flags)
    with Tap(namespace.config()):
        assert "in use" in refused(namespace.config())


def test_a_second_device_on_a_tap_made_here_is_refused(namespace: Namespace) -> None:
    with Tap(namespace.config(create=True)):
        assert "exists already" in refused(namespace.config(create=True))
        assert "in use" in refused(namespace.config())


def test_more_queues_than_a_tap_was_made_for_are_refused(namespace: Namespace) -> None:
    namespace.ip("tuntap", "add", "t0", "mode", "tap")
    assert "multi_queue" in refused(namespace.config(queues=2))


def test_a_tun_is_no_tap(namespace: Namespace) -> None:
    namespace.ip("tuntap", "add", "t0", "mode", "tun")
    assert "no tap" in refused(namespace.config())


def test_another_interface_is_no_tap(namespace: Namespace) -> None:
    assert "no tap" in refused(namespace.config("lo"))


def test_an_interface_that_is_no_bridge_is_refused(namespace: Namespace) -> None:
    assert "no bridge" in refused(namespace.config(create=True, bridge="lo"))


def test_an_address_for_a_bridge_port_is_refused(namespace: Namespace) -> None:
    address = ipaddress.ip_interface("192.0.2.1/24")
    sentence = refused(namespace.config(create=True, bridge="br0", address=address))
    assert "to the bridge" in sentence


def test_settings_for_a_tap_of_others_are_refused(namespace: Namespace) -> None:
    address = ipaddress.ip_interface("192.0.2.1/24")
    assert "create=on" in refused(namespace.config(address=address))
    assert "create=on" in refused(namespace.config(bridge="br0"))


def test_an_mtu_above_the_taps_is_refused(namespace: Namespace) -> None:
    namespace.ip("tuntap", "add", "t0", "mode", "tap")
    assert "mtu 9000" in refused(namespace.config(mtu=9000))
    with Tap(namespace.config(mtu=1280)) as tap:
        assert tap.mtu == 1280


@pytest.mark.parametrize("mtu", [0, 67, 65522])
def test_an_mtu_that_no_tap_can_have_is_refused(mtu: int) -> None:
    assert "MTU" in refused(TapConfig("t0", create=True, mtu=mtu))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a b", "a/b", "a:b", "t%d", "sixteen-bytes-xx", "ü" * 8]
)
def test_a_name_that_no_interface_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="interface name"):
        check_interface_name(name)


@pytest.mark.parametrize(
    "text", ["", "02:00:00:00:00", "02-00-00-00-00-01", "01:00:5e:00:00:01", "00:00:00:00:00:00"]
)
def test_a_bad_mac_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="unicast MAC"):
        parse_mac(text)


@pytest.mark.parametrize("text", ["", "192.0.2.1", "192.0.2.256/24", "192.0.2.1/33", "x/24"])
def test_a_bad_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="prefix length"):
        parse_address(text)


def test_the_default_mac_address_is_local_and_the_taps_own() -> None:
    one, two = default_mac(TapConfig("t0")), default_mac(TapConfig("t1"))
    assert one == default_mac(TapConfig("t0")) != two
    assert one[0] == 2


def test_a_user_without_rights_is_told_what_to_do(namespace: Namespace) -> None:
    script = (
        "import os, pyroute2\n"
        "from virtiopy.host.tap import Tap\n"
        "from virtiopy.host.tapconfig import TapConfig\n"
        "from virtiopy.errors import HostError\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "try: Tap(TapConfig('norights0', create=True))\n"
        "except HostError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "root" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is missing")
def test_without_cap_net_admin_ones_own_tap_can_be_used_and_none_made(
    namespace: Namespace,
) -> None:
    namespace.ip("tuntap", "add", "mine", "mode", "tap", "user", "root")
    namespace.ip("tuntap", "add", "others", "mode", "tap", "user", str(NOBODY))
    script = (
        "from virtiopy.host.tap import Tap\n"
        "from virtiopy.host.tapconfig import TapConfig\n"
        "from virtiopy.errors import HostError\n"
        "Tap(TapConfig('mine')).close()\n"
        "for name, create in (('others', False), ('new', True)):\n"
        "    try: Tap(TapConfig(name, create=create))\n"
        "    except HostError as error: print(error)\n"
    )
    done = namespace.run("setpriv", "--bounding-set=-net_admin", sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    others, new = done.stdout.splitlines()
    assert "others may not be opened" in others
    assert "new may not be made" in new
    assert "run as root" in others
    assert "ip tuntap add" in new


def test_a_host_without_tun_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtiopy.host.tap._TUN", "/dev/net/none")
    with pytest.raises(HostError, match="modprobe tun"):
        Tap(TapConfig("virtiopy-t0", create=True))
