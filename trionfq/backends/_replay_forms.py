"""Which recorded packets a replay gives as they were recorded, known without reading them.

Whether the kernel would tell again exactly what was recorded does not depend on most of what a
packet says. It depends on the layout, on the queue's settings, and on a few values: the header's
own, hook and protocol, the length of a cut packet, the state of its buffer, and whether mark,
priority and class are zero (`KernelQueue.message`). Where all of these are as in a packet that was
judged before, the answer is the same.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from trionfq._errors import RemoteProtocolError
from trionfq.schema.nfqueue import NFQA

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trionfq._codec import PacketReader, Shape

_PACKET_HDR: Final = NFQA.by_name["packet_hdr"].number
_BY_VALUE: Final = frozenset(NFQA.by_name[name].number for name in ("cap_len", "skb_info"))
_NOT_ZERO: Final = frozenset(
    NFQA.by_name[name].number for name in ("mark", "priority", "cgroup_classid")
)
_KEPT: Final = 1024


class _Form:
    """What decides it for datagrams of one layout and length."""

    def __init__(self, reader: PacketReader, datagram: bytes) -> None:
        header, fixed = reader.header, reader.body.header
        start = header.size + fixed.size
        hdr = reader.body.attributes.parts[_PACKET_HDR]
        pinned = [(header.offsets["flags"], header.size)]
        not_zero: list[tuple[int, int]] = []
        walked = reader.body.attributes.walk(datagram, start, len(datagram))
        for _, number, _, begin, stop, _ in walked:
            if number == _PACKET_HDR:
                pinned += _all_but_id(hdr, begin, stop)
            elif number in _BY_VALUE:
                pinned.append((begin, stop))
            elif number in _NOT_ZERO:
                not_zero.append((begin, stop))
        self.traits = _reader_of(pinned)
        self.not_zero = _reader_of(not_zero) if not_zero else None
        self.zeros = tuple(bytes(stop - begin) for begin, stop in not_zero)
        self.judged: dict[tuple[bytes, ...], bool] = {}

    def has_zero(self, datagrams: Sequence[bytes]) -> bool:
        """Whether a value is zero, in any of them, that the kernel does not tell then."""
        if self.not_zero is None:
            return False
        columns = zip(*map(self.not_zero, datagrams), strict=True)
        return any(zero in column for column, zero in zip(columns, self.zeros, strict=True))


def _all_but_id(hdr: Any, begin: int, stop: int) -> list[tuple[int, int]]:
    at = begin + hdr.offsets["packet_id"]
    leaf = hdr.leaf("packet_id")
    after = at + Struct(leaf.order + leaf.code).size
    return [(a, b) for a, b in ((begin, at), (after, stop)) if a < b]


def _reader_of(spans: list[tuple[int, int]]) -> Callable[[bytes], tuple[bytes, ...]]:
    codes, at = ["="], 0
    for begin, stop in sorted(spans):
        codes.append(f"{begin - at}x{stop - begin}s")
        at = stop
    unpack: Callable[[bytes], tuple[bytes, ...]] = Struct("".join(codes)).unpack_from
    return unpack


class Forms:
    """Remembers what was judged.

    Args:
      reader: of packets in this host's byte order.
      judge: whether a packet, by layout and datagram, is told as it was recorded.
    """

    def __init__(self, reader: PacketReader, judge: Callable[[Shape, bytes], bool]) -> None:
        self._reader = reader
        self._judge = judge
        self._forms: dict[tuple[Shape, int], _Form] = {}
        self._settings: object = None

    def unchanged(self, datagrams: Sequence[bytes], queue: int, settings: object) -> list[int]:
        """The ids of the first datagrams that are told as recorded; the rest is not known.

        Args:
          datagrams: at least one.
          queue: number of the queue that packets must be of.
          settings: all else that the judge looks at.
        """
        if settings != self._settings or len(self._forms) > _KEPT:
            self._settings = settings
            self._forms.clear()
        uniform = self._reader.uniform(datagrams)
        if uniform is not None and uniform[0].res_id == queue:
            shape, ids = uniform
            form = self._form(shape, datagrams[0])
            if not form.has_zero(datagrams) and self._all_unchanged(form, shape, datagrams):
                return ids
        return self._one_by_one(datagrams, queue)

    def _one_by_one(self, datagrams: Sequence[bytes], queue: int) -> list[int]:
        ids: list[int] = []
        shape_of, forms = self._reader.shape, self._forms
        for datagram in datagrams:
            try:
                shape = shape_of(datagram)
            except RemoteProtocolError:
                break
            if shape is None or shape.res_id != queue:
                break
            form = forms.get((shape, len(datagram))) or self._form(shape, datagram)
            known = form.judged.get(form.traits(datagram))
            if known is None:
                known = self._is_unchanged(form, shape, datagram)
            if not known or (form.not_zero is not None and form.has_zero((datagram,))):
                break
            ids.append(shape.packet_id(datagram))
        return ids

    def _form(self, shape: Shape, datagram: bytes) -> _Form:
        form = self._forms.get((shape, len(datagram)))
        if form is None:
            form = self._forms[shape, len(datagram)] = _Form(self._reader, datagram)
        return form

    def _all_unchanged(self, form: _Form, shape: Shape, datagrams: Sequence[bytes]) -> bool:
        traits = set(map(form.traits, datagrams))
        if len(traits) == 1:
            return self._is_unchanged(form, shape, datagrams[0])
        kinds = dict(zip(map(form.traits, datagrams), datagrams, strict=True))
        return all(self._is_unchanged(form, shape, each) for each in kinds.values())

    def _is_unchanged(self, form: _Form, shape: Shape, datagram: bytes) -> bool:
        """As the traits of a datagram say; what must not be zero apart."""
        traits = form.traits(datagram)
        known = form.judged.get(traits)
        if known is None:
            if form.has_zero((datagram,)):
                return False
            if len(form.judged) >= _KEPT:
                form.judged.clear()
            known = form.judged[traits] = self._judge(shape, datagram)
        return known
