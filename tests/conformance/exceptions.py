"""The mutants that are not one finding of the statement that they break, and why not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class Exceptional:
    """All that a mutant is found by, and why that is not its own statement alone."""

    failed: Sequence[str]
    reason: str


#: By the mutant's name, and the statement that it breaks.
EXCEPTIONS: Mapping[tuple[str, str], Exceptional] = {
    ("HasUsedLengthOne", "2.6:2"): Exceptional(
        [], "2.7.8.2:2 allows a used length below what was written: 2.6:2 is but a warning"
    ),
    ("CountsNoResidual", "5.6.6.1.1:1"): Exceptional(
        ["2.6:1", "5.6.6.1.1:1"],
        "it dies of every answer that is shorter than its buffer, before it tells one",
    ),
    ("MixesItsPortsUp", "5.3.6:1"): Exceptional(
        ["5.3.6:1", "5.3.6:2"], "what is written and what is typed go to another port, each way"
    ),
    ("UsesBuffersBeforeThereAreEnough", "5.1.9.4.1:4"): Exceptional(
        ["2.6:1", "5.1.9.4.1:4"],
        "it loses frames for which there are too few buffers, and other requests wait",
    ),
    **dict.fromkeys(
        [("HasNoLimit", "5.2.5.2:12"), ("HasNoLimit", "5.2.6.2:22"), ("HasNoLimit", "5.2.6.2:26")],
        Exceptional(
            ["5.2.5.2:12", "5.2.5.2:13", "5.2.6.2:26"],
            "it has no limit to open zones, nor to active ones, of which several statements are",
        ),
    ),
    **dict.fromkeys(
        [("ReadsWhatWasThere", "5.2.6.2:36"), ("ReadsWhatWasThere", "5.2.6.2:37")],
        Exceptional(
            ["5.2.6.2:32", "5.2.6.2:36", "5.2.6.2:37"],
            "it reads whatever is asked for, and three statements say what is not to be read",
        ),
    ),
    ("OffersZoned", "5.2.5.2:6"): Exceptional(
        ["5.2.5.2:6", "6.2:1"],
        "a legacy device breaks that before all, and cannot be judged any further",
    ),
}
