"""The programs of the guides run, and do what the guides say.

Each block of ```` ```python ```` in docs/moving runs as it stands, with a recording where its queue
would be. What other libraries' programs say in Python (```` ```py ````) and C has to compile.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import trionfq
from trionfq import Verdict
from trionfq.testing import make_packet, udp_packet

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "moving").glob("*.md"))
HEADERS = Path("/usr/include/libnetfilter_queue")


class Block(NamedTuple):
    """A piece of code of a page."""

    page: str
    heading: str
    language: str
    code: str


def blocks(path: Path) -> list[Block]:
    """The blocks of code of a page, each under its heading."""
    found = []
    heading = language = ""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        fence = re.fullmatch(r"```(\S*)", line)
        if fence and not language:
            language, lines = fence[1] or "text", []
        elif fence:
            found.append(Block(path.stem, heading, language, "\n".join(lines) + "\n"))
            language = ""
        elif language:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    return found


BLOCKS = [block for path in GUIDES for block in blocks(path)]
OURS = [block for block in BLOCKS if block.language == "python"]


def named(block: Block) -> str:
    return f"{block.page}: {block.heading}"


# --- what each program meets, and what has to come of it ------------------------------------------


@dataclass(frozen=True)
class Case:
    """Packets by queue, and what a program prints and does with them.

    Attributes:
      arrive: datagrams by the number of the queue that they come to.
      printed: all that the program prints.
      outcomes: by queue, each packet's verdict, mark, and new payload.
    """

    arrive: dict[int, list[bytes]] = field(default_factory=dict)
    printed: str = ""
    outcomes: dict[int, list[tuple[Verdict | None, int | None, bytes | None]]] = field(
        default_factory=dict
    )


def arriving(*packets: bytes, **attributes: Any) -> list[bytes]:
    """Datagrams with these packets, numbered from 1."""
    return [make_packet(place, packet, **attributes) for place, packet in enumerate(packets, 1)]


V6: dict[str, Any] = {"source": "2001:db8::1", "destination": "2001:db8::2"}
SIX = [udp_packet(b"six", **V6)]
PLAIN = [udp_packet(b"hello"), udp_packet(b""), *SIX]
# A TCP segment without data: nothing of it may change.
TCP = bytes.fromhex("4500002800000000400600000a0000010a000002c35000500000000100000000500200000000")
TCP += bytes(2)
ACCEPTED = (Verdict.ACCEPT, None, None)
MARKED = (Verdict.ACCEPT, 7, None)
DROPPED = (Verdict.DROP, None, None)


def rewritten(data: bytes, **options: Any) -> tuple[Verdict, None, bytes]:
    return Verdict.ACCEPT, None, udp_packet(data, **options)


CASES = {
    "go-nfqueue: Print and accept": Case(
        {100: arriving(*PLAIN)},
        "1 33\n2 28\n3 51\n",
        {100: [ACCEPTED] * 3},
    ),
    "go-nfqueue: Callbacks that wait, and errors": Case(
        {100: arriving(udp_packet(), udp_packet(source="192.0.2.9"), udp_packet())},
        "",
        {100: [MARKED, DROPPED, MARKED]},
    ),
    "libnetfilter_queue: Accept with a mark": Case(
        {0: arriving(*PLAIN)},
        "",
        {0: [MARKED] * 3},
    ),
    "libnetfilter_queue: Change a datagram": Case(
        {
            0: arriving(
                udp_packet(b"a colour"), TCP, udp_packet(b"grey"), udp_packet(b"colour", **V6)
            )
        },
        "",
        {0: [rewritten(b"a color"), ACCEPTED, ACCEPTED, rewritten(b"color", **V6)]},
    ),
    "libnetfilter_queue: Messages of one's own": Case(
        {},
        "verdict_hdr {'verdict': 1, 'id': 17}\nmark 7\n",
    ),
    "netfilterqueue: A callback becomes a loop": Case(
        {1: arriving(*PLAIN[1:])},
        "<IPView v4 192.0.2.1 > 198.51.100.2 protocol 17 40000>53 28 bytes>\n"
        "<IPView v6 2001:db8::1 > 2001:db8::2 protocol 17 40000>53 51 bytes>\n",
        {1: [ACCEPTED] * 2},
    ),
    "netfilterqueue: Inside an event loop": Case(
        {1: arriving(*PLAIN)},
        "packets: 3\n",
        {1: [ACCEPTED] * 3},
    ),
    "netfilterqueue: Rewriting with scapy": Case(
        {1: arriving(udp_packet(b"this"), TCP, *SIX)},
        "",
        {1: [rewritten(b"something else"), ACCEPTED, rewritten(b"something else", **V6)]},
    ),
    "netfilterqueue: Keeping packets for later": Case(
        {1: arriving(*[udp_packet()] * 7)},
        "",
        {1: [ACCEPTED] * 6 + [(None, None, None)]},
    ),
    "fnfqueue: The loop": Case(
        {1: arriving(*PLAIN)},
        "",
        {1: [MARKED] * 3},
    ),
    "fnfqueue: Several queues": Case(
        {1: arriving(udp_packet()), 2: arriving(udp_packet())},
        "1 1\n2 1\n",
        {1: [ACCEPTED], 2: [ACCEPTED]},
    ),
    "fnfqueue: Rewriting, and what the kernel knows of the sender": Case(
        {1: [*arriving(udp_packet(b"x"), uid=0), make_packet(2, uid=1000), make_packet(3)]},
        "",
        {1: [rewritten(b"from root"), ACCEPTED, ACCEPTED]},
    ),
}


# --- running them ---------------------------------------------------------------------------------

Run = Callable[[Block, dict[int, list[bytes]]], dict[int, trionfq.ReplayBackend]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a program whose queues get recorded packets; gives the backends by queue."""
    really = trionfq.open_queue

    def run_program(block: Block, arrive: dict[int, list[bytes]]) -> dict[int, Any]:
        opened: dict[int, trionfq.ReplayBackend] = {}

        def open_replay(number: int, **options: Any) -> trionfq.QueueManager:
            opened[number] = trionfq.ReplayBackend(arrive[number], check="all")
            return really(number, backend=opened[number], **options)

        monkeypatch.setattr(trionfq, "open_queue", open_replay)
        exec(compile(block.code, named(block), "exec"), {"__name__": "__main__"})
        return opened

    return run_program


def outcomes(backend: trionfq.ReplayBackend) -> list[tuple[int | None, int | None, bytes | None]]:
    return [(outcome.verdict, outcome.mark, outcome.payload) for outcome in backend.transcript]


@pytest.mark.parametrize("block", OURS, ids=named)
def test_a_guides_program_does_what_the_guide_says(
    block: Block, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[named(block)]
    opened = run(block, case.arrive)
    printed = capsys.readouterr().out
    assert sorted(printed.splitlines()) == sorted(case.printed.splitlines())
    assert {number: outcomes(backend) for number, backend in opened.items()} == case.outcomes


def test_every_program_has_its_case_and_every_case_its_program() -> None:
    assert sorted(map(named, OURS)) == sorted(CASES)


ONE_QUEUE = re.compile(r"trionfq\.open_queue\((\d+)")
ELSEWHERE = ("open_workers", "backend=", "namespace=", "queueing(")  # they need more than packets


def complete_programs() -> list[Block]:
    """Programs of the other pages that need nothing but one queue's packets."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        block
        for page in pages
        for block in blocks(page)
        if block.language == "python"
        and "trio.run(main)" in block.code
        and len(ONE_QUEUE.findall(block.code)) == 1
        and not any(word in block.code for word in ELSEWHERE)
    ]


@pytest.mark.parametrize("block", complete_programs(), ids=named)
def test_a_complete_program_of_another_page_decides_every_packet(block: Block, run: Run) -> None:
    [number] = map(int, ONE_QUEUE.findall(block.code))
    opened = run(block, {number: arriving(*PLAIN, TCP)})
    verdicts = [outcome.verdict for outcome in opened[number].transcript]
    assert len(verdicts) == 4
    assert None not in verdicts


def test_the_first_program_of_all_is_among_them() -> None:
    assert "README" in {block.page for block in complete_programs()}


# --- what is said of other libraries --------------------------------------------------------------


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "py"], ids=named)
def test_other_libraries_programs_in_python_compile(block: Block) -> None:
    compile(block.code, named(block), "exec")


# What a fragment stands in.
AROUND = """
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <libnetfilter_queue/libnetfilter_queue.h>
#include <libnetfilter_queue/libnetfilter_queue_ipv4.h>
#include <libnetfilter_queue/libnetfilter_queue_udp.h>
#include <libnetfilter_queue/pktbuff.h>
#include <linux/netfilter.h>
#include <netinet/ip.h>
#include <string.h>
#include <sys/socket.h>

void decide(struct nfq_q_handle *queue, uint32_t id, unsigned char *payload, int length);
void decide(struct nfq_q_handle *queue, uint32_t id, unsigned char *payload, int length)
{
"""


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "c"], ids=named)
def test_other_libraries_programs_in_c_compile(block: Block, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or not HEADERS.is_dir():
        pytest.skip("needs a C compiler and Debian's libnetfilter-queue-dev")
    whole = "int main" in block.code
    source = tmp_path / "program.c"
    source.write_text(block.code if whole else f"{AROUND}{block.code}}}\n")
    # In C11, since bool is what pktbuff.h leaves to others.
    command = [compiler, "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-include", "stdbool.h"]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_language_is_left_unchecked() -> None:
    assert {block.language for block in BLOCKS} <= {"python", "py", "c", "go"}
