"""Request datagrams that the kernel and the kernel model must answer alike.

Written by hand from the kernel's headers, by no code of this library; about a third of them are
malformed in one way each.
"""

from __future__ import annotations

from ._requests_config import CONFIGURATIONS
from ._requests_message import MESSAGES
from ._requests_verdict import VERDICTS
from ._scenario import OPEN, Scenario, datagram, scenario

TOO_LONG = scenario("a datagram that the send buffer does not hold")._replace(
    requests=(datagram(OPEN) + bytes(1 << 20),)
)

SCENARIOS: tuple[Scenario, ...] = (*VERDICTS, *CONFIGURATIONS, *MESSAGES, TOO_LONG)
