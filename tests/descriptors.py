"""Whole reads and writes of file descriptors."""

import os


def read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := os.read(fd, count - len(data))):
        data += piece
    return data


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
