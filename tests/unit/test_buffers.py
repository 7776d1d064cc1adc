import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtiopy.virtqueue.buffers import gather, scatter, split_at, total

# A buffer of unequal bytes, cut anywhere: pieces of length 0 are legal (2.7.5, 2.7.13.1).
lengths = st.lists(st.integers(0, 9), max_size=8)


def pieces_of(content: bytearray, sizes: list[int]) -> list[memoryview]:
    view, pieces, position = memoryview(content), [], 0
    for size in sizes:
        pieces.append(view[position : position + size])
        position += size
    return pieces


def content_for(sizes: list[int]) -> bytearray:
    return bytearray(range(sum(sizes)))


@given(sizes=lengths)
def test_total_is_the_bytes_in_all_pieces(sizes: list[int]) -> None:
    assert total(pieces_of(content_for(sizes), sizes)) == sum(sizes)


@given(sizes=lengths)
def test_gather_is_the_content_however_it_is_cut(sizes: list[int]) -> None:
    content = content_for(sizes)
    assert gather(pieces_of(content, sizes)) == bytes(content)


@given(sizes=lengths, count=st.integers(0, 80))
def test_split_at_cuts_after_so_many_bytes(sizes: list[int], count: int) -> None:
    content = content_for(sizes)
    head, tail = split_at(pieces_of(content, sizes), count)
    assert gather(head) == content[:count]
    assert gather(tail) == content[count:]


@given(sizes=lengths, count=st.integers(0, 80))
def test_split_at_copies_nothing(sizes: list[int], count: int) -> None:
    content = content_for(sizes)
    head, tail = split_at(pieces_of(content, sizes), count)
    content[:] = bytes(255 - byte for byte in content)
    assert gather([*head, *tail]) == bytes(content)


@given(sizes=lengths, count=st.integers(0, 80))
def test_split_at_leaves_what_it_was_given_as_it_was(sizes: list[int], count: int) -> None:
    pieces = pieces_of(content_for(sizes), sizes)
    split_at(pieces, count)
    assert [len(piece) for piece in pieces] == sizes


@given(sizes=lengths, data=st.binary(max_size=80))
def test_scatter_fills_from_the_front_and_says_how_far_it_came(
    sizes: list[int], data: bytes
) -> None:
    content = content_for(sizes)
    before = bytes(content)
    room = min(len(data), len(content))
    assert scatter(pieces_of(content, sizes), data) == room
    assert content == data[:room] + before[room:]


@pytest.mark.parametrize("count", [0, 1, 16])
def test_nothing_can_be_taken_apart(count: int) -> None:
    assert split_at([], count) == ([], [])
    assert scatter([], bytes(count)) == 0
    assert gather([]) == b""
    assert total([]) == 0


def test_a_header_may_come_in_pieces_of_one_byte() -> None:
    # 2.7.4.1: no assumption about the arrangement of descriptors.
    request = bytearray(b"headerdata")
    head, tail = split_at(pieces_of(request, [1] * 10), 6)
    assert gather(head) == b"header"
    assert gather(tail) == b"data"
