"""Write what the documentation has from the declarations: the rules, and the netlink specification.

.venv/bin/python -m tools.conformance_docs
"""

from __future__ import annotations

from pathlib import Path

from trionfq.schema._netlink_spec import netlink_spec
from trionfq.schema.protocol_rules import rule_tables

DOCS = Path(__file__).parents[1] / "docs"
BEGIN = "<!-- rules: made by tools/conformance_docs.py from trionfq.schema.protocol_rules -->\n"
END = "<!-- end of rules -->\n"


def main() -> None:
    """Write both."""
    page = DOCS / "conformance.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{rule_tables()}\n{END}{after}")
    (DOCS / "nfqueue.yaml").write_text(netlink_spec())


if __name__ == "__main__":
    main()
