"""What a replay knows without reading it is what it would have read.

The quick ways (packets told as they were recorded, verdicts of known layouts) are compared with the
ways that look at every message.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

import trionfq
from trionfq.backends import _replay_forms
from trionfq.backends._replay_feed import Feed
from trionfq.backends._sent_check import SentCheck
from trionfq.captures import Note, Record
from trionfq.schema import Direction
from trionfq.schema.nfqueue import CopyMode, Hook, QueueFlags, SkbInfo, VerdictCode
from trionfq.testing import make_bind, make_config, make_packet, make_verdict, udp_packet

if TYPE_CHECKING:
    from collections.abc import Iterator

START = 1_790_000_000_000_000_000
FROM, TO = Direction.FROM_KERNEL, Direction.TO_KERNEL


def a_packet(chance: random.Random, packet_id: int) -> bytes:
    """A packet as a kernel tells it, or now and then as none would."""
    more: dict[str, Any] = {}
    for name, numbers in (
        ("mark", (0, 7, 8)),
        ("priority", (0, 1)),
        ("cgroup_classid", (0, 5)),
        ("uid", (1000, 1001)),
        ("ifindex_indev", (2, 3)),
        ("skb_info", (0, SkbInfo.GSO, SkbInfo.CSUMNOTREADY)),
        ("cap_len", (10, 400)),
    ):
        if chance.random() < 0.08:
            more[name] = int(chance.choice(numbers))
    if chance.random() < 0.1:
        more["timestamp_ns"] = START + chance.randrange(10**9)
    hook = Hook.LOCAL_OUT if chance.random() < 0.2 else Hook.LOCAL_IN
    payload = None if chance.random() < 0.02 else udp_packet(bytes(chance.choice((8, 8, 8, 64))))
    datagram = make_packet(packet_id, payload, hook=hook, **more)
    if chance.random() < 0.03:
        # A sequence number, which the kernel leaves 0.
        return datagram[:8] + b"\1" + datagram[9:]
    if chance.random() < 0.03:
        return datagram[: -chance.randrange(1, 8)]
    return datagram


def a_recording(seed: int) -> list[Record]:
    chance = random.Random(seed)
    packet_id = chance.choice((0, 0, 2**32 - 40))
    plain = chance.random() < 0.5
    records: list[Record] = []
    time_ns = START
    for _ in range(200):
        time_ns += chance.choice((0, 1000, 1000, -500))
        packet_id = (packet_id + (1 if chance.random() < 0.95 else 3)) % 2**32
        if chance.random() < 0.003:
            packet_id = 1
        # Plain ones in a row, so that runs are long now and then.
        if chance.random() < 0.05:
            plain = not plain
        datagram = make_packet(packet_id) if plain else a_packet(chance, packet_id)
        if chance.random() < 0.02:
            datagram += make_packet(packet_id := packet_id + 1)
        notes = (Note("overrun", {"count": 2}),) if chance.random() < 0.01 else ()
        records.append(Record(time_ns, FROM, datagram, notes))
        if chance.random() < 0.02:
            mode, room = chance.choice(((CopyMode.PACKET, 0xFFFF), (CopyMode.META, 0)))
            request = make_config(copy_mode=mode, copy_range=room)
            records.append(Record(time_ns, TO, request))
        if chance.random() < 0.05:
            records.append(Record(time_ns, TO, make_verdict(packet_id)))
    return records


def a_verdict(chance: random.Random, known: list[int], *, marked: bool, wrong: bool) -> bytes:
    """Mostly right; with wrong ids, codes and queues, too."""
    guessed = not known or (wrong and chance.random() < 0.1)
    packet_id = chance.getrandbits(32) if guessed else chance.choice(known)
    batch = chance.random() < 0.02
    if not batch and packet_id in known and not (wrong and chance.random() < 0.1):
        known.remove(packet_id)
    more: dict[str, Any] = {}
    if marked:
        more["mark"] = chance.getrandbits(32)
    if not batch and chance.random() < 0.005:
        more["payload"] = udp_packet(b"new")
    code = (
        VerdictCode.ACCEPT
        if chance.random() < 0.7
        else chance.choice((0, 3, 4, 5, 0x90003) + (2,) * wrong)
    )
    queue = 9 if wrong and chance.random() < 0.01 else 0
    ack = wrong and chance.random() < 0.02
    return make_verdict(packet_id, code, queue=queue, ack=ack, batch=batch, **more)


def story(seed: int, source: object) -> Iterator[object]:
    """All that a program can see of a replay."""
    chance = random.Random(seed)
    backend = trionfq.ReplayBackend(source, seed=seed)  # type: ignore[arg-type]
    flags = chance.choice((0, int(QueueFlags.GSO | QueueFlags.UID_GID)))
    backend.send_nowait(make_bind(copy_range=chance.choice((0xFFFF, 60)), flags=flags, max_len=120))
    for turn in range(50):
        yield backend.receive_nowait(1000)  # answers, which come alone
        yield backend.receive_nowait(chance.choice((1, 8, 64)))
        known = [each.packet_id for each in backend.transcript if each.verdict is None]
        if turn == 30:
            backend.send_nowait(make_config(copy_mode=CopyMode.META, copy_range=0))
        waiting = list(known)
        marked, count = chance.random() < 0.2, chance.randrange(1, 40)
        wrong = chance.random() < 0.3
        sent = [
            a_verdict(chance, waiting, marked=marked, wrong=wrong)
            for _ in range(count if wrong else min(count, len(waiting)))
        ]
        if sent:
            backend.send_nowait(b"".join(sent))
        if waiting and chance.random() < 0.15:
            backend.send_nowait(make_verdict(waiting[len(waiting) // 2], batch=True))
        yield backend.queues(), backend.now_ns(), backend.judged
        if turn % 10 == 0:
            yield backend.transcript
    yield backend.transcript, backend.shortfalls
    yield [(o.arrived_ns, o.decided_ns) for o in backend.transcript]
    backend.close()


@pytest.mark.parametrize("seed", range(8))
def test_quick_and_thorough_ways_cannot_be_told_apart(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = a_recording(seed)
    used: set[str] = set()
    for name in ("deliver_run", "_deliver_unchanged", "_settle"):
        own = getattr(Feed, name)

        def spied(*told: Any, own: Any = own, name: str = name) -> Any:
            found = own(*told)
            if found:
                used.add(name)
            return found

        monkeypatch.setattr(Feed, name, spied)
    quick = list(story(seed, source))
    assert used == {"deliver_run", "_deliver_unchanged", "_settle"}
    monkeypatch.setattr(Feed, "deliver_run", lambda *_: 0)
    monkeypatch.setattr(Feed, "_deliver_unchanged", lambda *_: False)
    monkeypatch.setattr(SentCheck, "runs", lambda *_: None)
    assert list(story(seed, source)) == quick


def test_packets_of_a_known_form_are_not_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    known = _replay_forms.Forms.__init__

    def counted(self: Any, reader: Any, judge: Any) -> None:
        def count(*told: Any) -> Any:
            judged.append(told)
            return judge(*told)

        known(self, reader, count)

    monkeypatch.setattr(_replay_forms.Forms, "__init__", counted)
    source = [make_packet(n, mark=n) for n in range(1, 101)]
    backend = trionfq.ReplayBackend(source)
    backend.send_nowait(make_bind())
    backend.receive_nowait(1)
    assert backend.receive_nowait(200).datagrams == source
    assert len(judged) == 1


def test_the_sample_of_verdicts_in_a_row_is_that_of_single_ones() -> None:
    many = b"".join(make_verdict(n, n % 2) for n in range(1, 41))

    def judged(*, in_rows: bool) -> list[int]:
        check = SentCheck("sample", 5)
        check.messages(many)
        counts = []
        for _ in range(200):
            if not in_rows:
                check.messages(many)
            else:
                assert check.runs(many) is not None
            counts.append(check.judged)
        return counts

    assert judged(in_rows=True) == judged(in_rows=False)
    assert judged(in_rows=True)[-1] > 3
