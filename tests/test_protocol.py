"""The protocol machine by itself: what it sends is read back by the schema."""

from __future__ import annotations

import errno
import gc
import threading

import pytest

from trionfq import schema
from trionfq._config import QueueConfig
from trionfq._errors import (
    AlreadyDecidedError,
    LocalProtocolError,
    PrivilegeError,
    RemoteProtocolError,
    VerdictRefusedError,
)
from trionfq._packet import Packet
from trionfq._protocol import QueueProtocol
from trionfq._verdict import Verdict, plain_decision
from trionfq.schema import ErrorMessage, Message, attr, by_name
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfqueue import NFQA, NFQA_CFG, ConfigCommand, CopyMode, MessageType, QueueFlags

MOST = 65536
IPV4 = bytes.fromhex("4500001c00010000401166ce0a0000010a000002") + bytes.fromhex("0035003500080000")


def arrival(packet_id, *, queue=7, family=2, payload=IPV4, **attributes):
    header = {"packet_id": packet_id, "hw_protocol": 0x0800, "hook": 3}
    members = [attr(NFQA, "packet_hdr", header)]
    members += [attr(NFQA, name, value) for name, value in attributes.items()]
    if payload is not None:
        members.append(attr(NFQA, "payload", payload))
    return schema.build([Message(MessageType.PACKET, 0, 0, 0, family, 0, queue, tuple(members))])


def refusal(packet_id, code, *, kind=MessageType.VERDICT):
    request = (32, kind, 1, packet_id, 0)
    flags = MessageFlags.CAPPED
    return schema.build([ErrorMessage(flags, packet_id, 99, -code, request, b"", ())])


def machine(count=0, first=1, **options):
    protocol = QueueProtocol(QueueConfig(7, **options.pop("config", {})), **options)
    packets = protocol.receive([arrival(first + n & 0xFFFFFFFF) for n in range(count)])
    return protocol, packets


def sent(protocol, most=MOST):
    """What a flush sends: per datagram a list of (kind, id, verdict, other attributes)."""
    return [[summary(m) for m in schema.parse(d)] for d in protocol.flush(most)]


def summary(message):
    members = by_name(NFQA, message.attributes)
    header = members.pop("verdict_hdr")
    assert message.seq == header["id"]
    assert message.res_id == 7
    kind = "batch" if message.type == MessageType.VERDICT_BATCH else "one"
    return kind, header["id"], header["verdict"], members


def test_set_up_is_one_message_with_everything_in_it():
    protocol, _ = machine(
        config={"copy_range": 200, "max_len": 5, "flags": QueueFlags.GSO | QueueFlags.FAIL_OPEN}
    )
    sequence, datagram = protocol.bind_request()
    (message,) = schema.parse(datagram)
    assert message.seq == sequence
    assert message.flags == MessageFlags.REQUEST | MessageFlags.ACK
    assert by_name(NFQA_CFG, message.attributes) == {
        "cmd": {"command": ConfigCommand.BIND, "pad": 0, "pf": 0},
        "params": {"copy_range": 200, "copy_mode": CopyMode.PACKET},
        "queue_maxlen": 5,
        "flags": 5,
        "mask": 5,
    }


def test_equal_plain_verdicts_of_all_packets_leave_as_one_batch():
    protocol, packets = machine(5)
    for packet in packets:
        packet.accept()
    assert sent(protocol) == [[("batch", 5, 1, {})]]
    assert not protocol.pending
    assert protocol.counts.batches_sent == 1
    assert protocol.counts.verdicts[Verdict.ACCEPT] == 5


def test_batch_names_the_highest_id_whatever_the_order_of_verdicts():
    protocol, packets = machine(5)
    for packet in reversed(packets):
        packet.accept()
    assert sent(protocol) == [[("batch", 5, 1, {})]]


def test_one_verdict_is_no_batch_so_its_refusal_is_exact():
    protocol, packets = machine(1)
    packets[0].accept()
    assert sent(protocol) == [[("one", 1, 1, {})]]


def test_held_packet_is_never_swept_into_a_batch():
    protocol, packets = machine(4)
    packets[1].hold()
    for packet in (packets[0], packets[2], packets[3]):
        packet.accept()
    assert sent(protocol) == [[("one", 1, 1, {}), ("one", 3, 1, {}), ("one", 4, 1, {})]]
    packets[1].accept()
    assert sent(protocol) == [[("one", 2, 1, {})]]


def test_batch_up_to_the_lowest_undecided_id_is_still_made():
    protocol, packets = machine(6)
    for packet in packets[:4]:
        packet.accept()
    assert sent(protocol) == [[("batch", 4, 1, {})]]


def test_packets_read_ahead_count_as_undecided():
    protocol, packets = machine(3)
    protocol.receive([arrival(4), arrival(5)])
    packets[2].accept()
    packets[1].accept()
    assert sent(protocol) == [[("one", 2, 1, {}), ("one", 3, 1, {})]]


def test_mixed_verdicts_leave_in_order_of_ids_as_equal_runs_in_one_datagram():
    protocol, packets = machine(7)
    packets[6].drop()
    packets[5].drop()
    packets[0].accept()
    packets[1].accept()
    packets[2].accept(mark=9)
    packets[3].accept(mark=9)
    packets[4].accept(payload=IPV4)
    assert sent(protocol) == [
        [
            ("batch", 2, 1, {}),
            ("batch", 4, 1, {"mark": 9}),
            ("one", 5, 1, {"payload": IPV4}),
            ("batch", 7, 0, {}),
        ]
    ]


@pytest.mark.parametrize("backwards", [False, True])
def test_verdicts_of_one_form_leave_with_a_mark_of_their_own_each(backwards):
    protocol, packets = machine(5)
    told = [
        lambda p: p.accept(mark=7),
        lambda p: p.stop(mark=2**32 - 1),
        lambda p: p.accept(mark=0),
        lambda p: p.accept(mark=8, priority=3),
        lambda p: p.requeue(9, mark=1),
    ]
    pairs = [*zip(packets, told, strict=True)]
    for packet, decide in reversed(pairs) if backwards else pairs:
        decide(packet)
    assert sent(protocol) == [
        [
            ("one", 1, 1, {"mark": 7}),
            ("one", 2, 5, {"mark": 2**32 - 1}),
            ("one", 3, 1, {"mark": 0}),
            ("one", 4, 1, {"mark": 8, "priority": 3}),
            ("one", 5, 9 << 16 | 3, {"mark": 1}),
        ]
    ]


def test_ids_wrap_past_two_to_the_32():
    protocol, packets = machine(6, first=2**32 - 3)
    assert [p.id for p in packets] == [2**32 - 3, 2**32 - 2, 2**32 - 1, 0, 1, 2]
    packets[2].hold()
    for packet in packets[:2] + packets[3:]:
        packet.accept()
    assert sent(protocol) == [
        [
            ("batch", 2**32 - 2, 1, {}),
            ("one", 0, 1, {}),
            ("one", 1, 1, {}),
            ("one", 2, 1, {}),
        ]
    ]
    assert protocol.packets_lost == 0


def test_id_gaps_are_counted_as_loss():
    protocol, _ = machine(2)
    protocol.receive([arrival(10), arrival(11), arrival(13)])
    assert protocol.packets_lost == 8
    assert protocol.counts.packets_received == 5


def test_an_undecided_id_that_comes_again_is_not_handed_out_twice():
    protocol, packets = machine(3)
    again = protocol.receive([arrival(2), arrival(4)])
    assert [p.id for p in again] == [4]
    (error,) = protocol.undecodable
    assert "packet id 2 came again" in str(error)
    for packet in packets + again:
        packet.accept()
    assert sent(protocol) == [[("batch", 4, 1, {})]]


def test_second_verdict_raises_and_sends_nothing():
    protocol, (packet,) = machine(1)
    packet.drop()
    with pytest.raises(AlreadyDecidedError, match="already has the verdict DROP"):
        packet.accept()
    with pytest.raises(AlreadyDecidedError):
        packet.set_payload(IPV4)
    with pytest.raises(AlreadyDecidedError):
        packet.hold()
    assert sent(protocol) == [[("one", 1, 0, {})]]
    with pytest.raises(AlreadyDecidedError):
        packet.accept(mark=1)
    assert sent(protocol) == []


def test_verdict_from_another_thread_is_refused_and_names_the_way():
    protocol, (packet,) = machine(1)
    caught = []

    def other():
        for call in (packet.accept, packet.drop, packet.hold):
            try:
                call()
            except RuntimeError as error:
                caught.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(caught) == 3
    assert all("trio.from_thread.run_sync" in text for text in caught)
    assert not protocol.pending
    packet.accept()


def test_after_the_binding_no_packet_can_be_decided():
    protocol, packets = machine(2)
    packets[0].accept()
    protocol.end(Verdict.DROP, MOST)
    for packet in packets:
        with pytest.raises(LocalProtocolError, match="binding of queue 7 has ended"):
            packet.drop()
    assert not protocol.pending


def test_requeue_carries_number_and_bypass():
    protocol, packets = machine(3)
    packets[0].requeue(9)
    packets[1].requeue(9, bypass=True)
    packets[2].requeue(65535)
    assert [code for _, _, code, _ in sent(protocol)[0]] == [0x90003, 0x98003, 0xFFFF0003]


def test_repeat_demands_a_mark_or_an_explicit_word():
    protocol, packets = machine(3)
    with pytest.raises(LocalProtocolError, match="allow_loop=True"):
        packets[0].repeat()
    packets[0].repeat(mark=0x10)
    packets[1].repeat(allow_loop=True)
    packets[2].stop()
    assert [(code, rest) for _, _, code, rest in sent(protocol)[0]] == [
        (4, {"mark": 16}),
        (4, {}),
        (5, {}),
    ]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"mark": -1}, LocalProtocolError, "mark: expected 0 to 0xffffffff"),
        ({"mark": 2**32}, LocalProtocolError, "got 0x100000000"),
        ({"mark": True}, TypeError, "mark: expected an integer, got bool"),
        ({"priority": "high"}, TypeError, "priority: expected an integer, got str"),
        ({"payload": "text"}, TypeError, "payload: expected bytes, got str"),
        ({"payload": b""}, LocalProtocolError, "at least 20 bytes"),
        ({"vlan": (0x8100, 5)}, LocalProtocolError, "bridge family"),
        ({"l2hdr": bytes(14)}, LocalProtocolError, "bridge family"),
        ({"connmark": 1}, LocalProtocolError, "QueueFlags.CONNTRACK"),
        ({"ct_labels": bytes(3)}, LocalProtocolError, "16 bytes, got 3"),
        ({"colour": 1}, TypeError, "unknown change: colour"),
    ],
)
def test_a_change_that_cannot_be_made_raises_and_leaves_the_packet_undecided(changes, error, text):
    protocol, (packet,) = machine(1)
    with pytest.raises(error, match=text):
        packet.accept(**changes)
    assert not packet.decided
    packet.accept()
    assert sent(protocol) == [[("one", 1, 1, {})]]


def test_payload_set_before_the_verdict_leaves_with_it_repaired():
    protocol, (packet,) = machine(1)
    packet.payload = IPV4 + b"more"
    assert packet.payload[2:4] == (32).to_bytes(2, "big")
    assert packet.payload[24:26] == (12).to_bytes(2, "big")
    new = packet.payload
    packet.accept(mark=3)
    assert packet.payload == new
    assert sent(protocol) == [[("one", 1, 1, {"payload": new, "mark": 3})]]


def test_repair_can_be_switched_off():
    protocol, (packet,) = machine(1)
    assert packet.set_payload(IPV4 + b"more", repair=False) == ()
    packet.accept()
    assert sent(protocol) == [[("one", 1, 1, {"payload": IPV4 + b"more"})]]


def test_dropping_forgets_the_new_payload():
    protocol, (packet,) = machine(1)
    packet.payload = IPV4 + b"more"
    packet.drop()
    assert sent(protocol) == [[("one", 1, 0, {})]]


def test_truncated_packet_is_never_echoed_back_as_a_rewrite():
    protocol, _ = machine()
    (packet,) = protocol.receive([arrival(1, cap_len=1000)])
    assert packet.truncated
    assert packet.original_length == 1000
    with pytest.raises(LocalProtocolError, match="copied only in part"):
        packet.payload = packet.payload
    with pytest.raises(LocalProtocolError, match="copy_range"):
        packet.accept(payload=packet.payload)
    packet.accept()
    assert sent(protocol) == [[("one", 1, 1, {})]]


def test_metadata_only_mode_says_that_there_is_no_payload():
    protocol, _ = machine(config={"copy_mode": CopyMode.META})
    (packet,) = protocol.receive([arrival(1, payload=None, mark=5)])
    with pytest.raises(LocalProtocolError, match=r"CopyMode\.PACKET"):
        _ = packet.payload
    assert packet.mark == 5
    packet.accept()


def test_datagrams_are_cut_where_they_no_longer_fit():
    protocol, packets = machine(100)
    packets[0].hold()
    for packet in packets[1:]:
        packet.accept()
    datagrams = protocol.flush(320)
    assert [len(d) for d in datagrams] == [320] * 9 + [288]
    ids = [m.seq for d in datagrams for m in schema.parse(d)]
    assert ids == list(range(2, 101))


def bridged(packet_id):
    return arrival(packet_id, family=7, l2hdr=bytes(14))


def test_refused_verdict_names_its_packet_which_is_undecided_again():
    protocol, _ = machine()
    packets = protocol.receive([arrival(1), bridged(2), arrival(3)])
    packets[1].accept(vlan=(0x8100, 5))
    packets[0].accept()
    packets[2].accept()
    # The refusable verdict keeps 3 from being batched over it until its answer must have come.
    (messages,) = sent(protocol)
    assert [(kind, number) for kind, number, _, _ in messages] == [
        ("one", 1),
        ("one", 2),
        ("one", 3),
    ]
    protocol.receive([refusal(2, errno.ERANGE)])
    (told,) = protocol.refusals
    assert isinstance(told.error, VerdictRefusedError)
    assert told.error.packet_id == 2
    assert told.error.errno == errno.ERANGE
    assert told.packet is packets[1]
    assert not packets[1].decided
    later = protocol.receive([arrival(4), arrival(5)])
    for packet in later:
        packet.accept()
    assert [(k, i) for k, i, _, _ in sent(protocol)[0]] == [("one", 4), ("one", 5)]
    packets[1].accept()
    assert [(k, i) for k, i, _, _ in sent(protocol)[0]] == [("one", 2)]


def test_settled_verdicts_can_be_batched_over():
    protocol, _ = machine()
    packets = protocol.receive([bridged(1), arrival(2), arrival(3)])
    packets[0].accept(vlan=(0x8100, 5))
    protocol.flush(MOST)
    protocol.settled()
    packets[1].accept()
    packets[2].accept()
    assert sent(protocol) == [[("batch", 3, 1, {})]]


def test_a_change_of_the_connection_is_waited_for_by_nothing():
    """The kernel ignores what it dislikes of it, and refuses no verdict for it (nfqnl_ct_parse)."""
    protocol, _ = machine(config={"flags": QueueFlags.CONNTRACK})
    packets = protocol.receive([arrival(1, ct=()), arrival(2), arrival(3)])
    packets[0].accept(connmark=5)
    packets[1].accept()
    packets[2].accept()
    [messages] = sent(protocol)
    assert [(kind, number) for kind, number, _, _ in messages] == [("one", 1), ("batch", 3)]
    assert not protocol.unsettled


def test_bridge_change_that_the_kernel_refuses_has_lost_the_packet():
    protocol, _ = machine()
    (packet,) = protocol.receive([arrival(1, family=7, l2hdr=bytes(14))])
    packet.accept(l2hdr=b"x" * 14)
    protocol.flush(MOST)
    protocol.receive([refusal(1, errno.EINVAL)])
    (told,) = protocol.refusals
    assert told.error.dropped
    assert packet.decided


def test_verdict_for_a_flushed_packet_is_counted_and_nothing_else():
    protocol, packets = machine(2)
    for packet in packets:
        packet.accept()
    protocol.flush(MOST)
    protocol.receive([refusal(2, errno.ENOENT, kind=MessageType.VERDICT_BATCH)])
    assert protocol.counts.verdicts_gone == 1
    assert not protocol.refusals
    assert protocol.failure is None


@pytest.mark.parametrize(("code", "kind"), [(errno.EPERM, PrivilegeError), (errno.ENODEV, OSError)])
def test_losing_the_queue_is_a_failure_at_once(code, kind):
    protocol, packets = machine(2)
    packets[0].accept()
    protocol.flush(MOST)
    protocol.receive([refusal(1, code)])
    assert isinstance(protocol.failure, kind)
    assert protocol.failure.errno == code


def test_undecodable_message_with_a_readable_id_gets_the_policy():
    protocol, packets = machine(1, policy=Verdict.ACCEPT)
    broken = bytearray(arrival(2, mark=1))
    broken[32:34] = (3).to_bytes(2, "little")  # nla_len of the mark: shorter than its header
    assert protocol.receive([bytes(broken)]) == []
    (error,) = protocol.undecodable
    assert isinstance(error, RemoteProtocolError)
    assert error.datagram == bytes(broken)
    packets[0].accept()
    assert sent(protocol) == [[("batch", 2, 1, {})]]


def test_undecodable_message_without_an_id_is_counted_and_kept():
    protocol, _ = machine()
    assert protocol.receive([b"\x10", bytes(15)]) == []
    assert protocol.counts.undecodable == len(protocol.undecodable) == 2
    assert not protocol.pending


def test_an_undecodable_message_keeps_no_packets_alive():
    """An exception's traceback would hold all that was read with it, and whoever read it."""
    protocol, _ = machine()
    broken = bytearray(arrival(2, mark=1))
    broken[32:34] = (3).to_bytes(2, "little")
    known = set(map(id, packets_alive()))
    packets = protocol.receive([arrival(1), bytes(broken), arrival(3)])
    for packet in packets:
        packet.accept()
    protocol.flush(MOST)
    del packets, packet
    assert len(protocol.undecodable) == 1
    assert {id(packet) for packet in packets_alive()} <= known


def packets_alive():
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, Packet)]


def test_verdict_by_id_follows_the_same_rules():
    protocol, packets = machine(3)
    accept = packets[0]
    with pytest.raises(LocalProtocolError, match="no packet 4 has come"):
        protocol.decide_id(4, (1,))
    accept.accept()
    protocol.flush(MOST)
    with pytest.raises(AlreadyDecidedError):
        protocol.decide_id(1, (1,))


def test_inherited_socket_does_not_batch_before_its_ledger_has_come():
    protocol, packets = machine(3, first=20, inherited=True)
    for packet in packets:
        packet.accept()
    assert [(k, i) for k, i, _, _ in sent(protocol)[0]] == [("one", 20), ("one", 21), ("one", 22)]


def test_ledger_of_the_other_process_keeps_its_packets_from_being_swept():
    protocol, packets = machine(2, first=20, inherited=True, ledger=[17, 19])
    for packet in packets:
        packet.accept()
    assert [(k, i) for k, i, _, _ in sent(protocol)[0]] == [("one", 20), ("one", 21)]
    assert protocol.decide_up_to(19, plain_decision(Verdict.DROP)) == 2
    assert sent(protocol) == [[("batch", 19, 0, {})]]


def test_a_ledger_in_any_order_keeps_its_packets_from_being_swept():
    protocol, _ = machine(1, first=20, inherited=True, ledger=(19, 16, 17, 18))
    told = plain_decision(Verdict.DROP)
    protocol.decide_id(17, told)
    protocol.decide_id(18, told)
    assert [(k, i) for k, i, _, _ in sent(protocol)[0]] == [("one", 17), ("one", 18)]
    assert protocol.undecided_ids == [16, 19, 20]
    assert protocol.last_id == 20


def test_a_ledger_is_in_order_across_the_wrap():
    protocol, _ = machine(inherited=True, ledger=(2, 2**32 - 1))
    assert protocol.last_id == 2
    assert protocol.undecided_ids == [2**32 - 1, 2]


def test_what_the_other_process_has_decided_is_not_lost():
    protocol, _ = machine(1, first=30, inherited=True, ledger=[17, 19])
    assert protocol.packets_lost == 0
    protocol.receive([arrival(33)])
    assert protocol.packets_lost == 2
    protocol, _ = machine(1, first=20, inherited=True, ledger=[17, 19])
    protocol.receive([arrival(23)])
    assert protocol.packets_lost == 2


@pytest.mark.parametrize("ledger", [None, [5]])
def test_what_is_no_packet_id_is_refused_before_it_could_break_a_flush(ledger):
    protocol, _ = machine(inherited=True, ledger=ledger)
    told = plain_decision(Verdict.ACCEPT)
    for decide in (protocol.decide_id, protocol.decide_up_to):
        for wrong in (-1, 2**32):
            with pytest.raises(LocalProtocolError, match="packet id: expected 0 to 0xffffffff"):
                decide(wrong, told)
        with pytest.raises(TypeError, match="packet id: expected an integer, got str"):
            decide("7", told)
    assert not protocol.pending


def test_a_late_answer_is_not_kept_for_ever():
    protocol, _ = machine()
    request = (32, MessageType.CONFIG, 5, 0, 0)
    for _ in range(5):
        sequence, _ = protocol.reconfigure(protocol.config)
        for late in range(sequence + 1):
            answer = ErrorMessage(MessageFlags.CAPPED, late, 99, 0, request, b"", ())
            protocol.receive([schema.build([answer])])
    assert list(protocol.answers) == [sequence]


def closing(protocol, policy):
    *verdicts, last = protocol.end(policy, MOST)
    return [[summary(m) for m in schema.parse(d)] for d in verdicts], schema.parse(last)


def test_closing_with_accept_is_fail_open_then_batch_then_unbind_in_one_datagram():
    protocol, packets = machine(4, config={"flags": QueueFlags.GSO})
    packets[0].accept()
    packets[2].accept()
    verdicts, (opened, batch, unbound) = closing(protocol, Verdict.ACCEPT)
    assert verdicts == [[("one", 1, 1, {}), ("one", 3, 1, {})]]
    limits = by_name(NFQA_CFG, opened.attributes)
    assert limits["queue_maxlen"] == 0
    assert limits["flags"] & limits["mask"] & QueueFlags.FAIL_OPEN
    # Counted from the lowest undecided id, 2: the kernel's walk stops 2**31 - 1 ahead.
    assert summary(batch)[:3] == ("batch", 2 + 2**31 - 1, 1)
    assert by_name(NFQA_CFG, unbound.attributes)["cmd"]["command"] == ConfigCommand.UNBIND
    assert all(m.flags == MessageFlags.REQUEST for m in (opened, batch, unbound))


def test_closing_with_accept_counts_from_the_next_id_where_nothing_is_undecided():
    protocol, packets = machine(3)
    for packet in packets:
        packet.drop()
    _, (_, batch, _) = closing(protocol, Verdict.ACCEPT)
    assert summary(batch)[1] == 4 + 2**31 - 1


def test_closing_an_inherited_socket_with_accept_takes_two_batches():
    protocol, _ = machine(2, first=20, inherited=True)
    _, (_, first, second, _) = closing(protocol, Verdict.ACCEPT)
    assert [summary(m)[1] for m in (first, second)] == [21, 21 + 2**31 - 2]


def test_closing_with_drop_only_unbinds():
    protocol, _ = machine(3)
    verdicts, (unbound,) = closing(protocol, Verdict.DROP)
    assert verdicts == []
    assert unbound.type == MessageType.CONFIG
