"""The client of a machine's control socket: see virtiopy/control/server.py, which serves it.

It imports nothing of the machine, so that `virtiopy ctl` starts fast.
"""

import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from virtiopy.errors import ConfigError, HostError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Answer: TypeAlias = Mapping[str, Json]


def ask(
    path: Path, request: Mapping[str, Json], timeout: float = 10.0, files: Sequence[int] = ()
) -> Answer:
    """Send a request to the machine at `path`, with open files, and return its answer.

    Raises ConfigError where no machine listens and for what the machine calls an error, HostError
    where no answer comes in `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise ConfigError(
                f"No machine listens at {path} ({error.strerror or error}): "
                "start one with `virtiopy run --control`, or mend the path."
            ) from error
        try:
            line = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(connection, [line], files) if files else 0
            connection.sendall(line[sent:])
            with connection.makefile("rb") as stream:
                line = stream.readline()
        except OSError as error:
            raise HostError(
                f"The machine at {path} does not answer ({error.strerror or error}): "
                "see whether it still runs."
            ) from error
    if not line:
        raise HostError(f"The machine at {path} ended before it answered: start it again.")
    try:
        answer: Json = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ConfigError(f"What listens at {path} is no machine: mend the path.")
    if "error" in answer:
        raise ConfigError(str(answer["error"]))
    return answer


def device_facts(status: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    """Return what an answer to `status` says of a device."""
    devices = status["devices"]
    assert isinstance(devices, dict)
    facts = devices[name]
    assert isinstance(facts, dict)
    return facts
