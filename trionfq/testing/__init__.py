"""For tests of programs, policies and backends.

`ScriptedBackend` runs a program against a model of the kernel, `make_packet` and its siblings
build datagrams, and `check_backend` checks a backend of one's own, which may stand on the same
`KernelModel`.
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
from trionfq.testing._checks import check_backend
from trionfq.testing._messages import (
    make_bind,
    make_config,
    make_packet,
    make_verdict,
    udp_packet,
)
from trionfq.testing._scripted import ScriptedBackend
from trionfq.testing._subject import BackendUnderTest

__all__ = [
    "Arrival",
    "BackendUnderTest",
    "Cause",
    "Changes",
    "Decision",
    "Effect",
    "Fate",
    "KernelModel",
    "PacketIn",
    "ScriptedBackend",
    "check_backend",
    "make_bind",
    "make_config",
    "make_packet",
    "make_verdict",
    "udp_packet",
]
