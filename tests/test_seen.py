"""What the kernel tests exchange with a kernel is noted as it was, and docs/kernels.* says so."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from tests.guest import kernels
from tests.kernel._rows import ROWS
from tests.kernel._seen import Sighting, Watch
from tests.kernel._shown import NOT_SEEN, SHOWN
from trionfq import NetlinkBackend, schema
from trionfq.schema import Attr, attr
from trionfq.schema.conntrack import CTA, CTA_HELP, CTA_IP, CTA_TUPLE
from trionfq.schema.nfqueue import (
    NFQA,
    ConfigCommand,
    CopyMode,
    Family,
    Hook,
    QueueFlags,
    SkbInfo,
    VerdictCode,
)
from trionfq.testing import make_bind, make_config, make_packet, make_verdict


class Socket:
    """Stands for a backend."""


def answer(error: int, seq: int) -> bytes:
    """How the kernel acknowledges or refuses a request."""
    request = (32, 0x0301, 5, seq, 0)
    return schema.build([schema.ErrorMessage(0x100, seq, 0, -error, request, b"", ())])


def seen(*, received: Any = (), sent: Any = ()) -> set[str]:
    """The rows of some datagrams that were sent, and then some that came."""
    sighting, socket = Sighting(), Socket()
    for datagram in sent:
        sighting.sent(socket, datagram)
    sighting.received(socket, received)
    return set(sighting.settled())


TUPLE = (attr(CTA_TUPLE, "ip", (attr(CTA_IP, "v4_src", bytes(4)),)),)
CONNECTION = (attr(CTA, "tuple_orig", TUPLE), attr(CTA, "mark", 7))


# --- what a test saw ------------------------------------------------------------------------------


def test_attributes_nests_and_flags_of_a_packet_are_seen() -> None:
    flags = SkbInfo.GSO | SkbInfo.CSUMNOTREADY
    packet = make_packet(1, mark=3, vlan=(0x8100, 5), ct=CONNECTION, skb_info=flags)
    assert seen(received=[packet]) == {
        "packet NFQA_PACKET_HDR",
        "packet NFQA_MARK",
        "packet NFQA_VLAN",
        "packet NFQA_VLAN_PROTO",
        "packet NFQA_VLAN_TCI",
        "packet NFQA_CT",
        "packet CTA_TUPLE_ORIG",
        "packet CTA_TUPLE_IP",
        "packet CTA_IP_V4_SRC",
        "packet CTA_MARK",
        "packet NFQA_SKB_INFO",
        "packet NFQA_SKB_CSUMNOTREADY",
        "packet NFQA_SKB_GSO",
        "packet NFQA_PAYLOAD",
    }


def test_the_last_packet_of_many_is_looked_at_too() -> None:
    packets = [make_packet(number) for number in range(1, 1000)]
    assert "packet NFQA_UID" in seen(received=[*packets, make_packet(1000, uid=5)])
    assert "verdict NF_STOP" in seen(
        sent=[b"".join([*map(make_verdict, range(1, 256)), make_verdict(256, VerdictCode.STOP)])]
    )


def test_an_attribute_that_nobody_declared_is_told() -> None:
    nest = (*CONNECTION, Attr(60, b"1234"))
    packet = make_packet(1, extra=[Attr(50, b"new")], ct=nest)
    rows = seen(received=[packet])
    assert {row for row in rows if "#" in row} == {"packet NFQA_#50", "packet NFQA_CT #60"}
    # What a test sends may be anything.
    assert not any("#" in row for row in seen(sent=[make_verdict(1).replace(b"\2\0", b"\x32\0")]))


@pytest.mark.parametrize(
    ("code", "batch", "row"),
    [
        (VerdictCode.DROP, False, "verdict NF_DROP"),
        (5 << 16 | VerdictCode.QUEUE, False, "verdict NF_QUEUE"),
        (VerdictCode.STOP, True, "batch NF_STOP"),
    ],
)
def test_a_verdict_is_seen_by_its_code(code: int, batch: bool, row: str) -> None:
    word = row.split()[0]
    wanted = {row, f"{word} NFQA_VERDICT_HDR", f"{word} NFQA_MARK"}
    assert seen(sent=[make_verdict(1, code, batch=batch, mark=1)]) == wanted


def test_a_payload_of_a_batch_is_no_row() -> None:
    """The kernel ignores it."""
    assert "batch NFQA_PAYLOAD" not in seen(sent=[make_verdict(1, batch=True, payload=b"x")])


def test_a_configuration_is_seen_by_command_mode_and_flags() -> None:
    flags = QueueFlags.GSO | QueueFlags.SECCTX
    assert seen(sent=[make_bind(0, max_len=4, flags=flags)]) == {
        "config NFQA_CFG_CMD",
        "config NFQNL_CFG_CMD_BIND",
        "config NFQA_CFG_PARAMS",
        "config NFQNL_COPY_PACKET",
        "config NFQA_CFG_QUEUE_MAXLEN",
        "config NFQA_CFG_MASK",
        "config NFQA_CFG_FLAGS",
        "config NFQA_CFG_F_GSO",
        "config NFQA_CFG_F_SECCTX",
    }
    assert "config NFQNL_COPY_NONE" in seen(sent=[make_config(copy_mode=CopyMode.NONE)])


def test_what_the_kernel_refused_was_not_taken() -> None:
    sent = [make_verdict(1, VerdictCode.STOLEN), make_verdict(2, VerdictCode.DROP)]
    rows = seen(sent=sent, received=[answer(22, 1)])
    assert rows == {"verdict NFQA_VERDICT_HDR", "verdict NF_DROP"}


def test_what_was_acknowledged_stays_taken() -> None:
    """A sequence number may be used again."""
    sighting, socket = Sighting(), Socket()
    sighting.sent(socket, make_verdict(1, VerdictCode.STOP, seq=9))
    sighting.received(socket, [answer(0, 9)])
    sighting.sent(socket, make_verdict(2, VerdictCode.STOLEN, seq=9))
    sighting.received(socket, [answer(22, 9)])
    assert sighting.settled() == ["verdict NFQA_VERDICT_HDR", "verdict NF_STOP"]


def test_an_answer_is_the_answer_of_one_socket() -> None:
    sighting, one, other = Sighting(), Socket(), Socket()
    sighting.sent(one, make_verdict(1, VerdictCode.STOP))
    sighting.received(other, [answer(22, 1)])
    assert "verdict NF_STOP" in sighting.settled()


def test_what_may_be_ignored_without_a_word_counts_where_it_is_heeded() -> None:
    help_of = (attr(CTA, "help", (attr(CTA_HELP, "name", b"\0"),)),)
    verdict = make_verdict(1, ct=help_of, l2hdr=bytes(14))
    taken = {"verdict NFQA_VERDICT_HDR", "verdict NF_ACCEPT"}
    assert seen(sent=[verdict]) == taken
    conntrack = {"verdict NFQA_CT", "verdict CTA_HELP", "verdict CTA_HELP_NAME"}
    rows = seen(sent=[verdict], received=[make_packet(ct=CONNECTION)])
    assert {row for row in rows if row.startswith("verdict")} == taken | conntrack
    bridged = make_packet(family=Family.BRIDGE, hook=Hook.FORWARD, l2hdr=bytes(14))
    rows = seen(sent=[verdict], received=[bridged])
    assert {row for row in rows if row.startswith("verdict")} == taken | {"verdict NFQA_L2HDR"}


def test_garbage_is_no_sight() -> None:
    packet = make_packet()
    for length in range(len(packet)):
        assert "packet NFQA_PAYLOAD" not in seen(received=[packet[:length]])
    assert seen(received=[b"\xff" * 64], sent=[b"\xff" * 64, b""]) == set()


def test_a_sighting_keeps_no_backend_alive() -> None:
    sighting, socket = Sighting(), Socket()
    sighting.sent(socket, make_verdict(1, VerdictCode.STOP))
    gone = weakref.ref(socket)
    del socket
    gc.collect()
    assert gone() is None
    assert "verdict NF_STOP" in sighting.settled()


def test_a_watch_sees_every_backend_and_leaves_no_trace() -> None:
    before = NetlinkBackend.receive_nowait, NetlinkBackend.send_nowait
    nothing = make_config(0, command=ConfigCommand.NONE)  # refused to everybody
    backend = NetlinkBackend()
    try:
        watch = Watch()
        watch.start()
        backend.send_nowait(nothing)
        assert "config NFQNL_CFG_CMD_NONE" in watch.stop()
        backend.receive_nowait(9)
        watch = Watch()
        watch.start()
        backend.send_nowait(nothing)
        assert len(backend.receive_nowait(9).datagrams) == 1
        assert watch.stop() == []
        assert (NetlinkBackend.receive_nowait, NetlinkBackend.send_nowait) == before
    finally:
        backend.close()


# --- the table ------------------------------------------------------------------------------------


def test_every_attribute_of_the_schema_is_a_row() -> None:
    assert len(set(ROWS)) == len(ROWS)
    for known in NFQA.attributes:
        constant = NFQA.constant(known.number)
        directions = {row.split()[0] for row in ROWS if row.split()[1] == constant}
        assert ("packet" in directions) == bool(known.direction & schema.Direction.FROM_KERNEL)
        assert ("verdict" in directions) == bool(known.direction & schema.Direction.TO_KERNEL)
    for known in CTA.attributes:
        constant = CTA.constant(known.number)
        assert any(row.endswith(f" {constant}") for row in ROWS), constant
    for code in VerdictCode:
        assert {f"verdict NF_{code.name}", f"batch NF_{code.name}"} <= set(ROWS)
    assert {f"config NFQA_CFG_F_{flag.name}" for flag in QueueFlags} <= set(ROWS)
    assert {f"config NFQNL_CFG_CMD_{command.name}" for command in ConfigCommand} <= set(ROWS)
    assert {f"config NFQNL_COPY_{mode.name}" for mode in CopyMode} <= set(ROWS)
    assert {f"packet NFQA_SKB_{flag.name}" for flag in SkbInfo} <= set(ROWS)


def test_each_row_was_seen_or_has_a_reason() -> None:
    assert kernels.faults(kernels.read()) == []


def test_the_page_is_made_of_the_table() -> None:
    """After a change by hand: python -m tests.guest.kernels."""
    assert kernels.PAGE.read_text() == kernels.page(kernels.read())


def test_each_test_that_is_named_is_there() -> None:
    for name in set(SHOWN.values()):
        file, _, function = name.partition("::")
        assert f"def {function}(" in (kernels.KERNEL_TESTS / file).read_text(), name


RELEASES = {"6.1": "6.1.0-56-amd64", "6.18": "6.18.44"}
MARK, STOP = "packet NFQA_MARK", "verdict NF_STOP"


def of_a_run() -> dict[str, dict[str, set[str]]]:
    """What both kernels saw where all is well: each row by the test that shows it."""
    return {kernel: {row: {test} for row, test in SHOWN.items()} for kernel in RELEASES}


def table() -> kernels.Table:
    return kernels.table_of(of_a_run(), RELEASES)


def test_a_run_like_the_table_has_no_differences() -> None:
    assert kernels.differences(table(), of_a_run()) == []
    assert kernels.faults(table()) == []


def test_a_row_that_is_no_longer_seen_is_a_difference() -> None:
    run = of_a_run()
    del run["6.1"][MARK]
    [line] = kernels.differences(table(), run)
    assert line == f"6.1: {MARK} is no longer seen, by {SHOWN[MARK]} or any other test"
    # Unless a test could have seen it that did not run to its end.
    assert kernels.differences(table(), run, {"6.1": {"a test"}}) == []
    assert kernels.differences(table(), run, {"6.18": {"a test"}}) == [line]


def test_a_row_that_is_no_longer_seen_by_the_test_of_its_value_is_a_difference() -> None:
    run = of_a_run()
    run["6.18"][STOP] = {"other.py::test"}
    [line] = kernels.differences(table(), run)
    assert line == f"6.18: {STOP} is no longer seen by {SHOWN[STOP]}, which is to show its value"
    # Where that never saw it, any test will do.
    old = table()
    old["rows"][STOP]["6.18"] = ["one.py::test"]
    assert kernels.differences(old, run) == []


def test_a_row_that_is_new_is_a_difference() -> None:
    old = table()
    del old["rows"][MARK]["6.1"]
    [line] = kernels.differences(old, of_a_run())
    assert line == f"6.1: {MARK} is new, seen by {SHOWN[MARK]}: run make kernels"


def test_an_attribute_without_a_declaration_is_a_difference() -> None:
    run = of_a_run()
    run["6.1"]["packet NFQA_#23"] = {"a.py::test"}
    [line] = kernels.differences(table(), run)
    assert "packet NFQA_#23 came (a.py::test), which trionfq.schema does not declare" in line


def test_a_kernel_that_the_table_does_not_have_is_not_compared() -> None:
    run = of_a_run()
    run["6.12"] = {}
    assert kernels.differences(table(), run) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows.pop(MARK), f"{MARK} is seen on no kernel, and NOT_SEEN has no reason"),
        (lambda rows: rows.update({"packet NFQA_X": {}}), "packet NFQA_X is no row"),
        (
            lambda rows: rows.update({"packet CTA_USE": {"6.1": ["a"]}}),
            f"packet CTA_USE is seen (a), yet NOT_SEEN says: {NOT_SEEN['packet CTA_USE']}",
        ),
        (
            lambda rows: rows.update({MARK: {"6.1": ["a"]}}),
            f"{MARK} is not seen by the test that SHOWN names",
        ),
    ],
)
def test_a_fault_of_the_table_is_found(
    change: Callable[[dict[str, Any]], object], says: str
) -> None:
    found = table()
    change(found["rows"])
    [line] = kernels.faults(found)
    assert line.startswith(says)


# --- a run ----------------------------------------------------------------------------------------


def report(name: str, **more: Any) -> pytest.TestReport:
    values = {"when": "teardown", "outcome": "passed", "longrepr": None, "keywords": {}} | more
    return pytest.TestReport(f"tests/kernel/a.py::{name}", ("a.py", 1, name), **values)


def collected(*reports: pytest.TestReport) -> kernels.Seen:
    run = kernels.Seen(lambda item: "6.1")
    run._kernels = {each.nodeid: "6.1" for each in reports}
    for each in reports:
        run.pytest_runtest_logreport(each)
    return run


def properties(*rows: str, release: str = "6.1.0-56-amd64") -> Any:
    return [(kernels.PROPERTY, {"release": release, "rows": list(rows)})]


def test_reports_are_collected_by_kernel_row_and_test() -> None:
    run = collected(
        report("test_x[1]", user_properties=properties(MARK)),
        report("test_x[2]", user_properties=properties(MARK, STOP)),
        report("test_y", user_properties=properties(STOP, release="6.18.44")),
    )
    assert run.sightings == {
        "6.1": {MARK: {"a.py::test_x"}, STOP: {"a.py::test_x"}},
        "6.18": {STOP: {"a.py::test_y"}},
    }
    assert run.releases == {"6.1": "6.1.0-56-amd64", "6.18": "6.18.44"}
    text = "\n".join(run.summary())
    assert f"on 6.1 and 6.18: 1 of {len(ROWS)}\n  verdict: NF_STOP\n" in text
    assert f"on 6.1: 1 of {len(ROWS)}\n  packet: NFQA_MARK" in text


def test_nothing_is_written_after_a_failure_or_on_one_kernel() -> None:
    before = kernels.JSON.read_text()
    failed = report("test_x", outcome="failed", user_properties=properties(MARK))
    [line] = collected(failed).write()
    assert line == "nothing was written: failed or skipped: tests/kernel/a.py::test_x"
    [line] = collected(report("test_x", user_properties=properties(MARK))).write()
    assert line == "nothing was written: tests ran only on 6.1"
    assert kernels.JSON.read_text() == before


def test_a_run_that_saw_less_than_the_table_is_judged_so() -> None:
    """The guest's kernel in any build; another one only in the build of the table."""
    lines = collected(report("test_x", user_properties=properties())).judge()
    assert any(f"6.1: {MARK} is no longer seen" in line for line in lines)
    other = properties(release="6.18.1-other")
    assert collected(report("test_x", user_properties=other)).judge() == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], True),
        (["tests/guest", "tests/kernel"], True),
        (["tests/kernel/test_attributes.py"], False),
        (["tests/guest"], False),
        (["tests/kernel", "-k", "mark"], False),
        (["-m", "guest"], False),
        (["--lf"], False),
        (["--deselect", "tests/kernel/test_gso.py"], False),
    ],
)
def test_only_a_run_of_every_kernel_test_is_judged(
    pytestconfig: pytest.Config, arguments: list[str], expected: bool
) -> None:
    class Parsed:
        option = pytestconfig._parser.parse_known_args(["--strict-markers", *arguments])
        invocation_params = pytest.Config.InvocationParams(
            args=arguments, plugins=None, dir=kernels.KERNEL_TESTS.parents[1]
        )
        args = option.file_or_dir or ["tests"]

    assert kernels.whole(Parsed()) is expected  # type: ignore[arg-type]
