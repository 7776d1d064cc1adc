"""Run one command in the lab: python -m tests.lab COMMAND [ARGUMENT]..."""

import sys

from tests.lab.kernel import LabMissingError
from tests.lab.machine import Lab, new_share

HOURS = 3600.0


def main() -> int:
    """Run it, print its output, return its status."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    share = new_share()
    try:
        with Lab(sys.argv[1:], share, {}) as lab:
            lab.wait(HOURS)
            status = lab.status
    except LabMissingError as error:
        print(f"The lab is not to be had: {error}.", file=sys.stderr)
        return 2
    output = share / "output.txt"
    sys.stdout.write(output.read_text(errors="replace") if output.exists() else lab.console)
    print(f"Console: {share / 'console.log'}", file=sys.stderr)
    return 2 if status is None else status


if __name__ == "__main__":
    sys.exit(main())
