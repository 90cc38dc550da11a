"""Crafted, truncated and random files never break a promise: by chance here, and what was found."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import capture_bytes as made
from tests.fuzz.seeds import seeds
from tests.fuzz.target import check
from trionfq._errors import CaptureError
from trionfq.captures import PacketSource

FOUND = sorted((Path(__file__).parent / "fuzz" / "found").glob("*.bin"))
ROOT = Path(__file__).parents[1]
FIXTURES = sorted((ROOT / "fixtures").rglob("*.pcap*"))
PUBLIC = ROOT.parent / "shared" / "captures"
FIXTURES += sorted(PUBLIC.glob("*.pcap*"))  # where they are
SEEDS = seeds()
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 2000),
        st.sampled_from(["set", "insert", "delete", "u16", "u32"]),
        st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 4, 8, 12, 2**31, 2**32 - 1])),
    ),
    max_size=4,
)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_what_fuzzing_has_found_is_read_or_refused(path: Path) -> None:
    check(path.read_bytes())


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_the_quick_way_reads_a_real_recording_as_the_slow_one(path: Path) -> None:
    check(path.read_bytes())


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_a_file_of_each_kind_cut_anywhere_keeps_every_promise(number: int) -> None:
    data = SEEDS[number]
    for length in range(0, len(data), max(1, len(data) // 40)):
        check(data[:length])


@settings(max_examples=200)
@given(st.sampled_from(SEEDS), CHANGES)
def test_a_changed_file_keeps_every_promise(
    seed: bytes, changes: list[tuple[int, str, int]]
) -> None:
    data = bytearray(seed)
    for where, what, value in changes:
        at = where % max(1, len(data))
        order = "little" if value & 1 else "big"
        if what == "set":
            data[at : at + 1] = bytes([value & 0xFF])
        elif what == "insert":
            data[at:at] = bytes([value & 0xFF])
        elif what == "delete":
            del data[at : at + 1]
        elif what == "u16":
            data[at : at + 2] = (value & 0xFFFF).to_bytes(2, order)  # type: ignore[arg-type]
        else:
            data[at : at + 4] = value.to_bytes(4, order)  # type: ignore[arg-type]
    check(bytes(data))


LINK_TYPES = (0, 1, 12, 14, 101, 108, 113, 228, 229, 239, 276)


@settings(max_examples=200)
@given(
    st.sampled_from(LINK_TYPES),
    st.binary(max_size=80),
    st.sampled_from(["little", "big"]),
    st.sampled_from([b"", b"\x02\x00", b"\x45\x00", bytes(12) + b"\x08\x00\x45", b"\x02\x00\0\5"]),
)
def test_any_bytes_of_any_link_type_keep_every_promise(
    link_type: int, packet: bytes, order: str, start: bytes
) -> None:
    check(made.pcap((1, 2, start + packet), link_type=link_type, order=order))


@given(st.binary(max_size=64), st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"]))
def test_any_bytes_keep_every_promise(rest: bytes, start: bytes) -> None:
    check(start + rest)


def test_a_frame_of_nothing_but_tags_or_attributes_takes_no_time_and_memory() -> None:
    tags = bytes(12) + b"\x81\x00\x00\x05" * 40_000
    attributes = b"\2\0\0\0" + b"\4\0\x63\0" * 40_000
    for link_type, packet in ((1, tags), (239, attributes)):
        data = made.pcap((1, 2, packet), link_type=link_type)
        tracemalloc.start()
        try:
            with pytest.raises(CaptureError, match="no packet for a queue"):
                list(PacketSource(io.BytesIO(data)))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 * len(data)
