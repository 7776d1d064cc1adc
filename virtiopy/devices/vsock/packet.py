"""Packets: a header, and a payload after it (5.10.6)."""

from dataclasses import dataclass

from virtiopy._native import ffi
from virtiopy.devices.vsock.features import Operation

#: Bytes of a header.
HEADER_SIZE = ffi.sizeof("struct virtio_vsock_hdr")

#: The free-running counters have so many values.
COUNTER = 1 << 32


@dataclass(slots=True, frozen=True)
class Header:
    """struct virtio_vsock_hdr; `length` is the payload's, bytes."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    type: int
    op: int
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0


def parse_header(data: bytes) -> Header:
    """Take a header apart."""
    fields = ffi.from_buffer("struct virtio_vsock_hdr *", data)
    return Header(
        fields.src_cid,
        fields.dst_cid,
        fields.src_port,
        fields.dst_port,
        fields.len,
        fields.type,
        fields.op,
        fields.flags,
        fields.buf_alloc,
        fields.fwd_cnt,
    )


def pack_header(header: Header) -> bytes:
    """Return a header's bytes."""
    fields = ffi.new("struct virtio_vsock_hdr *")
    fields.src_cid, fields.dst_cid = header.src_cid, header.dst_cid
    fields.src_port, fields.dst_port = header.src_port, header.dst_port
    fields.len, fields.type, fields.op = header.length, header.type, header.op
    fields.flags, fields.buf_alloc, fields.fwd_cnt = (
        header.flags,
        header.buf_alloc,
        header.fwd_cnt,
    )
    return bytes(ffi.buffer(fields))


def reset_for(header: Header) -> Header:
    """Return the RST that answers a packet of no connection: it has no buffer to tell of."""
    return Header(
        src_cid=header.dst_cid,
        dst_cid=header.src_cid,
        src_port=header.dst_port,
        dst_port=header.src_port,
        length=0,
        type=header.type,
        op=Operation.RST,
    )
