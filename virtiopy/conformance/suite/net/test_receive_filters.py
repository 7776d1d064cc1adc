"""Which frames a driver is given: receive modes, MAC addresses and VLANs (5.1.9.5.1 to 5.1.9.5.3).

Whatever mode a device is in at the start, promiscuous mode is turned off first.
"""

import pytest

from virtiopy.conformance.checks import same
from virtiopy.conformance.drivers.inbox import Inbox
from virtiopy.conformance.drivers.net import BROADCAST, Command, NetDriver, mac_table
from virtiopy.conformance.sessions.base import Session

CTRL_RX = "VIRTIO_NET_F_CTRL_RX"
CTRL_RX_EXTRA = "VIRTIO_NET_F_CTRL_RX_EXTRA"
CTRL_VLAN = "VIRTIO_NET_F_CTRL_VLAN"

#: Addresses that are not the device's.
STRANGER = bytes.fromhex("020000000077")
FRIEND = bytes.fromhex("020000000078")
GROUP = bytes.fromhex("01005e000005")
OTHER_GROUP = bytes.fromhex("333300000001")

ON, OFF = b"\1", b"\0"


def filtering(net: NetDriver, *, without: tuple[str, ...] = ()) -> Inbox:
    """Start a driver that does not want all that comes; returns its receive buffers."""
    net.start(without=without)
    if net.session.has(CTRL_RX):
        net.control(Command.PROMISC, OFF)
        net.control(Command.ALLMULTI, OFF)
    return Inbox(net)


def tagged(net: NetDriver, vlan: int, *, destination: bytes | None = None) -> bytes:
    """Return a frame of a VLAN, with an 802.1Q tag."""
    frame = net.frame(100, destination=destination or net.mac)
    return frame[:12] + b"\x81\x00" + vlan.to_bytes(2, "big") + frame[12:]


# Receive modes (5.1.9.5.1)


@pytest.mark.clause("5.1.9.5.1.1:1")
@pytest.mark.feature(CTRL_RX)
def test_promiscuous_mode_and_all_multicast_can_be_turned_on_and_off(net: NetDriver) -> None:
    net.start()
    for command in (Command.PROMISC, Command.ALLMULTI):
        for value in (ON, ON, OFF, OFF):
            net.control(command, value)


@pytest.mark.clause("5.1.9.5.1.1:2")
@pytest.mark.feature(CTRL_RX)
def test_promiscuous_mode_lets_every_frame_through(net: NetDriver) -> None:
    inbox = filtering(net)
    net.control(Command.PROMISC, ON)
    for destination in (net.mac, STRANGER, GROUP, OTHER_GROUP, BROADCAST):
        assert inbox.gets(net.frame(destination=destination)), (
            f"what became of a frame to {destination.hex(':')}"
        )
        assert inbox.gets(tagged(net, 7, destination=destination)), f"{destination.hex(':')}, VLAN"


@pytest.mark.clause("5.1.9.5.1.1:3")
@pytest.mark.feature(CTRL_RX, CTRL_RX_EXTRA)
@pytest.mark.parametrize("mode", ["NOMULTI", "NOUNI", "NOBCAST"])
def test_promiscuous_mode_prevails_over_others(net: NetDriver, mode: str) -> None:
    inbox = filtering(net)
    net.control(Command.PROMISC, ON)
    net.control(Command[mode], ON)
    for destination in (net.mac, STRANGER, GROUP, BROADCAST):
        assert inbox.gets(net.frame(destination=destination)), (
            f"what became of a frame to {destination.hex(':')}"
        )


@pytest.mark.clause("5.1.9.5.1.1:4")
@pytest.mark.feature(CTRL_RX)
def test_all_multicast_lets_every_multicast_frame_through(net: NetDriver) -> None:
    inbox = filtering(net)
    net.control(Command.ALLMULTI, ON)
    assert inbox.gets(net.frame(destination=GROUP)), f"a frame to {GROUP.hex(':')} was not received"
    assert inbox.gets(net.frame(destination=OTHER_GROUP)), (
        f"a frame to {OTHER_GROUP.hex(':')} was not received"
    )


@pytest.mark.clause("5.1.9.5.1.1:5")
@pytest.mark.feature(CTRL_RX_EXTRA)
def test_the_other_receive_modes_can_be_turned_on_and_off(net: NetDriver) -> None:
    net.start()
    for command in (Command.ALLUNI, Command.NOMULTI, Command.NOUNI, Command.NOBCAST):
        for value in (ON, ON, OFF, OFF):
            net.control(command, value)


@pytest.mark.clause("5.1.9.5.1.1:6")
@pytest.mark.feature(CTRL_RX_EXTRA)
def test_all_unicast_lets_every_unicast_frame_through(net: NetDriver) -> None:
    inbox = filtering(net)
    net.control(Command.ALLUNI, ON)
    assert inbox.gets(net.frame(destination=STRANGER)), (
        f"a frame to {STRANGER.hex(':')} was not received"
    )
    assert inbox.gets(net.frame(destination=FRIEND)), (
        f"a frame to {FRIEND.hex(':')} was not received"
    )


@pytest.mark.clause("5.1.9.5.1.1:7")
@pytest.mark.feature(CTRL_RX_EXTRA)
def test_no_multicast_keeps_multicast_frames_away(net: NetDriver) -> None:
    inbox = filtering(net)
    net.control(Command.MAC_TABLE_SET, mac_table(multicast=[GROUP]))
    assert inbox.gets(net.frame(destination=GROUP)), f"a frame to {GROUP.hex(':')} was not received"
    net.control(Command.NOMULTI, ON)
    assert not inbox.gets(net.frame(destination=GROUP)), f"a frame to {GROUP.hex(':')} was received"
    net.control(Command.NOMULTI, OFF)
    assert inbox.gets(net.frame(destination=GROUP)), f"a frame to {GROUP.hex(':')} was not received"


@pytest.mark.clause("5.1.9.5.1.1:8")
@pytest.mark.feature(CTRL_RX_EXTRA)
def test_no_multicast_prevails_over_all_multicast(net: NetDriver) -> None:
    inbox = filtering(net)
    net.control(Command.ALLMULTI, ON)
    net.control(Command.NOMULTI, ON)
    assert not inbox.gets(net.frame(destination=GROUP)), f"a frame to {GROUP.hex(':')} was received"


@pytest.mark.clause("5.1.9.5.1.1:9")
@pytest.mark.feature(CTRL_RX_EXTRA)
def test_no_multicast_leaves_broadcast_frames_alone(net: NetDriver) -> None:
    inbox = filtering(net)
    net.control(Command.NOMULTI, ON)
    assert inbox.gets(net.frame(destination=BROADCAST)), (
        f"a frame to {BROADCAST.hex(':')} was not received"
    )


@pytest.mark.clause("5.1.9.5.1.1:10")
@pytest.mark.feature(CTRL_RX_EXTRA)
def test_no_unicast_keeps_unicast_frames_away(net: NetDriver) -> None:
    inbox = filtering(net)
    net.control(Command.NOUNI, ON)
    marker = net.frame(destination=BROADCAST)
    assert not inbox.gets(net.frame(destination=net.mac), marker=marker), (
        f"a frame to {net.mac.hex(':')} was received"
    )


@pytest.mark.clause("5.1.9.5.1.1:11")
@pytest.mark.feature(CTRL_RX_EXTRA)
def test_no_unicast_prevails_over_all_unicast(net: NetDriver) -> None:
    inbox = filtering(net)
    net.control(Command.ALLUNI, ON)
    net.control(Command.NOUNI, ON)
    for destination in (net.mac, STRANGER):
        marker = net.frame(destination=BROADCAST)
        assert not inbox.gets(net.frame(destination=destination), marker=marker), (
            f"a frame to {destination.hex(':')} was received"
        )


@pytest.mark.clause("5.1.9.5.1.1:12")
@pytest.mark.feature(CTRL_RX_EXTRA)
def test_no_broadcast_keeps_broadcast_frames_away(net: NetDriver) -> None:
    inbox = filtering(net)
    assert inbox.gets(net.frame(destination=BROADCAST)), (
        f"a frame to {BROADCAST.hex(':')} was not received"
    )
    net.control(Command.NOBCAST, ON)
    assert not inbox.gets(net.frame(destination=BROADCAST)), (
        f"a frame to {BROADCAST.hex(':')} was received"
    )


@pytest.mark.clause("5.1.9.5.1.1:13")
@pytest.mark.feature(CTRL_RX_EXTRA)
def test_no_broadcast_prevails_over_all_multicast(net: NetDriver) -> None:
    inbox = filtering(net)
    net.control(Command.ALLMULTI, ON)
    net.control(Command.NOBCAST, ON)
    assert not inbox.gets(net.frame(destination=BROADCAST)), (
        f"a frame to {BROADCAST.hex(':')} was received"
    )
    assert inbox.gets(net.frame(destination=GROUP)), "all-multicast is on"


# MAC addresses (5.1.9.5.2)


@pytest.mark.clause("5.1.9.5.2.1:1")
@pytest.mark.feature(CTRL_RX)
def test_the_mac_table_is_empty_after_a_reset(net: NetDriver) -> None:
    inbox = filtering(net)
    net.control(Command.MAC_TABLE_SET, mac_table([FRIEND], [GROUP]))
    assert inbox.gets(net.frame(destination=FRIEND)), (
        f"a frame to {FRIEND.hex(':')} was not received"
    )
    inbox = filtering(net)
    assert not inbox.gets(net.frame(destination=FRIEND)), (
        f"a frame to {FRIEND.hex(':')} was received"
    )
    assert not inbox.gets(net.frame(destination=GROUP)), f"a frame to {GROUP.hex(':')} was received"


@pytest.mark.clause("5.1.9.5.2.1:2")
@pytest.mark.feature(CTRL_RX)
def test_a_mac_table_is_in_force_once_its_command_is_used(net: NetDriver) -> None:
    inbox = filtering(net)
    tables = [([FRIEND], [GROUP]), ([], [OTHER_GROUP]), ([STRANGER, FRIEND], []), ([], [])]
    for unicast, multicast in tables:
        net.control(Command.MAC_TABLE_SET, mac_table(unicast, multicast))
        for destination in (FRIEND, STRANGER, GROUP, OTHER_GROUP):
            wanted = destination in unicast + multicast
            assert inbox.gets(net.frame(destination=destination)) == wanted, destination.hex(":")


@pytest.mark.clause("5.1.9.5.2.1:3")
@pytest.mark.feature("VIRTIO_NET_F_CTRL_MAC_ADDR", "VIRTIO_NET_F_MAC")
def test_a_new_mac_address_is_in_the_configuration_space_at_once(
    session: Session, net: NetDriver
) -> None:
    net.start()
    for mac in (FRIEND, STRANGER):
        net.control(Command.MAC_ADDR_SET, mac)
        same(session.read_config(0, 6), mac, "mac")


@pytest.mark.clause("5.1.9.5.2.1:4")
@pytest.mark.feature(CTRL_RX)
def test_frames_to_others_are_dropped(net: NetDriver) -> None:
    inbox = filtering(net)
    assert inbox.gets(net.frame(destination=net.mac)), (
        f"a frame to {net.mac.hex(':')} was not received"
    )
    for destination in (STRANGER, GROUP):
        assert not inbox.gets(net.frame(destination=destination)), (
            f"what became of a frame to {destination.hex(':')}"
        )


@pytest.mark.clause("5.1.9.5.2.1:4")
@pytest.mark.feature(CTRL_RX, "VIRTIO_NET_F_CTRL_MAC_ADDR", "VIRTIO_NET_F_MAC")
def test_frames_to_the_mac_address_of_before_are_dropped(net: NetDriver) -> None:
    inbox = filtering(net)
    before = net.mac
    net.control(Command.MAC_ADDR_SET, FRIEND)
    assert inbox.gets(net.frame(destination=FRIEND)), (
        f"a frame to {FRIEND.hex(':')} was not received"
    )
    assert not inbox.gets(net.frame(destination=before)), (
        f"a frame to {before.hex(':')} was received"
    )


# VLANs (5.1.9.5.3)


@pytest.mark.clause("5.1.9.5.3.1:1")
def test_without_vlan_filtering_frames_of_every_vlan_are_received(net: NetDriver) -> None:
    inbox = filtering(net, without=(CTRL_VLAN,))
    for vlan in (0, 1, 100, 4094):
        assert inbox.gets(tagged(net, vlan)), f"VLAN {vlan}"


@pytest.mark.clause("5.1.9.5.3.1:2")
@pytest.mark.feature(CTRL_VLAN)
def test_frames_of_the_vlans_in_the_table_are_received(net: NetDriver) -> None:
    inbox = filtering(net)
    vlans = (1, 5, 63, 64, 4094)
    for vlan in vlans:
        net.control(Command.VLAN_ADD, vlan.to_bytes(2, "little"))
    for vlan in vlans:
        assert inbox.gets(tagged(net, vlan)), f"VLAN {vlan}"
    # A tag has a priority besides.
    assert inbox.gets(tagged(net, 0xE005)), "VLAN 5, with a priority"
    assert inbox.gets(net.frame(destination=net.mac)), "a frame without a tag"


@pytest.mark.clause("5.1.9.5.3.1:3")
@pytest.mark.feature(CTRL_VLAN)
def test_frames_of_other_vlans_are_dropped(net: NetDriver) -> None:
    inbox = filtering(net)
    net.control(Command.VLAN_ADD, (5).to_bytes(2, "little"))
    for vlan in (4, 6, 5 + 1024):
        assert not inbox.gets(tagged(net, vlan)), f"VLAN {vlan}"
    net.control(Command.VLAN_DEL, (5).to_bytes(2, "little"))
    assert not inbox.gets(tagged(net, 5)), "VLAN 5, that was taken out"
