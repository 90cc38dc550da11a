"""The test vectors: what they say is so, and a program that does otherwise is caught."""

from __future__ import annotations

import json
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from trionfq import RemoteProtocolError, schema
from trionfq.captures import Record, open_capture
from trionfq.conformance import judge
from trionfq.conformance.vectors import (
    Agreement,
    load,
    message_from_json,
    message_to_json,
    run,
)
from trionfq.conformance.vectors.__main__ import main
from trionfq.conformance.vectors._breaches import BREACHES
from trionfq.conformance.vectors._make import OPEN_ENDS, text_of, vectors
from trionfq.schema import Direction

ROOT = Path(__file__).parents[1]
VECTORS = load()
WAYS = {"from-kernel": Direction.FROM_KERNEL, "to-kernel": Direction.TO_KERNEL}


def program(name: str) -> list[str]:
    return [sys.executable, "-m", "tests.vector_programs", name]


def given_to(name: str, some: list[dict[str, Any]], **limits: float) -> Agreement:
    return run(program(name), some, **limits)


def test_the_file_is_what_schema_and_breaches_make_it() -> None:
    """Else make it anew: python -m trionfq.conformance.vectors make fixtures."""
    path = ROOT / "trionfq" / "conformance" / "vectors" / "nfqueue.json"
    made = vectors(None)
    recorded = [each for each in VECTORS if each["source"] not in ("schema", "breach")]
    assert path.read_text() == text_of({**made, "vectors": [*made["vectors"], *recorded]})


def test_what_is_recorded_is_what_the_fixtures_hold() -> None:
    held: dict[str, list[Record]] = {}
    recorded = [each for each in VECTORS if each["source"] not in ("schema", "breach")]
    for each in recorded:
        kernel, place, record = each["source"].split(", ")
        if place not in held:
            with open_capture(ROOT / place) as capture:
                held[place] = list(capture)
            assert (
                kernel == tomllib.loads((ROOT / place).with_suffix(".toml").read_text())["kernel"]
            )
        found = held[place][int(record.removeprefix("record "))]
        assert found.datagram.hex() == each["bytes"]
        assert found.direction is WAYS[each["direction"]]
    assert len(held) > 10
    assert any("others/" in place for place in held)


def test_names_are_unique_and_every_kind_is_there() -> None:
    assert len({each["name"] for each in VECTORS}) == len(VECTORS) > 150
    kinds = {message["kind"] for each in VECTORS for message in each["messages"] or ()}
    assert kinds == {"packet", "verdict", "config", "verdict_batch", "answer", "other"}
    assert {each["order"] for each in VECTORS} == {"little", "big"}
    assert {each["rule"] for each in VECTORS} >= {each.rule for each in BREACHES}
    assert any("fixtures/" in each["source"] for each in VECTORS)


def test_every_attribute_is_in_a_vector() -> None:
    def names(listed: list[dict[str, Any]], prefix: str = "") -> set[str]:
        found = set()
        for each in listed:
            if each["name"] is not None:
                found.add(prefix + each["name"])
                if isinstance(each["value"], list):
                    found |= names(each["value"], f"{prefix}{each['name']}.")
        return found

    there: set[str] = set()
    for each in VECTORS:
        for message in each["messages"] or ():
            there |= names(message.get("attributes", []), message["kind"] + ".")
    for operation in schema.nfqueue.OPERATIONS:
        expected = operation.required | operation.optional
        assert {f"{operation.name}.{name}" for name in expected} <= there
    assert "packet.ct.tuple_orig.proto.src_port" in there
    assert "verdict.exp.nat.tuple.ip.v6_dst" in there


@pytest.mark.parametrize("vector", VECTORS, ids=[each["name"] for each in VECTORS])
def test_schema_and_judge_see_what_a_vector_says(vector: dict[str, Any]) -> None:
    datagram = bytes.fromhex(vector["bytes"])
    if vector["messages"] is None:
        with pytest.raises(RemoteProtocolError):
            schema.parse(datagram, order=vector["order"])
    else:
        messages = schema.parse(datagram, order=vector["order"])
        assert [message_to_json(each) for each in messages] == vector["messages"]
        assert [message_from_json(each) for each in vector["messages"]] == messages
    if vector["build"]:
        assert schema.build(messages, order=vector["order"]) == datagram
    findings = list(judge([Record(0, WAYS[vector["direction"]], datagram)]))
    rules = {each.rule.id for each in findings} - OPEN_ENDS
    assert rules == (set() if vector["rule"] is None else {vector["rule"]})
    assert vector["valid"] is (vector["rule"] is None)


def test_trionfqs_own_codec_agrees() -> None:
    found = given_to("codec", VECTORS)
    assert found.disagreements == []
    assert found.skipped == 0
    assert all(found.agreed.values())


def test_an_independent_parser_agrees() -> None:
    """One that reads docs/nfqueue.yaml and shares no code with anything here."""
    found = run([sys.executable, str(ROOT / "tests" / "netlink_yaml.py")], VECTORS)
    assert found.disagreements == []
    assert found.agreed["parse"] > 150
    assert found.agreed["refuse"] > 10
    assert found.agreed["build"] == 0


def test_a_wrong_program_is_caught_at_each_of_its_bugs() -> None:
    some = [each for each in VECTORS if each["source"] != "schema" or each["order"] == "little"]
    found = given_to("wrong", some)
    assert not found.passed
    wrong = {(each.task, each.vector) for each in found.disagreements}
    assert ("build", "verdict, odd payload, little") in wrong
    assert ("parse", "verdict, mark, little") in wrong
    assert ("parse", "NFQ102, length below the header") in wrong
    assert ("build", "verdict, mark, little") not in wrong
    assert ("parse", "verdict, odd payload, little") not in wrong
    assert found.agreed["parse"]
    assert found.agreed["build"]
    assert not found.agreed["refuse"]


STUBBORN = """
import json, os, sys, time
for number, line in enumerate(sys.stdin):
    if number == 10:
        {then}
    print(json.dumps({{"id": json.loads(line)["id"], "skip": True}}), flush=True)
"""


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ("time.sleep(600)", "no answer in time"),
        ("sys.exit(3)", "the program has ended"),
        ("os.kill(os.getpid(), 9)", "the program has ended"),
        ("print('x' * (3 << 20))", "an answer of more than 1048576 bytes"),
        ("print('no JSON')", "an answer that is no JSON: b'no JSON'"),
        ("print(json.dumps({'id': 3}))", "an answer to something else: b'{\"id\": 3}'"),
        # Nobody reads: the tasks themselves do not fit a pipe.
        ("print(json.dumps({'id': 10})); time.sleep(600)", "no answer in time"),
    ],
)
def test_a_program_that_goes_wrong_is_stopped(then: str, why: str) -> None:
    started = time.monotonic()
    command = [sys.executable, "-c", STUBBORN.format(then=then)]
    found = run(command, VECTORS[:40], answer_s=1)
    assert time.monotonic() - started < 20
    assert found.skipped == 10
    told = [each.got for each in found.disagreements]
    assert {each for each in told if isinstance(each, str)} == {why}
    assert not found.passed


def test_a_program_that_is_slow_all_along_is_stopped() -> None:
    answer = """
import json, sys, time
for line in sys.stdin:
    time.sleep(0.1)
    print(json.dumps({"id": json.loads(line)["id"], "skip": True}), flush=True)
"""
    found = run([sys.executable, "-c", answer], VECTORS, total_s=1)
    assert found.skipped > 0
    assert {each.got for each in found.disagreements} == {"no answer in time"}
    assert not found.passed


def test_the_command_line_reports_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    reader = [sys.executable, str(ROOT / "tests" / "netlink_yaml.py")]
    assert main(["run", "--json", "--", *reader]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    assert main(["run", "--", sys.executable, "-c", ""]) == 1
    assert "the program has ended" in capsys.readouterr().out
    assert main(["run", "--", "/no/such/program"]) == 2
    assert "/no/such/program" in capsys.readouterr().err
