"""What a replay checks of the requests that it is sent.

The kernel reads requests leniently, and so does its model: a wrong request may seem to work. So
each request is read by the codec, each new layout is judged by the schema besides, and of the rest
a seeded sample of 1 in 1,024. A layout is all of a message but the values in it: type, flags, and
the numbers and lengths of its attributes.
"""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from trionfq import schema
from trionfq._codec import decode, encode, split
from trionfq._errors import ConformanceError, LocalProtocolError, RemoteProtocolError
from trionfq.backends._sent_runs import Runs
from trionfq.schema import Direction, Message
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfqueue import OPERATIONS, MessageType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionfq.backends._sent_runs import SentRun
    from trionfq.schema import AnyMessage, Operation, Value

Check: TypeAlias = Literal["sample", "all", "off"]
"""How much is judged: new layouts and a sample, every message, or nothing."""

_ONE_IN: Final = 1024
_LAYOUTS_KEPT: Final = 4096
_OPERATIONS: Final[dict[int, Operation]] = {
    MessageType[each.name.upper()]: each for each in OPERATIONS
}


class WrongRequestError(ConformanceError, OSError):
    """A request that contradicts the schema.

    An OSError as well (EPROTO): so the seam says that an endpoint has become unusable.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.errno = errno.EPROTO


class SentCheck:
    """Judges the datagrams of one program.

    Args:
      how: see `Check`.
      seed: of the sample.

    Attributes:
      judged: messages that the schema has read.
    """

    def __init__(self, how: Check, seed: int) -> None:
        if how not in ("sample", "all", "off"):
            raise ValueError(f"check: expected 'sample', 'all' or 'off', got {how!r}")
        self.how = how
        self.judged = 0
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret
        self._until_next = self._interval()
        self._layouts: set[Any] = set()
        self._runs = Runs()

    def runs(self, datagram: bytes) -> list[SentRun] | None:
        """The verdicts of a datagram whose messages all are as some that were judged before.

        The sample is taken of them as of all others. None where it is any other datagram, or more
        than a sample shall be judged: then `messages` is to read it.

        Raises:
          WrongRequestError: codec and schema do not agree on it.
        """
        found = self._runs.find(datagram) if self.how == "sample" else None
        if found is None:
            return None
        runs, length = found
        count = len(datagram) // length
        while self._until_next <= count:
            start = (self._until_next - 1) * length
            self._until_next += self._interval()
            piece = datagram[start : start + length]
            self._compare(piece, decode(piece)[0])
        self._until_next -= count
        return runs

    def messages(self, datagram: bytes) -> list[AnyMessage]:
        """The messages of a datagram; none with check "off" where it cannot be read.

        Raises:
          WrongRequestError: it contradicts the schema, or codec and schema do not agree on it.
        """
        try:
            found = decode(datagram)
        except RemoteProtocolError as error:
            if self.how == "off":
                return []
            raise WrongRequestError(f"sent datagram {datagram.hex()}: {error}") from error
        if self.how != "off":
            self._judge(datagram, found)
        return found

    def _judge(self, datagram: bytes, messages: Sequence[AnyMessage]) -> None:
        chosen = [place for place, each in enumerate(messages) if self._is_chosen(each)]
        if chosen:
            pieces = split(datagram)
            for place in chosen:
                self._compare(pieces[place], messages[place])
                if self.how == "sample":
                    self._runs.learn(messages[place], pieces[place])

    def _is_chosen(self, message: AnyMessage) -> bool:
        layout = _layout(message)
        if layout not in self._layouts:
            _check_operation(message)
            if len(self._layouts) >= _LAYOUTS_KEPT:
                self._layouts.clear()
                self._runs.clear()
            self._layouts.add(layout)
            return True
        self._until_next -= 1
        if self._until_next <= 0:
            self._until_next = self._interval()
            return True
        return self.how == "all"

    def _interval(self) -> int:
        return self._random.randint(1, 2 * _ONE_IN - 1)

    def _compare(self, piece: bytes, message: AnyMessage) -> None:
        self.judged += 1
        try:
            parsed = schema.parse(piece)
            built = schema.build([message])
        except (RemoteProtocolError, LocalProtocolError) as error:
            raise WrongRequestError(f"sent message {piece.hex()}: {error}") from error
        if parsed != [message]:
            raise WrongRequestError(
                f"sent message {piece.hex()}: the schema reads {parsed}, the codec {message}"
            )
        if built != encode([message]):
            raise WrongRequestError(
                f"sent message {piece.hex()}: the schema writes {built.hex()} for {message}, "
                f"the codec {encode([message]).hex()}"
            )


def _layout(message: AnyMessage) -> tuple[Any, ...]:
    if isinstance(message, Message):
        return (
            message.type,
            message.flags,
            message.family,
            message.version,
            tuple([(each.number, each.flags, _form(each.value)) for each in message.attributes]),
        )
    return (type(message), message)


def _form(value: Value) -> Any:
    """What of a value is layout: the length of bytes, the members of a nest."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, tuple):
        return tuple([(each.number, each.flags, _form(each.value)) for each in value])
    return None


def _check_operation(message: AnyMessage) -> None:
    """Check what the tables say of an operation; what it requires the schema has seen.

    Raises:
      WrongRequestError: the kernel would refuse or ignore the message, or a part of it.
    """
    operation = _OPERATIONS.get(message.type) if isinstance(message, Message) else None
    if operation is None or not isinstance(message, Message):
        raise WrongRequestError(f"sent message {message}: no operation of nfqueue")
    name = operation.name
    if not operation.direction & Direction.TO_KERNEL:
        raise WrongRequestError(f"{name}: only the kernel sends it, the program sent {message}")
    if not message.flags & MessageFlags.REQUEST:
        raise WrongRequestError(
            f"{name}: without NLM_F_REQUEST the kernel ignores it (netlink_rcv_skb): {message}"
        )
    known = operation.attributes.by_number
    given = {known[each.number].name for each in message.attributes if each.number in known}
    strange = [each.number for each in message.attributes if each.number not in known]
    unwanted = given - operation.required - operation.optional
    if strange or unwanted:
        constants = [operation.attributes.constant(number) for number in strange]
        listed = ", ".join(sorted(unwanted) + constants)
        raise WrongRequestError(f"{name}: the kernel does not take {listed}: {message}")
