"""Captures: exact round trips, every form of file, and nothing but records or CaptureError."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import os
import random
import shutil
import stat
import struct
import subprocess
import tracemalloc
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trionfq import captures, schema
from trionfq._errors import CaptureError
from trionfq.captures import CaptureWriter, Note, Record, open_capture
from trionfq.schema import AnyMessage, Attr, Direction, ErrorMessage, Message
from trionfq.schema.nfqueue import NFQA, NFQA_CFG, MessageType

from . import capture_bytes as made
from .test_notes import NOTES

if TYPE_CHECKING:
    from collections.abc import Iterable

PUBLIC = Path(__file__).parents[1].parent / "shared" / "captures"
needs_public = pytest.mark.skipif(not PUBLIC.is_dir(), reason=f"no public captures in {PUBLIC}")
FROM, TO = Direction.FROM_KERNEL, Direction.TO_KERNEL
NOW = 1_790_000_000_123_456_789
VERDICT = made.message(MessageType.VERDICT)
PACKET = made.message(MessageType.PACKET)
UNUSED = bytes(8)

RECORDS = st.lists(
    st.one_of(
        st.builds(
            Record,
            st.integers(0, 2**64 - 1),
            st.sampled_from([FROM, TO]),
            st.binary(max_size=80),
            st.lists(NOTES, max_size=2).map(tuple),
        ),
        st.builds(
            Record,
            st.integers(0, 2**64 - 1),
            st.none(),
            st.just(b""),
            st.lists(NOTES, min_size=1, max_size=2).map(tuple),
        ),
    ),
    max_size=6,
)
ORDERS = st.sampled_from(["little", "big"])


def read(data: bytes) -> list[Record]:
    return list(open_capture(io.BytesIO(data)))


class Kept(io.BytesIO):
    """A file whose contents outlive it."""

    contents = b""

    def close(self) -> None:
        if not self.closed:
            self.contents = self.getvalue()
        super().close()


def written(records: Iterable[Record], order: schema.Order = "little") -> bytes:
    file = Kept()
    with CaptureWriter(file, order=order) as writer:
        for record in records:
            writer.write(record)
    return file.contents


# -- round trips -----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(RECORDS, ORDERS)
def test_what_is_written_reads_back_exactly(records: list[Record], order: schema.Order) -> None:
    assert read(written(records, order)) == records


def test_reading_and_writing_again_gives_the_same_file() -> None:
    first = written(
        [
            Record(NOW, FROM, PACKET, (Note("overrun", {"count": 1}),)),
            Record(NOW, None, b"", (Note("comment", {"text": "hand-made"}),)),
            Record(NOW + 1, TO, VERDICT),
        ]
    )
    assert written(read(first)) == first


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (Record(-1, FROM, PACKET), CaptureError),
        (Record(2**64, FROM, PACKET), CaptureError),
        (Record(2**64, None, b"", (Note("overrun", {}),)), CaptureError),
        (Record(NOW, FROM, PACKET, (Note("comment", {"text": "x" * 65536}),)), CaptureError),
        (Record(NOW, FROM, PACKET, (Note("comment", {"text": "\ud800"}),)), CaptureError),
        (Record(NOW, FROM, PACKET, (Note("Bad", {}),)), ValueError),
        (Record(NOW, None, b""), ValueError),
    ],
)
def test_a_record_that_cannot_be_written_is_refused_and_leaves_the_file_whole(
    record: Record, error: type[Exception]
) -> None:
    file = Kept()
    with CaptureWriter(file) as writer:
        writer.write(Record(NOW, FROM, PACKET))
        with pytest.raises(error):
            writer.write(record)
        writer.write(Record(NOW + 1, TO, VERDICT))
    assert [each.time_ns for each in read(file.contents)] == [NOW, NOW + 1]


def test_a_section_tells_what_recorded_it() -> None:
    file = Kept()
    CaptureWriter(file, system="Linux 6.18", application="a test").close()
    capture = open_capture(io.BytesIO(file.contents))
    assert capture.section is None
    assert list(capture) == []
    assert capture.section is not None
    assert capture.section.system == "Linux 6.18"
    assert capture.section.application == "a test"


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize(
    ("resolution", "ticks", "nanoseconds"),
    [
        (None, 1_790_000_000_123_456, 1_790_000_000_123_456_000),
        (0, 1_790_000_000, 1_790_000_000_000_000_000),
        (3, 1_790_000_000_123, 1_790_000_000_123_000_000),
        (6, 1_790_000_000_123_456, 1_790_000_000_123_456_000),
        (9, NOW, NOW),
        (9, 2**64 - 1, 2**64 - 1),
        (10, 17_900_000_001_234_567_899, 1_790_000_000_123_456_789),
        (12, 2**64 - 1, 18_446_744_073_709_551),
        (127, 2**64 - 1, 0),
        (0x80, 1_790_000_000, 1_790_000_000_000_000_000),
        (0x80 | 10, 1_790_000_000 << 10 | 1, 1_790_000_000_000_976_562),
        (0x80 | 30, 1_790_000_000 << 30 | 1 << 29, 1_790_000_000_500_000_000),
        (0x80 | 32, 1_790_000_000 << 32 | 0xFFFFFFFF, 1_790_000_000_999_999_999),
        (0x80 | 63, 1 << 62, 500_000_000),
        (0x80 | 127, 2**64 - 1, 0),
    ],
)
def test_every_unit_of_time_becomes_whole_nanoseconds(
    order: str, resolution: int | None, ticks: int, nanoseconds: int
) -> None:
    opts = [] if resolution is None else [(9, bytes([resolution]))]
    packet = made.enhanced(made.cooked(VERDICT), ticks, order=order)
    for seconds in (0, 7, -7):
        offset = [(14, struct.pack(made.SIGN[order] + "q", seconds))] if seconds else []
        data = made.section(order) + made.interface(
            opts=made.options(*opts, *offset, order=order), order=order
        )
        # Twice, since the second of two equal blocks takes the short way.
        assert [r.time_ns for r in read(data + packet + packet)] == [
            nanoseconds + seconds * 10**9
        ] * 2


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize(("magic", "factor"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_classic_pcap_has_exact_times(order: str, magic: int, factor: int) -> None:
    data = made.pcap(
        (1_790_000_000, 123_456, made.cooked(VERDICT)),
        (2**32 - 1, 999_999, made.cooked(PACKET)),
        magic=magic,
        order=order,
    )
    first, second = read(data)
    assert first == Record(1_790_000_000 * 10**9 + 123_456 * factor, TO, VERDICT)
    assert second == Record((2**32 - 1) * 10**9 + 999_999 * factor, FROM, PACKET)


def test_the_time_zone_and_checksum_length_of_a_classic_file_change_nothing() -> None:
    """The draft says that readers must ignore the one; the other stands above the link type."""
    plain = made.pcap((1_790_000_000, 5, made.cooked(VERDICT)))
    odd = plain[:8] + struct.pack("<i", 3600) + plain[12:20] + struct.pack("<I", 0x44000000 | 253)
    assert read(odd + plain[24:]) == read(plain) != []


@pytest.mark.parametrize("order", ["little", "big"])
def test_the_longer_records_of_a_patched_libpcap_are_read(order: str) -> None:
    sign = made.SIGN[order]
    data = made.pcap(magic=0xA1B2CD34, order=order)
    for seconds, datagram in ((5, VERDICT), (6, PACKET)):
        packet = made.cooked(datagram)
        data += struct.pack(sign + "IIII", seconds, 7, len(packet), len(packet))
        data += struct.pack(sign + "IHBB", 3, 0x800, 4, 0) + packet
    assert read(data) == [
        Record(5 * 10**9 + 7000, TO, VERDICT),
        Record(6 * 10**9 + 7000, FROM, PACKET),
    ]
    with pytest.raises(CaptureError, match="pcap record header: expected 24 bytes"):
        read(data + bytes(23))


# -- directions and byte orders --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "packet_type", "datagram", "direction"),
    [
        (1, 4, VERDICT, FROM),
        (2, 4, PACKET, TO),
        (0xFFFF0002, 6, PACKET, TO),
        (None, 6, VERDICT, FROM),
        (0, 7, PACKET, TO),
        (3, 7, PACKET, TO),
        (None, 4, PACKET, FROM),
        (None, 0, VERDICT, TO),
        (None, 4, made.message(MessageType.CONFIG), TO),
        (None, 4, made.message(MessageType.VERDICT_BATCH), TO),
        (None, 4, made.message(2, bytes(20)), FROM),
        (None, 4, made.message(MessageType.VERDICT, order="big"), TO),
        (None, 4, made.message(0x0101), None),
        (None, 4, b"short", None),
        (None, 4, b"", None),
    ],
)
def test_direction_comes_from_flags_then_header_then_message(
    flags: int | None, packet_type: int, datagram: bytes, direction: Direction | None
) -> None:
    opts = b"" if flags is None else made.options((2, struct.pack("<I", flags)))
    data = made.section() + made.interface()
    packet = made.enhanced(made.cooked(datagram, packet_type), opts=opts)
    assert read(data + packet + packet) == [Record(0, direction, datagram)] * 2
    old = made.obsolete(made.cooked(datagram, packet_type), opts=opts)
    assert read(data + old) == [Record(0, direction, datagram)]


def test_byte_order_of_the_recorded_host_is_told_for_each_section() -> None:
    little = made.enhanced(made.cooked(made.message(MessageType.VERDICT)))
    big = made.enhanced(made.cooked(made.message(MessageType.VERDICT, order="big")))
    head = made.section() + made.interface()
    capture = open_capture(io.BytesIO(head + little + head + big))
    assert capture.order is None
    next(capture)
    assert capture.order == "little"
    next(capture)
    assert capture.order == "big"
    assert captures.byte_order(b"\x10") is None
    assert captures.byte_order(b"\xff" * 16) is None


# -- sections, interfaces, blocks ------------------------------------------------------------------


def test_sections_have_their_own_byte_order_interfaces_and_names() -> None:
    data = b""
    for order, unit, ticks in (("little", 9, NOW), ("big", 6, NOW // 1000), ("little", 3, 5)):
        data += made.section(order, made.options((3, f"os {unit}".encode()), order=order))
        # The interface of the section's number 1 is ours; number 0 is something else.
        data += made.interface(1, order=order)
        data += made.interface(opts=made.options((9, bytes([unit])), order=order), order=order)
        data += made.enhanced(b"ether", order=order)
        data += made.enhanced(made.cooked(VERDICT), ticks, index=1, order=order)
    with open_capture(io.BytesIO(data)) as capture:
        seen = [(r.time_ns, capture.section and capture.section.system) for r in capture]
    assert seen == [(NOW, "os 9"), (NOW // 1000 * 1000, "os 6"), (5_000_000, "os 3")]
    assert capture.skipped == {"packet of link type 1 (ETHERNET)": 3}


def test_what_is_skipped_is_counted_by_kind() -> None:
    data = (
        made.section(opts=made.options((1, b"a comment"), (99, b"?")))
        + made.interface(opts=made.options((2, b"any"), (1, b"c"), (6, b"short"), (2, b"again")))
        + made.interface(105)
        + made.block(4, bytes(8))
        + made.block(0x0BAD, bytes(4))
        + made.block(0x40000BAD, bytes(4))
        + made.block(0x77, b"")
        + made.block(0x77, b"")
        + made.statistics()
        + made.enhanced(b"wifi", index=1)
        + made.enhanced(made.cooked(PACKET), opts=made.options((4, bytes(8)), (4, bytes(8))))
        + made.enhanced(made.cooked(PACKET), opts=made.options((2989, bytes(3))))
        + made.enhanced(made.cooked(PACKET, family=0))
        + made.enhanced(made.cooked(PACKET, hardware=1))
        + made.enhanced(b"too short")
        + made.enhanced(made.cooked(PACKET), original=1000)
        + made.section(version=2)
        + made.enhanced(b"whatever that is")
        + made.section()
    )
    capture = open_capture(io.BytesIO(data))
    assert [record.datagram for record in capture] == [PACKET, PACKET]
    assert capture.skipped == {
        "option 99 of section-header": 1,
        "option opt_comment of interface-description": 1,
        "option if_macaddr of interface-description": 1,
        "option if_name of interface-description": 1,
        "name resolution block": 1,
        "custom block": 2,
        "block of type 0x77": 2,
        "interface statistics block": 1,
        "packet of link type 105 (IEEE802_11)": 1,
        "option epb_dropcount of enhanced-packet": 2,
        "option opt_custom_binary of enhanced-packet": 1,
        "datagram of netlink family 0": 1,
        "cooked header of hardware type 1": 1,
        "packet without a whole cooked header": 1,
        "datagram cut by the snap length": 1,
        "section of version 2": 1,
        "block of a section of version 2": 1,
    }


@pytest.mark.parametrize("order", ["little", "big"])
def test_simple_packets_have_the_length_that_the_snap_length_leaves(order: str) -> None:
    packet = made.cooked(VERDICT)
    head = made.section(order)
    whole = head + made.interface(snap=0, order=order) + made.simple(packet, len(packet), order)
    assert [r.datagram for r in read(whole)] == [VERDICT]
    cut = head + made.interface(snap=18, order=order) + made.simple(packet[:18], 36, order)
    [found] = captures.read_packets(io.BytesIO(cut), captures.Tally())
    assert isinstance(found, captures.CapturedPacket)
    assert (found.data, found.original_length) == (packet[:18], 36)
    # Its time is that of the packet before it.
    after = whole.replace(
        made.simple(packet, len(packet), order),
        made.enhanced(packet, 5, order=order) + made.simple(packet, len(packet), order),
    )
    assert [r.time_ns for r in read(after)] == [5000, 5000]
    lying = head + made.interface(snap=0, order=order) + made.simple(packet, 1000, order)
    with pytest.raises(CaptureError, match="expected 1000 bytes of data"):
        read(lying)


def test_comments_and_notes_of_other_tools_are_kept() -> None:
    data = (
        made.section()
        + made.interface()
        + made.enhanced(made.cooked(PACKET), opts=made.options((1, "naïve".encode()), (1, b"\xff")))
        + made.statistics(7, made.options((1, b"trionfq: interface index=3 name=%FF"), (4, UNUSED)))
    )
    capture = open_capture(io.BytesIO(data))
    packet, remark = capture
    assert packet.notes == (
        Note("comment", {"text": "naïve"}),
        Note("comment", {"text": "\\xff"}),
    )
    assert remark == Record(7000, None, b"", (Note("interface", {"index": 3, "name": "\udcff"}),))
    assert capture.interface_names == {3: "\udcff"}
    assert capture.skipped == {"option isb_ifrecv of interface-statistics": 1}


# -- malformed files -------------------------------------------------------------------------------


def seed_files() -> list[bytes]:
    """One file of every kind of block, in both byte orders, and two classic ones."""
    files = []
    for order in ("little", "big"):
        packet = made.cooked(made.message(MessageType.VERDICT, order=order))
        flags = (2, struct.pack(made.SIGN[order] + "I", 2))
        files += [
            made.section(order, made.options((3, b"Linux"), order=order))
            + made.interface(opts=made.options((9, b"\x09"), order=order), order=order)
            + made.enhanced(packet, NOW, opts=made.options(flags, order=order), order=order)
            + made.block(0x77, b"abcd", order)
            + made.enhanced(packet, NOW, opts=made.options(flags, order=order), order=order)
            + made.simple(packet, len(packet), order)
            + made.obsolete(packet, 5, order=order)
            + made.statistics(5, made.options((1, b"note"), order=order), order=order)
            + made.section("big" if order == "little" else "little"),
            made.pcap((1, 2, packet), (3, 4, packet), order=order),
        ]
    return files


SEEDS = seed_files()


def records_or_error(data: bytes) -> tuple[list[Record], CaptureError | None]:
    records: list[Record] = []
    try:
        for record in open_capture(io.BytesIO(data)):
            records.append(record)
    except CaptureError as error:
        return records, error
    return records, None


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_a_file_that_is_cut_off_gives_its_whole_records_then_one_error(seed: int) -> None:
    data = SEEDS[seed]
    everything = read(data)
    clean = 0
    for length in range(len(data)):
        records, error = records_or_error(data[:length])
        assert records == everything[: len(records)]
        if error is None:
            clean += 1
        else:
            assert error.offset is not None
            assert error.offset <= length
            assert f"at byte {error.offset}: " in str(error)
    # A file may end after any block, but for the section header: without it it is none.
    assert clean == (2 if seed % 2 else 8)
    capture = open_capture(io.BytesIO(data[:-1]))
    with pytest.raises(CaptureError):
        list(capture)
    assert list(capture) == [], "the error comes once"


@settings(max_examples=150)
@given(
    st.sampled_from(SEEDS),
    st.lists(
        st.tuples(
            st.integers(0, 400),
            st.sampled_from(["set", "insert", "delete", "u32"]),
            st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 8, 12, 2**31, 2**32 - 1])),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_a_mutated_file_gives_records_or_capture_error(
    seed: bytes, changes: list[tuple[int, str, int]]
) -> None:
    data = bytearray(seed)
    for where, what, value in changes:
        at = where % max(1, len(data))
        if what == "set":
            data[at : at + 1] = bytes([value & 0xFF])
        elif what == "insert":
            data[at:at] = bytes([value & 0xFF])
        elif what == "delete":
            del data[at]
        else:
            data[at : at + 4] = value.to_bytes(4, "little" if value & 1 else "big")
    records, _error = records_or_error(bytes(data))
    assert all(isinstance(record, Record) for record in records)


@given(st.binary(max_size=64), st.sampled_from([b"", b"\x0a\x0d\x0d\x0a", b"\xd4\xc3\xb2\xa1"]))
def test_any_bytes_give_records_or_capture_error(rest: bytes, start: bytes) -> None:
    records_or_error(start + rest)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "an empty file"),
        (b"\x7fELF and so on", "7f 45 4c 46"),
        (gzip.compress(b"x"), "expected a pcapng or pcap file, got 78"),
        (made.pcap(version=3), "expected version 2, got 3"),
        (made.section()[:8] + b"abcd" + made.section()[12:], "byte-order magic, got 61626364"),
        (made.section() + made.enhanced(b"x"), "one of the section's 0 interfaces, got 0"),
        (made.section() + made.block(6, b"")[:-4] + b"\0\0\0\7", "length 12 again, got"),
        (made.section() + made.block(6, bytes(8)), "enhanced_packet"),
        (made.section() + struct.pack("<II", 6, 8), "at least 12 and a multiple of 4, got 8"),
        (made.section() + struct.pack("<II", 6, 4098), "a multiple of 4, got 4098"),
        (
            made.section()
            + made.interface()
            + made.enhanced(made.cooked(PACKET), opts=b"\1\0\xff\xff"),
            "length",
        ),
    ],
)
def test_a_malformed_file_is_named_with_its_offset(data: bytes, text: str) -> None:
    with pytest.raises(CaptureError) as caught:
        read(data)
    assert text in str(caught.value)
    assert caught.value.offset is not None


# -- memory ----------------------------------------------------------------------------------------


class Repeating(io.RawIOBase):
    """A long file that is nowhere as a whole."""

    def __init__(self, head: bytes, part: bytes, times: int) -> None:
        self._pieces = itertools.chain([head], itertools.repeat(part, times))
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest += piece
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def peak_bytes(stream: IO[bytes] | io.RawIOBase) -> tuple[int, int, CaptureError | None]:
    tracemalloc.start()
    count = 0
    failure = None
    try:
        for _record in open_capture(stream):  # type: ignore[arg-type]
            count += 1
    except CaptureError as error:
        failure = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return count, peak, failure


def test_a_long_file_is_read_in_constant_memory() -> None:
    head = made.section() + made.interface()
    part = made.enhanced(made.cooked(PACKET + bytes(400))) * 20
    count, peak, failure = peak_bytes(Repeating(head, part, 500))
    assert (count, failure) == (10_000, None)
    assert peak < 1_000_000, "the file has 4.9 million bytes"


@pytest.mark.parametrize(
    "data",
    [
        # Lengths that claim up to 4 GiB, in every place that has one.
        made.section() + struct.pack("<II", 6, 0xFFFFFFFC) + bytes(100),
        made.section() + struct.pack("<II", 0x77, 0xFFFFFFFC) + bytes(100),
        made.section()
        + made.interface()
        + struct.pack("<IIIIIII", 6, 48, 0, 0, 0, 2**32 - 1, 0)
        + bytes(20),
        made.section() + made.interface() + struct.pack("<II", 6, 2**24) + bytes(100),
        made.pcap()[:24] + struct.pack("<IIII", 0, 0, 0xFFFFFFFF, 0xFFFFFFFF),
        made.pcap()[:24] + struct.pack("<IIII", 0, 0, 2**24, 2**24) + bytes(100),
    ],
)
def test_a_crafted_length_takes_no_memory(data: bytes) -> None:
    _count, peak, failure = peak_bytes(io.BytesIO(data))
    assert failure is not None
    assert peak < 500_000


def test_crafted_kinds_and_interfaces_take_no_memory() -> None:
    kinds = (made.block(kind, b"") for kind in range(0x1000, 0x1800))
    data = made.section() + b"".join(kinds)
    _count, peak, failure = peak_bytes(io.BytesIO(data))
    assert failure is None
    assert peak < 500_000
    capture = open_capture(io.BytesIO(data))
    list(capture)
    assert sum(capture.skipped.values()) == 0x800
    assert len(capture.skipped) <= 257
    many = made.section() + made.interface() * 5000
    with pytest.raises(CaptureError, match="at most 4096"):
        read(many)


# -- files -----------------------------------------------------------------------------------------


def test_a_recording_is_its_owner_s_alone_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new.pcapng"
    with captures.create_capture(path) as writer:
        writer.write(Record(NOW, TO, VERDICT))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        captures.create_capture(path)
    assert path.read_bytes() == before
    path.chmod(0o644)
    with captures.create_capture(path, overwrite=True):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with open_capture(path) as capture:
        assert list(capture) == []


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        captures.create_capture(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_opening_what_is_no_capture_leaves_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("no capture")
    with pytest.raises(CaptureError):
        open_capture(path)  # an open file would warn, and warnings are errors
    with pytest.raises(FileNotFoundError):
        open_capture(tmp_path / "missing")


def test_a_capture_that_comes_through_a_pipe_is_read_as_it_comes() -> None:
    data = written([Record(NOW, TO, VERDICT), Record(NOW + 1, TO, VERDICT)])
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        os.write(writing, data[:-10])
        capture = open_capture(stream)
        assert next(capture).time_ns == NOW  # and did not wait for more
        os.write(writing, data[-10:])
        assert next(capture).time_ns == NOW + 1
        os.close(writing)
        assert list(capture) == []


def test_nothing_follows_where_a_file_broke_off() -> None:
    class Small(Kept):
        """A file on a disk that is soon full."""

        def write(self, data: Any) -> int:
            room = 400 - self.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(bytes(data[:room]))

    file = Small()
    writer = CaptureWriter(file)
    for _ in range(2):
        writer.write(Record(NOW, TO, VERDICT + bytes(100)))
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    for again in (writer.flush, writer.close, lambda: writer.write(Record(NOW, TO, VERDICT))):
        with pytest.raises(OSError, match="No space left"):
            again()
    records, error = records_or_error(file.contents)
    assert len(records) == 1
    assert error is not None


def test_a_full_disk_is_the_caller_s_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this platform")
    with pytest.raises(OSError, match="No space left"):
        captures.create_capture("/dev/full", overwrite=True)


# -- other programs as oracles ---------------------------------------------------------------------


def real_records() -> list[Record]:
    """One message of each kind, as a queue's life has them."""

    def name(number: str) -> int:
        return NFQA.by_name[number].number

    def of(kind: int, *attributes: Attr, flags: int = 1, seq: int = 0) -> Message:
        family = 2 if kind == MessageType.PACKET else 0
        return Message(kind, flags, seq, 0, family, 0, 7, attributes)

    udp = bytes.fromhex("4500001d000040004011") + bytes(10) + b"\0\1\0\2\0\x09\0\0x"
    bind = of(
        MessageType.CONFIG,
        Attr(NFQA_CFG.by_name["cmd"].number, {"command": 1, "pf": 0}),
        Attr(NFQA_CFG.by_name["params"].number, {"copy_range": 65535, "copy_mode": 2}),
        flags=5,
        seq=1,
    )
    answer = ErrorMessage(0x100, 1, 99, 0, (40, MessageType.CONFIG, 5, 1, 0), b"", ())
    packet = of(
        MessageType.PACKET,
        Attr(name("packet_hdr"), {"packet_id": 1, "hw_protocol": 0x800, "hook": 3}),
        Attr(name("ifindex_outdev"), 3),
        Attr(name("payload"), udp),
        flags=0,
    )
    verdict = of(MessageType.VERDICT, Attr(name("verdict_hdr"), {"verdict": 1, "id": 1}), seq=1)
    batch = of(
        MessageType.VERDICT_BATCH,
        Attr(name("verdict_hdr"), {"verdict": 0, "id": 9}),
        Attr(name("mark"), 5),
        seq=9,
    )
    sides: list[tuple[Direction, AnyMessage]] = [
        (TO, bind),
        (FROM, answer),
        (FROM, packet),
        (TO, verdict),
        (TO, batch),
    ]
    return [
        Record(NOW + place, direction, schema.build([each]), (Note("overrun", {"count": place}),))
        for place, (direction, each) in enumerate(sides)
    ]


def wireshark_s(name: str) -> str:
    program = shutil.which(name)
    if program is not None:
        return program
    missing = f"{name} is missing: apt-get install tshark"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def tshark(path: Path, *arguments: str) -> list[list[str]]:
    program = wireshark_s("tshark")
    done = subprocess.run(
        [program, "-r", path, "-T", "fields", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("order", ["little", "big"])
def test_tshark_reads_what_we_write(tmp_path: Path, order: schema.Order) -> None:
    records = real_records()
    path = tmp_path / "ours.pcapng"
    path.write_bytes(written(records, order))
    fields = (
        "frame.time_epoch",
        "frame.protocols",
        "frame.comment",
        "frame.packet_flags_direction",
        "netlink.hdr_type",
        "_ws.malformed",
        "_ws.expert.severity",
    )
    rows = tshark(path, *(word for field in fields for word in ("-e", field)))
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        seconds, protocols, comment, way, kind, malformed, severity = row
        assert seconds == f"{record.time_ns // 10**9}.{record.time_ns % 10**9:09d}"
        assert comment == f"trionfq: overrun count={record.notes[0].values['count']}"
        assert int(way, 0) == (1 if record.direction is FROM else 2)
        assert malformed == ""
        assert severity in ("", "1048576"), "nothing but the comment"
        wanted = int.from_bytes(record.datagram[4:6], "little")
        assert int(kind.split(",")[0], 0) == wanted
        assert protocols.startswith("netlink")
        if wanted >> 8 == 3:
            assert protocols.startswith("netlink:netlink-netfilter")


def test_directions_survive_a_conversion_to_classic_pcap(tmp_path: Path) -> None:
    program = wireshark_s("editcap")
    # A foreign netfilter message, whose type does not tell who sent it.
    foreign = [Record(NOW + 9, way, made.message(0x0101), ()) for way in (FROM, TO)]
    records = [*real_records(), *foreign]
    (tmp_path / "ours.pcapng").write_bytes(written(records))
    subprocess.run(
        [program, "-F", "nsecpcap", tmp_path / "ours.pcapng", tmp_path / "classic.pcap"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    with open_capture(tmp_path / "classic.pcap") as capture:
        assert list(capture) == [record._replace(notes=()) for record in records]


@pytest.mark.filterwarnings("ignore:Field type should not be:DeprecationWarning:pcapng")
@pytest.mark.parametrize("order", ["little", "big"])
def test_python_pcapng_reads_what_we_write(order: schema.Order) -> None:
    from pcapng import FileScanner  # type: ignore[import-untyped]
    from pcapng.blocks import (  # type: ignore[import-untyped]
        EnhancedPacket,
        InterfaceStatistics,
    )

    records = [*real_records(), Record(NOW, None, b"", (Note("socket", {"drops": 3}),))]
    blocks = list(FileScanner(io.BytesIO(written(records, order))))
    packets = [each for each in blocks if isinstance(each, EnhancedPacket)]
    for packet, record in zip(packets, records[:-1], strict=True):
        ticks = (packet.timestamp_high << 32) + packet.timestamp_low
        assert ticks == record.time_ns
        assert packet.packet_data[16:] == record.datagram
        assert packet.interface.link_type == 253
        way = "inbound" if record.direction is FROM else "outbound"
        assert packet.options["epb_flags"].inout == way
        assert packet.options["opt_comment"].startswith("trionfq: overrun")
    [remark] = [each for each in blocks if isinstance(each, InterfaceStatistics)]
    assert remark.options["opt_comment"] == "trionfq: socket drops=3"


def test_scapy_reads_what_we_write_and_the_reverse(tmp_path: Path) -> None:
    from scapy.utils import PcapNgWriter, RawPcapNgReader

    records = real_records()
    path = str(tmp_path / "ours.pcapng")
    Path(path).write_bytes(written(records))
    with RawPcapNgReader(path) as reader:
        for record in records:
            data, found = reader._read_packet()
            about: Any = found
            assert data[16:] == record.datagram
            assert about.linktype == 253
            assert (about.tshigh << 32) + about.tslow == record.time_ns
            assert about.direction == (1 if record.direction is FROM else 2)
    theirs = str(tmp_path / "theirs.pcapng")
    with PcapNgWriter(theirs) as writer:
        writer.linktype = 253
        writer.write_header(None)
        for number, record in enumerate(records):
            data = made.cooked(record.datagram)
            when = 1_790_000_000.25 + number
            writer._write_packet(data, linktype=253, sec=when, comments=[b"theirs"])
    with open_capture(theirs) as capture:
        again = list(capture)
    assert [r.datagram for r in again] == [r.datagram for r in records]
    assert [r.direction for r in again] == [r.direction for r in records], "told by the messages"
    assert [r.time_ns for r in again] == [
        (1_790_000_000 + number) * 10**9 + 250_000_000 for number in range(len(records))
    ]
    assert all(r.notes == (Note("comment", {"text": "theirs"}),) for r in again)


# -- public files ----------------------------------------------------------------------------------

PUBLIC_FILES = sorted(PUBLIC.glob("*.pcap*")) if PUBLIC.is_dir() else []


@needs_public
@pytest.mark.parametrize("path", PUBLIC_FILES, ids=lambda path: path.name)
def test_a_public_file_of_another_link_type_is_counted_not_dropped(path: Path) -> None:
    with path.open("rb") as stream:
        found = list(captures.read_packets(stream, captures.Tally()))
    packets = [each for each in found if isinstance(each, captures.CapturedPacket)]
    with open_capture(path) as capture:
        records = [record for record in capture if record.datagram]
    kinds = [kind for kind in capture.skipped if kind.startswith("packet of link type ")]
    assert records == []
    assert sum(capture.skipped[kind] for kind in kinds) == len(packets)


@needs_public
def test_eleven_interfaces_of_three_link_types_give_all_packets() -> None:  # case D24
    with (PUBLIC / "PcapPlusPlus--many_interfaces-1.pcapng").open("rb") as stream:
        found = list(captures.read_packets(stream, captures.Tally()))
    packets = [each for each in found if isinstance(each, captures.CapturedPacket)]
    assert len(packets) == 64
    assert {each.interface.link_type for each in packets} == {0, 1}
    assert {each.interface.name for each in packets} == {"en0", "lo0"}


@needs_public
def test_an_unknown_link_type_is_named() -> None:  # case D25
    with open_capture(PUBLIC / "zeek--linux_dlt_sll2.pcap") as capture:
        assert list(capture) == []
        assert capture.skipped == {"packet of link type 276 (LINUX_SLL2)": 6}


@needs_public
@pytest.mark.parametrize("path", PUBLIC_FILES, ids=lambda path: path.name)
def test_damage_to_a_public_file_gives_packets_or_capture_error(path: Path) -> None:
    whole = path.read_bytes()
    chance = random.Random(path.name)
    for _round in range(20):
        data = bytearray(whole)
        for _change in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0xFF))
        del data[chance.randrange(len(data) // 2, len(data) + 1) :]
        try:
            for found in captures.read_packets(io.BytesIO(bytes(data)), captures.Tally()):
                assert isinstance(found, captures.CapturedPacket | captures.Remark)
        except CaptureError:
            pass
