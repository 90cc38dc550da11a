"""Programs that the test vectors are given to: `python -m tests.vector_programs NAME`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from trionfq import LocalProtocolError, RemoteProtocolError
from trionfq._codec import decode, encode
from trionfq.conformance.vectors import message_from_json, message_to_json


def codec(task: dict[str, Any]) -> dict[str, Any]:
    """trionfq's own codec."""
    order = task["order"]
    try:
        if task["do"] == "parse":
            messages = decode(bytes.fromhex(task["bytes"]), order=order)
            return {"messages": [message_to_json(each) for each in messages]}
        listed = [message_from_json(each) for each in task["messages"]]
        return {"bytes": encode(listed, order=order).hex()}
    except (LocalProtocolError, RemoteProtocolError) as error:
        return {"error": str(error)}


def wrong(task: dict[str, Any]) -> dict[str, Any]:
    """The same with three bugs.

    Padding is counted in the length of a payload, marks are read in the host's byte order, and
    nothing is refused.
    """
    found = codec(task)
    if "bytes" in found:
        found["bytes"] = found["bytes"].replace("1d000a00", "20000a00")
    for message in found.get("messages", ()):
        for attribute in message.get("attributes", ()):
            if attribute["name"] == "mark":
                value = attribute["value"]
                attribute["value"] = int.from_bytes(value.to_bytes(4, "big"), "little")
    return {"messages": []} if "error" in found else found


PROGRAMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    each.__name__: each for each in (codec, wrong)
}

if __name__ == "__main__":
    program = PROGRAMS[sys.argv[1]]
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps({"id": question["id"], **program(question)}), flush=True)
