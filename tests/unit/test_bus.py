import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiopy.errors import GuestError
from virtiopy.vm.bus import Bus, Place, UnassignedAccessError


class Nothing:
    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        pass

    def register_name(self, offset: int) -> str:
        return "nothing"


def place(start: int, size: int, name: str = "device") -> Place:
    return Place(start, size, name, Nothing())


@pytest.fixture
def bus() -> Bus:
    bus = Bus("port")
    for name, start in [("second", 0x200), ("first", 0x100), ("third", 0x210)]:
        bus.add(place(start, 0x10, name))
    return bus


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0x100, "first"),
        (0x10F, "first"),
        (0x200, "second"),
        (0x20F, "second"),
        (0x210, "third"),
        (0x21F, "third"),
    ],
)
def test_a_device_answers_from_its_first_to_its_last_address(
    bus: Bus, address: int, name: str
) -> None:
    found = bus.find(address)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("address", [0, 0xFF, 0x110, 0x1FF, 0x220, 1 << 63])
def test_nobody_answers_between_devices(bus: Bus, address: int) -> None:
    assert bus.find(address) is None


def test_nobody_answers_on_an_empty_bus() -> None:
    assert Bus("port").find(0) is None


@pytest.mark.parametrize(
    ("start", "size", "other"),
    [
        pytest.param(0x100, 0x10, "first", id="same"),
        pytest.param(0x108, 1, "first", id="inside"),
        pytest.param(0x10F, 2, "first", id="over-its-end"),
        pytest.param(0xFF, 2, "first", id="over-its-start"),
        pytest.param(0x0, 0x1000, "first", id="around-all"),
        pytest.param(0x110, 0xF1, "second", id="into-the-next"),
    ],
)
def test_a_device_in_anothers_range_is_refused_and_not_added(
    bus: Bus, start: int, size: int, other: str
) -> None:
    with pytest.raises(ValueError, match=f"late overlaps {other}"):
        bus.add(place(start, size, "late"))
    found = [bus.find(address) for address in range(0x300)]
    assert {at.name for at in found if at} == {"first", "second", "third"}


def test_devices_may_touch(bus: Bus) -> None:
    bus.add(place(0x110, 0xF0, "between"))
    assert [at.name for at in map(bus.find, (0x10F, 0x110, 0x1FF, 0x200)) if at] == [
        "first",
        "between",
        "between",
        "second",
    ]


@given(ranges=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=12))
def test_find_is_what_a_look_at_every_range_says(ranges: list[tuple[int, int]]) -> None:
    bus, taken = Bus("port"), dict[int, str]()
    for number, (start, size) in enumerate(ranges):
        addresses = range(start, start + size)
        if any(address in taken for address in addresses):
            with pytest.raises(ValueError, match="overlaps"):
                bus.add(place(start, size))
        else:
            bus.add(place(start, size, str(number)))
            taken.update(dict.fromkeys(addresses, str(number)))
    for address in range(80):
        found = bus.find(address)
        assert (found.name if found else None) == taken.get(address)


@pytest.mark.parametrize(
    ("size", "is_write", "words"),
    [(1, False, "read 1 byte at port 0x80,"), (4, True, "wrote 4 bytes at port 0x80,")],
)
def test_a_refusal_says_what_the_guest_did_where(size: int, is_write: bool, words: str) -> None:
    error = Bus("port").refuse(0x80, size, is_write)
    assert words in str(error)
    assert isinstance(error, UnassignedAccessError)
    assert isinstance(error, GuestError)


def test_a_refusal_says_where_devices_are() -> None:
    bus = Bus("guest physical address")
    for number in range(2):
        start = 0xD000_0000 + number * 0x1000
        bus.add(Place(start, 0x1000, f"rng{number}", Nothing(), f"{start:#x} (GSI {16 + number})"))
    sentence = str(bus.refuse(0x10, 1, False))
    assert (
        "mend the guest (rng0 is at 0xd0000000 (GSI 16), rng1 is at 0xd0001000 (GSI 17)), or"
        in (sentence)
    )


def test_a_refusal_names_a_few_of_many_devices() -> None:
    bus = Bus("guest physical address")
    for number in range(32):
        bus.add(Place(number * 16, 16, f"d{number}", Nothing(), f"{number}"))
    sentence = str(bus.refuse(0x1000, 1, False))
    assert "(d0 is at 0, d1 is at 1, d2 is at 2, ..., d31 is at 31)" in sentence
