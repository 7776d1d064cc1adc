"""Images that name other files, which qemu-storage-daemon would open: found before it is started.

An image that a stranger made could name any file of the host. What is looked at: QEMU's
docs/interop/qcow2.txt and qed_spec.txt, and the VMDK sparse extent and descriptor.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from virtiopy.errors import ConfigError

#: Bytes that are looked at: qcow2's header extensions and a vmdk's descriptor are there.
_HEAD = 1 << 20
#: How far images may name others that name others.
_DEPTH = 16

_QCOW_MAGIC, _QED_MAGIC, _VMDK_MAGIC = b"QFI\xfb", b"QED\0", b"KDMV"
_QCOW2_DATA_FILE = 1 << 2  # incompatible feature
_QCOW2_DATA_FILE_NAME = 0x44415441  # header extension
_QED_BACKING_FILE = 1 << 0
_VMDK_EXTENT = re.compile(rb'^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+\w+\s+"([^"]*)"', re.MULTILINE)
_VMDK_PARENT = re.compile(rb'^\s*parentFileNameHint\s*=\s*"([^"]*)"', re.MULTILINE)
_VMDK_SECTOR = 512


def references(path: Path, format_: str) -> Sequence[str]:
    """Return the files that an image names, as it names them.

    Raises OSError for one that cannot be read.
    """
    with path.open("rb") as image:
        head = image.read(_HEAD)
    match format_:
        # What is of another format names nothing: QEMU refuses it.
        case "qcow2" | "qcow" if head.startswith(_QCOW_MAGIC):
            return list(_of_qcow2(head))
        case "qed" if head.startswith(_QED_MAGIC):
            return list(_of_qed(head))
        case "vmdk":
            return list(_of_vmdk(head))
        case _:
            return []


def check_references(
    path: Path, format_: str, allowed: Sequence[Path], format_of: Callable[[str], str]
) -> None:
    """Refuse an image that names a file which is not one of `allowed`; raises ConfigError.

    So do the images that it names, whose formats `format_of` tells by their names, as far as they
    name others.
    """
    real = {file.resolve() for file in allowed}
    waiting, seen = [(path, format_)], 0
    while waiting:
        image, kind = waiting.pop()
        seen += 1
        try:
            names = references(image, kind)
        except OSError as error:
            raise ConfigError(
                f"The image {image} cannot be read ({error.strerror}): name one that can."
            ) from error
        for name in names:
            file = image.parent / name
            if file.resolve() not in real or seen > _DEPTH:
                raise ConfigError(
                    f"The image {image} names another file, {name!r}, which it would have opened: "
                    f"if that is right, say reaches={file}, or convert the image with "
                    "`qemu-img convert`."
                )
            waiting.append((file, _kind_of(file, format_of(name))))


def _kind_of(path: Path, by_name: str) -> str:
    """Return the format that QEMU may take a named file for: also by its content."""
    try:
        with path.open("rb") as image:
            head = image.read(4)
    except OSError:
        return by_name
    return {_QCOW_MAGIC: "qcow2", _QED_MAGIC: "qed", _VMDK_MAGIC: "vmdk"}.get(head, by_name)


def _number(head: bytes, offset: int, size: int, order: Literal["big", "little"] = "big") -> int:
    return int.from_bytes(head[offset : offset + size], order)


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _of_qcow2(head: bytes) -> Iterator[str]:
    start, size = _number(head, 8, 8), _number(head, 16, 4)
    if start:
        yield _text(head[start : start + size])
    if _number(head, 4, 4) < 3 or not _number(head, 72, 8) & _QCOW2_DATA_FILE:
        return
    at = _number(head, 100, 4)
    while kind := _number(head, at, 4):
        length = _number(head, at + 4, 4)
        if kind == _QCOW2_DATA_FILE_NAME:
            yield _text(head[at + 8 : at + 8 + length])
            return
        at += 8 + (length + 7) // 8 * 8
    # The file is external, and its name not there: it is said to QEMU by an option.
    yield ""


def _of_qed(head: bytes) -> Iterator[str]:
    if _number(head, 16, 8, "little") & _QED_BACKING_FILE:
        start, size = _number(head, 56, 4, "little"), _number(head, 60, 4, "little")
        yield _text(head[start : start + size])


def _of_vmdk(head: bytes) -> Iterator[str]:
    text = head
    if head.startswith(_VMDK_MAGIC):
        start, size = _number(head, 28, 8, "little"), _number(head, 36, 8, "little")
        text = head[start * _VMDK_SECTOR : (start + size) * _VMDK_SECTOR]
        if _number(head, 12, 8, "little"):
            # A sparse extent with its descriptor inside is that extent itself.
            yield from (_text(hint) for hint in _VMDK_PARENT.findall(text))
            return
    for extent in _VMDK_EXTENT.findall(text):
        yield _text(extent)
    yield from (_text(hint) for hint in _VMDK_PARENT.findall(text))
