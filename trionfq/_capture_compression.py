"""Compressed captures: gzip and zstd, read forward in constant memory.

What a file is compressed by shows in its first bytes. It may be several compressed streams in a
row, as ``cat`` and parallel compressors make them. One that breaks off gives all that it holds, and
then a CaptureError; of one that is damaged at most the last 16 KiB before the place are not given.
Constant is what a stream's window takes: 32 KiB for gzip, what its header says for zstd, at most
128 MiB (the library refuses more).
"""

from __future__ import annotations

import sys
import zlib
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, cast

from trionfq._capture_stream import ForwardReader
from trionfq._errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable

_MAGIC_BYTES: Final = 4
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
# Frames that are to be skipped, which may come first: 0x184D2A50 to 0x184D2A5F, little-endian.
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"
_OTHERS: Final = {
    b"BZh": ("a bzip2 file", "bzip2 -d"),
    b"\xfd7zX": ("an xz file", "xz -d"),
    b"\x04\x22\x4d\x18": ("an lz4 file", "lz4 -d"),
    b"PK\x03\x04": ("a zip file", "unzip"),
}
_INPUT_BYTES: Final = 1 << 14
# zlib: a gzip header is expected, and the window is as large as it says.
_WITH_GZIP_HEADER: Final = 16 + zlib.MAX_WBITS


class _Decoder(Protocol):
    """What decompresses one stream, and keeps input for which there was no room in the output."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """A gzip member, as a `_Decoder`."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_WITH_GZIP_HEADER)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        tail = self._inner.unconsumed_tail
        return self._inner.decompress(tail + data if tail else data, max_length)


def plain(source: ForwardReader) -> ForwardReader:
    """What a file holds: itself, or what it holds compressed.

    Raises:
      CaptureError: it is compressed in a way that cannot be read here.
    """
    source.available(_MAGIC_BYTES)
    magic = source.buffer[source.at : source.at + _MAGIC_BYTES]
    if magic.startswith(_GZIP):
        return _decompressed(source, "gzip", _Gzip, zlib.error)
    if magic == _ZSTD or (magic[1:] == _ZSTD_SKIPPABLE and magic[0] >> 4 == 5):
        zstd = _zstd()
        return _decompressed(source, "zstd", zstd.ZstdDecompressor, zstd.ZstdError)
    for start, (what, command) in _OTHERS.items():
        if magic.startswith(start):
            raise CaptureError(
                f"{what}, which is not read: decompress it first ({command})", offset=0
            )
    return source


def _zstd() -> Any:
    """The module that reads zstd.

    Raises:
      CaptureError: there is none.
    """
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise CaptureError(
            "a zstd file, for which the extra 'zstd' is needed: pip install 'trionfq[zstd]' "
            "(or decompress it first: zstd -d)",
            offset=0,
        ) from None
    return zstd


def _decompressed(
    source: ForwardReader, name: str, make: Callable[[], _Decoder], damage: type[Exception]
) -> ForwardReader:
    return ForwardReader(cast("IO[bytes]", _Decompressed(source, name, make, damage)))


class _Decompressed:
    """A stream of what a compressed file holds.

    Args:
      source: the file.
      name: of the compression.
      make: makes a decoder for each stream.
      damage: what a decoder raises.
    """

    def __init__(
        self,
        source: ForwardReader,
        name: str,
        make: Callable[[], _Decoder],
        damage: type[Exception],
    ) -> None:
        self._source = source
        self._name = name
        self._make = make
        self._damage = damage
        self._decoder: _Decoder | None = make()
        self._input = b""

    def read(self, size: int) -> bytes:
        """At most `size` bytes, empty at the end.

        Raises:
          CaptureError: a compressed stream ends too early, or is damaged.
        """
        while (decoder := self._decoder) is not None:
            data, self._input = self._input, b""
            try:
                piece = decoder.decompress(data, size)
            except self._damage as error:
                raise CaptureError(
                    f"the {self._name} data are damaged before byte {self._source.offset} "
                    f"of the file ({error})"
                ) from None
            if decoder.eof:
                self._next(decoder.unused_data)
            if piece:
                return piece
            if self._decoder is decoder and not self._more():
                raise CaptureError(
                    f"the {self._name} data are cut off: the file ends after "
                    f"{self._source.offset} bytes"
                )
        return b""

    def _more(self) -> bool:
        """Have input, False where the file has none."""
        have = self._source.available(1)
        self._input = self._source.take(min(have, _INPUT_BYTES), "compressed data")
        return have > 0

    def _next(self, rest: bytes) -> None:
        """Begin the stream that follows one that has ended, if there is one."""
        # gzip's files may be filled up with zeros.
        self._input = rest.lstrip(b"\0")
        while not self._input:
            if not self._more():
                self._decoder = None
                return
            self._input = self._input.lstrip(b"\0")
        self._decoder = self._make()
