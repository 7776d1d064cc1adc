"""Where the command begins and ends: what is to be so before and after all that it imports."""

import atexit
import gc
import os
import sys
import threading

from virtiopy.cli.deferred import defer, import_click

#: How many objects are made before the youngest are looked through for garbage. By Python's own
#: number it does so a hundred times while a subcommand's modules are imported, which stay.
GC_THRESHOLD = 50_000


def main() -> None:
    """Run the command line."""
    gc.set_threshold(GC_THRESHOLD)
    for module in ("ipaddress", "signal"):
        defer(module)
    import_click()
    from virtiopy.cli.main import main

    try:
        main()
    except SystemExit as end:
        _leave(end.code)
        raise


def _leave(status: object) -> None:
    """End the process, unless the interpreter has to: where a thread is to be waited for, say.

    What the interpreter does beyond this is to take every module apart, which takes longer than
    the smallest guest.
    """
    others = (each for each in threading.enumerate() if each is not threading.main_thread())
    if not isinstance(status, int) or any(not each.daemon for each in others):
        return
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # None where a shell closed it, as `2>&-` does.
        if stream is not None:
            stream.flush()
    os._exit(status)
