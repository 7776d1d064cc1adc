"""The network device (5.1): bad commands (5.1.9.5)."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.net.rig import (
    ANNOUNCE,
    CTRL,
    CTRL_RX,
    CTRL_VLAN,
    GROUP,
    MAC,
    MQ,
    OTHER_MAC,
    F,
    Rig,
    mac_table,
)
from virtiopy.devices.net.control import (
    Ack,
    AnnounceCommand,
    ControlClass,
    MacCommand,
    MqCommand,
    RxCommand,
    VlanCommand,
)
from virtiopy.virtqueue.driver import Piece

ALL_CTRL = (*CTRL_RX, F.VIRTIO_NET_F_CTRL_MAC_ADDR, *CTRL_VLAN, *ANNOUNCE, *MQ)
BAD_COMMANDS = {
    "unknown class": (9, 0, b""),
    "unknown command": (ControlClass.RX, 6, b"\1"),
    "mode without its byte": (ControlClass.RX, RxCommand.PROMISC, b""),
    "mode of two bytes": (ControlClass.RX, RxCommand.PROMISC, b"\1\0"),
    "mode neither on nor off": (ControlClass.RX, RxCommand.PROMISC, b"\2"),
    "MAC table without its second part": (1, MacCommand.TABLE_SET, struct.pack("<I", 0)),
    "MAC table with too few addresses": (1, MacCommand.TABLE_SET, struct.pack("<I", 2) + MAC),
    "MAC table with an absurd count": (1, 0, struct.pack("<I", 0xFFFFFFFF) + MAC),
    "MAC table with more behind it": (1, 0, mac_table([], []) + b"\0"),
    "MAC table with a group among the others": (1, 0, mac_table([GROUP], [])),
    "MAC table with a station among the groups": (1, 0, mac_table([], [MAC])),
    "MAC address too short": (ControlClass.MAC, MacCommand.ADDR_SET, MAC[:5]),
    "MAC address too long": (ControlClass.MAC, MacCommand.ADDR_SET, MAC + b"\0"),
    "MAC address of a group": (ControlClass.MAC, MacCommand.ADDR_SET, GROUP),
    "MAC address of zeroes": (ControlClass.MAC, MacCommand.ADDR_SET, bytes(6)),
    "VLAN id truncated": (ControlClass.VLAN, VlanCommand.ADD, b"\5"),
    "VLAN id out of range": (ControlClass.VLAN, VlanCommand.ADD, b"\0\x10"),
    "announcement with data": (ControlClass.ANNOUNCE, AnnounceCommand.ACK, b"\0"),
    "no pairs": (ControlClass.MQ, MqCommand.VQ_PAIRS_SET, b"\0\0"),
    "too many pairs": (ControlClass.MQ, MqCommand.VQ_PAIRS_SET, b"\3\0"),
    "pairs truncated": (ControlClass.MQ, MqCommand.VQ_PAIRS_SET, b"\1"),
    "RSS, which is not offered": (ControlClass.MQ, 1, b"\1\0"),
    "longer than any command": (ControlClass.MAC, 0, bytes(1 << 16)),
}


@pytest.mark.parametrize("fault", BAD_COMMANDS)
def test_a_bad_command_is_answered_with_err_and_changes_nothing(fault: str) -> None:
    rig = Rig(ALL_CTRL, pairs=2)
    before = (rig.device.config_space(), repr(rig.device.filter), rig.link.enabled)
    assert rig.command(*BAD_COMMANDS[fault]) == Ack.ERR
    assert (rig.device.config_space(), repr(rig.device.filter), rig.link.enabled) == before
    assert rig.dropped == {"ctrl_refused": 1}
    rig.mode(RxCommand.PROMISC)


@pytest.mark.parametrize(
    ("class_", "command", "data"),
    [
        (ControlClass.RX, RxCommand.PROMISC, b"\1"),
        (ControlClass.RX, RxCommand.NOBCAST, b"\1"),
        (ControlClass.MAC, MacCommand.TABLE_SET, mac_table([], [])),
        (ControlClass.MAC, MacCommand.ADDR_SET, OTHER_MAC),
        (ControlClass.VLAN, VlanCommand.ADD, b"\5\0"),
        (ControlClass.ANNOUNCE, AnnounceCommand.ACK, b""),
        (ControlClass.MQ, MqCommand.VQ_PAIRS_SET, b"\1\0"),
    ],
)
def test_a_command_whose_feature_was_not_negotiated_is_refused(
    class_: int, command: int, data: bytes
) -> None:
    rig = Rig([F.VIRTIO_NET_F_CTRL_VQ], pairs=2)
    assert rig.command(class_, command, data) == Ack.ERR


@pytest.mark.parametrize("length", [0, 1])
def test_a_command_without_class_or_command_is_refused(length: int) -> None:
    rig = Rig(CTRL_RX)
    pieces = [Piece(0x1000, length)] if length else []
    rig.driver.queues[CTRL].add([*pieces, Piece(0x2000, 1, writable=True)])
    assert [used.length for used in rig.driver.collect(CTRL)] == [1]
    assert rig.memory.read(0x2000, 1)[0] == Ack.ERR


def test_a_command_without_an_ack_byte_is_not_carried_out() -> None:
    rig = Rig(CTRL_RX)
    rig.memory.write(0x1000, b"\0\0\1")
    rig.driver.queues[CTRL].add([Piece(0x1000, 3)])
    assert [used.length for used in rig.driver.collect(CTRL)] == [0]
    assert rig.device.filter.modes == set()
    assert rig.dropped == {"ctrl_refused": 1}


@given(cuts=st.lists(st.integers(0, 22), max_size=5))
def test_a_command_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    rig = Rig(CTRL_RX)
    content = bytes([ControlClass.MAC, MacCommand.TABLE_SET]) + mac_table([OTHER_MAC], [GROUP])
    rig.memory.write(0x1000, content)
    edges = [0, *sorted(cuts), len(content)]
    rig.driver.queues[CTRL].add(
        [
            *(Piece(0x1000 + a, b - a) for a, b in itertools.pairwise(edges)),
            Piece(0x2000, 3, writable=True),
        ]
    )
    rig.driver.collect(CTRL)
    assert rig.memory.read(0x2000, 1)[0] == Ack.OK
    assert rig.device.filter.table == {OTHER_MAC, GROUP}
