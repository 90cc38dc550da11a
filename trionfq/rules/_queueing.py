"""Installing a queueing rule for as long as a block runs."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trionfq._errors import ModuleMissingError, TrionfqError
from trionfq.rules import _claim, _iptables, _nft
from trionfq.rules._guard import Guard
from trionfq.rules._place import Place
from trionfq.rules._programs import ProgramMissingError, RuleError, find, package
from trionfq.rules._signals import watch
from trionfq.rules._spec import make_spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from trionfq.backends._netns import Namespace
    from trionfq.rules._match import Family, Match
    from trionfq.rules._spec import Position, Spec, Table
    from trionfq.rules._way import RuleCounter, Way
    from trionfq.schema.nfqueue import Hook

_log = logging.getLogger("trionfq.rules")
_PROGRAMS = ("nft", *_iptables.PROGRAMS)
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0


def queueing(
    number: int | None = None,
    chain: str | Hook | Sequence[str | Hook] = (),
    *,
    balance: tuple[int, int] | None = None,
    match: Match | Sequence[Match] | None = None,
    families: Sequence[Family] = ("ip", "ip6"),
    table: Table = "mangle",
    position: Position = "top",
    bypass: bool = False,
    fanout: bool = False,
    exclude_mark: int | tuple[int, int] | None = None,
    counter: bool = True,
    key: str | None = None,
    program: str | None = None,
    guard: bool = False,
    handle_signals: bool = True,
    timeout_s: float = 10.0,
    namespace: str | os.PathLike[str] | Namespace | None = None,
) -> RuleManager:
    """Hand packets to a queue until the block ends.

    Use it as ``async with queueing(0, "OUTPUT") as rule``, inside `open_queue`: so the queue is
    bound before the first packet comes, and closed after the last. Entering installs all rules or
    none. Leaving removes them, in every case: also after an exception, under cancellation, by
    Ctrl-C, and by SIGTERM and SIGHUP, which then unwind the run before they end the process. What
    a SIGKILL leaves behind is replaced by the next start with the same `key`, or removed at once
    with `guard`. Each run of a program is waited for, shielded, `timeout_s` at most.

    Rules of others are not touched. No hook is unregistered while packets are queued, since that
    drops them, in every queue of the namespace: with nft the empty table then stays until none is.

    Args:
      number: queue number.
      chain: one or several of PREROUTING, INPUT, FORWARD, OUTPUT and POSTROUTING, or of `Hook`.
      balance: first and last of several queue numbers, instead of `number`; flows are spread.
      match: which packets, one `Match` or alternatives; None for all.
      families: ``"ip"``, ``"ip6"`` or both. IPv6 is left out where the kernel has none.
      table: iptables' table, and for nft the priority. In mangle, an accepted packet still passes
        the filter table; in filter, with iptables, acceptance skips the rest of that chain.
      position: ``"top"`` or ``"bottom"`` of the chain; behind an ACCEPT a rule sees nothing.
      bypass: let packets pass while nobody has bound the queue; otherwise they are dropped.
      fanout: let the processor that handles a packet choose the queue of `balance`.
      exclude_mark: leave packets with this mark alone: a value, or a value and a mask. For
        packets that the program sends itself, or repeats with that mark.
      counter: count matches in nft (iptables always does).
      key: names this program, so that it knows what an earlier run left behind; None makes it of
        the queue number. Letters, digits, dots and hyphens.
      program: ``"nft"``, ``"iptables"``, ``"iptables-nft"`` or ``"iptables-legacy"``; None takes
        nft where the kernel has its queue statement, and iptables otherwise.
      guard: have a small shell wait beside this process, which removes the rules if the process
        ends without having done so. Then packets pass as if there had never been a rule.
      handle_signals: let SIGTERM and SIGHUP end the run in order, unless the program has set
        handlers of its own, or this is not the main thread.
      timeout_s: the longest that one run of a program may take, in seconds.
      namespace: network namespace, as for `open_queue`.

    Raises:
      ValueError, TypeError: an argument is wrong, or two contradict each other.
      ProgramMissingError: on entering; no program is installed, the Debian package is named.
      PrivilegeError: on entering; CAP_NET_ADMIN is missing.
      ModuleMissingError: on entering; the kernel has neither nft's queue statement nor NFQUEUE.
      RuleError: a program failed otherwise, on entering or leaving.
    """
    spec = make_spec(
        number,
        chain,
        balance=balance,
        match=match,
        families=families,
        table=table,
        position=position,
        bypass=bypass,
        fanout=fanout,
        exclude_mark=exclude_mark,
        counter=counter,
        key=key,
    )
    if program is not None and program not in _PROGRAMS:
        raise ValueError(f"program: expected one of {', '.join(_PROGRAMS)}, got {program!r}")
    if program is not None and ("nft" if program == "nft" else "iptables") not in spec.programs():
        raise ValueError(f"match: has no text for {program}")
    if not timeout_s > 0:
        raise ValueError(f"timeout_s: expected more than 0, got {timeout_s}")
    return RuleManager(
        spec,
        program,
        namespace,
        guard=guard,
        handle_signals=handle_signals,
        timeout_s=timeout_s,
    )


class QueueingRule:
    """Rules in place; `queueing` gives it.

    Attributes:
      program: what installed them, such as ``"nft"``.
      families: that have a rule.
      comment: that each rule carries.
    """

    def __init__(self, way: Way, place: Place, families: tuple[Family, ...]) -> None:
        self.program = way.program
        self.families = families
        self.comment = way.claim.comment
        self._way = way
        self._place = place

    def __repr__(self) -> str:
        return f"<QueueingRule {self.comment} by {self.program}>"

    @property
    def lines(self) -> list[str]:
        """The rules as the program takes them."""
        return self._way.lines()

    async def counters(self) -> list[RuleCounter]:
        """What has matched each rule; fewer where somebody has removed some.

        Raises:
          RuleError: the program failed.
        """
        return await self._place.complete(self._way.counters)

    async def packets(self) -> int:
        """Packets that have matched, of all rules.

        Raises:
          RuleError: the program failed.
        """
        return sum(counter.packets for counter in await self.counters())


class RuleManager:
    """What `queueing` returns: an async context manager, for one use."""

    def __init__(
        self,
        spec: Spec,
        program: str | None,
        namespace: str | os.PathLike[str] | Namespace | None,
        *,
        guard: bool,
        handle_signals: bool,
        timeout_s: float,
    ) -> None:
        self._spec = spec
        self._program = program
        self._namespace = namespace
        self._with_guard = guard
        self._handle_signals = handle_signals
        self._timeout_s = timeout_s
        self._scope = trio.CancelScope()
        self._entered = False
        self._way: Way | None = None
        self._guard: Guard | None = None
        self._why_not_nft: str | None = None
        self._installed = False
        self._removed = False

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> QueueingRule:
        if self._entered:
            raise RuntimeError("this queueing() was entered before; call it again")
        await trio.lowlevel.checkpoint()
        self._entered = True
        self._pid = os.getpid()
        self._place = Place(self._namespace)
        if self._handle_signals:
            watch.enter(self._scope)
        self._scope.__enter__()
        try:
            await self._place.complete(self._install)
            way = self._way
            assert way is not None
            # What came meanwhile, a cancellation or a signal, undoes it.
            await trio.lowlevel.checkpoint()
        except BaseException as error:
            if await self._leave(error):
                # Cancelled by nothing but a signal, and then leaving raises.
                raise AssertionError("a block that was not entered cannot be left") from None
            raise
        return QueueingRule(way, self._place, self._spec.families)

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return await self._leave(exc)

    async def _leave(self, exc: BaseException | None) -> bool:
        """Remove everything; whether `exc` was a cancellation of ours."""
        failure: BaseException | None = None
        for step in (self._remove_in_thread, self._tidy):
            try:
                await step()
            except BaseException as error:  # noqa: BLE001, RUF100 - raised when all is undone
                failure = failure or error
        received = watch.leave(self._scope)
        # Last, for this can raise: it takes our own cancellation out of a group.
        ours = self._scope.__exit__(
            None if exc is None else type(exc), exc, None if exc is None else exc.__traceback__
        )
        if received is not None:
            # 128 + number is how a shell reports it.
            raise SystemExit(128 + received) from failure
        if failure is not None:
            if exc is not None and isinstance(failure, TrionfqError):
                # What the block raised leaves as it was raised.
                _log.error("the queueing rule may still be there: %s", failure)
            else:
                raise failure
        return bool(ours)

    # --- in a thread, inside the namespace ----------------------------------------------------

    def _install(self) -> None:
        spec = self._without_missing_families()
        self._spec = spec
        way = self._way = self._chosen(spec)
        # From here on something may be there, whatever becomes of this object.
        atexit.register(self._at_exit)
        if self._with_guard:
            self._guard = Guard(way)
        try:
            way.install()
        except ModuleMissingError as error:
            raise self._explained(error) from error
        self._installed = True
        # Not before, so that there is no moment without a rule.
        self._remove_left_behind(way)

    def _without_missing_families(self) -> Spec:
        if "ip6" not in self._spec.families or Path("/proc/thread-self/net/if_inet6").exists():
            return self._spec
        if self._spec.families == ("ip6",):
            raise ValueError("families: this kernel has no IPv6, and nothing else was asked for")
        return dataclasses.replace(self._spec, families=("ip",))

    def _chosen(self, spec: Spec) -> Way:
        """Choose the program, and claim; what nft left behind is taken over."""
        timeout_s = self._timeout_s
        program = self._program
        if program is None:
            if "nft" in spec.programs():
                self._why_not_nft = _nft.why_not(timeout_s=timeout_s)
                program = "nft" if self._why_not_nft is None else "iptables"
            else:
                program = "iptables"
        elif program == "nft":
            why_not = _nft.why_not(timeout_s=timeout_s)
            if why_not is not None:
                self._refuse_nft(why_not)
        if program == "iptables" and "iptables" not in spec.programs():
            assert self._why_not_nft is not None
            self._refuse_nft(self._why_not_nft)
        if program != "nft" and find(program) is None:
            also = f", and {self._why_not_nft}" if self._why_not_nft else ""
            raise ProgramMissingError(
                f"{program} is not installed (Debian package {package(program)}){also}"
            )
        if program == "nft":
            claim = _nft.take_over(self._place, spec.key, timeout_s=timeout_s) or _claim.new_claim(
                self._place, spec.key
            )
            return _nft.NftRules(spec, claim, timeout_s=timeout_s)
        claim = _claim.new_claim(self._place, spec.key)
        return _iptables.IptablesRules(spec, claim, program, timeout_s=timeout_s)

    def _remove_left_behind(self, way: Way) -> None:
        """Remove what earlier runs with this key have left, by whatever program."""
        key, timeout_s = self._spec.key, self._timeout_s
        _iptables.remove_left_behind(self._place, key, timeout_s=timeout_s)
        if way.program != "nft" and find("nft") is not None:
            with contextlib.suppress(RuleError, OSError):
                _nft.remove_left_behind(self._place, key, timeout_s=timeout_s)

    def _refuse_nft(self, why: str) -> None:
        if find("nft") is None:
            raise ProgramMissingError(why)
        raise ModuleMissingError(errno.ENOENT, "install a queueing rule with nft", advice=why)

    def _explained(self, error: ModuleMissingError) -> ModuleMissingError:
        if self._why_not_nft is None:
            return error
        assert error.errno is not None
        return ModuleMissingError(
            error.errno,
            error.operation,
            advice=f"{error}; and by nft it cannot be: {self._why_not_nft}",
        )

    async def _remove_in_thread(self) -> None:
        if self._way is not None:
            await self._place.complete(self._remove)

    def _remove(self) -> None:
        way = self._way
        assert way is not None
        try:
            way.remove()
            self._removed = True
        except TrionfqError:
            # Where installing has failed, there is nothing, and it has said why.
            if self._installed:
                if self._guard is not None:
                    self._guard.act(timeout_s=self._timeout_s)
                raise
        if self._guard is not None:
            self._guard.dismiss(timeout_s=self._timeout_s)
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        """Where nobody has left the block: an interrupt between entering and its first line."""
        if os.getpid() != self._pid:
            return  # a child that was forked, and ends by its own

        def undo() -> None:
            try:
                self._remove()
                self._tidy_now()
            finally:
                self._let_go()

        self._place.call_at_exit(undo)

    # --- what is left without rules -----------------------------------------------------------

    async def _tidy(self) -> None:
        """Remove it at once if no packet waits, or else leave that to a task of the system's."""
        done = True
        try:
            if self._removed:
                done = await self._place.complete(self._tidy_now)
        finally:
            if done:
                self._let_go()
            else:
                trio.lowlevel.spawn_system_task(self._tidy_later, name="trionfq.rules: tidy")

    def _tidy_now(self) -> bool:
        """Whether nothing is left to do."""
        assert self._way is not None
        try:
            return self._way.tidy()
        except TrionfqError as error:
            _log.warning("an empty table stays: %s", error)
            return True

    async def _tidy_later(self) -> None:
        """Until no packet waits, or at the end of the run for the last time."""
        pause_s = _FIRST_PAUSE_S
        try:
            done = False
            while not done:
                try:
                    await trio.sleep(pause_s)
                finally:
                    done = await self._place.complete(self._tidy_now)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._way is not None:
            self._way.claim.release()
        self._place.close()
