"""Virtio over MMIO (4.2), whatever the guest does."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mmio.bench import ALL_STEPS, bench_of, registers, words

offsets = st.one_of(registers, st.integers(0, 0xFFF))
accesses = st.one_of(
    st.tuples(st.just("write"), registers, words.map(lambda word: word.to_bytes(4, "little"))),
    st.tuples(
        st.just("write"),
        offsets,
        st.sampled_from([1, 2, 4, 8]).flatmap(lambda n: st.binary(min_size=n, max_size=n)),
    ),
    st.tuples(st.just("read"), offsets, st.sampled_from([1, 2, 4, 8]).map(bytes)),
    st.tuples(st.just("initialize"), st.just(0), st.just(b"")),
    st.tuples(st.just("corrupt"), st.integers(0, 0x3FF), st.binary(min_size=1, max_size=16)),
)


@given(st.lists(accesses, max_size=40))
def test_whatever_the_driver_does_it_can_reset_the_device_and_go_on(
    script: list[tuple[str, int, bytes]],
) -> None:
    with bench_of() as bench:
        for what, offset, data in script:
            if what == "read":
                assert len(bench.transport.read(offset, len(data))) == len(data)
            elif what == "write":
                bench.transport.write(offset, data)
            elif what == "initialize":
                bench.driver.start()
            else:
                # The rings of the first initialization, if there was one.
                bench.memory.write(0x1000 + offset, data)
            assert bench.line == bool(bench.transport.interrupt.events)
        bench.driver.start()
        assert bench.driver.status == ALL_STEPS
        assert bench.serves(0)
        assert bench.serves(1)
