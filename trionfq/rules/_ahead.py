"""What can take a packet away before it comes to a rule: along the way that the kernel goes.

That is an earlier rule of the rule's chain, or of a chain from which jumps lead to it; a rule of a
chain that one of those jumps to (there, the ACCEPT of many a firewall stands); or a rule that drops
in a chain which is asked earlier at the same place, or on the way there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator

End: TypeAlias = Literal["", "accept", "drop", "leave"]
"""What a rule does with a packet that matches: nothing final, the end of this table's rules, the
packet's end, or the end of its chain."""

_ANYWHERE: frozenset[End] = frozenset({"accept", "drop"})
_DROPS: frozenset[End] = frozenset({"drop"})


class RuleAhead(NamedTuple):
    """A rule that can take packets away before another one sees them.

    Attributes:
      text: as its program prints it, or its verdict.
      packets: that have matched it; None without a counter.
      where: the chain that it stands in, with its table; empty for the other rule's own chain.
    """

    text: str
    packets: int | None
    where: str = ""


class Step(NamedTuple):
    """One rule, as far as it matters to those behind it.

    Attributes:
      chain: the chain that it stands in, in whatever form tells all chains apart.
      told: what is said of it.
      end: what becomes of what matches.
      everything: whether every packet matches.
      calls: chains that it jumps to.
    """

    chain: Hashable
    told: RuleAhead
    end: End
    everything: bool
    calls: tuple[Hashable, ...] = ()


class Steps:
    """The rules of one program, those of a chain in their order."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._chains: dict[Hashable, list[Step]] = {}
        self._callers: dict[Hashable, list[tuple[Hashable, int]]] = {}
        for step in steps:
            chain = self._chains.setdefault(step.chain, [])
            for called in step.calls:
                self._callers.setdefault(called, []).append((step.chain, len(chain)))
            chain.append(step)

    def ahead_of(
        self,
        chain: Hashable,
        place: int,
        earlier: Iterable[Hashable] = (),
        *,
        uncounted: bool = False,
    ) -> RuleAhead | None:
        """What takes packets from a rule: what takes all of them, or else what has taken most.

        Args:
          chain: the rule's.
          place: how many rules stand in front of it in its chain.
          earlier: chains that a packet passes before, where only a drop keeps it away.
          uncounted: give what may take some, too, where nothing counts them.
        """
        found = list(self._in_front(chain, place, {chain}))
        for other in earlier:
            found += self._inside(other, _DROPS, set(), everything=True)
        for everything, step in found:
            if everything:
                return _told(step, chain)
        possible = [step for _, step in found if step.told.packets]
        if uncounted and not possible:
            possible = [step for _, step in found if step.told.packets is None]
        most = max(possible, key=lambda step: step.told.packets or 0, default=None)
        return None if most is None else _told(most, chain)

    def leading_to(self, chain: Hashable) -> set[Hashable]:
        """The chain, and all from which jumps lead to it."""
        reached, todo = {chain}, [chain]
        while todo:
            for caller, _ in self._callers.get(todo.pop(), ()):
                if caller not in reached:
                    reached.add(caller)
                    todo.append(caller)
        return reached

    def _in_front(
        self, chain: Hashable, place: int, seen: set[Hashable]
    ) -> Iterator[tuple[bool, Step]]:
        """What ends in front of a rule: in its chain, in those that this calls, in its callers."""
        for step in self._chains[chain][:place]:
            if step.end:
                yield step.everything, step
            for called in step.calls:
                yield from self._inside(called, _ANYWHERE, {chain}, everything=step.everything)
        for caller, position in self._callers.get(chain, ()):
            if caller not in seen:
                seen.add(caller)
                yield from self._in_front(caller, position, seen)

    def _inside(
        self, chain: Hashable, ends: Collection[End], seen: set[Hashable], *, everything: bool
    ) -> Iterator[tuple[bool, Step]]:
        """What ends in a chain and in those that it calls, for packets that enter it."""
        if chain in seen:
            return
        seen.add(chain)
        for step in self._chains.get(chain, ()):
            if step.end in ends:
                yield everything and step.everything, step
            for called in step.calls:
                whole = everything and step.everything
                yield from self._inside(called, ends, seen, everything=whole)
            if step.end == "leave" and step.everything:
                return


def _told(step: Step, own: Hashable) -> RuleAhead:
    return step.told._replace(where="") if step.chain == own else step.told
