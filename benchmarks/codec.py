"""What the codec costs: nanoseconds for each step of a packet's way through it.

Run it as ``python benchmarks/codec.py`` on a quiet machine. Every figure is the least of many short
runs, taken in turn, so that a busy moment does not fall on one of them; beside it stands the ratio
to a bare ``Struct.unpack_from(...)[0]``, which compares better between machines.
"""

from __future__ import annotations

import timeit
from struct import Struct

from trionfq import schema
from trionfq._codec import PacketReader, Template, decode, encode
from trionfq.schema import Attr, Message

HDR = Attr(1, {"packet_id": 1, "hw_protocol": 0x0800, "hook": 3})
PAYLOAD = Attr(10, bytes(60))
THREE = Message(0x300, 0, 0, 0, 2, 0, 5, (HDR, Attr(3, 7), PAYLOAD))
SEVEN = THREE._replace(
    attributes=(
        HDR,
        Attr(5, 2),
        Attr(6, 3),
        Attr(3, 7),
        Attr(9, {"hw_addrlen": 6, "pad": 0, "hw_addr": bytes(8)}),
        Attr(4, {"sec": 1, "usec": 2}),
        PAYLOAD,
    )
)
ACCEPT = Message(0x301, 1, 0, 0, 0, 0, 5, (Attr(2, {"verdict": 1, "id": 0}),))
REWRITE = ACCEPT._replace(attributes=(*ACCEPT.attributes, PAYLOAD))

BATCH = 64
STEPS = [
    # name, statement, runs a turn, how many things a run does
    ("bare unpack of one u32", "unpack(three, 24)[0]", 2000, 1),
    ("shape, known, 3 attributes", "shape_of(three)", 2000, 1),
    ("shape, known, 7 attributes", "shape_of(seven)", 2000, 1),
    ("shape, known layout, new length", "for d in lengths: fresh.shape(d)", 1, 200),
    ("packet id", "shape3.packet_id(three)", 2000, 1),
    ("read mark", "shape3.read('mark', three)", 2000, 1),
    ("read payload", "shape3.read('payload', three)", 2000, 1),
    ("all attributes, 3", "shape3.attributes(three)", 200, 1),
    ("all attributes, 7", "shape7.attributes(seven)", 200, 1),
    ("decode, 3 attributes", "decode(three)", 200, 1),
    ("decode, 7 attributes", "decode(seven)", 200, 1),
    ("encode a verdict with payload", "encode([rewrite])", 200, 1),
    ("template, one verdict", "template.pack(1, 2)", 500, 1),
    ("template, one with payload", "template.pack_payload(1, 2, payload)", 500, 1),
    ("template, each of 64 verdicts", "template.pack_many(ids)", 50, BATCH),
    ("schema.parse, 3 attributes", "parse(three)", 5, 1),
]


def main() -> None:
    """Print the table."""
    reader, fresh = PacketReader(), PacketReader()
    three, seven = encode([THREE]), encode([SEVEN])
    lengths = [
        encode([THREE._replace(attributes=(HDR, Attr(3, 7), Attr(10, bytes(n))))])
        for n in range(200)
    ]
    names = {
        "unpack": Struct(">I").unpack_from,
        "shape_of": reader.shape,
        "three": three,
        "seven": seven,
        "shape3": reader.shape(three),
        "shape7": reader.shape(seven),
        "fresh": fresh,
        "lengths": lengths,
        "decode": decode,
        "encode": encode,
        "rewrite": REWRITE,
        "template": Template(ACCEPT),
        "payload": PAYLOAD.value,
        "ids": list(range(BATCH)),
        "parse": schema.parse,
    }
    # A table that is emptied before each turn, so that every length is new to it.
    setup = "fresh._known.clear()"
    timers = [timeit.Timer(statement, setup, globals=names) for _, statement, _, _ in STEPS]
    least = [float("inf")] * len(STEPS)
    for _ in range(100):
        for i, (_, _, runs, things) in enumerate(STEPS):
            least[i] = min(least[i], timers[i].timeit(runs) / runs / things * 1e9)
    for (name, _, _, _), nanoseconds in zip(STEPS, least, strict=True):
        print(f"{name:34} {nanoseconds:9,.0f} ns {nanoseconds / least[0]:8.1f}")


if __name__ == "__main__":
    main()
