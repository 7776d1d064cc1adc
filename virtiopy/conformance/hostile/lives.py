"""Resets of the device, and of a queue, at every step of a request's life (2.4, 2.6.1)."""

from collections.abc import Callable

from virtiopy.conformance.checks import stopped_idle
from virtiopy.conformance.hostile.acts import Act, Stage


def placed(stage: Stage) -> None:
    """Come as far as the descriptor table."""
    stage.placed()


def available(stage: Stage) -> None:
    """Come as far as the available ring, without a kick."""
    stage.queue.make_available(*stage.placed())


def kicked(stage: Stage) -> None:
    """Kick, and do not wait."""
    stage.submit(*stage.placed())


def in_the_middle(stage: Stage) -> None:
    """Have so many requests that some are served, and others not."""
    heads = []
    while stage.queue.free >= 16:
        heads += stage.placed()
    for head in heads:
        stage.submit(head)


def used(stage: Stage) -> None:
    """Come as far as the used ring, where there is no look at it."""
    stage.submit(*stage.placed())
    stage.settle()


STEPS = (placed, available, kicked, in_the_middle, used)


def then_reset(step: Callable[[Stage], None]) -> Callable[[Stage], None]:
    """Return what resets the device at a step, and kicks what is no more."""

    def do(stage: Stage) -> None:
        step(stage)
        stage.session.reset()

    return do


def then_reset_queue(step: Callable[[Stage], None]) -> Callable[[Stage], None]:
    """Return what resets the queue at a step, and sets it up again."""

    def do(stage: Stage) -> None:
        step(stage)
        queue = stage.queue
        size = queue.size
        stopped_idle(queue, stage.session.reset_queue(stage.index))
        stage.session.set_up_queue(stage.index, size)

    return do


def over_and_over(stage: Stage) -> None:
    """Reset the queue again and again with requests in it."""
    for _ in range(5):
        then_reset_queue(kicked)(stage)


def _name(step: Callable[[Stage], None]) -> str:
    return step.__name__.replace("_", "-")


DEVICE_RESETS = tuple(Act(f"reset-when-{_name(step)}", "2.4", then_reset(step)) for step in STEPS)

QUEUE_RESETS = (
    *(Act(f"queue-reset-when-{_name(step)}", "2.6.1", then_reset_queue(step)) for step in STEPS),
    Act("queue-reset-over-and-over", "2.6.1", over_and_over),
)
