"""What no driver may do with the available ring's index, and with kicks (2.7.6, 2.7.13)."""

from collections.abc import Callable

from virtiopy.conformance.hostile.acts import BUFFER, Act, Stage

#: How many kicks are a flood.
FLOOD = 300


def jump(by: int | None, *, kicks: int = 1) -> Callable[[Stage], None]:
    """Return what moves idx, with no entry written; None is one more than the queue has."""

    def do(stage: Stage) -> None:
        queue = stage.queue
        step = queue.size + 1 if by is None else by
        queue.corrupt_index(step)
        for _ in range(kicks):
            stage.session.kick(stage.index)

    return do


def full_of_one(stage: Stage) -> None:
    """Make one chain available as often as the ring has entries."""
    [head] = stage.descriptors(1)
    stage.queue.corrupt_descriptor(head, stage.buffer(), BUFFER, 2, 0)
    stage.submit(*[head] * stage.queue.free)


def back_and_forth(stage: Stage) -> None:
    """Move idx back, and to where it was."""
    jump(-1)(stage)
    jump(1)(stage)


def flood(stage: Stage) -> None:
    """Kick over and over, with nothing new."""
    for _ in range(FLOOD):
        stage.session.kick(stage.index)


def flood_with_work(stage: Stage) -> None:
    """Kick over and over, with a chain at every tenth."""
    for kick in range(50):
        if kick % 10 == 0:
            stage.queue.make_available(stage.descriptors(1)[0])
        stage.session.kick(stage.index)


def flags_of_available(stage: Stage) -> None:
    """Set every bit of the available ring's flags, and a used_event far away."""
    stage.queue.corrupt_advice(0xFFFF, 0x7777)
    stage.submit(*stage.placed())


def scribbled_used_ring(stage: Stage) -> None:
    """Write the used ring, which is the device's."""
    stage.queue.corrupt_used_ring()
    stage.submit(*stage.placed())


RINGS = (
    Act("idx-beyond-queue-size", "2.7.6", jump(None), ruinous=True),
    Act("idx-by-8000", "2.7.6", jump(0x8000), ruinous=True),
    Act("idx-by-8000-kicked-often", "2.7.6", jump(0x8000, kicks=20), ruinous=True),
    Act("idx-by-1-without-an-entry", "2.7.6", jump(1), ruinous=True),
    Act("idx-by-16-without-entries", "2.7.6", jump(16), ruinous=True),
    Act("idx-back-by-1", "2.7.6", jump(-1), ruinous=True),
    Act("idx-back-by-100", "2.7.6", jump(-100), ruinous=True),
    Act("idx-back-and-forth", "2.7.6", back_and_forth, ruinous=True),
    Act("ring-full-of-one-head", "2.7.13", full_of_one, ruinous=True),
    Act("used-ring-scribbled", "2.7.8", scribbled_used_ring, ruinous=True),
    Act("flags-of-available-ring", "2.7.7", flags_of_available),
    Act("flood-of-kicks", "2.7.13.4", flood),
    Act("flood-of-kicks-with-work", "2.7.13.4", flood_with_work),
)
