"""What a rule of the protocol is; `_rules_wire` and `_rules_use` declare them."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Severity(enum.Enum):
    """What a breach of a rule means.

    ERROR: bytes that contradict the protocol, or a request that the kernel refuses, skips or takes
    for something else. WARNING: it works, but not as it was meant, or it loses something. NOTE:
    legal, and worth knowing; a program with nothing but notes passes.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Rule(NamedTuple):
    """One rule, named after its breach.

    Attributes:
      id: ``NFQ`` and three digits; it keeps its meaning for ever and is never given again.
      severity: what a breach means.
      title: the breach in a few words.
      doc: what the kernel does, or sends.
      source: the kernel function or header that says so.
      refused: whether the kernel answers such a request with an error, so that nothing more has to
        be said of the answer.
    """

    id: str
    severity: Severity
    title: str
    doc: str
    source: str
    refused: bool = False
