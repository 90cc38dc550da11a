"""What is generated from the declarations: the list of rules, and the netlink specification."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.netlink_yaml import Specification, read
from trionfq import schema
from trionfq.captures import open_capture
from trionfq.conformance.vectors import message_to_json
from trionfq.schema._netlink_spec import netlink_spec, specification
from trionfq.schema.protocol_rules import GROUPS, RULES, rule_tables

ROOT = Path(__file__).parents[1]
DOCS, FIXTURES = ROOT / "docs", ROOT / "fixtures"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.pcapng"))
REMAKE = "make it anew: python -m tools.conformance_docs"
SPEC: dict[str, Any] = yaml.safe_load(netlink_spec())


def test_the_page_lists_the_rules_as_they_are_declared() -> None:
    assert rule_tables() in (DOCS / "conformance.md").read_text(), REMAKE


def test_rule_ids_are_unique_and_in_the_hundred_of_their_group() -> None:
    rules = [rule for group in GROUPS.values() for rule in group]
    assert len({rule.id for rule in rules}) == len({rule.title for rule in rules}) == len(rules)
    for number, group in enumerate(GROUPS.values(), 1):
        assert [rule.id for rule in group] == [
            f"NFQ{number}{n:02}" for n in range(1, len(group) + 1)
        ]
    assert all(rule.doc and ("." in rule.source) for rule in RULES.values())


def test_the_judge_may_import_none_of_the_codec_the_machine_and_the_model() -> None:
    """The import rule names modules one by one: a new one is to be named, too."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [judge] = [each for each in rules["contracts"] if each["id"] == "judge"]
    accused = {
        f"trionfq.{path.stem}"
        for word in ("codec", "kernel", "ledger", "protocol")
        for path in (ROOT / "trionfq").glob(f"_{word}*.py")
    }
    assert {"trionfq._codec", "trionfq._protocol", "trionfq._ledger"} < accused
    assert accused <= set(judge["forbidden_modules"])
    assert judge["ignore_imports"] == ["trionfq.conformance._files -> trionfq.captures"]


# --- the netlink specification


def test_the_specification_is_the_one_in_the_documentation() -> None:
    assert (DOCS / "nfqueue.yaml").read_text() == netlink_spec(), REMAKE


def test_the_text_says_what_was_meant() -> None:
    assert specification() == SPEC


# What the kernel's JSON schema for the protocol netlink-raw asks for, in our own words: keys that
# an object must have, keys that it may have, and where names must lead.
INTEGERS = {f"{sign}{bits}" for sign in "us" for bits in (8, 16, 32, 64)}
ATTRIBUTE_KEYS = {
    *("name", "type", "doc", "value", "byte-order", "nested-attributes", "enum", "enum-as-flags"),
    *("checks", "display-hint", "struct"),
}
MEMBER_KEYS = {"name", "type", "len", "byte-order", "doc", "enum", "enum-as-flags", "display-hint"}


def test_the_top_level_has_what_the_form_asks_for() -> None:
    assert SPEC.keys() <= {
        *("name", "protocol", "protonum", "doc", "uapi-header", "definitions"),
        *("attribute-sets", "operations"),
    }
    assert {"name", "doc", "attribute-sets", "operations"} <= SPEC.keys()
    assert (SPEC["protocol"], SPEC["protonum"]) == ("netlink-raw", 12)


@pytest.mark.parametrize("entry", SPEC["definitions"], ids=lambda each: each["name"])
def test_definitions_have_the_form(entry: dict[str, Any]) -> None:
    enums = {each["name"] for each in SPEC["definitions"] if each["type"] != "struct"}
    if entry["type"] == "struct":
        assert entry.keys() == {"name", "type", "doc", "members"}
        for member in entry["members"]:
            assert {"name", "type"} <= member.keys() <= MEMBER_KEYS
            assert member["type"] in {*INTEGERS, "binary", "string", "pad"}
            assert ("len" in member) == (member["type"] in ("binary", "pad"))
            assert member.get("enum") in {None, *enums}
    else:
        assert entry["type"] in ("enum", "flags")
        assert entry.keys() == {"name", "type", "doc", "entries"}
        for each in entry["entries"]:
            assert each.keys() == {"name", "value"}
            assert isinstance(each["value"], int)
            assert each["value"] >= 0


@pytest.mark.parametrize("entry", SPEC["attribute-sets"], ids=lambda each: each["name"])
def test_attribute_sets_have_the_form(entry: dict[str, Any]) -> None:
    sets = {each["name"] for each in SPEC["attribute-sets"]}
    structs = {each["name"] for each in SPEC["definitions"] if each["type"] == "struct"}
    enums = {each["name"]: each["type"] for each in SPEC["definitions"] if each["type"] != "struct"}
    assert entry.keys() == {"name", "name-prefix", "attributes"}
    numbers = [each["value"] for each in entry["attributes"]]
    assert numbers == sorted(set(numbers))
    for each in entry["attributes"]:
        assert {"name", "type", "value", "doc"} <= each.keys() <= ATTRIBUTE_KEYS
        assert each["type"] in {*INTEGERS, "pad", "binary", "string", "nest"}
        assert each.get("byte-order", "big-endian") == "big-endian"
        assert ("nested-attributes" in each) == (each["type"] == "nest")
        assert each.get("nested-attributes") in {None, *sets}
        assert each.get("struct") in {None, *structs}
        if "enum" in each:
            assert each.get("enum-as-flags", False) == (enums[each["enum"]] == "flags")
        assert each.get("checks", {}).keys() <= {
            *("exact-len", "min-len", "max-len", "unterminated-ok"),
        }
        assert each.get("display-hint") in {None, "ipv4", "ipv6"}


def test_operations_have_the_form_and_name_attributes_of_their_sets() -> None:
    operations = SPEC["operations"]
    assert operations.keys() == {"enum-model", "list"}
    assert operations["enum-model"] == "directional"
    sets = {each["name"]: each["attributes"] for each in SPEC["attribute-sets"]}
    numbers = []
    for each in operations["list"]:
        assert {"name", "doc", "attribute-set", "fixed-header"} <= each.keys()
        assert each.keys() <= {
            *("name", "doc", "attribute-set", "fixed-header", "value", "do", "event"),
        }
        known = {entry["name"] for entry in sets[each["attribute-set"]]}
        told = each["event"] if "event" in each else each["do"]["request"]
        assert set(told["attributes"]) <= known
        numbers.append(each["value"] if "event" in each else told["value"])
    assert numbers == [0x300, 0x301, 0x302, 0x303]


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_of_the_specification_reads_the_fixtures_as_the_schema_does(name: str) -> None:
    reader = read("little")
    count = 0
    with open_capture(FIXTURES / f"{name}.pcapng") as capture:
        for record in capture:
            if record.datagram:
                expected = [message_to_json(each) for each in schema.parse(record.datagram)]
                assert reader.messages(record.datagram) == expected
                count += len(expected)
    assert count > 0


def test_a_wrong_number_in_the_specification_would_be_seen() -> None:
    wrong = yaml.safe_load(netlink_spec())
    [nfqueue] = [each for each in wrong["attribute-sets"] if each["name"] == "nfqueue"]
    [mark] = [each for each in nfqueue["attributes"] if each["name"] == "mark"]
    mark["byte-order"] = "little-endian"
    datagram = bytes.fromhex(
        "2800000000030000000000000000000002000007 0b00010000000001080003 00 0800030000000042"
    )
    [right] = [message_to_json(each) for each in schema.parse(datagram)]
    assert read("little").messages(datagram) == [right]
    assert Specification(wrong, "little").messages(datagram) != [right]
