"""The kernel model as a `Bench`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from trionfq._kernel_model import (
    Decision,
    Effect,
    KernelModel,
    KernelSocket,
    PacketIn,
    QueueRow,
)
from trionfq.schema import AnyMessage
from trionfq.schema.nfqueue import NFQA

from ._bench import LOST, Delivered, Traits, text_of
from ._scenario import CAP_ACK, EXCLUDED_MARK, EXT_ACK, By

LOOPBACK_INDEX = 1
NUMBERS = {attribute.name: attribute.number for attribute in NFQA.attributes}


class ModelBench:
    """See `Bench`.

    Args:
      traits: what the kernel that it is compared with is like.
      portids: port ids of its sockets.
      ids: user and group id of the sender, as the initial user namespace knows them.
      options: netlink options of both sockets.
      buffer_messages: what the owner's receive buffer holds, None for the default bytes.
      priorities: whether the receiver is told of priorities.
    """

    def __init__(
        self,
        traits: Traits,
        portids: tuple[int, int],
        ids: tuple[int, int],
        options: tuple[int, ...],
        *,
        buffer_messages: int | None = None,
        priorities: bool = True,
    ):
        self.portids = portids
        self.ids = ids
        self.priorities = priorities
        self._delivered: list[Delivered] = []
        self.model = KernelModel(
            **traits._asdict(),
            requeue_repeats=lambda packet: _integer(packet, "mark") != EXCLUDED_MARK,
            on_decision=self._decided,
        )
        self.owner = self.model.open_socket(portids[0], receive_buffer_messages=buffer_messages)
        self.stranger = self.model.open_socket(portids[1])
        for sock in (self.owner, self.stranger):
            sock.ext_ack = EXT_ACK in options
            sock.cap_ack = CAP_ACK in options

    def send(self, by: By, request: bytes) -> int:
        sock = self.stranger if by is By.STRANGER else self.owner
        sock.privileged = by is not By.UNPRIVILEGED
        try:
            sock.send(request)
        except OSError as error:
            return error.errno or -1
        return 0

    def arrive(self, packets: Iterable[bytes], *, mark: int = 0) -> None:
        values = {
            NUMBERS["ifindex_outdev"]: LOOPBACK_INDEX,
            NUMBERS["mark"]: mark,
            NUMBERS["uid"]: self.ids[0],
            NUMBERS["gid"]: self.ids[1],
        }
        for payload in packets:
            packet = PacketIn(payload, values=values)
            if self.model.enqueue(0, packet).fate.passes:
                self._deliver(packet)

    def receive(self, limit: int | None = None) -> list[AnyMessage | str]:
        return [record for sock in (self.owner, self.stranger) for record in _taken(sock, limit)]

    def rows(self) -> tuple[QueueRow, ...]:
        return tuple(self.model.rows())

    def delivered(self) -> tuple[Delivered, ...]:
        taken = tuple(self._delivered)
        self._delivered.clear()
        return taken

    def drops(self) -> int:
        return self.owner.drops

    def set_no_enobufs(self) -> None:
        self.owner.no_enobufs = True

    def loopback_down_and_up(self) -> None:
        self.model.device_down(LOOPBACK_INDEX)

    def hook_comes_and_goes(self) -> None:
        self.model.hook_unregistered()

    def _decided(self, decision: Decision) -> None:
        if decision.effect in (Effect.ACCEPTED, Effect.STOPPED) or (
            decision.effect is Effect.REPEATED and decision.arrival is None
        ):
            self._deliver(decision.packet)

    def _deliver(self, packet: PacketIn) -> None:
        text = text_of(packet.payload)
        if text is not None:
            priority = _integer(packet, "priority") if self.priorities else None
            self._delivered.append(Delivered(text, _integer(packet, "mark"), priority))


def _integer(packet: PacketIn, name: str) -> int:
    value = packet.values.get(NUMBERS[name], 0)
    assert isinstance(value, int)
    return value


def _taken(sock: KernelSocket, limit: int | None) -> Iterator[AnyMessage | str]:
    while limit is None or limit > 0:
        try:
            record = sock.receive()
        except OSError:
            yield LOST
            continue
        if record is None:
            return
        yield record
        limit = None if limit is None else limit - 1
