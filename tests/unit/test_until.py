"""What ends a run at the guest's own words."""

import os

import pytest

from virtiopy.cli.until import Until


def ended(until: Until, *pieces: bytes) -> list[int]:
    statuses: list[int] = []
    until.end = statuses.append
    take = until.watching(lambda data: None)
    for piece in pieces:
        take(piece)
    return statuses


@pytest.mark.parametrize(
    "pieces",
    [(b"boot\nall is well\n",), (b"all is", b" well"), tuple(bytes([b]) for b in b"xall is well")],
)
def test_the_words_end_the_run_in_whatever_pieces_they_come(pieces: tuple[bytes, ...]) -> None:
    until = Until("all is well", "not ok")
    assert ended(until, *pieces) == [0]
    assert until.passed(False)
    assert not until.missed()


def test_the_words_of_failure_end_it_with_another_status() -> None:
    until = Until("all is well", "not ok")
    assert ended(until, b"not ", b"ok 3\nall is well\n") == [1]
    assert not until.passed(True)


def test_a_guest_that_does_not_say_it_has_not_passed() -> None:
    until = Until("all is well", None)
    assert ended(until, b"all is", b"  well", b"all-is-well") == []
    assert until.missed()
    assert not until.passed(True)


def test_without_words_the_guests_status_says_it() -> None:
    until = Until(None, None)

    def write(data: bytes) -> None: ...

    assert until.watching(write) is write
    assert until.passed(True)
    assert not until.passed(False)


def test_the_output_is_passed_on() -> None:
    written = bytearray()
    until = Until("well", None)
    take = until.watching(written.extend)
    for piece in (b"we", b"ll", b" done"):
        take(piece)
    assert written == b"well done"


def test_what_is_no_text_is_looked_for_as_a_shell_hands_it_over() -> None:
    until = Until(os.fsdecode(b"\xff"), None)
    until.watching(lambda data: None)(b"\xfe\xff")
    assert until.passed(False)
