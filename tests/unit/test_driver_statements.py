"""The table of the statements to drivers has no hole."""

import pytest

from virtiopy.check.catalogue import FOLDER, Area, Watcher, load
from virtiopy.check.variants import VARIANTS
from virtiopy.statements.index import load_index
from virtiopy.statements.terms import Keyword

STATEMENTS = load()


def test_there_is_a_record_of_every_statement_of_the_list() -> None:
    assert list(STATEMENTS) == list(load_index(FOLDER).statements)
    assert len(STATEMENTS) == 357


@pytest.mark.parametrize("area", Area, ids=lambda area: area.value)
def test_each_area_has_its_own_sections(area: Area) -> None:
    heads = {
        Area.BASIC: ("2.1", "2.2", "2.4", "2.5", "2.6", "3.", "6."),
        Area.SPLIT: ("2.7",),
        Area.MMIO: ("4.2",),
        Area.NET: ("5.1",),
        Area.BLK: ("5.2",),
        Area.CONSOLE: ("5.3",),
        Area.RNG: ("5.4",),
        Area.BALLOON: ("5.5",),
        Area.SCSI: ("5.6",),
        Area.VSOCK: ("5.10",),
        Area.FS: ("5.11",),
    }[area]
    sections = {one.section for one in STATEMENTS.values() if one.area is area}
    assert sections
    assert {section for section in sections if not section.startswith(heads)} == set()


@pytest.mark.parametrize("identity", STATEMENTS)
def test_a_statement_is_watched_or_provoked_or_there_is_a_reason(identity: str) -> None:
    one = STATEMENTS[identity]
    assert [bool(one.watcher), bool(one.variant), bool(one.unobservable)].count(True) == 1
    assert one.paraphrase.endswith((".", ")."))


def test_each_unusual_device_that_a_statement_takes_is_there() -> None:
    assert {one.variant for one in STATEMENTS.values() if one.variant} - VARIANTS.keys() == set()


def test_a_device_watches_only_its_own_statements() -> None:
    common = {Watcher.LIFECYCLE, Watcher.REGISTERS, Watcher.RINGS}
    astray = [
        one.id
        for one in STATEMENTS.values()
        if one.watcher is not None
        and one.watcher not in common
        and one.watcher.value != one.area.value
    ]
    assert astray == []


def test_a_permission_is_of_may_statements() -> None:
    astray = [
        one.id
        for one in STATEMENTS.values()
        if one.unobservable is not None
        and one.unobservable.startswith("a permission")
        and one.keyword is not Keyword.MAY
    ]
    assert astray == []


def test_each_watched_statement_is_judged_somewhere() -> None:
    sources = "".join(path.read_text() for path in FOLDER.parent.glob("*.py"))
    watched = [one.id for one in STATEMENTS.values() if one.watcher is not None]
    assert [identity for identity in watched if f'"{identity}"' not in sources] == []
