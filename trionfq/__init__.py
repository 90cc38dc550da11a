"""NFQUEUE for trio: decide network packets, from the Linux kernel or from a capture.

`open_queue` gives packets; each gets one verdict::

    async with trionfq.open_queue(0, copy_range=256) as queue:
        async for packet in queue:
            packet.accept()
"""

from trionfq._batch import Batch, Batches
from trionfq._config import QueueConfig
from trionfq._errors import (
    AlreadyDecidedError,
    CaptureError,
    ConformanceError,
    KernelError,
    LocalProtocolError,
    ModuleMissingError,
    PrivilegeError,
    ProtocolError,
    QueueBusyError,
    RemoteProtocolError,
    TrionfqError,
    VerdictRefusedError,
)
from trionfq._ip import IPView
from trionfq._ip_repair import RepairResult, Unfixed, repair
from trionfq._open import QueueManager, open_queue
from trionfq._packet import Packet
from trionfq._queue import Queue
from trionfq._queues import BoundQueue, QueueOwner, queues
from trionfq._statistics import Statistics
from trionfq._verdict import Changes, MarkChanges, Verdict
from trionfq.backends.netlink import (
    Namespace,
    NetlinkBackend,
    NetlinkOption,
    NetlinkOptions,
    ReceiveBufferWarning,
)
from trionfq.backends.recording import RecordingBackend
from trionfq.backends.replay import ReplayBackend
from trionfq.schema.nfqueue import CopyMode, Hook, QueueFlags, SkbInfo

__all__ = [
    "AlreadyDecidedError",
    "Batch",
    "Batches",
    "BoundQueue",
    "CaptureError",
    "Changes",
    "ConformanceError",
    "CopyMode",
    "Hook",
    "IPView",
    "KernelError",
    "LocalProtocolError",
    "MarkChanges",
    "ModuleMissingError",
    "Namespace",
    "NetlinkBackend",
    "NetlinkOption",
    "NetlinkOptions",
    "Packet",
    "PrivilegeError",
    "ProtocolError",
    "Queue",
    "QueueBusyError",
    "QueueConfig",
    "QueueFlags",
    "QueueManager",
    "QueueOwner",
    "ReceiveBufferWarning",
    "RecordingBackend",
    "RemoteProtocolError",
    "RepairResult",
    "ReplayBackend",
    "SkbInfo",
    "Statistics",
    "TrionfqError",
    "Unfixed",
    "Verdict",
    "VerdictRefusedError",
    "open_queue",
    "queues",
    "repair",
]
