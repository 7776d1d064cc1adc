"""Network devices that lose frames, repeat them, send them late, or not as they are."""

from collections.abc import Sequence

from tests.conformance.faults import Proxy
from tests.conformance.mutants import mutants
from tests.conformance.mutants.net import OnLink
from virtiopy.conformance.drivers.net import RECEIVED, SENT
from virtiopy.conformance.targets.builders import build_net
from virtiopy.devices.net.header import HEADER_SIZE
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at


class _Sending(Proxy):
    """Sends what `out` makes of each frame."""

    def __init__(self, real: object) -> None:
        super().__init__(real)
        self.frames = 0
        self.kept: list[bytes] = []

    def write(self, pair: int, buffers: Sequence[bytes | memoryview]) -> None:
        self.frames += 1
        data = b"".join(buffers)
        for frame in self.out(data):
            self.real.write(pair, [frame])

    def out(self, data: bytes) -> list[bytes]:
        """Return what goes out for a frame, with its header."""
        raise NotImplementedError


class _LosesSome(_Sending):
    def out(self, data: bytes) -> list[bytes]:
        return [data] if self.frames % 40 else []


class _RepeatsSome(_Sending):
    def out(self, data: bytes) -> list[bytes]:
        return [data] if self.frames % 40 else [data, data]


class _KeepsSomeBack(_Sending):
    def out(self, data: bytes) -> list[bytes]:
        if self.frames % 40 == 0:
            self.kept.append(data)
            return []
        kept, self.kept = self.kept, []
        return [data, *kept]


class _FlipsABit(_Sending):
    def out(self, data: bytes) -> list[bytes]:
        return [data if self.frames % 40 else data[:-1] + bytes([data[-1] ^ 1])]


class _PadsShortFrames(_Sending):
    """Makes each frame as long as Ethernet has them on the wire."""

    def out(self, data: bytes) -> list[bytes]:
        return [data.ljust(HEADER_SIZE + 60, b"\0")]


class _CutsLongFrames(_Sending):
    def out(self, data: bytes) -> list[bytes]:
        return [data[: HEADER_SIZE + 1400]]


class LosesFramesThatAreSent(OnLink):
    fault = _LosesSome


class RepeatsFramesThatAreSent(OnLink):
    fault = _RepeatsSome


class OvertakesFramesThatAreSent(OnLink):
    fault = _KeepsSomeBack


class SpoilsFramesThatAreSent(OnLink):
    fault = _FlipsABit


class PadsFramesThatAreSent(OnLink):
    fault = _PadsShortFrames


class CutsFramesThatAreSent(OnLink):
    fault = _CutsLongFrames


class _Receiving40(Proxy):
    """Does something else with each fortieth frame that it receives."""

    def __init__(self, real: object) -> None:
        super().__init__(real)
        self.frames = 0
        self.kept: bytes | None = None

    def read(self, pair: int, buffers: Buffers) -> int:
        if self.kept is not None:
            frame, self.kept = self.kept, None
            return scatter(buffers, frame)
        length: int = self.real.read(pair, buffers)
        self.frames += 1
        return length if self.frames % 40 else self.fortieth(pair, buffers, length)

    def fortieth(self, pair: int, buffers: Buffers, length: int) -> int:
        """Do it; returns the length of what is in the buffers then."""
        raise NotImplementedError


class _LosesSomeReceived(_Receiving40):
    def fortieth(self, pair: int, buffers: Buffers, length: int) -> int:
        return self.read(pair, buffers)


class _RepeatsSomeReceived(_Receiving40):
    def fortieth(self, pair: int, buffers: Buffers, length: int) -> int:
        self.kept = gather(split_at(buffers, length)[0])
        return length


class _KeepsSomeReceivedBack(_Receiving40):
    def fortieth(self, pair: int, buffers: Buffers, length: int) -> int:
        first = gather(split_at(buffers, length)[0])
        try:
            length = self.read(pair, buffers)
        except BlockingIOError:
            # No other frame is here yet: it is done to the next one instead.
            self.frames -= 1
            return length
        self.kept = first
        return length


class _SpoilsSomeReceived(_Receiving40):
    def fortieth(self, pair: int, buffers: Buffers, length: int) -> int:
        last = split_at(split_at(buffers, length)[0], length - 1)[1]
        scatter(last, bytes([gather(last)[0] ^ 0x80]))
        return length


class LosesFramesThatCome(OnLink):
    fault = _LosesSomeReceived


class RepeatsFramesThatCome(OnLink):
    fault = _RepeatsSomeReceived


class OvertakesFramesThatCome(OnLink):
    fault = _KeepsSomeReceivedBack


class SpoilsFramesThatCome(OnLink):
    fault = _SpoilsSomeReceived


MUTANTS = [
    *mutants(
        build_net,
        [
            (SENT, LosesFramesThatAreSent),
            (SENT, RepeatsFramesThatAreSent),
            (SENT, OvertakesFramesThatAreSent),
            (SENT, SpoilsFramesThatAreSent),
            (SENT, PadsFramesThatAreSent),
            (SENT, CutsFramesThatAreSent),
            (RECEIVED, LosesFramesThatCome),
            (RECEIVED, RepeatsFramesThatCome),
            (RECEIVED, OvertakesFramesThatCome),
            (RECEIVED, SpoilsFramesThatCome),
        ],
    ),
]
