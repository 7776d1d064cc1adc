"""What the kernel counted at a network interface, asked over a socket that stays open.

See rtnetlink(7). A socket is for good in the network namespace that it was opened in: it needs no
right to enter that one again.
"""

import socket

from virtiopy.closing import Closing

#: What is asked for is not large, and one answer at most.
_ANSWER = 1 << 16


class LinkCounts(Closing):
    """Counts of the interface of this index, in the network namespace of this thread."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, 0))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def tx_dropped(self) -> int | None:
        """Return how many frames it was to transmit and dropped; None for one that is gone."""
        # Imported late: it takes a quarter of a second.
        from pyroute2.netlink import NLM_F_REQUEST  # noqa: PLC0415
        from pyroute2.netlink.rtnl import RTM_GETLINK  # noqa: PLC0415
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: PLC0415
        from pyroute2.netlink.rtnl.marshal import MarshalRtnl  # noqa: PLC0415

        question = ifinfmsg()
        question["index"] = self._index
        question["header"]["type"] = RTM_GETLINK
        question["header"]["flags"] = NLM_F_REQUEST
        question.encode()
        self._socket.send(question.data)
        for answer in MarshalRtnl().parse(self._socket.recv(_ANSWER)):
            if isinstance(answer, ifinfmsg):
                return int(answer.get("stats64")["tx_dropped"])
        return None
