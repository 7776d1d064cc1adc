"""The network device (5.1): the receive filter (5.1.9.5.1, 5.1.9.5.2)."""

from collections.abc import Iterable

import pytest

from tests.unit.net.rig import (
    BROADCAST,
    CONFIG_MAC,
    CTRL_RX,
    CTRL_VLAN,
    GROUP,
    MAC,
    OTHER_MAC,
    RX,
    F,
    Rig,
    frame,
    header,
    mac_table,
    wanted,
)
from virtiopy.devices.net.control import (
    Ack,
    ControlClass,
    MacCommand,
    RxCommand,
    VlanCommand,
)

CTRL_MAC = (F.VIRTIO_NET_F_CTRL_VQ, F.VIRTIO_NET_F_CTRL_RX, F.VIRTIO_NET_F_CTRL_MAC_ADDR)


def test_without_ctrl_rx_every_frame_is_received() -> None:
    rig = Rig()
    for destination in (MAC, OTHER_MAC, GROUP, BROADCAST):
        assert wanted(rig, frame(destination=destination))


def accepted(rig: Rig) -> set[str]:
    """Which kinds of frames are received."""
    kinds = {"own": MAC, "unicast": OTHER_MAC, "multicast": GROUP, "broadcast": BROADCAST}
    return {kind for kind, mac in kinds.items() if wanted(rig, frame(destination=mac))}


@pytest.mark.parametrize(
    ("modes", "kinds"),
    [
        ((), {"own", "broadcast"}),
        ((RxCommand.PROMISC,), {"own", "unicast", "multicast", "broadcast"}),
        ((RxCommand.ALLMULTI,), {"own", "multicast", "broadcast"}),
        ((RxCommand.ALLUNI,), {"own", "unicast", "broadcast"}),
        ((RxCommand.NOMULTI,), {"own", "broadcast"}),
        ((RxCommand.NOMULTI, RxCommand.ALLMULTI), {"own", "broadcast"}),
        ((RxCommand.NOUNI,), {"broadcast"}),
        ((RxCommand.NOUNI, RxCommand.ALLUNI), {"broadcast"}),
        ((RxCommand.NOBCAST,), {"own"}),
        ((RxCommand.NOBCAST, RxCommand.ALLMULTI), {"own", "multicast"}),
        (
            (RxCommand.NOBCAST, RxCommand.NOUNI, RxCommand.NOMULTI, RxCommand.PROMISC),
            {"own", "unicast", "multicast", "broadcast"},
        ),
    ],
)
def test_the_receive_modes_choose_what_is_received(
    modes: Iterable[RxCommand], kinds: set[str]
) -> None:
    rig = Rig(CTRL_RX)
    for mode in modes:
        rig.mode(mode)
    assert accepted(rig) == kinds
    assert rig.device.counts.rx_filtered == 4 - len(kinds)


@pytest.mark.parametrize("mode", RxCommand)
def test_a_receive_mode_can_be_turned_off_again(mode: RxCommand) -> None:
    rig = Rig(CTRL_RX)
    rig.mode(mode, 1)
    rig.mode(mode, 0)
    assert accepted(rig) == {"own", "broadcast"}


def test_the_mac_table_adds_addresses_until_it_is_set_again() -> None:
    rig = Rig(CTRL_RX)
    assert rig.command(1, MacCommand.TABLE_SET, mac_table([OTHER_MAC], [GROUP])) == Ack.OK
    assert accepted(rig) == {"own", "unicast", "multicast", "broadcast"}
    assert rig.command(1, MacCommand.TABLE_SET, mac_table([], [])) == Ack.OK
    assert accepted(rig) == {"own", "broadcast"}


def test_a_new_mac_address_is_in_the_configuration_space_and_the_filter() -> None:
    rig = Rig(CTRL_MAC)
    assert rig.command(ControlClass.MAC, MacCommand.ADDR_SET, OTHER_MAC) == Ack.OK
    assert rig.config(CONFIG_MAC).to_bytes(6, "little") == OTHER_MAC
    assert accepted(rig) == {"unicast", "broadcast"}


def test_a_reset_empties_the_filter_and_brings_the_first_mac_address_back() -> None:
    rig = Rig(CTRL_MAC)
    rig.command(ControlClass.MAC, MacCommand.ADDR_SET, OTHER_MAC)
    rig.command(ControlClass.MAC, MacCommand.TABLE_SET, mac_table([], [GROUP]))
    rig.mode(RxCommand.PROMISC)
    rig.driver.reset()
    rig.driver.start(CTRL_RX)
    assert rig.config(CONFIG_MAC).to_bytes(6, "little") == MAC
    assert accepted(rig) == {"own", "broadcast"}


def test_only_vlans_in_the_table_are_received() -> None:
    rig = Rig(CTRL_VLAN)
    assert wanted(rig, frame())
    assert not wanted(rig, frame(vlan=5))
    assert rig.command(ControlClass.VLAN, VlanCommand.ADD, b"\x05\0") == Ack.OK
    assert wanted(rig, frame(vlan=5))
    # A priority is no part of the VLAN ID.
    assert wanted(rig, frame(vlan=0xE005))
    assert not wanted(rig, frame(vlan=6))
    assert rig.command(ControlClass.VLAN, VlanCommand.DEL, b"\x05\0") == Ack.OK
    assert not wanted(rig, frame(vlan=5))


def test_without_ctrl_vlan_every_vlan_is_received() -> None:
    assert wanted(Rig(), frame(vlan=5))


def test_the_filter_works_in_buffers_of_single_bytes() -> None:
    rig = Rig(CTRL_RX)
    rig.supply(*[1] * 32, 100)
    rig.driver.kick(RX)
    rig.arrive(frame(destination=OTHER_MAC), frame())
    assert rig.received() == [header(num_buffers=1) + frame()]
