"""The mutants that are not one finding of the statement that they break, and why not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Exceptional:
    """What a mutant is found by, and why that is not its own statement alone."""

    failed: Sequence[str]
    reason: str


#: By the mutant's name, and the statement that it breaks.
EXCEPTIONS: Mapping[tuple[str, str], Exceptional] = {
    ("MixesItsPortsUp", "5.3.6:1"): Exceptional(
        ["5.3.6:1", "5.3.6:2"], "what is written and what is typed go to another port, each way"
    ),
    ("UsesBuffersBeforeThereAreEnough", "5.1.9.4.1:4"): Exceptional(
        ["2.6:1"], "it loses frames for which there are too few buffers, and other requests wait"
    ),
    ("OffersZoned", "5.2.5.2:6"): Exceptional(
        ["6.2:1"], "a legacy device breaks that before all, and cannot be judged any further"
    ),
}
