"""Rules that hand packets to a queue: installed for as long as a block runs, and looked at.

`queueing` installs one, by nft or iptables, and removes it in every exit::

    async with trionfq.open_queue(0) as queue, queueing(0, "OUTPUT", bypass=True):
        async for packet in queue:
            packet.accept()

`diagnose` says why no packets arrive::

    print(await diagnose(0))
"""

from trionfq.rules._ahead import RuleAhead
from trionfq.rules._diagnose import diagnose
from trionfq.rules._diagnosis import Cause, Diagnosis, Finding, Owner
from trionfq.rules._listing import FoundRule
from trionfq.rules._match import Match
from trionfq.rules._programs import ProgramMissingError, RuleError
from trionfq.rules._queueing import QueueingRule, RuleManager, queueing
from trionfq.rules._way import RuleCounter

__all__ = [
    "Cause",
    "Diagnosis",
    "Finding",
    "FoundRule",
    "Match",
    "Owner",
    "ProgramMissingError",
    "QueueingRule",
    "RuleAhead",
    "RuleCounter",
    "RuleError",
    "RuleManager",
    "diagnose",
    "queueing",
]
