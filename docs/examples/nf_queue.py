"""Take the packets of one queue and let them go on: a helper to try rules with.

Its options are those of the program that the kernel's own test of nfnetlink_queue uses
(tools/testing/selftests/net/netfilter/nf_queue.c), so it can stand in for that one. As root, with a
rule such as ``nft add rule inet filter forward queue num 7 bypass``::

    python nf_queue.py -q 7 -c -t 10

decides until ten seconds have passed without a packet, and says how many came from each hook.

What ends it:

* ``-t``: so long without a packet; exit code 0.
* Ctrl-C: exit code 130. SIGTERM: at once, whatever it does, as the system does it.
* an error, or a wrong use: exit code 1, with the reason on standard error.

Packets without a verdict at its end are dropped. With ``-c``, six lines of counts are printed at
every end but SIGTERM's and that of a wrong use.
"""

from __future__ import annotations

import argparse
import functools
import math
import struct
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import trio

import trionfq
from trionfq import QueueFlags, SkbInfo, schema
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfqueue import NFQA, MessageType

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from trionfq import Batches, Packet, Queue
    from trionfq.backends import Backend

HOOKS = 5
"""NF_INET_PRE_ROUTING to NF_INET_POST_ROUTING (linux/netfilter.h)."""

BUFFERED = 16
"""How many packets wait for each other with -O."""

BOGUS = 50
"""How many verdicts on packets that are not there go with each packet, with -b."""

_FAR = 0x7FFFFFFF
"""Ids so much higher than one that came are not in use: half of all 32-bit numbers away."""

INTERRUPTED = 128 + 2
"""Exit code of a program that Ctrl-C ended, as shells tell it."""


class UnknownHookError(Exception):
    """A packet came from a hook that the inet families do not have."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
      queue: number of the queue.
      target: queue that packets are handed to, None to accept them.
      count: print at the end how many packets came from each hook.
      idle_s: seconds without a packet after which it ends; infinity for never.
      delay_s: seconds before each verdict, one after the other.
      gso: take packets that are not segmented yet as they are.
      fail_open: let packets pass where the queue is full.
      reverse: keep 16 packets, and answer the last one first.
      bogus: send verdicts on packets that are not there, too.
      verbose: print a line for each packet.
    """

    queue: int = 0
    target: int | None = None
    count: bool = False
    idle_s: float = math.inf
    delay_s: float = 0.0
    gso: bool = True
    fail_open: bool = False
    reverse: bool = False
    bogus: bool = False
    verbose: bool = False

    @property
    def flags(self) -> QueueFlags:
        """The queue's flags."""
        flags = QueueFlags.UID_GID
        if self.gso:
            flags |= QueueFlags.GSO
        if self.fail_open:
            flags |= QueueFlags.FAIL_OPEN
        return flags


@dataclass
class Counts:
    """Packets that came.

    Attributes:
      by_hook: how many, by the hook's number.
    """

    by_hook: list[int] = field(default_factory=lambda: [0] * HOOKS)

    @property
    def total(self) -> int:
        """Packets from all hooks."""
        return sum(self.by_hook)

    def add(self, packet: Packet) -> None:
        """Count one.

        Raises:
          UnknownHookError: its hook is not one of the five.
        """
        hook = _hook(packet)
        if hook >= HOOKS:
            raise UnknownHookError(
                f"packet {packet.id} is from hook {hook}: expected 0 to {HOOKS - 1}; queue packets "
                "in a table of the families ip, ip6, inet or bridge"
            )
        self.by_hook[hook] += 1

    def __str__(self) -> str:
        lines = [f"hook {hook} packets {count:08}" for hook, count in enumerate(self.by_hook)]
        return "\n".join([*lines, f"{self.total} packets total"])


def _hook(packet: Packet) -> int:
    # As a number: `Packet.hook` takes only those that it has a name for.
    number: int = packet.attribute("packet_hdr")["hook"]
    return number


# --- the command line -----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """As the kernel's program: a wrong use ends with 1."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.format_usage()}{self.prog}: {message}\n")


def _number(text: str, least: int, most: int, what: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"give {what} of {least} to {most}, not {text!r}")
    return number


def _queue_number(text: str) -> int:
    return _number(text, 0, 0xFFFF, "the number of a queue,")


def _seconds(text: str) -> int:
    return _number(text, 0, 0x7FFFFFFF, "whole seconds, 0 for no end,")


def _milliseconds(text: str) -> int:
    return _number(text, 1, 0x7FFFFFFF, "milliseconds,")


def parse(arguments: Sequence[str]) -> Options:
    """The options that a command line asks for.

    Raises:
      SystemExit: with 0 after ``-h``; with 1 for a wrong use, which standard error tells of.
    """
    parser = _Parser(
        prog="nf_queue.py",
        description="Accept the packets of a queue, or hand them to another one.",
        epilog="Needs CAP_NET_ADMIN, and a rule that queues packets.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-q", dest="queue", type=_queue_number, default=0, metavar="N", help="queue number; 0")
    add("-Q", dest="target", type=_queue_number, metavar="N", help="hand packets to queue N")
    add("-c", dest="count", action="store_true", help="print at the end how many came, by hook")
    add("-t", dest="idle", type=_seconds, default=0, metavar="S", help="end after S s of silence")
    add("-d", dest="delay", type=_milliseconds, default=0, metavar="MS", help="wait before each")
    add("-G", dest="gso", action="store_false", help="have the kernel segment packets first")
    add("-o", dest="fail_open", action="store_true", help="let packets pass a full queue")
    add("-O", dest="reverse", action="store_true", help="answer 16 packets at a time, backwards")
    add("-b", dest="bogus", action="store_true", help="send 50 bogus verdicts with each packet")
    add("-v", dest="verbose", action="store_true", help="print a line for each packet")
    given = parser.parse_args(arguments)
    if given.target == given.queue:
        parser.error(
            f"-q and -Q are both {given.queue}, so packets would come back for ever: give -Q the "
            "number of another queue"
        )
    return Options(
        queue=given.queue,
        target=given.target,
        count=given.count,
        idle_s=given.idle or math.inf,
        delay_s=given.delay / 1000,
        gso=given.gso,
        fail_open=given.fail_open,
        reverse=given.reverse,
        bogus=given.bogus,
        verbose=given.verbose,
    )


# --- deciding -------------------------------------------------------------------------------------


async def run(
    options: Options,
    counts: Counts,
    *,
    backend: Backend | None = None,
    output: TextIO | None = None,
    task_status: trio.TaskStatus[Queue] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Open the queue and decide its packets, until nothing comes any more.

    Args:
      options: what to do.
      counts: what came is added to it.
      backend: where packets come from, as in `trionfq.open_queue`.
      output: gets the lines of ``-v``; standard output if None.
      task_status: told of the queue as soon as it is open.

    Raises:
      trionfq.TrionfqError: the queue cannot be opened, or a verdict was refused.
      trio.BrokenResourceError: the queue became unusable.
      UnknownHookError: as `Counts.add`.
    """
    async with trionfq.open_queue(
        options.queue, flags=options.flags, error_handler=_end_with, backend=backend
    ) as queue:
        task_status.started(queue)
        bogus = BogusVerdicts(options.queue)
        kept: list[Packet] = []
        batches = queue.batches()
        while packets := await _next(batches, options.idle_s):
            for packet in packets:
                counts.add(packet)
                if options.verbose:
                    print(line_of(packet), file=output, flush=True)
                if options.bogus:
                    # Not the library's verdicts: it refuses one on a packet that never came.
                    queue.backend.send_nowait(bogus.beyond(packet.id))
                if not options.reverse:
                    await _answer(packet, options)
                    continue
                packet.hold()
                kept.append(packet)
                if len(kept) == BUFFERED:
                    await _answer_backwards(kept, options)
        # Fewer than 16, for whose fellows nobody waits any more.
        await _answer_backwards(kept, options)


async def _next(batches: Batches, idle_s: float) -> Sequence[Packet]:
    """What the next read brings; nothing where that takes too long, or a replay is over."""
    with trio.move_on_after(idle_s):
        async for packets in batches:
            return packets
    return ()


async def _answer(packet: Packet, options: Options) -> None:
    if options.delay_s:
        await trio.sleep(options.delay_s)
    if options.target is None:
        packet.accept()
    else:
        packet.requeue(options.target)


async def _answer_backwards(kept: list[Packet], options: Options) -> None:
    """Answer the packets that were kept, the last one first, and keep none."""
    while kept:
        await _answer(kept.pop(), options)
        # Verdicts of one turn leave together, in the order of their ids: so one a turn.
        await trio.lowlevel.checkpoint()


def _end_with(error: Exception, _packet: Packet | None) -> None:
    raise error


class BogusVerdicts:
    """Verdicts on packets that are not there; the kernel answers each with ENOENT.

    trionfq counts such an answer (``statistics().verdicts_gone``) and goes on.

    Args:
      queue: number of the queue.
    """

    def __init__(self, queue: int) -> None:
        header = schema.attr(NFQA, "verdict_hdr", {"verdict": trionfq.Verdict.ACCEPT, "id": 0})
        message = schema.Message(
            type=MessageType.VERDICT,
            flags=MessageFlags.REQUEST,
            seq=0,
            portid=0,
            family=0,
            version=0,
            res_id=queue,
            attributes=(header,),
        )
        one = schema.build([message])
        self._octets = len(one)
        self._datagram = bytearray(one * BOGUS)

    def beyond(self, packet_id: int) -> bytes:
        """One datagram with fifty of them, for ids far beyond one that came."""
        for index in range(BOGUS):
            # A message ends with its id: the second half of NFQA_VERDICT_HDR.
            place = (index + 1) * self._octets - 4
            bogus_id = (packet_id + _FAR + index) & 0xFFFFFFFF
            struct.pack_into("!I", self._datagram, place, bogus_id)
        return bytes(self._datagram)


_SKB_INFO = {
    SkbInfo.CSUMNOTREADY: "csumnotready",
    SkbInfo.GSO: "gso",
    SkbInfo.CSUM_NOTVERIFIED: "csumnotverified",
}


def line_of(packet: Packet) -> str:
    """What ``-v`` prints of a packet."""
    words = [f"packet {packet.id}", f"hook={_hook(packet)}", f"hwproto={packet.hw_protocol:#06x}"]
    words.append(f"length={packet.original_length}")
    words += [word for flag, word in _SKB_INFO.items() if packet.skb_info & flag]
    return " ".join(words)


# --- the program ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None, *, backend: Backend | None = None) -> int:
    """Run the program; gives its exit code.

    Args:
      arguments: of the command line; those of this process if None.
      backend: as in `run`.

    Raises:
      SystemExit: as `parse`.
    """
    options = parse(sys.argv[1:] if arguments is None else arguments)
    counts = Counts()
    code = 0
    try:
        # An interrupt comes at a checkpoint only, so that the queue is always closed.
        trio.run(
            functools.partial(run, options, counts, backend=backend),
            restrict_keyboard_interrupt_to_checkpoints=True,
        )
    except KeyboardInterrupt:
        code = INTERRUPTED
    except trio.BrokenResourceError as error:
        code = _fail(error.__cause__ or error)
    except (trionfq.TrionfqError, OSError, UnknownHookError) as error:
        code = _fail(error)
    if options.count:
        print(counts)
    return code


def _fail(error: BaseException) -> int:
    print(f"nf_queue.py: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
