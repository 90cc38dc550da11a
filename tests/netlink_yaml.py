"""A reader of netlink specifications: docs/nfqueue.yaml and bytes in, values out, nothing of ours.

As a program, it is the independent parser that the test vectors are given to: JSON lines as
trionfq/conformance/vectors/README.md describes.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import yaml

SPECIFICATION = Path(__file__).parents[1] / "docs" / "nfqueue.yaml"
_SIZES = {"8": "b", "16": "h", "32": "i", "64": "q"}
_ERROR = 2
_HEADER = ("len", "type", "flags", "seq", "portid")
_CAPPED, _TLVS = 0x100, 0x200


class UnreadableError(Exception):
    """The bytes are none that the specification describes."""


class Specification:
    """A specification, and how it reads bytes of a host of one byte order."""

    def __init__(self, content: dict[str, Any], order: str) -> None:
        self.native = "<" if order == "little" else ">"
        self.definitions = {each["name"]: each for each in content["definitions"]}
        self.sets = {each["name"]: each["attributes"] for each in content["attribute-sets"]}
        self.operations: dict[int, Any] = {}
        for each in content["operations"]["list"]:
            number = each["value"] if "event" in each else each["do"]["request"]["value"]
            self.operations[number] = each

    def messages(self, datagram: bytes) -> list[dict[str, Any]]:
        found = []
        while datagram:
            if len(datagram) < 16:
                raise UnreadableError("header cut")
            header = dict(
                zip(_HEADER, struct.unpack_from(f"{self.native}IHHII", datagram), strict=True)
            )
            length = header["len"]
            if not 16 <= length <= len(datagram):
                raise UnreadableError("message length")
            found.append(self.message(header, datagram[16:length]))
            padded = length + -length % 4
            if length < len(datagram) < padded:
                raise UnreadableError("padding of a message cut")
            datagram = datagram[padded:]
        return found

    def message(self, header: dict[str, int], body: bytes) -> dict[str, Any]:
        head = {key: header[key] for key in ("flags", "seq", "portid")}
        operation = self.operations.get(header["type"])
        if header["type"] == _ERROR:
            return {"kind": "answer", **head, **self.answer(header["flags"], body)}
        if operation is None:
            return {"kind": "other", "type": header["type"], **head, "body": body.hex()}
        struct_name = operation["fixed-header"]
        size = self.size(struct_name)
        if len(body) < size:
            raise UnreadableError("fixed header cut")
        fixed = self.struct(struct_name, body[:size])
        found = {
            "kind": operation["name"].replace("-", "_"),
            **head,
            "family": fixed["family"],
            "version": fixed["version"],
            "queue": fixed["res_id"],
            "attributes": self.attributes(operation["attribute-set"], body[size:]),
        }
        needed = {"packet": "packet_hdr", "config": None}.get(found["kind"], "verdict_hdr")
        if needed and needed not in {each["name"] for each in found["attributes"]}:
            raise UnreadableError(f"no {needed}")
        return found

    def answer(self, flags: int, body: bytes) -> dict[str, Any]:
        if len(body) < 20:
            raise UnreadableError("answer cut")
        error = struct.unpack_from(f"{self.native}i", body)[0]
        request = dict(
            zip(_HEADER, struct.unpack_from(f"{self.native}IHHII", body, 4), strict=True)
        )
        rest = body[20:]
        echoed = 0 if flags & _CAPPED or not rest else request["len"] - 16
        told = rest[echoed + -echoed % 4 :]
        if flags & _TLVS:  # extended acknowledgements are no nfqueue matter: not in the file
            raise NotImplementedError
        if told:
            raise UnreadableError("bytes behind an answer")
        return {"error": error, "request": request, "body": rest[:echoed].hex(), "attributes": []}

    def attributes(self, name: str, contents: bytes) -> list[dict[str, Any]]:
        known = {each["value"]: each for each in self.sets[name]}
        found = []
        while contents:
            if len(contents) < 4:
                raise UnreadableError("attribute cut")
            length, kind = struct.unpack_from(f"{self.native}HH", contents)
            number = kind & 0x3FFF
            if not 4 <= length <= len(contents):
                raise UnreadableError("attribute length")
            entry = known.get(number)
            value: Any = contents[4:length]
            value = value.hex() if entry is None else self.value(entry, value)
            title = None if entry is None else entry["name"].replace("-", "_")
            found.append({"number": number, "name": title, "flags": kind & 0xC000, "value": value})
            padded = length + -length % 4
            if length < len(contents) < padded:
                raise UnreadableError("padding cut")
            contents = contents[padded:]
        return found

    def value(self, entry: dict[str, Any], contents: bytes) -> Any:
        kind = entry["type"]
        if kind == "nest":
            return self.attributes(entry["nested-attributes"], contents)
        if "struct" in entry:
            return self.struct(entry["struct"], contents)
        if kind in ("binary", "string", "pad"):
            checks = entry.get("checks", {})
            least = checks.get("exact-len", checks.get("min-len", 0))
            most = checks.get("exact-len", checks.get("max-len", len(contents)))
            if not least <= len(contents) <= most or (
                entry["name"] == "labels" and len(contents) % 4
            ):
                raise UnreadableError(f"{entry['name']}: {len(contents)} bytes")
            return contents.hex()
        letter = _SIZES[kind[1:]]
        order = ">" if entry.get("byte-order") == "big-endian" else self.native
        layout = struct.Struct(order + (letter.upper() if kind[0] == "u" else letter))
        if layout.size != len(contents):
            raise UnreadableError(f"{entry['name']}: {len(contents)} bytes")
        number = layout.unpack(contents)[0]
        return str(number) if layout.size == 8 else number

    def size(self, name: str) -> int:
        return sum(self.width(each) for each in self.definitions[name]["members"])

    def width(self, member: dict[str, Any]) -> int:
        return int(member["len"]) if member["type"] == "binary" else int(member["type"][1:]) // 8

    def struct(self, name: str, contents: bytes) -> dict[str, Any]:
        if len(contents) != self.size(name):
            raise UnreadableError(f"{name}: {len(contents)} bytes")
        found = {}
        for member in self.definitions[name]["members"]:
            size = self.width(member)
            found[member["name"].replace("-", "_")] = self.value(member, contents[:size])
            contents = contents[size:]
        return found


def read(order: str) -> Specification:
    """The specification that the documentation has."""
    return Specification(yaml.safe_load(SPECIFICATION.read_text()), order)


def main() -> None:
    specifications = {order: read(order) for order in ("little", "big")}
    for line in sys.stdin:
        task = json.loads(line)
        found: dict[str, Any] = {"id": task["id"]}
        if task["do"] == "parse":
            try:
                found["messages"] = specifications[task["order"]].messages(
                    bytes.fromhex(task["bytes"])
                )
            except UnreadableError as error:
                found["error"] = str(error)
            except NotImplementedError:
                found["skip"] = "extended acknowledgements"
        else:
            found["skip"] = "no builder"
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
