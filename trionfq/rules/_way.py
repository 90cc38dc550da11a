"""What installing by nft and by iptables have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from trionfq.rules._claim import Claim
    from trionfq.rules._match import Family


class RuleCounter(NamedTuple):
    """What has matched one rule.

    Attributes:
      family: ``"ip"`` or ``"ip6"``.
      chain: such as ``"OUTPUT"``.
      packets: that have matched.
      octets: likewise.
    """

    family: Family
    chain: str
    packets: int
    octets: int


class Way(Protocol):
    """Rules of one owner, by one program. All methods block, inside the namespace."""

    @property
    def program(self) -> str:
        """The program, such as ``"nft"``."""

    @property
    def claim(self) -> Claim:
        """Whose rules they are."""

    def install(self) -> None:
        """Install all rules, or none and raise."""

    def remove(self) -> None:
        """Remove those that are there, and no hook; harmless when repeated."""

    def tidy(self) -> bool:
        """Remove what is left without rules, unless packets wait; whether nothing is left."""

    def counters(self) -> list[RuleCounter]:
        """Of the rules that are there, in order."""

    def lines(self) -> list[str]:
        """The rules as the program takes them."""

    def guard_script(self) -> str:
        """What does `remove` and `tidy` for /bin/sh."""
