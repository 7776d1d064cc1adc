"""Disk images on the host: raw files and block devices, addressed in bytes.

What a write means for persistence is the caller's to say; see `DiskImage.write` and `flush`.
"""

import contextlib
import enum
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

from virtiopy._native import ffi, lib
from virtiopy.closing import Closing
from virtiopy.errors import ConfigError
from virtiopy.host.limits import IOV_MAX
from virtiopy.virtqueue.buffers import Buffers, gather, scatter, split_at, total

SECTOR_SIZE = 512


class CacheMode(enum.StrEnum):
    """What stands between a completed write and the disk, in QEMU's words."""

    WRITEBACK = "writeback"  # the host's page cache, until a flush
    WRITETHROUGH = "writethrough"  # nothing: each write is on the disk when it completes
    NONE = "none"  # no page cache (O_DIRECT), but the disk's own cache, until a flush


class Permission(enum.IntEnum):
    """What QEMU (7.2, block/file-posix.c) locks in an image, by bit number.

    Byte 100 + n is locked by who does a thing, byte 200 + n by who allows no other to. With
    the same bytes an image cannot be written by QEMU and by virtiopy at a time.
    """

    CONSISTENT_READ = 0
    WRITE = 1
    RESIZE = 3


_LOCK_DONE = 100
_LOCK_NOT_SHARED = 200


class DiskImage(Closing):
    """An open raw image. Raises ConfigError, with a remedy, for one that cannot be used.

    `readonly` opens it for reading alone; `cache` says what a completed write stands for. Content
    that is an image of another format is refused, unless `any_content` says that it is meant.
    The image is claimed until it is closed, or for its user to `claim` and `release`.

    `files` are those of `open_elsewhere`, of which it makes copies, where this process may open
    none; it is claimed from the start then, and once.
    """

    def __init__(
        self,
        path: Path,
        *,
        readonly: bool = False,
        cache: CacheMode = CacheMode.WRITEBACK,
        any_content: bool = False,
        claimed: bool = True,
        files: tuple[int, int] | None = None,
    ) -> None:
        self.path = path
        self.readonly = readonly
        self.cache = cache
        #: Has the locks, while the image is claimed.
        self._claim: int | None = None
        if files is None:
            self._fd = _open(path, readonly, cache)
        else:
            _check_passed(path, files, readonly, cache)
            self._fd = os.dup(files[0])
        try:
            if files is not None:
                self._claim = os.dup(files[1])
            self._is_device = stat.S_ISBLK(os.fstat(self._fd).st_mode)
            if not self._is_device:
                _check_backing_devices(path, self._fd, readonly)
            if not any_content:
                _check_content(path, self._fd if self._claim is None else self._claim)
            if self._claim is not None:
                self._lock(self._claim)
            elif claimed:
                self.claim()
            #: Bytes.
            self.size = self._find_size()
            #: What offsets and lengths of direct I/O have to be multiples of, bytes.
            self.alignment = self._find_alignment()
            #: What the disk prefers to be written in, bytes.
            self.physical_block_size = self._find_physical_block_size()
            #: Whether the file is in memory, so that reading it never waits.
            self.in_memory = lib.vp_is_in_memory(self._fd) == 1
            self.can_punch_holes = not readonly and self._find_hole_punching()
        except OSError as error:
            self.close()
            raise ConfigError(
                f"The image {path} cannot be read as one ({error.strerror}): name a raw disk "
                "image or a block device."
            ) from error
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the open file; it is closed with the image."""
        return self._fd

    def close(self) -> None:
        """Close the image, and so give up its locks."""
        self.release()
        os.close(self._fd)

    # Who may use it

    def claim(self) -> None:
        """Lock out a second writer, virtiopy's or QEMU's; any number may read.

        Raises ConfigError, with the remedy, where another has it.
        """
        if self._claim is not None:
            return
        self._claim = self._open_once_more()
        try:
            self._lock(self._claim)
        except ConfigError:
            self.release()
            raise

    def open_elsewhere(self) -> tuple[int, int]:
        """Return open files by which another process can make the same DiskImage and claim it.

        They are closed by the caller. Raises ConfigError.
        """
        return os.dup(self._fd), self._open_once_more()

    def _open_once_more(self) -> int:
        """Return another open file of the same: what is locked by it goes when it is closed."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        if self._is_device and not self.readonly:
            # A mounted device, or one that another program has for itself, is refused (open(2)).
            flags |= os.O_EXCL
        try:
            return os.open(f"/proc/self/fd/{self._fd}", flags)
        except OSError as error:
            raise ConfigError(_why_not(self.path, self.readonly, self.cache, error)) from error

    def release(self) -> None:
        """Let others have the image, if it is claimed."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def _lock(self, fd: int) -> None:
        does = {Permission.CONSISTENT_READ}
        if not self.readonly:
            does |= {Permission.WRITE, Permission.RESIZE}
        for permission in does:
            self._lock_byte(fd, _LOCK_DONE + permission)
        allows = {Permission.CONSISTENT_READ}
        for permission in set(Permission) - allows:
            self._lock_byte(fd, _LOCK_NOT_SHARED + permission)
        taken = [_LOCK_NOT_SHARED + permission for permission in does]
        taken += [_LOCK_DONE + permission for permission in set(Permission) - allows]
        if any(lib.vp_ofd_is_locked(fd, byte) == 1 for byte in taken):
            remedy = (
                "stop what writes to it"
                if self.readonly
                else "stop what uses it, or attach it with readonly=on everywhere"
            )
            raise ConfigError(f"The image {self.path} is in use by another program: {remedy}.")

    def _lock_byte(self, fd: int, offset: int) -> None:
        result = lib.vp_ofd_lock(fd, offset)
        if result < 0:
            raise ConfigError(
                f"The image {self.path} cannot be locked ({os.strerror(-result)}): "
                "put it on a file system that has locks."
            )

    # What kind of image it is

    def _find_size(self) -> int:
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size == 0:
            raise ConfigError(
                f"The image {self.path} is empty: make it as large as the disk is to be, "
                f"as in `truncate -s 64M {self.path}`."
            )
        if size % SECTOR_SIZE:
            raise ConfigError(
                f"The image {self.path} has {size} bytes, which is no multiple of {SECTOR_SIZE}: "
                f"round it up with `truncate -s %{SECTOR_SIZE} {self.path}`."
            )
        return size

    def measure(self) -> None:
        """Take the size that the image has now; raises ConfigError for one that it cannot have."""
        self.size = self._find_size()

    def _ioctl_int(self, request: int) -> int:
        buffer = bytearray(4)
        fcntl.ioctl(self._fd, request, buffer)
        return int.from_bytes(buffer, "little")

    def _find_alignment(self) -> int:
        if self.cache is not CacheMode.NONE:
            return 1
        if self._is_device:
            return self._ioctl_int(lib.BLKSSZGET)
        # No kernel before Linux 6.1 tells (STATX_DIOALIGN): ask by reading.
        page = _page_aligned(mmap.PAGESIZE)
        for alignment in (SECTOR_SIZE, mmap.PAGESIZE):
            if self.size % alignment:
                continue
            try:
                os.preadv(self._fd, [page[:alignment]], 0)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return alignment
        raise ConfigError(
            f"The image {self.path} cannot be read without the page cache: "
            "make its size a multiple of 4096 bytes, or leave out cache=none."
        )

    def _find_physical_block_size(self) -> int:
        if self._is_device:
            return self._ioctl_int(lib.BLKPBSZGET)
        return max(SECTOR_SIZE, os.fstat(self._fd).st_blksize)

    def _find_hole_punching(self) -> bool:
        # Beyond the end there is nothing to lose.
        beyond = -(-self.size // mmap.PAGESIZE) * mmap.PAGESIZE
        return self._is_device or self._fallocate(_PUNCH_HOLE, beyond, mmap.PAGESIZE)

    # Input and output: all offsets and lengths are multiples of 512, within the image

    def read(self, offset: int, buffers: Buffers) -> None:
        """Fill `buffers` from `offset`; raises OSError, also where the file has become short."""
        if self._is_aligned(offset, buffers):
            _transfer(os.preadv, self._fd, buffers, offset)
            return
        length = total(buffers)
        if length == 0:
            return
        start, end = self._aligned_range(offset, length)
        bounce = _page_aligned(end - start)
        _transfer(os.preadv, self._fd, [bounce], start)
        scatter(buffers, bounce[offset - start : offset - start + length].tobytes())

    def read_cached(self, offset: int, buffers: Buffers) -> bool:
        """Fill `buffers` from the page cache; False where that takes more, as without one.

        They may have been filled in part then.
        """
        if self.cache is CacheMode.NONE or len(buffers) > IOV_MAX:
            return False
        try:
            return os.preadv(self._fd, buffers, offset, os.RWF_NOWAIT) == total(buffers)
        except OSError:
            # Not in the page cache; or for `read` to say, as on a file system that cannot do this.
            return False

    def write(self, offset: int, buffers: Buffers, *, stable: bool = False) -> None:
        """Write `buffers` at `offset`; `stable` returns only once they are on the disk.

        Raises OSError.
        """
        flags = os.RWF_DSYNC if stable else 0

        def pwritev(fd: int, pieces: Buffers, position: int) -> int:
            return os.pwritev(fd, pieces, position, flags)

        if self._is_aligned(offset, buffers):
            _transfer(pwritev, self._fd, buffers, offset)
            return
        length = total(buffers)
        if length == 0:
            return
        start, end = self._aligned_range(offset, length)
        bounce = _page_aligned(end - start)
        if (start, end) != (offset, offset + length):
            _transfer(os.preadv, self._fd, [bounce], start)
        bounce[offset - start : offset - start + length] = gather(buffers)
        _transfer(pwritev, self._fd, [bounce], start)

    def _is_aligned(self, offset: int, buffers: Buffers) -> bool:
        """Say whether direct I/O takes these as they are; any will do through the page cache."""
        mask = self.alignment - 1
        if mask == 0:
            return True
        if offset & mask:
            return False
        return not any(
            (len(piece) | int(ffi.cast("uintptr_t", ffi.from_buffer("char[]", piece)))) & mask
            for piece in buffers
        )

    def _aligned_range(self, offset: int, length: int) -> tuple[int, int]:
        start = offset // self.alignment * self.alignment
        end = -(-(offset + length) // self.alignment) * self.alignment
        return start, end

    def flush(self) -> None:
        """Return once all completed writes are on the disk; raises OSError."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """Give a range back to the host where it takes it; what it reads as is undefined."""
        if self.can_punch_holes and length > 0:
            self._deallocate(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeroes; with `unmap` give it back where the host can.

        Raises OSError.
        """
        if length == 0:
            return  # Neither fallocate nor BLKZEROOUT takes it.
        if not self._is_device:
            if unmap and self._fallocate(_PUNCH_HOLE, offset, length):
                return
            if self._fallocate(_ZERO_RANGE, offset, length):
                return
        self._zero_slowly(offset, length)

    def _deallocate(self, offset: int, length: int) -> None:
        if self._is_device:
            argument = ffi.new("uint64_t[2]", [offset, length])
            address = int(ffi.cast("uintptr_t", argument))
            result = lib.vp_ioctl(self._fd, lib.BLKDISCARD, address)
            if result < 0 and result != -errno.EOPNOTSUPP:
                raise OSError(-result, os.strerror(-result))
        else:
            self._fallocate(_PUNCH_HOLE, offset, length)

    def _zero_slowly(self, offset: int, length: int) -> None:
        if self._is_device:
            argument = ffi.new("uint64_t[2]", [offset, length])
            address = int(ffi.cast("uintptr_t", argument))
            if lib.vp_ioctl(self._fd, lib.BLKZEROOUT, address) == 0:
                return
        zeroes = memoryview(bytes(min(length, 1 << 20)))
        for start in range(offset, offset + length, len(zeroes)):
            piece, _ = split_at([zeroes], offset + length - start)
            self.write(start, piece)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """Do it; False where the file system cannot. Raises OSError for what else goes wrong."""
        result = lib.vp_fallocate(self._fd, mode, offset, length)
        if result == -errno.EOPNOTSUPP:
            return False
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return True


_PUNCH_HOLE = lib.FALLOC_FL_PUNCH_HOLE | lib.FALLOC_FL_KEEP_SIZE
_ZERO_RANGE = lib.FALLOC_FL_ZERO_RANGE | lib.FALLOC_FL_KEEP_SIZE


def _page_aligned(size: int) -> memoryview:
    """Return a buffer for direct I/O.

    It goes with the last view of it: an error's traceback may hold one longer than the caller.
    """
    return memoryview(mmap.mmap(-1, size))


def _open(path: Path, readonly: bool, cache: CacheMode) -> int:
    flags = os.O_CLOEXEC | (os.O_RDONLY if readonly else os.O_RDWR)
    # A FIFO or a tape would block in open; a disk does not know the flag.
    flags |= os.O_NONBLOCK
    if cache is CacheMode.NONE:
        flags |= os.O_DIRECT
    try:
        fd = _open_without_atime(path, flags)
    except OSError as error:
        raise ConfigError(_why_not(path, readonly, cache, error)) from error
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        os.close(fd)
        kind = "a folder" if stat.S_ISDIR(mode) else "neither a file nor a block device"
        raise ConfigError(f"The image {path} is {kind}: name a raw disk image or a block device.")
    return fd


def _open_without_atime(path: Path, flags: int) -> int:
    """Open an image so that no read has to look whether to note its time: a twentieth of each."""
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        # Only a file's owner may ask for that.
        return os.open(path, flags)


def _why_not(path: Path, readonly: bool, cache: CacheMode, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"The image {path} does not exist: make it with `truncate -s 64M {path}`."
        case errno.EISDIR:
            return f"The image {path} is a folder: name a raw disk image or a block device."
        case errno.EACCES | errno.EPERM if readonly:
            return f"The image {path} may not be read ({error.strerror}): change its mode."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return (
                f"The image {path} may not be opened for writing ({error.strerror}): "
                "attach it with readonly=on, or change its mode."
            )
        case errno.EBUSY:
            return (
                f"The block device {path} is in use, by a mounted file system or another program: "
                "unmount it or stop the program, or attach it with readonly=on."
            )
        case errno.EINVAL if cache is CacheMode.NONE:
            return (
                f"The file system of {path} has no direct I/O: "
                "use cache=writeback or cache=writethrough."
            )
        case _:
            return f"The image {path} cannot be opened ({error.strerror}): name one that can."


#: What images of other formats have near their start: offset, bytes, and the format's name.
_MAGIC = (
    (0, b"QFI\xfb\0\0\0\1", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)

#: What images have in their last 512 bytes, whose start is the disk's: those of a fixed size.
_MAGIC_AT_END = ((b"conectix", "vpc"), (b"koly", "dmg"))


def _check_passed(path: Path, files: tuple[int, int], readonly: bool, cache: CacheMode) -> None:
    """Refuse open files that are not of one image, or not as it is to be used: ConfigError."""
    image, claim = map(os.fstat, files)
    flags = fcntl.fcntl(files[0], fcntl.F_GETFL)
    if (
        not (stat.S_ISREG(image.st_mode) or stat.S_ISBLK(image.st_mode))
        or (image.st_dev, image.st_ino) != (claim.st_dev, claim.st_ino)
        or flags & os.O_ACCMODE != (os.O_RDONLY if readonly else os.O_RDWR)
        or bool(flags & os.O_DIRECT) != (cache is CacheMode.NONE)
        or fcntl.fcntl(files[1], fcntl.F_GETFL) & (os.O_DIRECT | os.O_PATH)
    ):
        raise ConfigError(
            f"What was passed is not {path}, opened as its options say: pass it with "
            "`virtiopy ctl`, which opens it."
        )


def _check_content(path: Path, fd: int) -> None:
    """Refuse content that is an image of another format, which a guest would overwrite raw.

    What it is says the user, never the content: a guest may write what it likes to a raw disk.
    Raises ConfigError.
    """
    with contextlib.ExitStack() as stack:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            # Which takes whole sectors, in memory that begins at one.
            fd = stack.enter_context(path.open("rb")).fileno()
        head = os.pread(fd, 128, 0)
        tail = os.pread(fd, 8, max(0, os.lseek(fd, 0, os.SEEK_END) - SECTOR_SIZE))
    names = [("begins", name) for offset, magic, name in _MAGIC if head[offset:].startswith(magic)]
    names += [("ends", name) for magic, name in _MAGIC_AT_END if tail.startswith(magic)]
    for verb, name in names:
        raise ConfigError(
            f"The image {path} {verb} as a {name} image does: say format={name}, or "
            "format=raw to have its bytes as they are for a disk."
        )


def _check_backing_devices(path: Path, fd: int, readonly: bool) -> None:
    """Refuse to write an image that a loop device has: what is mounted there would be destroyed.

    Raises ConfigError.
    """
    if readonly:
        return
    status = os.fstat(fd)
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            other = os.stat(backing.read_text().rstrip("\n"))
        except OSError:
            continue
        if (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino):
            device = backing.parent.parent.name
            raise ConfigError(
                f"The image {path} is in use by the loop device /dev/{device}: detach it with "
                f"`losetup -d /dev/{device}`, or attach the image with readonly=on."
            )


def _transfer(
    call: Callable[[int, Buffers, int], int], fd: int, buffers: Buffers, offset: int
) -> None:
    """Call preadv or pwritev until all of `buffers` is done; raises OSError."""
    pieces = [piece for piece in buffers if len(piece)]
    while pieces:
        count = call(fd, pieces[:IOV_MAX], offset)
        if count == 0:
            raise OSError(errno.EIO, "the image ends before the disk does")
        offset += count
        _, pieces = split_at(pieces, count)
