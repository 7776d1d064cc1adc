"""Network devices with a fault in what their control virtqueue does (5.1.9.5)."""

from typing import ClassVar

from tests.conformance.mutants import mutants
from virtiopy.conformance.targets.builders import build_net
from virtiopy.devices.net import FrameLink, Net
from virtiopy.devices.net.control import (
    BROADCAST,
    MAC_SIZE,
    CommandError,
    Control,
    ControlClass,
    ReceiveFilter,
    RxCommand,
    is_multicast,
)
from virtiopy.devices.net.header import is_vlan_tagged

# Receive filters (5.1.9.5.1 to 5.1.9.5.3)


class _Filtering(Net):
    kind: ClassVar[type[ReceiveFilter]]

    def __init__(self, link: FrameLink, *, mac: bytes, queue_size: int = 256) -> None:
        self.first_mac = mac
        super().__init__(link, mac=mac, queue_size=queue_size)
        self.filter = self.kind(mac)

    def reset(self) -> None:
        super().reset()
        self.filter = self.kind(self.first_mac)


class _Without(ReceiveFilter):
    """Overlooks a mode."""

    overlooked: ClassVar[RxCommand]

    def wants(self, frame: bytes) -> bool:
        modes = self.modes
        self.modes = modes - {self.overlooked}
        try:
            return super().wants(frame)
        finally:
            self.modes = modes


class _NeverPromiscuous(_Without):
    overlooked = RxCommand.PROMISC


class NeverIsPromiscuous(_Filtering):
    kind = _NeverPromiscuous


class _NeverAllMulticast(_Without):
    overlooked = RxCommand.ALLMULTI


class NeverTakesAllMulticast(_Filtering):
    kind = _NeverAllMulticast


class _NeverAllUnicast(_Without):
    overlooked = RxCommand.ALLUNI


class NeverTakesAllUnicast(_Filtering):
    kind = _NeverAllUnicast


class _NeverNoMulticast(_Without):
    overlooked = RxCommand.NOMULTI


class OverlooksNoMulticast(_Filtering):
    kind = _NeverNoMulticast


class _NeverNoUnicast(_Without):
    overlooked = RxCommand.NOUNI


class OverlooksNoUnicast(_Filtering):
    kind = _NeverNoUnicast


class _NeverNoBroadcast(_Without):
    overlooked = RxCommand.NOBCAST


class OverlooksNoBroadcast(_Filtering):
    kind = _NeverNoBroadcast


class _Suppressing(ReceiveFilter):
    """Has what keeps frames away go before promiscuous mode."""

    def wants(self, frame: bytes) -> bool:
        destination = frame[:MAC_SIZE]
        keeps_away = RxCommand.NOMULTI if is_multicast(destination) else RxCommand.NOUNI
        if destination == BROADCAST:
            keeps_away = RxCommand.NOBCAST
        return keeps_away not in self.modes and super().wants(frame)


class SuppressesInPromiscuousMode(_Filtering):
    kind = _Suppressing


class _Welcoming(ReceiveFilter):
    """Has each ALL... go before the NO... beside it; broadcast is multicast."""

    def wants(self, frame: bytes) -> bool:
        mode = RxCommand.ALLMULTI if is_multicast(frame) else RxCommand.ALLUNI
        return mode in self.modes or super().wants(frame)


class HasAllBeforeNone(_Filtering):
    kind = _Welcoming


class _Lumping(ReceiveFilter):
    """Takes broadcast for multicast."""

    def wants(self, frame: bytes) -> bool:
        if is_multicast(frame) and RxCommand.NOMULTI in self.modes:
            return False
        return super().wants(frame)


class SuppressesBroadcastWithMulticast(_Filtering):
    kind = _Lumping


class _SparseControl(Control):
    """Knows the first command of each feature only."""

    def execute(self, class_: int, command: int, data: bytes) -> None:
        if class_ == ControlClass.RX and command not in {RxCommand.PROMISC, RxCommand.ALLUNI}:
            raise CommandError("no such mode")
        super().execute(class_, command, data)


class KnowsTwoReceiveModes(Net):
    def __init__(self, link: FrameLink, *, mac: bytes, queue_size: int = 256) -> None:
        super().__init__(link, mac=mac, queue_size=queue_size)
        self.control = _SparseControl(self)


class RemembersTheMacTable(Net):
    def reset(self) -> None:
        table = self.filter.table
        super().reset()
        self.filter.table = table


class _AddingControl(Control):
    def __init__(self, device: Net) -> None:
        super().__init__(device)
        self.device = device

    def execute(self, class_: int, command: int, data: bytes) -> None:
        before = self.device.filter.table
        super().execute(class_, command, data)
        self.device.filter.table |= before


class AddsToTheMacTable(Net):
    def __init__(self, link: FrameLink, *, mac: bytes, queue_size: int = 256) -> None:
        super().__init__(link, mac=mac, queue_size=queue_size)
        self.control = _AddingControl(self)


class TakesFramesToAnybody(Net):
    def negotiated(self, driver_features: int) -> None:
        super().negotiated(driver_features)
        self.filter.filters_addresses = False


class FiltersVlansUnasked(Net):
    def negotiated(self, driver_features: int) -> None:
        super().negotiated(driver_features)
        self.filter.filters_vlans = True


class TakesFramesOfEveryVlan(Net):
    def negotiated(self, driver_features: int) -> None:
        super().negotiated(driver_features)
        self.filter.filters_vlans = False


class _Untagged(ReceiveFilter):
    def wants(self, frame: bytes) -> bool:
        return not (self.filters_vlans and is_vlan_tagged(frame)) and super().wants(frame)


class TakesNoFrameOfAVlan(_Filtering):
    kind = _Untagged


class KeepsItsMac(Net):
    """Has the address that the driver has set in force, and shows the old one."""

    def __init__(self, link: FrameLink, *, mac: bytes, queue_size: int = 256) -> None:
        super().__init__(link, mac=mac, queue_size=queue_size)
        self.first_mac = mac

    def config_space(self) -> bytes:
        return self.first_mac + super().config_space()[MAC_SIZE:]


# Announcements, and several queues (5.1.9.5.4, 5.1.9.5.6)


class KeepsAnnouncing(Net):
    def announce_acknowledged(self) -> None:
        pass


class UsesAllQueuesFromTheStart(Net):
    def set_pairs(self, count: int) -> None:
        super().set_pairs(self.max_pairs)


class NeverUsesFewerQueues(Net):
    most = 1

    def set_pairs(self, count: int) -> None:
        self.most = max(self.most, count)
        super().set_pairs(self.most)


class KeepsFramesForQueuesUnderReset(Net):
    def reset_queue(self, index: int) -> None:
        self.stop_queue(index)


MUTANTS = [
    *mutants(
        build_net,
        [
            ("5.1.9.5.1.1:1", KnowsTwoReceiveModes),
            ("5.1.9.5.1.1:5", KnowsTwoReceiveModes),
            ("5.1.9.5.1.1:2", NeverIsPromiscuous),
            ("5.1.9.5.1.1:3", SuppressesInPromiscuousMode),
            ("5.1.9.5.1.1:4", NeverTakesAllMulticast),
            ("5.1.9.5.1.1:6", NeverTakesAllUnicast),
            ("5.1.9.5.1.1:7", OverlooksNoMulticast),
            ("5.1.9.5.1.1:8", HasAllBeforeNone),
            ("5.1.9.5.1.1:9", SuppressesBroadcastWithMulticast),
            ("5.1.9.5.1.1:10", OverlooksNoUnicast),
            ("5.1.9.5.1.1:11", HasAllBeforeNone),
            ("5.1.9.5.1.1:12", OverlooksNoBroadcast),
            ("5.1.9.5.1.1:13", HasAllBeforeNone),
            ("5.1.9.5.2.1:1", RemembersTheMacTable),
            ("5.1.9.5.2.1:2", AddsToTheMacTable),
            ("5.1.9.5.2.1:3", KeepsItsMac),
            ("5.1.9.5.2.1:4", TakesFramesToAnybody),
            ("5.1.9.5.3.1:1", FiltersVlansUnasked),
            ("5.1.9.5.3.1:2", TakesNoFrameOfAVlan),
            ("5.1.9.5.3.1:3", TakesFramesOfEveryVlan),
            ("5.1.9.5.4.2:1", KeepsAnnouncing),
            ("5.1.9.5.6.2:1", UsesAllQueuesFromTheStart),
            ("5.1.9.5.6.2:2", NeverUsesFewerQueues),
            ("5.1.9.5.6.2:3", KeepsFramesForQueuesUnderReset),
            ("5.1.9.5.6.2:4", KeepsFramesForQueuesUnderReset),
        ],
    )
]
