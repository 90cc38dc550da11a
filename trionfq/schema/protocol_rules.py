"""The rules of the protocol, as `trionfq.conformance` judges by them.

The schema says what a message is; the rules say what the kernel makes of it, and of several. Each
has a number that never changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._rule import Rule, Severity
from ._rules_use import ANSWER_RULES, CONFIG_RULES, PACKET_RULES, VERDICT_RULES
from ._rules_wire import ATTRIBUTE_RULES, HEADER_RULES

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUPS: Mapping[str, tuple[Rule, ...]] = {
    "Headers": HEADER_RULES,
    "Attributes": ATTRIBUTE_RULES,
    "Configuration": CONFIG_RULES,
    "Verdicts": VERDICT_RULES,
    "Packets": PACKET_RULES,
    "Answers": ANSWER_RULES,
}
"""The rules by what they are about; the hundreds of their numbers."""

RULES: Mapping[str, Rule] = {rule.id: rule for group in GROUPS.values() for rule in group}
"""Every rule by its id."""


def rule_tables() -> str:
    """The rules as Markdown, as docs/conformance.md has them."""
    parts: list[str] = []
    for title, rules in GROUPS.items():
        parts += [
            f"### {title}\n",
            "| id | severity | breach | what the kernel does | source |",
            "| --- | --- | --- | --- | --- |",
        ]
        for rule in rules:
            cells = (rule.id, rule.severity.value, rule.title, rule.doc, rule.source)
            row = " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells)
            parts.append(f"| {row} |")
        parts.append("")
    return "\n".join(parts)


__all__ = ["GROUPS", "RULES", "Rule", "Severity", "rule_tables"]
