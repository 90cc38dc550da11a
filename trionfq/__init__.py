"""NFQUEUE for trio: decide network packets, from the Linux kernel or from a capture.

`open_queue` gives packets; each gets one verdict::

    async with trionfq.open_queue(0, copy_range=256) as queue:
        async for packet in queue:
            packet.accept()
"""

from trionfq._batch import Batch, Batches
from trionfq._config import KernelSettings, QueueConfig
from trionfq._conntrack import (
    Conntrack,
    ConntrackTuple,
    Counters,
    DccpInfo,
    SctpInfo,
    SequenceAdjustment,
    Synproxy,
    TcpInfo,
)
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
    WorkerDiedError,
)
from trionfq._ip import IPView
from trionfq._ip_repair import RepairResult, Unfixed, repair
from trionfq._open import QueueManager, open_queue
from trionfq._packet import Packet
from trionfq._packet_attributes import VlanTag
from trionfq._queue import Queue
from trionfq._queues import BoundQueue, QueueOwner, queues
from trionfq._shadow import Shadow, ShadowFailure
from trionfq._statistics import Statistics
from trionfq._supervisor import Workers
from trionfq._verdict import Changes, MarkChanges, Verdict
from trionfq._verdict_conntrack import ConntrackChanges
from trionfq._verdict_expect import Expectation, ExpectationNat
from trionfq._workers import QueueOptions, WorkersManager, open_workers
from trionfq._workers_statistics import WorkersStatistics
from trionfq.backends.netlink import (
    Namespace,
    NetlinkBackend,
    NetlinkOption,
    NetlinkOptions,
    ReceiveBufferWarning,
)
from trionfq.backends.recording import RecordingBackend, Rotation
from trionfq.backends.replay import ReplayBackend
from trionfq.schema.conntrack import (
    ConntrackDirection,
    ConntrackInfo,
    DccpRole,
    DccpState,
    SctpState,
    TcpFlags,
    TcpState,
)
from trionfq.schema.conntrack import Status as ConntrackStatus
from trionfq.schema.nfnetlink import Family
from trionfq.schema.nfqueue import ArpHook, CopyMode, Hook, NetdevHook, QueueFlags, SkbInfo

__all__ = [
    "AlreadyDecidedError",
    "ArpHook",
    "Batch",
    "Batches",
    "BoundQueue",
    "CaptureError",
    "Changes",
    "ConformanceError",
    "Conntrack",
    "ConntrackChanges",
    "ConntrackDirection",
    "ConntrackInfo",
    "ConntrackStatus",
    "ConntrackTuple",
    "CopyMode",
    "Counters",
    "DccpInfo",
    "DccpRole",
    "DccpState",
    "Expectation",
    "ExpectationNat",
    "Family",
    "Hook",
    "IPView",
    "KernelError",
    "KernelSettings",
    "LocalProtocolError",
    "MarkChanges",
    "ModuleMissingError",
    "Namespace",
    "NetdevHook",
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
    "QueueOptions",
    "QueueOwner",
    "ReceiveBufferWarning",
    "RecordingBackend",
    "RemoteProtocolError",
    "RepairResult",
    "ReplayBackend",
    "Rotation",
    "SctpInfo",
    "SctpState",
    "SequenceAdjustment",
    "Shadow",
    "ShadowFailure",
    "SkbInfo",
    "Statistics",
    "Synproxy",
    "TcpFlags",
    "TcpInfo",
    "TcpState",
    "TrionfqError",
    "Unfixed",
    "Verdict",
    "VerdictRefusedError",
    "VlanTag",
    "WorkerDiedError",
    "Workers",
    "WorkersManager",
    "WorkersStatistics",
    "open_queue",
    "open_workers",
    "queues",
    "repair",
]
