"""Has the fuzzer go on with a target: the first argument names it, the second says for how long."""

import argparse
import logging
import sys
from pathlib import Path

from tests.fuzz.frontends import close_bench
from tests.fuzz.fuzzer import fuzz
from tests.fuzz.targets import CORPUS, TARGETS, open_target


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--found", type=Path, required=True, help="the folder of what it finds")
    arguments = parser.parse_args()
    # What drivers did wrong is told: here it is for none to read.
    logging.getLogger().addHandler(logging.NullHandler())
    outcome = fuzz(
        open_target(arguments.target),
        [CORPUS / arguments.target, arguments.found],
        arguments.found,
        arguments.seconds,
        arguments.seed,
    )
    close_bench()
    sys.stdout.write(f"{arguments.target}: {outcome}\n")


if __name__ == "__main__":
    main()
