"""For tests of programs, policies and backends.

`ScriptedBackend` runs a program against a model of the kernel, `make_packet` and its siblings
build datagrams, and `check_backend` checks a backend of one's own, which may stand on the same
`KernelModel`. `FaultyBackend` makes any backend fail in chosen places, `assert_same_verdicts`
compares two runs, and `assert_verdicts` says what became of one. `Replays` and `LivePair` are what
the fixtures of the pytest plugin give.
"""

from trionfq._kernel_model import (
    Arrival,
    Cause,
    Changes,
    Decision,
    Effect,
    Fate,
    KernelModel,
    PacketIn,
)
from trionfq.testing._assertions import assert_same_verdicts
from trionfq.testing._checks import check_backend
from trionfq.testing._faults import (
    CapLen,
    Die,
    Duplicate,
    Fault,
    Flush,
    Overrun,
    Refuse,
    Reorder,
    SendError,
    Stall,
    Truncate,
)
from trionfq.testing._faulty import FaultyBackend, Injected
from trionfq.testing._live import LiveHost, LivePair, why_not_live
from trionfq.testing._messages import (
    make_bind,
    make_config,
    make_packet,
    make_verdict,
    udp_packet,
)
from trionfq.testing._replays import Replays
from trionfq.testing._scripted import ScriptedBackend
from trionfq.testing._subject import BackendUnderTest
from trionfq.testing._verdicts import assert_verdicts

__all__ = [
    "Arrival",
    "BackendUnderTest",
    "CapLen",
    "Cause",
    "Changes",
    "Decision",
    "Die",
    "Duplicate",
    "Effect",
    "Fate",
    "Fault",
    "FaultyBackend",
    "Flush",
    "Injected",
    "KernelModel",
    "LiveHost",
    "LivePair",
    "Overrun",
    "PacketIn",
    "Refuse",
    "Reorder",
    "Replays",
    "ScriptedBackend",
    "SendError",
    "Stall",
    "Truncate",
    "assert_same_verdicts",
    "assert_verdicts",
    "check_backend",
    "make_bind",
    "make_config",
    "make_packet",
    "make_verdict",
    "udp_packet",
    "why_not_live",
]
