"""Reading classic pcap, by the layouts of `trionfq.schema.pcapng` alone.

Source: draft-ietf-opsawg-pcap; for the patched kind of record libpcap's sf-pcap.c. The link type
has 16 bits, with facts about frame check sequences above them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trionfq._capture_stream import MAX_RECORD_BYTES, CapturedPacket, ForwardReader, Interface
from trionfq._codec import derive
from trionfq._errors import CaptureError
from trionfq.schema.pcapng import (
    PCAP_HEADER,
    PCAP_PATCHED_RECORD_HEADER,
    PCAP_RECORD_HEADER,
    Magic,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionfq.schema import Order

MAGIC_BYTES: Final = 4
_LINK_TYPE_MASK: Final = 0xFFFF
_MAJOR_VERSION: Final = 2
_NS: Final = 10**9
_FRACTION_NS: Final = {Magic.MICROSECONDS: 1000, Magic.NANOSECONDS: 1, Magic.PATCHED: 1000}
_ORDERS: Final[tuple[Order, ...]] = ("little", "big")
_HEADERS: Final = {order: derive(PCAP_HEADER, order=order) for order in _ORDERS}
_RECORDS: Final = {order: derive(PCAP_RECORD_HEADER, order=order) for order in _ORDERS}
_PATCHED: Final = {order: derive(PCAP_PATCHED_RECORD_HEADER, order=order) for order in _ORDERS}


def file_order(magic: bytes) -> Order | None:
    """The byte order of a file that begins with these four bytes, None where it is no pcap."""
    known = {int(number) for number in Magic}
    return next((order for order in _ORDERS if int.from_bytes(magic, order) in known), None)


class PcapReader:
    """The packets of a classic pcap stream, in order.

    Attributes:
      order: byte order of the file.

    Raises:
      CaptureError: the file header is cut off, or of an unknown version.
    """

    def __init__(self, source: ForwardReader, order: Order) -> None:
        layout = _HEADERS[order]
        header = layout.read(source.take(layout.size or 0, "pcap file header"))
        if header["version_major"] != _MAJOR_VERSION:
            raise CaptureError(
                f"pcap file header: expected version {_MAJOR_VERSION}, "
                f"got {header['version_major']}",
                offset=0,
            )
        self._source = source
        self.order: Order = order
        self._record = (_PATCHED if header["magic"] == Magic.PATCHED else _RECORDS)[order]
        self._fraction_ns = _FRACTION_NS[Magic(header["magic"])]
        # The field for a time zone must be ignored, the draft says, and all readers do.
        self._interface = Interface(header["linktype"] & _LINK_TYPE_MASK, header["snaplen"])

    def __iter__(self) -> Iterator[CapturedPacket]:
        """Read on.

        Raises:
          CaptureError: the stream ends within a record, or a record claims an absurd length.
        """
        source, interface = self._source, self._interface
        size = self._record.size or 0
        while source.available(1):
            offset = source.offset
            record = self._record.read(source.take(size, "pcap record header"))
            length = record["incl_len"]
            if length > MAX_RECORD_BYTES:
                raise CaptureError(
                    f"pcap record: expected at most {MAX_RECORD_BYTES} bytes, got {length}",
                    offset=offset,
                )
            data = source.take(length, "pcap record")
            time_ns = record["ts_sec"] * _NS + record["ts_frac"] * self._fraction_ns
            yield CapturedPacket(time_ns, interface, data, record["orig_len"])
