"""The judge: what in a capture of any program breaks the nfqueue protocol.

It reads bytes by itself and shares no code with what trionfq sends and receives by; layouts it has
from the schema, and its rules stand beside them (`trionfq.schema.protocol_rules`).

>>> report = trionfq.conformance.judge("traffic.pcapng")
>>> for finding in report:
...     print(finding)
>>> report.passed
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, cast

from trionfq.conformance._fields import Field, fields
from trionfq.conformance._files import records_of
from trionfq.conformance._findings import Finding, Report, Totals
from trionfq.conformance._judge import Judge, judge_records
from trionfq.schema.protocol_rules import RULES, Rule, Severity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionfq.captures import Record


def judge(source: str | os.PathLike[str] | IO[bytes] | Iterable[Record]) -> Report:
    """Judge a capture of any program's nfqueue traffic.

    Records are taken in the order of the capture, and each finding is given as soon as it is
    certain; memory grows with the packets that wait for a verdict only. What other subsystems say
    is passed over and counted. A capture may begin and end in the middle of traffic: what came
    before is given the benefit of the doubt.

    Args:
      source: a capture file, a binary stream of one (which stays the caller's to close), or
        records.

    Raises:
      CaptureError: at once where the file is no capture, while iterating where it is malformed.
      OSError: the file cannot be opened.
    """
    if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
        return judge_records(records_of(cast("str | os.PathLike[str] | IO[bytes]", source)))
    return judge_records(source)


__all__ = [
    "RULES",
    "Field",
    "Finding",
    "Judge",
    "Report",
    "Rule",
    "Severity",
    "Totals",
    "fields",
    "judge",
]
