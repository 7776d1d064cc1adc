"""What a guest does with a share, and the host looks at afterwards: run by the host's Python there.

    python3 in_guest_files.py MOUNT FILES

Prints a line for each thing that was so, and ends with status 1 where one was not.
"""

import fcntl
import hashlib
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

FILES_A_FOLDER = 100


def content(number: int) -> bytes:
    """Return what file `number` holds, which no other does."""
    return hashlib.sha256(str(number).encode()).digest() * (number % 9)


def path_of(top: Path, number: int) -> Path:
    """Return where file `number` is."""
    return top / "tree" / str(number // FILES_A_FOLDER) / f"file {number}"


def many_files(top: Path, count: int) -> str:
    """Make the files, find them, read them, and remove every second one."""
    begun = time.monotonic()
    for number in range(count):
        path = path_of(top, number)
        if number % FILES_A_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(content(number))
    made = time.monotonic()
    found = sum(len(files) for _, _, files in os.walk(top / "tree"))
    assert found == count, found
    walked = time.monotonic()
    assert all(path_of(top, number).read_bytes() == content(number) for number in range(count))
    read = time.monotonic()
    for number in range(1, count, 2):
        path_of(top, number).unlink()
    assert sum(len(files) for _, _, files in os.walk(top / "tree")) == (count + 1) // 2
    return (
        f"{count} files made in {made - begun:.1f} s, found in {walked - made:.1f} s, "
        f"read in {read - walked:.1f} s, half of them removed in {time.monotonic() - read:.1f} s"
    )


def mapped_memory(top: Path) -> str:
    """Write to a file by a shared mapping, and read what another descriptor wrote before."""
    path = top / "mapped"
    path.write_bytes(bytes(1 << 20))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[4000:4200] = b"m" * 200
        mapping[-1:] = b"e"
        mapping.flush()
    data = path.read_bytes()
    assert data == bytes(4000) + b"m" * 200 + bytes((1 << 20) - 4201) + b"e"
    with path.open("rb") as source, mmap.mmap(source.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert mapping[:] == data
    return "a shared mapping is written and read"


def _refused(lock: Callable[[int, int], None], path: Path) -> bool:
    """Say whether another process is refused a lock."""
    pid = os.fork()
    if pid == 0:
        try:
            with path.open("r+b") as file:
                lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def locks(top: Path) -> str:
    """Lock a file as a whole, by record locks and by flock."""
    path = top / "locked"
    path.write_bytes(b"content")
    for lock in (fcntl.lockf, fcntl.flock):
        with path.open("r+b") as file:
            assert not _refused(lock, path)
            lock(file.fileno(), fcntl.LOCK_EX)
            assert _refused(lock, path)
            lock(file.fileno(), fcntl.LOCK_UN)
            assert not _refused(lock, path)
    return "a lock keeps another process out while it is held"


def main() -> None:
    """Do each in turn."""
    top, count = Path(sys.argv[1]), int(sys.argv[2])
    for line in (mapped_memory(top), locks(top), many_files(top, count)):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
