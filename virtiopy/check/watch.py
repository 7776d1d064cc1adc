"""Puts the judge's watchers beside a device: over registers, over vhost-user, at its rings."""

from collections.abc import Sequence

from virtiopy.check.balloon import BalloonJudge
from virtiopy.check.blk import BlkJudge
from virtiopy.check.console import ConsoleJudge
from virtiopy.check.judge import DeviceJudge, Verdict
from virtiopy.check.lifecycle import LifecycleJudge
from virtiopy.check.net import NetJudge
from virtiopy.check.registers import RegisterJudge
from virtiopy.check.requests import RequestJudge
from virtiopy.check.rings import RingJudge
from virtiopy.check.rng import RngJudge
from virtiopy.memory import GuestMemory
from virtiopy.transport.lifecycle import Lifecycle
from virtiopy.virtqueue.queue import QueueObserver

_JUDGES: Sequence[type[RequestJudge]] = (NetJudge, BlkJudge, ConsoleJudge, RngJudge, BalloonJudge)
