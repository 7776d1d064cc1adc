"""Backends with a fault, that serve a sound device: what they do wrong is the protocol's.

Each sees a frontend's messages before the sound backend does, and does it all but for one thing.
"""

import dataclasses
from collections.abc import Iterable, Iterator

from tests.conformance.mutants import Mutant
from virtiopy.conformance.targets.builders import Factory, build_blk
from virtiopy.devices.blk import Blk
from virtiopy.errors import PeerError
from virtiopy.spec import feature_mask
from virtiopy.vhost.user.backend import Backend
from virtiopy.vhost.user.connection import close_all
from virtiopy.vhost.user.messages import (
    NO_FLAGS,
    ConfigAccess,
    Message,
    ProtocolFeature,
    Request,
    RingState,
    to_u64,
    u64,
)


class Faulty(Backend):
    """Has no fault of its own."""

    def seen(self, message: Message) -> bool:
        """Do something else for a message, and return True; or let the sound backend do it."""
        return False

    def sound(self, message: Message) -> None:
        """Do what the sound backend does for a message."""
        super()._handle(message)

    def _handle(self, message: Message) -> None:
        if self.seen(message):
            close_all(message.fds)
        else:
            self.sound(message)

    def again(self, message: Message, payload: bytes) -> bool:
        """Have the sound backend do a message with another payload."""
        # Its files go with it, and are not closed twice.
        files, message.fds = message.fds, []
        self.sound(dataclasses.replace(message, payload=payload, fds=files))
        return True


# Messages


class AnswersWithoutTheReplyFlag(Faulty):
    def _reply(self, reply: Message) -> None:
        assert self._connection is not None
        reply.flags = NO_FLAGS
        self._connection.send(reply)
        close_all(reply.fds)


class AnswersAsAnotherRequest(Faulty):
    def _reply(self, reply: Message) -> None:
        if reply.request == Request.GET_PROTOCOL_FEATURES:
            reply.request += 1
        super()._reply(reply)


class LeavesWhenItIsAskedForProtocolFeatures(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.GET_PROTOCOL_FEATURES:
            raise PeerError("it is not supported")
        return False


class OffersLessLater(Faulty):
    asked = 0

    def seen(self, message: Message) -> bool:
        if message.request != Request.GET_FEATURES:
            return False
        self.asked += 1
        offered = self.offered_features
        self._reply(
            Message(message.request, u64(offered if self.asked < 3 else offered & ~(1 << 29)))
        )
        return True


class AcknowledgesUnasked(Faulty):
    def seen(self, message: Message) -> bool:
        self.sound(message)
        if message.request == Request.SET_VRING_NUM and not message.needs_reply:
            self._reply(Message(message.request, u64(0)))
        return True


class AcknowledgesNoOwner(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_OWNER:
            message.flags = NO_FLAGS
        return False


class AcknowledgesAnOwnerWithAnError(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_OWNER and message.needs_reply:
            self._reply(Message(message.request, u64(1)))
            return True
        return False


class AcknowledgesAWriteThatItRefuses(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request != Request.SET_CONFIG or ConfigAccess.decode(message).offset:
            return False
        if message.needs_reply:
            self._reply(Message(message.request, u64(0)))
        return True


class AcknowledgesWhatItAnswers(Faulty):
    def seen(self, message: Message) -> bool:
        self.sound(message)
        if message.request == Request.GET_FEATURES and message.needs_reply:
            self._reply(Message(message.request, u64(0)))
        return True


class OffersNoMq(Faulty):
    def _get_protocol(self, message: Message) -> int:
        return to_u64(super()._get_protocol_features(message)) & ~feature_mask([ProtocolFeature.MQ])

    def seen(self, message: Message) -> bool:
        if message.request != Request.GET_PROTOCOL_FEATURES:
            return False
        self._reply(Message(message.request, u64(self._get_protocol(message))))
        return True


class LeavesAtResetOwner(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.RESET_OWNER:
            raise PeerError("the frontend owns nothing any more")
        return False


# Rings


class StopsNoRing(Faulty):
    """Says where a ring is, and works on; it is stopped when it is set up anew."""

    def seen(self, message: Message) -> bool:
        if message.request == Request.GET_VRING_BASE:
            ring = self._rings.ring(RingState.decode(message).index, message.request)
            base = ring.queue.state.vring_base if ring.queue is not None else ring.base.vring_base
            self._reply(Message(message.request, RingState(ring.index, base).encode()))
            return True
        if message.request == Request.SET_VRING_NUM:
            self._rings.stop(self._rings.ring(RingState.decode(message).index, message.request))
        return False


class WorksDisabledRings(Faulty):
    def seen(self, message: Message) -> bool:
        self.sound(message)
        if message.request == Request.SET_VRING_KICK:
            index = int.from_bytes(message.payload[:1], "little")
            self._rings.enable(self._rings.ring(index, message.request), True)
        return True


class ForgetsThatARingWasEnabled(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_VRING_KICK:
            self._rings.ring(int.from_bytes(message.payload[:1], "little"), 0).enabled = False
        return False


class KeepsTheFirstCall(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_VRING_CALL and self._rings.are_worked and message.fds:
            if message.needs_reply:
                self._reply(Message(message.request, u64(0)))
            return True
        return False


class WantsACall(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_VRING_CALL and not message.fds:
            raise PeerError("a ring without a call eventfd")
        return False


class IsEnabledOnce(Faulty):
    was_disabled = False

    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_VRING_ENABLE:
            state = RingState.decode(message)
            if self.was_disabled and self._rings.are_worked:
                return self.again(message, RingState(state.index, 0).encode())
            self.was_disabled = self._rings.are_worked and not state.number
        return False


class IsOneAhead(Faulty):
    def _reply(self, reply: Message) -> None:
        if reply.request == Request.GET_VRING_BASE:
            state = RingState(*memoryview(reply.payload).cast("I"))
            reply.payload = RingState(state.index, state.number + 1).encode()
        super()._reply(reply)


class WantsToBeginAt0(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_VRING_BASE and RingState.decode(message).number > 64:
            raise PeerError("a ring that begins in its middle")
        return False


class WantsLargeRings(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.SET_VRING_NUM and RingState.decode(message).number < 16:
            raise PeerError("a ring of so few entries")
        return False


class StoppedAndThen(Faulty):
    """Does something a little after its rings were stopped."""

    def seen(self, message: Message) -> bool:
        self.sound(message)
        if message.request == Request.GET_VRING_BASE and not self._rings.are_worked:
            index = RingState.decode(message).index
            self._loop.call_later(0.005, lambda: self.then(index), "the fault")
        return True

    def then(self, index: int) -> None:
        """Do it."""


class WritesWhenItIsStopped(StoppedAndThen):
    def then(self, index: int) -> None:
        if self.connected:
            self.memory.write(0x800, b"late")


class NotifiesWhenItIsStopped(StoppedAndThen):
    def then(self, index: int) -> None:
        self._rings.trigger(index)


class SpeaksWhenItIsStopped(StoppedAndThen):
    def then(self, index: int) -> None:
        self.config_changed(notify=True)


class LeavesWhenItIsAskedAndStopped(Faulty):
    stopped = False

    def seen(self, message: Message) -> bool:
        if message.request == Request.GET_VRING_BASE:
            self.stopped = True
        elif message.request == Request.GET_FEATURES and self.stopped:
            self.stopped = False
            raise PeerError("it is suspended")
        return False


class ResetsNothing(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request == Request.RESET_DEVICE:
            if message.needs_reply:
                self._reply(Message(message.request, u64(0)))
            return True
        if message.request == Request.SET_FEATURES:
            self._rings.reset()
        return False


class SaysTheStatusOfBefore(Faulty):
    last = 0

    def seen(self, message: Message) -> bool:
        if message.request != Request.GET_STATUS:
            return False
        self.last |= self.lifecycle.status
        self._reply(Message(message.request, u64(self.last)))
        return True


class AsksForAnIotlb(Faulty):
    def seen(self, message: Message) -> bool:
        self.sound(message)
        if message.request == Request.SET_VRING_KICK and self._channel is not None:
            self._channel.send(Message(1, bytes(32)))
        return True


# The configuration space


class AnswersWhatThereIs(Faulty):
    """Gives as many bytes as it has, and not as many as it was asked for."""

    def seen(self, message: Message) -> bool:
        if message.request != Request.GET_CONFIG:
            return False
        access = ConfigAccess.decode(message)
        if len(access.data) < 256:
            return False
        config = self.device.config_space()
        self._reply(Message(message.request, ConfigAccess(0, config).encode()))
        return True


class TakesNoHeedOfTheOffset(Faulty):
    def seen(self, message: Message) -> bool:
        if message.request != Request.GET_CONFIG:
            return False
        access = ConfigAccess.decode(message)
        return self.again(message, ConfigAccess(0, access.data).encode())


class TakesAnyWrite(Blk):
    """Has what the driver writes to any field in its configuration space."""

    wrong: tuple[int, bytes] | None = None

    def write_config(self, offset: int, data: bytes) -> bool:
        if super().write_config(offset, data):
            return True
        self.wrong = offset, data
        return True

    def config_space(self) -> bytes:
        config = bytearray(super().config_space())
        if self.wrong is not None:
            offset, data = self.wrong
            config[offset : offset + len(data)] = data
        return bytes(config)


def served(build: Factory, broken: Iterable[tuple[str, type[Backend]]]) -> Iterator[Mutant]:
    """Yield a mutant for each statement and backend that breaks it, of a sound device."""
    for clause, kind in broken:
        yield Mutant(kind.__name__, clause, build, build, served=True, backend=kind)


MUTANTS = [
    *served(
        build_blk,
        [
            ("header:1", AnswersWithoutTheReplyFlag),
            ("header:3", AnswersAsAnotherRequest),
            ("communication:1", LeavesWhenItIsAskedForProtocolFeatures),
            ("GET_FEATURES:1", OffersLessLater),
            ("communication:4", AcknowledgesUnasked),
            ("REPLY_ACK:1", AcknowledgesNoOwner),
            ("REPLY_ACK:2", AcknowledgesAnOwnerWithAnError),
            ("REPLY_ACK:2", AcknowledgesAWriteThatItRefuses),
            ("REPLY_ACK:3", AcknowledgesWhatItAnswers),
            ("multiple-queues:1", OffersNoMq),
            ("RESET_OWNER:1", LeavesAtResetOwner),
            ("ring-states:4", StopsNoRing),
            ("ring-states:10", ForgetsThatARingWasEnabled),
            ("ring-states:11", KeepsTheFirstCall),
            ("SET_VRING_CALL:2", WantsACall),
            ("SET_VRING_ENABLE:1", IsEnabledOnce),
            ("GET_VRING_BASE:1", IsOneAhead),
            ("SET_VRING_BASE:1", WantsToBeginAt0),
            ("SET_VRING_NUM:1", WantsLargeRings),
            ("suspended:1", WritesWhenItIsStopped),
            ("suspended:2", NotifiesWhenItIsStopped),
            ("suspended:3", SpeaksWhenItIsStopped),
            ("suspended:4", LeavesWhenItIsAskedAndStopped),
            ("RESET_DEVICE:1", ResetsNothing),
            ("SET_STATUS:1", SaysTheStatusOfBefore),
            ("BACKEND_IOTLB_MSG:1", AsksForAnIotlb),
            ("ring-states:5", WorksDisabledRings),
            ("GET_CONFIG:1", AnswersWhatThereIs),
            ("GET_CONFIG:2", TakesNoHeedOfTheOffset),
        ],
    ),
    Mutant(
        TakesAnyWrite.__name__,
        "SET_CONFIG:1",
        lambda: build_blk(TakesAnyWrite),
        build_blk,
        served=True,
    ),
]
