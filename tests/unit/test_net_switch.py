"""The network device changes its mode while its driver is up, and before, and at a bad time."""

import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.openfiles import open_files
from tests.unit.net.rig import MAC, MRG, header
from tests.unit.vhost_model import FEATURES, RX, TX, WireLink
from tests.unit.vhost_rig import EVENT_IDX, IOEVENTFD, MEMORY, VHOST, Rig, frames, works
from virtiopy.devices.net import Net, RecordedLink
from virtiopy.devices.rng import Rng
from virtiopy.errors import ConfigError, HostError
from virtiopy.host.pcap import PcapFile
from virtiopy.spec import feature_mask
from virtiopy.transport.registers import Interrupt
from virtiopy.virtqueue.driver import Allocator
from virtiopy.vm.slots import IoMode


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(monkeypatch)
    yield rig
    rig.close()


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """In ioeventfd mode, with nothing negotiated yet."""
    rig = Rig(monkeypatch, IOEVENTFD, None)
    yield rig
    rig.close()


@pytest.fixture
def by_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """In ioeventfd mode, its driver up."""
    rig = Rig(monkeypatch, IOEVENTFD)
    yield rig
    rig.close()


# Switching while the driver is up


@pytest.mark.parametrize("features", [(), (EVENT_IDX,), (MRG, EVENT_IDX)])
def test_frames_in_the_rings_wait_for_the_other(
    monkeypatch: pytest.MonkeyPatch, features: Iterable[int]
) -> None:
    rig = Rig(monkeypatch, IOEVENTFD, features)
    rig.supply(8)
    rig.arrive(2)
    rig.run_loop()
    rig.send(2)
    rig.slot.change_mode(VHOST)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    rig.arrive(2)
    rig.kernel.work()
    rig.send(2)
    rig.arrive(2)
    rig.slot.change_mode(IOEVENTFD)
    assert rig.kernel.running == []
    rig.run_loop()
    assert rig.received() == frames(*range(6))
    assert rig.link.sent[0] == [header() + content for content in frames(*range(4))]
    assert rig.fact("delegations") == 1
    rig.close()


@pytest.mark.parametrize("mode", ["vhost", "ioeventfd"])
def test_the_mode_may_be_a_word_and_may_be_the_one_it_is_in(rig: Rig, mode: str) -> None:
    rig.slot.change_mode(mode)
    assert rig.machine.slots[0].mode == mode
    starts = rig.kernel.starts
    rig.slot.change_mode(mode)
    assert rig.kernel.starts == starts
    assert works(rig)


def test_frames_that_wait_for_room_in_the_link_are_sent_once(by_loop: Rig) -> None:
    rig = by_loop
    rig.link.room = 2
    rig.send(5)
    rig.run_loop()
    assert len(rig.link.sent[0]) == 2
    rig.slot.change_mode(VHOST)
    rig.kernel.work()
    assert rig.link.sent[0] == [header() + content for content in frames(*range(5))]
    assert len(rig.driver.queues[TX].take_all_used()) == 5


def test_a_frame_that_waits_for_buffers_is_delivered_before_the_rings_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, IOEVENTFD, [MRG])
    rig.supply(1, 40)
    rig.run_loop()
    rig.arrive()
    rig.run_loop()
    rig.slot.change_mode(VHOST)
    assert rig.slot.mode is VHOST
    assert rig.kernel.running == []

    rig.supply(1, 40)
    rig.run_loop()
    assert rig.kernel.running == [(0, RX), (0, TX)]
    # 40 bytes, of which 12 are the header, and 32 more.
    used = rig.driver.queues[RX].take_all_used()
    assert [one.length for one in used] == [40, 32]
    assert rig.fact("rx_frames") == 1
    rig.buffers.clear()
    assert works(rig)
    rig.close()


def test_chains_behind_which_one_was_rejected_are_used_before_the_rings_go(by_loop: Rig) -> None:
    """They cannot be made available again: the ring would be looked at twice behind them."""
    rig = by_loop
    rig.supply()
    rig.lend_broken_chain(RX)
    rig.supply()
    rig.run_loop()
    assert [used.length for used in rig.driver.queues[RX].take_all_used()] == [0]
    rig.slot.change_mode(VHOST)
    assert rig.kernel.running == []
    rig.arrive()
    rig.run_loop()
    assert rig.received() == frames(0)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert works(rig)


def test_buffers_that_the_device_had_popped_are_filled_by_vhost_in_their_order(
    by_loop: Rig,
) -> None:
    rig = by_loop
    rig.supply(4)
    rig.run_loop()
    heads = [head for _, head in rig.buffers]
    rig.slot.change_mode(VHOST)
    rig.arrive(4)
    rig.kernel.work()
    assert [used.head for used in rig.driver.queues[RX].take_all_used()] == heads


def test_a_last_interrupt_of_vhosts_is_not_lost(rig: Rig) -> None:
    rig.send()
    rig.kernel.work()
    rig.slot.change_mode(IOEVENTFD)
    assert os.eventfd_read(rig.call) >= 1
    assert rig.driver.interrupts() == Interrupt.USED_BUFFER
    assert rig.driver.interrupts() == 0


def test_a_mode_is_remembered_until_the_driver_is_up(idle: Rig) -> None:
    rig = idle
    rig.slot.change_mode(VHOST)
    assert rig.slot.mode is VHOST
    assert rig.kernel.running == []
    rig.driver.start([])
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert works(rig)


def test_a_mode_is_forgotten_as_it_was_remembered(idle: Rig) -> None:
    rig = idle
    rig.slot.change_mode(VHOST)
    rig.slot.change_mode(IOEVENTFD)
    assert rig.kernel.opened == []
    rig.driver.start([])
    assert rig.kernel.starts == 0
    assert works(rig)


def test_a_device_that_needs_a_reset_is_handed_over_after_it(by_loop: Rig) -> None:
    rig = by_loop
    rig.lend_broken_chain(RX)
    rig.driver.queues[RX].available.idx = 1000
    rig.kick(RX)
    rig.run_loop()
    assert rig.needs_reset
    rig.slot.change_mode(VHOST)
    assert rig.kernel.running == []
    rig.driver.start([])
    assert rig.kernel.running == [(0, RX), (0, TX)]
    assert works(rig)


def test_a_link_that_is_down_keeps_nobody_from_switching(by_loop: Rig) -> None:
    rig = by_loop
    rig.link.set_up(False)
    rig.run_loop()
    assert rig.fact("link") == "down"
    rig.slot.change_mode(VHOST)
    assert rig.kernel.running == [(0, RX), (0, TX)]
    rig.link.set_up(True)
    rig.run_loop()
    assert rig.fact("link") == "up"
    assert works(rig)
    rig.link.set_up(False)
    rig.run_loop()
    rig.slot.change_mode(IOEVENTFD)
    rig.link.set_up(True)
    rig.run_loop()
    assert works(rig)


# Refusals


def test_what_vhost_refuses_stays_where_it_is_and_says_why(by_loop: Rig) -> None:
    rig = by_loop
    rig.supply(3)
    rig.run_loop()
    rig.kernel.open()
    rig.kernel.refusal = HostError("For the test: make it work.")
    with pytest.raises(HostError, match=r"^net0 stays in ioeventfd mode: For the test: make"):
        rig.slot.change_mode(VHOST)
    assert rig.slot.mode is IOEVENTFD
    assert len(rig.kernel.opened) == 1
    assert works(rig)
    rig.kernel.refusal = None
    rig.slot.change_mode(VHOST)
    assert works(rig)


def test_a_missing_vhost_is_told_at_once(idle: Rig) -> None:
    idle.kernel.refusal = HostError("There is none: load it.")
    with pytest.raises(HostError, match="net0 stays in ioeventfd mode: There is none"):
        idle.slot.change_mode(VHOST)
    assert idle.slot.mode is IOEVENTFD


def test_features_that_vhost_lacks_keep_a_driver_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = FEATURES & ~feature_mask([EVENT_IDX])
    rig = Rig(monkeypatch, IOEVENTFD, [EVENT_IDX], kernel_features=without)
    with pytest.raises(HostError, match="lacks features"):
        rig.slot.change_mode(VHOST)
    assert works(rig)
    rig.close()


def test_what_is_refused_at_driver_ok_is_worked_by_the_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(monkeypatch, features=None)
    rig.kernel.refusal = HostError("For the test: make it work.")
    rig.driver.start([])
    assert rig.slot.mode is IOEVENTFD
    assert rig.fact("delegation_refused") == "For the test: make it work."
    assert "For the test" in caplog.text
    assert works(rig)

    rig.kernel.refusal = None
    rig.driver.reset()
    rig.driver.start([])
    assert rig.slot.mode is VHOST
    assert rig.kernel.running == [(0, RX), (0, TX)]
    rig.close()


def test_a_refused_mode_can_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, features=None)
    rig.kernel.refusal = HostError("For the test: make it work.")
    rig.driver.start([])
    with pytest.raises(HostError, match="net0 stays in ioeventfd mode: For the test"):
        rig.slot.change_mode(VHOST)
    assert rig.slot.mode is IOEVENTFD
    assert works(rig)
    rig.kernel.refusal = None
    rig.slot.change_mode(VHOST)
    assert rig.slot.mode is VHOST
    assert rig.kernel.running == [(0, RX), (0, TX)]
    rig.close()


def test_who_asks_for_what_a_refusal_led_to_gets_it_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, features=None)
    rig.kernel.refusal = HostError("For the test: make it work.")
    rig.driver.start([])
    rig.slot.change_mode(IOEVENTFD)
    rig.kernel.refusal = None
    rig.driver.reset()
    rig.driver.start([])
    assert rig.slot.mode is IOEVENTFD
    assert rig.kernel.starts == 0
    rig.close()


@pytest.mark.parametrize("mode", ["trapped", "vhost"])
def test_trapped_mode_is_for_a_whole_life(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    rig = Rig(monkeypatch, IoMode.TRAPPED if mode == "vhost" else VHOST)
    with pytest.raises(ConfigError, match=f"trapped mode is for .* start it in {mode} mode"):
        rig.slot.change_mode(mode)
    rig.close()


def test_there_are_no_other_modes(rig: Rig) -> None:
    with pytest.raises(ConfigError, match="trapped, ioeventfd, native, vhost"):
        rig.slot.change_mode("vdpa")


def test_a_device_of_another_kind_stays_where_it_is(rig: Rig) -> None:
    slot = rig.machine.add_device(Rng(), "rng0", IOEVENTFD)
    stays = "rng0 stays in ioeventfd mode: An entropy device cannot delegate"
    with pytest.raises(ConfigError, match=stays):
        slot.change_mode(VHOST)
    with pytest.raises(ConfigError, match="cannot delegate its rings"):
        rig.machine.add_device(Rng(), "rng1", VHOST)
    assert [slot.name for slot in rig.machine.slots if slot.device.workers] == ["net0"]


def test_a_link_whose_frames_are_recorded_keeps_them(rig: Rig, tmp_path: Path) -> None:
    record = PcapFile(tmp_path / "net.pcap", "t0")
    device = Net(RecordedLink(WireLink(), record), mac=MAC)
    slot = rig.machine.add_device(device, "net1", IOEVENTFD)
    with pytest.raises(ConfigError, match="cannot be recorded here"):
        slot.change_mode(VHOST)


def test_a_link_with_longer_frames_than_the_device_keeps_them(by_loop: Rig) -> None:
    by_loop.link.longest = 9000
    with pytest.raises(ConfigError, match="MTU"):
        by_loop.slot.change_mode(VHOST)
    assert works(by_loop)


def test_a_mode_that_is_not_required_falls_back_and_says_so(rig: Rig) -> None:
    said: list[str] = []
    rig.slot.change_mode(IOEVENTFD)
    rig.kernel.refusal = HostError("There is none: load it.")
    device = Net(WireLink(), mac=MAC)
    slot = rig.machine.add_device(device, "net1", VHOST, refused=said.append)
    assert said == ["net1 is in ioeventfd mode: There is none: load it."]
    assert slot.mode is IOEVENTFD


# Ends


def test_nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    rig = Rig(monkeypatch)
    for mode in (IOEVENTFD, VHOST, IOEVENTFD, VHOST):
        rig.slot.change_mode(mode)
    assert works(rig)
    rig.close()
    assert rig.kernel.opened == []
    assert open_files() == before


def test_a_refusal_leaves_nothing_open(by_loop: Rig) -> None:
    before = open_files()
    by_loop.kernel.open()
    by_loop.kernel.refusal = HostError("For the test: make it work.")
    with pytest.raises(HostError):
        by_loop.slot.change_mode(VHOST)
    assert open_files() == before


def test_switches_while_the_driver_resets_the_device_end_as_asked(by_loop: Rig) -> None:
    """Three threads: the loop's, the CPU's, and the user's."""
    rig = by_loop
    errors: list[BaseException] = []
    done = threading.Event()

    def switch() -> None:
        try:
            while not done.is_set():
                rig.slot.change_mode(VHOST)
                rig.slot.change_mode(IOEVENTFD)
            rig.slot.change_mode(VHOST)
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    rig.machine.loop.start()
    switcher = threading.Thread(target=switch)
    switcher.start()
    for _ in range(100):
        rig.driver.start([])
        rig.supply(2)
        rig.send(2)
        rig.driver.reset()
        rig.driver.allocator = Allocator(0x10000, MEMORY)
    done.set()
    switcher.join()
    rig.machine.loop.stop()
    assert errors == []
    assert rig.machine.loop.failure is None
    rig.driver.start([])
    assert rig.slot.mode is VHOST
    assert rig.kernel.running == [(0, RX), (0, TX)]
    rig.link.incoming[0].clear()
    rig.buffers.clear()
    assert works(rig)


STEPS = ["send", "arrive", "supply", "loop", "vhost", "switch", "loop", "vhost", "switch"]


@given(
    steps=st.lists(st.sampled_from(STEPS), max_size=40),
    features=st.sampled_from([(), (EVENT_IDX,), (MRG,), (MRG, EVENT_IDX)]),
    room=st.integers(0, 20),
)
def test_whatever_the_order_of_things_no_frame_is_lost_repeated_or_reordered(
    steps: list[str], features: tuple[int, ...], room: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        rig = Rig(monkeypatch, IOEVENTFD, features, queue_size=64)
        rig.link.room = room
        received: list[bytes] = []
        for step in [*steps, "end"]:
            if step == "send":
                rig.send()
            elif step == "arrive":
                rig.arrive()
            elif step == "supply":
                rig.supply(1, 2048)
            elif step == "loop":
                rig.run_loop()
            elif step == "vhost":
                rig.kernel.work()
            elif step == "switch":
                rig.slot.change_mode(IOEVENTFD if rig.slot.mode is VHOST else VHOST)
            received += rig.received()
        rig.link.room = 1 << 30
        missing = rig.arrived - len(received) - len(rig.buffers)
        rig.supply(max(0, missing))
        rig.go()
        rig.go()
        received += rig.received()
        assert received == frames(*range(rig.arrived))
        assert rig.link.sent[0] == [header() + sent for sent in frames(*range(rig.sent))]
        assert len(rig.driver.queues[TX].take_all_used()) == rig.sent
        assert not rig.needs_reset
        rig.close()
