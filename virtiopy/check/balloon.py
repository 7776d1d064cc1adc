"""Requests of a balloon's driver, held against 5.5."""

from collections.abc import Sequence
from typing import ClassVar

from virtiopy.check.fields import FIELDS, feature_bit
from virtiopy.check.judge import DeviceJudge
from virtiopy.check.requests import JudgedDevice, RequestJudge
from virtiopy.spec import DeviceId
from virtiopy.virtqueue.buffers import gather, total
from virtiopy.virtqueue.queue import Chain, Completion, Virtqueue

_INFLATE, _DEFLATE, _STATS = 0, 1, 2

#: Statistics that have a tag (5.5.6.3), what is looked at of a reported page, and how long a
#: report of large pages is: bytes.
_STATISTICS = 10
_LOOKED_AT = 64
_LARGE = 1 << 16
_PFN = 4
_STAT = 10  # a tag of 16 bits and a value of 64
_OFFSETS = {field.name: field.offset for field in FIELDS[DeviceId.BALLOON]}

#: What 5.5.6.3.1 asks a buffer of statistics to be a multiple of: it misses that `val` has 64 bits.
_STAT_AS_WRITTEN = 6


class BalloonJudge(RequestJudge):
    """Judges requests of a balloon's driver."""

    device_id: ClassVar[DeviceId] = DeviceId.BALLOON

    def __init__(self, judge: DeviceJudge, device: JudgedDevice) -> None:
        super().__init__(judge, device)
        self._forget()

    def _forget(self) -> None:
        #: Pages that the device has taken, by page frame number.
        self._pages: set[int] = set()
        self._supplying: dict[int, list[int]] = {}
        self._changed = False
        self._requests = 0
        self._statistics = 0
        self._in_statsq = 0
        self._tags: list[int] | None = None

    @property
    def _has_statistics(self) -> bool:
        return self.accepted(feature_bit("VIRTIO_BALLOON_F_STATS_VQ"))

    def request(self, queue: Virtqueue, chain: Chain) -> None:
        """Judge one buffer."""
        if queue.index in (_INFLATE, _DEFLATE):
            self._exchange(queue.index, chain)
        elif queue.index == _STATS and self._has_statistics:
            self._supply_statistics(chain)
        elif self.accepted(feature_bit("VIRTIO_BALLOON_F_PAGE_REPORTING")):
            self._report(chain)

    def _exchange(self, index: int, chain: Chain) -> None:
        data = gather(chain.readable)
        pages = [int.from_bytes(data[at : at + _PFN], "little") for at in range(0, len(data), _PFN)]
        wanted = self.config(_OFFSETS["num_pages"], 4) or 0
        if index == _INFLATE:
            self._requests += 1
            self._supplying[chain.token] = pages
            self._judge.kept("5.5.6.1:1" if len(self._pages) < wanted else "5.5.6.1:3")
            return
        early = [page for page in pages if page not in self._pages]
        self._judge.check(
            "5.5.6.1:10",
            not early,
            f"the driver asks for {len(early)} pages back that the device has not taken, "
            f"page frame {early[0] if early else 0:#x} first",
        )
        self._requests += 1
        if len(self._pages) > wanted:
            self._judge.kept("5.5.6.1:2")
        elif self.accepted(feature_bit("VIRTIO_BALLOON_F_DEFLATE_ON_OOM")):
            self._judge.kept("5.5.6.1:5")
        elif not early:
            self._judge.broke(
                "5.5.6.1:4",
                f"the driver takes pages back; the balloon has {len(self._pages)}, and "
                f"num_pages is {wanted}",
            )
        self._changed |= not self._pages.isdisjoint(pages)
        self._pages.difference_update(pages)

    def _supply_statistics(self, chain: Chain) -> None:
        self._in_statsq += 1
        self._statistics += 1
        size = total(chain.readable)
        self._judge.kept("5.5.6.3.1:2" if self._statistics == 1 else "5.5.6.3.1:3")
        self._judge.check(
            "5.5.6.3.1:1",
            self._in_statsq == 1,
            f"the driver makes {self._in_statsq} buffers available in the statsq",
        )
        whole = self._judge.check(
            "5.5.6.3.1:5",
            size % _STAT == 0 or size % _STAT_AS_WRITTEN == 0,
            f"a buffer of {size} bytes in the statsq",
        )
        if whole and size % _STAT == 0:
            data = gather(chain.readable)
            tags = [int.from_bytes(data[at : at + 2], "little") for at in range(0, size, _STAT)]
            self._permitted(tags)
            before, self._tags = self._tags, sorted(tags)
            if before is not None:
                self._judge.check(
                    "5.5.6.3.1:8",
                    before == self._tags,
                    f"the driver supplies the statistics {self._tags}, and {before} before",
                )

    def _permitted(self, tags: list[int]) -> None:
        if tags:
            self._judge.kept("5.5.6.3.1:4")
        if tags != sorted(tags):
            self._judge.kept("5.5.6.3.1:6")
        if len(set(tags)) < _STATISTICS:
            self._judge.kept("5.5.6.3.1:7")

    def _report(self, chain: Chain) -> None:
        """Judge free pages that the driver reports (5.5.6.7)."""
        self._judge.kept("5.5.6.7.1:4")
        if any(len(piece) >= _LARGE for piece in chain.writable):
            self._judge.kept("5.5.6.7.1:5")
        if self.accepted(feature_bit("VIRTIO_BALLOON_F_PAGE_POISON")):
            poison = (self.config(_OFFSETS["poison_val"], 4) or 0).to_bytes(4, "little")
            heads = [bytes(piece[:_LOOKED_AT]) for piece in chain.writable]
            self._judge.check(
                "5.5.6.7.1:2",
                all(head == poison * (len(head) // 4) for head in heads),
                f"a reported page does not hold poison_val {poison[::-1].hex()}",
            )

    def used(self, queue: Virtqueue, completions: Sequence[Completion]) -> None:
        """Follow what the device has taken."""
        for chain, _ in completions:
            if queue.index == _INFLATE:
                self._pages.update(self._supplying.pop(chain.token, ()))
                self._changed = True
            elif queue.index == _STATS and self._has_statistics:
                self._in_statsq -= 1

    def untaken(self, queue: Virtqueue, chains: Sequence[Chain]) -> None:
        """Follow buffers that are available again."""
        if queue.index == _STATS and self._has_statistics:
            self._in_statsq -= len(chains)

    def config_written(self, offset: int) -> None:
        """Follow the driver's writes of the configuration space."""
        if offset == _OFFSETS["actual"]:
            self._changed = False
            self._judge.kept("5.5.6.1:11")
            if self._requests > 1:
                self._judge.kept("5.5.6.1:12")
            self._requests = 0

    def finish(self, *, by_driver: bool) -> None:
        """Judge what the driver has not done."""
        if self._changed and by_driver:
            self._judge.broke(
                "5.5.6.1:11",
                f"the balloon has {len(self._pages)} pages, and the driver has not written actual",
            )
        if self._has_statistics and not self._statistics:
            self._judge.broke("5.5.6.3.1:2", "the driver makes no buffer available in the statsq")
        self._forget()
