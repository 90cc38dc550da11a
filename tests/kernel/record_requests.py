"""Writes down what this machine's kernel answers to every request of the table.

``python -m tests.kernel.record_requests`` (with privilege). tests/test_kernel_model.py then holds
the model to it on machines without privilege or with another kernel.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from trionfq.schema import AnyMessage, ErrorMessage, Message

from ._bench import Outcome, Traits, play
from ._bench_real import InNamespace, RealNamespace, real_bench
from .requests import SCENARIOS

RECORD = Path(__file__).with_name("requests-6.18.json")


def summary(outcome: Outcome) -> dict[str, Any]:
    """What does not depend on port ids: errno of each answer, last rows, packets that arrived.

    The number of a PACKET's attributes stands for it; errors of send stand first, negative too.
    """
    answers = [
        [-step.send_errno] * bool(step.send_errno)
        + [
            record.error if isinstance(record, ErrorMessage) else _attributes(record)
            for record in step.records
        ]
        for step in outcome.steps
    ]
    return {
        "answers": answers,
        "rows": [[row.queue, *row[2:]] for row in outcome.steps[-1].rows],
        "delivered": [[d.text.decode(), d.mark] for d in outcome.delivered],
    }


def _attributes(record: AnyMessage) -> int:
    assert isinstance(record, Message)
    return len(record.attributes)


def recorded() -> tuple[Traits, dict[str, Any]]:
    """The kernel that was asked, and its answers by the scenario's name."""
    told = json.loads(RECORD.read_text())
    return Traits(**told["traits"]), told["scenarios"]


def main() -> None:
    """Ask this machine's kernel."""

    def ask() -> dict[str, Any]:
        namespace = RealNamespace()
        scenarios = {}
        for scenario in SCENARIOS:
            with real_bench(namespace, scenario.options) as bench:
                scenarios[scenario.name] = summary(play(bench, scenario))
        traits = namespace.traits()._asdict()
        namespace.close()
        return {"kernel": platform.release(), "traits": traits, "scenarios": scenarios}

    told = InNamespace().run(ask)
    head = {"kernel": told["kernel"], "traits": told["traits"]}
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in told["scenarios"].items()]
    RECORD.write_text(
        json.dumps(head, indent=1).removesuffix("\n}")
        + ',\n "scenarios": {\n'
        + ",\n".join(lines)
        + "\n }\n}\n"
    )


if __name__ == "__main__":
    main()
