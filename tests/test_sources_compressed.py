"""Compressed captures are read as others: in order, in constant memory, cut ones up to there."""

from __future__ import annotations

import gzip
import io
import itertools
import sys
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from tests import capture_bytes as made
from tests.link_bytes import ipv4
from trionfq._errors import CaptureError
from trionfq.captures import PacketSource, open_capture
from trionfq.schema.nfqueue import MessageType

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trionfq.captures import Record

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

VERDICT = made.message(MessageType.VERDICT)
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstd.compress,
}
EACH = pytest.mark.parametrize("name", COMPRESSIONS)


def a_file(count: int) -> bytes:
    opts = made.options((2, b"\2\0\0\0"))
    packets = [made.enhanced(made.cooked(VERDICT), n, opts=opts) for n in range(count)]
    return made.section() + made.interface() + b"".join(packets)


def read(data: bytes) -> list[Record]:
    return list(open_capture(io.BytesIO(data)))


def records_or_error(data: bytes) -> tuple[int, CaptureError | None]:
    count = 0
    try:
        for _record in open_capture(io.BytesIO(data)):
            count += 1
    except CaptureError as error:
        return count, error
    return count, None


@EACH
def test_a_compressed_capture_reads_as_the_plain_one(name: str, tmp_path: Path) -> None:
    plain = a_file(3000)
    path = tmp_path / "some.pcapng"  # its name says nothing of compression
    path.write_bytes(COMPRESSIONS[name](plain))
    with open_capture(path) as capture:
        assert list(capture) == read(plain)
    classic = made.pcap((1, 2, ipv4()), link_type=101)
    packets = [list(PacketSource(io.BytesIO(f))) for f in (classic, COMPRESSIONS[name](classic))]
    assert packets[0] == packets[1] != []


@EACH
def test_several_compressed_streams_in_a_row_are_one(name: str) -> None:
    plain = a_file(100)
    compress = COMPRESSIONS[name]
    pieces = [plain[:50], b"", plain[50:51], plain[51:3000], plain[3000:]]
    assert read(b"".join(map(compress, pieces))) == read(plain)


def test_zeros_behind_a_gzip_stream_and_skippable_zstd_frames_are_passed_over() -> None:
    plain = a_file(3)
    assert read(gzip.compress(plain) + bytes(100_000)) == read(plain)
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    assert read(skippable + zstd.compress(plain) + skippable) == read(plain)


@EACH
def test_a_compressed_file_that_is_cut_gives_its_whole_records_then_one_error(name: str) -> None:
    plain = a_file(40)
    pieces = [plain[start : start + 500] for start in range(0, len(plain), 500)]
    compressed = b"".join(compressed_pieces(name, pieces, flushed=True))
    counts = [0]
    for length in range(4, len(compressed)):
        try:
            capture = open_capture(io.BytesIO(compressed[:length]))
        except CaptureError as error:
            assert "cut off" in str(error)
            continue
        records = []
        with pytest.raises(CaptureError, match=f"the {name} data are cut off") as caught:
            for record in capture:
                records.append(record)
        assert caught.value.offset is not None
        assert str(caught.value).count("at byte") == 1
        assert list(capture) == [], "the error comes once"
        counts.append(len(records))
    assert counts == sorted(counts)
    assert counts[-1] == 40, "of what the file is cut by is only the checksum"


@EACH
def test_a_damaged_compressed_file_is_named(name: str) -> None:
    compressed = bytearray(COMPRESSIONS[name](a_file(100)))
    compressed[-3] ^= 0xFF
    _count, error = records_or_error(bytes(compressed))
    assert error is not None
    assert f"the {name} data are damaged" in str(error) or "cut off" in str(error)
    count, error = records_or_error(COMPRESSIONS[name](a_file(100)) + b"rubbish")
    assert count == 100
    assert error is not None
    assert f"the {name} data are damaged before byte" in str(error)


@EACH
def test_what_is_compressed_twice_is_not_guessed(name: str) -> None:
    compress = COMPRESSIONS[name]
    with pytest.raises(CaptureError, match="expected a pcapng or pcap file"):
        read(compress(compress(a_file(1))))


class Zeros(io.RawIOBase):
    """A long compressed file that is nowhere as a whole."""

    def __init__(self, pieces: Any) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def compressed_pieces(name: str, plain: Any, *, flushed: bool = False) -> Any:
    """A compressed stream; where it is flushed, each piece can be read for itself."""
    encoder: Any = zlib.compressobj(wbits=31) if name == "gzip" else zstd.ZstdCompressor()
    flush = zlib.Z_SYNC_FLUSH if name == "gzip" else encoder.FLUSH_BLOCK
    for piece in plain:
        yield encoder.compress(piece)
        if flushed:
            yield encoder.flush(flush)
    yield encoder.flush()


@EACH
def test_a_long_compressed_file_is_read_in_constant_memory(name: str) -> None:
    opts = made.options((2, b"\2\0\0\0"))
    part = made.enhanced(made.cooked(VERDICT + bytes(400)), 7, opts=opts) * 100
    plain = itertools.chain([made.section() + made.interface()], itertools.repeat(part, 400))
    tracemalloc.start()
    try:
        stream: Any = Zeros(compressed_pieces(name, plain))
        count = sum(1 for _record in open_capture(stream))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 40_000
    assert peak < 2_000_000, "the file has 20 million bytes"


def test_a_bomb_takes_no_memory() -> None:
    bomb = zlib.compressobj(wbits=31)
    head = made.section() + (0x77).to_bytes(4, "little") + (0xFFFFFFFC).to_bytes(4, "little")
    data = bomb.compress(head) + bomb.compress(bytes(1 << 24)) * 1 + bomb.flush()
    tracemalloc.start()
    try:
        _count, error = records_or_error(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error is not None
    assert peak < 1_000_000, "the file has 17 million bytes"


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (b"BZh9", "a bzip2 file, which is not read: decompress it first"),
        (b"\xfd7zXZ\0", "xz -d"),
        (b"\x04\x22\x4d\x18", "lz4 -d"),
        (b"PK\x03\x04", "unzip"),
    ],
)
def test_another_compression_is_named(start: bytes, text: str) -> None:
    with pytest.raises(CaptureError, match=text) as caught:
        read(start + bytes(100))
    assert caught.value.offset == 0


def test_zstd_without_its_module_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("backports.zstd", "compression.zstd", "backports", "compression"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CaptureError, match=r"pip install 'trionfq\[zstd\]'"):
        read(zstd.compress(a_file(1)))


def test_a_zstd_window_that_takes_too_much_memory_is_refused() -> None:
    parameter = zstd.CompressionParameter
    counts = []
    for log in (27, 30):
        options: Any = {parameter.window_log: log, parameter.content_size_flag: 0}
        encoder = zstd.ZstdCompressor(options=options)
        data = encoder.compress(a_file(10), mode=encoder.FLUSH_BLOCK) + encoder.flush()
        counts.append(records_or_error(data))
    assert counts[0] == (10, None)
    count, error = counts[1]
    assert count == 0
    assert "requires too much memory" in str(error)
