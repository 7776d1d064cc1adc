"""The registry: each entry's parts are where it says that they are."""

from collections.abc import Iterator

import pytest

from virtiopy.boot.guests import guest_names
from virtiopy.check.requests import RequestJudge
from virtiopy.cli.attachments import build, parse
from virtiopy.conformance.drivers.base import DeviceDriver
from virtiopy.devices.entry import DeviceEntry, Direction, find, find_class
from virtiopy.devices.registry import entries, entry_named, entry_of, names, registered
from virtiopy.errors import ConfigError
from virtiopy.spec import DeviceId

each_entry = pytest.mark.parametrize("entry", entries(), ids=names())


def functions(entry: DeviceEntry) -> Iterator[str]:
    """Yield the places of the functions that an entry names."""
    yield entry.build
    yield from filter(None, [entry.build_served, entry.choose_mode, entry.vhost_user])
    yield from entry.rigs.values()
    if entry.workload is not None:
        ways: list[Direction] = list(entry.workload.directions.values())
        yield from filter(None, [way.surroundings for way in ways])


@each_entry
def test_its_functions_are_where_it_says(entry: DeviceEntry) -> None:
    assert [place for place in functions(entry) if not callable(find(place))] == []


@each_entry
def test_its_classes_are_where_it_says_and_of_its_type(entry: DeviceEntry) -> None:
    assert entry.device_class.device_id is entry.device_id
    if entry.suite_driver is not None:
        driver = find_class(entry.suite_driver, DeviceDriver)  # type: ignore[type-abstract]
        assert driver.device_id is entry.device_id
    if entry.judge is not None:
        assert find_class(entry.judge, RequestJudge).device_id is entry.device_id


@each_entry
def test_its_feature_bits_have_the_names_of_the_specification(entry: DeviceEntry) -> None:
    bits = entry.device_class.feature_bits or ()
    assert [bit.name for bit in bits if not bit.name.startswith(entry.feature_prefix)] == []


@each_entry
def test_it_has_a_guest_driver(entry: DeviceEntry) -> None:
    assert entry.guest_driver in guest_names()


@each_entry
def test_it_has_what_a_driver_of_the_suite_is_made_of(entry: DeviceEntry) -> None:
    assert (entry.suite_driver is None) != (entry.example is None)


def test_no_two_have_a_name_an_option_or_a_type_in_common() -> None:
    for values in (
        names(),
        [entry.option.name for entry in entries()],
        [entry.device_id for entry in entries()],
    ):
        assert len(set(values)) == len(values)


def test_a_name_that_is_none_is_the_users_fault() -> None:
    with pytest.raises(ConfigError, match="no device 'floppy': give one of blk, "):
        entry_named("floppy")
    assert entry_of(DeviceId.GPU) is None


def test_no_device_is_registered_in_anothers_place() -> None:
    with pytest.raises(ValueError, match="there is a device rng"), registered(entry_named("rng")):
        pass
    assert entry_named("rng") in entries()


def test_what_another_process_serves_needs_a_vms_side() -> None:
    rng = entry_named("rng")
    options = parse(rng, "")
    options.main = "vhost-user=x.sock"
    with pytest.raises(ConfigError, match="no entropy device that another process serves"):
        build(rng, options)


@pytest.mark.parametrize("name", [entry.name for entry in entries() if entry.vhost_user])
def test_a_backend_that_is_not_there_has_a_command_that_starts_one(name: str) -> None:
    entry = entry_named(name)
    tag = ",tag=files" if entry.name == "fs" else ""
    starts = f"virtiopy serve {entry.name} " if entry.served else "virtiofsd -f --socket-path="
    with pytest.raises(ConfigError, match=f"as in .*{starts}.*missing.sock"):
        build(entry, parse(entry, f"vhost-user=missing.sock{tag}"))
