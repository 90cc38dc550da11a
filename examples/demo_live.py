"""The live part of the demo: real packets, decided by the same policy. Run by demo.py.

It must be root of a network namespace of its own: it puts rules there and leaves them, since they
end with the namespace.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import trio
from demo import Row, replay, run_policy, show, show_totals, totals
from policy import SEEN, TELNET

import trionfq
from trionfq.captures import open_capture, transcript

TEXT_PORT, LETTER_PORT = 5000, 8080
TEXTS = [b"the sky is blue", b"grass is green", b"blue, red and blue again"]
PAINTED = [b"the sky is orange", b"grass is green", b"orange, red and orange again"]
LETTER = b"a letter, sent by TCP and left alone\n"
PINGS = 2
NO_ANSWER_S = 0.3
PATIENCE_S = 20.0


class Host:
    """The addresses and rules of one IP version in this namespace."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.address = "127.0.0.1" if version == 4 else "::1"
        self.iptables = "iptables" if version == 4 else "ip6tables"

    def queue(self) -> None:
        """Have what leaves this host come to queue 0, and what was there already be counted."""
        # The first rule only counts: what comes to it with the mark comes for the second time.
        self.rule("-m", "mark", "--mark", f"{SEEN:#x}/{SEEN:#x}")
        unseen = ("-m", "mark", "!", "--mark", f"{SEEN:#x}/{SEEN:#x}")
        self.rule(*unseen, "-j", "NFQUEUE", "--queue-num", "0")

    def rule(self, *words: str) -> None:
        """Append a rule to OUTPUT."""
        run(self.iptables, "-A", "OUTPUT", *words)

    def second_passes(self) -> int:
        """How many packets have come to the counting rule with the mark."""
        saved = run(self.iptables + "-save", "-c", "-t", "filter")
        counted = re.search(r"^\[(\d+):\d+\] -A OUTPUT -m mark --mark ", saved, re.MULTILINE)
        assert counted is not None, saved
        return int(counted[1])

    # -- traffic -------------------------------------------------------------------------------

    async def send_texts(self) -> list[bytes]:
        """Send the texts by UDP; give what the receiver got."""
        with trio.socket.socket(self.family, socket.SOCK_DGRAM) as receiver:
            await receiver.bind((self.address, TEXT_PORT))
            with trio.socket.socket(self.family, socket.SOCK_DGRAM) as sender:
                for text in TEXTS:
                    await sender.sendto(text, (self.address, TEXT_PORT))
            return [await receiver.recv(4096) for _ in TEXTS]

    async def send_letter(self) -> bytes:
        """Send the letter by TCP; give what the receiver got."""
        [listener] = await trio.open_tcp_listeners(LETTER_PORT, host=self.address)
        async with listener:
            client = await trio.open_tcp_stream(self.address, LETTER_PORT)
            async with client, await listener.accept() as server:
                await client.send_all(LETTER)
                await client.send_eof()
                return b"".join([piece async for piece in server])

    async def knock_at_telnet(self) -> bool:
        """Try to connect to a telnet server that is there; tell whether that worked."""
        listeners = await trio.open_tcp_listeners(TELNET, host=self.address)
        async with listeners[0]:
            with trio.move_on_after(NO_ANSWER_S):
                async with await trio.open_tcp_stream(self.address, TELNET):
                    return True
        return False

    async def ping(self) -> int:
        """Send echo requests; give how many were answered."""
        protocol = socket.IPPROTO_ICMP if self.version == 4 else socket.IPPROTO_ICMPV6
        request, reply = (8, 0) if self.version == 4 else (128, 129)
        answers = 0
        with trio.socket.socket(self.family, socket.SOCK_DGRAM, protocol) as pinger:
            for number in range(PINGS):
                # The kernel fills in checksum and identifier.
                echo = bytes([request, 0, 0, 0, 0, 0, 0, number]) + b"are you there?"
                await pinger.sendto(echo, (self.address, 0))
                answers += (await pinger.recv(4096))[0] == reply
        return answers


def run(*command: str) -> str:
    """What a command prints.

    Raises:
      OSError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)} failed: {' '.join(done.stderr.split())}")
    return done.stdout


async def traffic(host: Host) -> bool:
    """Send packets of every kind, and print what the receiver saw of them."""
    got = await host.send_texts()
    for text, painted in zip(TEXTS, got, strict=True):
        change = "as sent" if text == painted else f"rewritten, sent as {text.decode()!r}"
        print(f"  IPv{host.version} UDP     {painted.decode()!r}, {change}")
    letter = await host.send_letter()
    print(f"  IPv{host.version} TCP     {letter.decode().strip()!r}, as sent")
    connected = await host.knock_at_telnet()
    print(f"  IPv{host.version} telnet  {'a connection' if connected else 'nothing: dropped'}")
    answers = await host.ping()
    again = host.second_passes()
    # Request and reply each go out once more, with the mark, past the rule that queues.
    print(
        f"  IPv{host.version} ping    {answers} of {PINGS} answered; {again} packets came to the "
        f"rules once more, with mark {SEEN:#x}"
    )
    pinged = answers == PINGS and again == 2 * PINGS
    return got == PAINTED and letter == LETTER and not connected and pinged


async def live(hosts: list[Host], recording: Path) -> bool:
    """Decide live packets while they are recorded, then replay the recording."""
    seen: list[trionfq.IPView] = []
    backend = trionfq.RecordingBackend(trionfq.NetlinkBackend(), recording)
    async with trionfq.open_queue(0, backend=backend) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(run_policy, queue, seen)
        print("The same policy live, in a network namespace of its own. What the receiver saw:\n")
        right = False
        with trio.move_on_after(PATIENCE_S) as waiting:
            right = all([await traffic(host) for host in hosts])
        if waiting.cancelled_caught:
            print(f"  nothing more within {PATIENCE_S:.0f} s")
        nursery.cancel_scope.cancel()
    with open_capture(recording) as capture:
        rows = [Row(*each) for each in zip(seen, transcript(capture), strict=True)]
    print("\nWhat the policy saw and did:\n")
    show(rows)
    show_totals(totals(rows))
    same = rows_of(await replay(recording)) == rows_of(rows)
    print(f"  Its recording, replayed, gives {'the same' if same else 'OTHER'} verdicts.")
    return right and same


def rows_of(rows: list[Row]) -> list[object]:
    """What two runs of a policy have in common: packets and outcomes."""
    return [(row.ip.payload, row.outcome) for row in rows]


def main() -> None:
    """Set the namespace up and run; the exit code is 1 where something was not as expected."""
    hosts = [Host(4)]
    if Path("/proc/net/if_inet6").exists():
        hosts.append(Host(6))
    try:
        run("ip", "link", "set", "lo", "up")
        # So that a datagram socket may ping, whose checksums the kernel makes.
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0\n")
        for host in hosts:
            host.queue()
    except OSError as error:
        print(f"No live part: {error}")
        return
    with tempfile.TemporaryDirectory() as folder:
        right = trio.run(
            live,
            hosts,
            Path(folder, "live.pcapng"),
            restrict_keyboard_interrupt_to_checkpoints=True,
        )
    if not right:
        sys.exit("demo: the live part went otherwise than the policy says")


if __name__ == "__main__":
    main()
