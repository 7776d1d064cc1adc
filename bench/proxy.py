"""What `virtiopy proxy` costs: 4 KiB reads a second of qemu-storage-daemon, with and without it.

The same client and image for all, by turns. Example: python -m bench.proxy --rounds 5
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.common import VIRTIOPY, require, write_json
from bench.vhost_user import Bench, serve_with_qemu
from tests.guest.vhost_user import STORAGE_DAEMON, Backend

#: What the proxy is to do; None for no proxy.
CONTESTANTS: dict[str, list[str] | None] = {
    "no proxy": None,
    "proxy": [],
    "--check": ["--check", "--device", "blk"],
    "--record": ["--record"],
}


class Behind(Backend):
    """A proxy at `path`, and the backend that it passes on to."""

    def __init__(self, options: Sequence[str], backend: Backend, path: Path) -> None:
        self._backend = backend
        command = [str(VIRTIOPY), "proxy", "--listen", str(path), "--connect", str(backend.path)]
        super().__init__([*command, *options], path)

    def close(self) -> None:
        """End both."""
        super().close()
        self._backend.close()


def serve(options: list[str] | None, image: Path, path: Path) -> Backend:
    """Start the daemon, and a proxy before it."""
    if options is None:
        return serve_with_qemu("threads", image, path)
    if options == ["--record"]:
        options = ["--record", str(path.with_suffix(".rec"))]
    return Behind(options, serve_with_qemu("threads", image, path.with_name("behind.sock")), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="of the image, in MiB")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    require("gcc", "gcc")
    require(STORAGE_DAEMON, "qemu-utils")
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.size)
        for depth in (1, 32):
            results |= bench.compare_reads(
                "",
                {name: partial(serve, options) for name, options in CONTESTANTS.items()},
                depth,
                arguments.rounds,
                "no proxy",
            )
    write_json(arguments.json, results, "IOPS")


if __name__ == "__main__":
    main()
