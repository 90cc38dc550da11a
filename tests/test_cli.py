"""The commands: what they give, what they end with, and that Ctrl-C leaves whole files."""

from __future__ import annotations

import gzip
import json
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import trionfq.cli
from trionfq.captures import Record, create_capture, open_capture, read_transcript
from trionfq.cli import _console
from trionfq.cli._commands import commands
from trionfq.cli._faults import KINDS
from trionfq.conformance import RULES
from trionfq.schema import Direction
from trionfq.testing import Fault, make_bind, make_packet, make_verdict, udp_packet

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"
DEMO = str(FIXTURES / "demo.pcapng")
NOTED = tomllib.loads((FIXTURES / "demo.toml").read_text())["expected"]
EXAMPLE = f"{ROOT / 'examples' / 'policy.py'}:decide"

POLICIES = """
import trio

def accept(packet):
    packet.accept()

def drop(packet):
    packet.drop()

async def slowly(packet):
    await trio.sleep(3600)
    packet.accept(mark=7)

def leave(packet):
    pass

def raises(packet):
    raise LookupError("no such thing")

NO_FUNCTION = 1

async def for_ever(packet):
    print("HERE", packet.id, flush=True)
    if packet.id > 2:
        await trio.sleep_forever()
    packet.drop()
"""


@pytest.fixture
def policies(tmp_path: Path) -> str:
    """A file of policies."""
    path = tmp_path / "some_policies.py"
    path.write_text(POLICIES)
    return str(path)


def run(*words: str, stdin: bytes | None = None) -> Result:
    """Run a command in this process; a fault of ours is raised."""
    result = CliRunner().invoke(commands, words, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def told(*words: str) -> dict[str, object]:
    """The last line of a command with --json that ends well."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return found


def write(path: Path, records: list[Record]) -> str:
    with create_capture(path) as writer:
        for record in records:
            writer.write(record)
    return str(path)


def packets(path: Path, count: int) -> str:
    """A capture of so many packets."""
    return write(
        path, [Record(n, Direction.FROM_KERNEL, make_packet(n)) for n in range(1, count + 1)]
    )


# --- the group ------------------------------------------------------------------------------------


def test_a_new_file_is_a_new_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "say_hello.py").write_text(
        "import click\n@click.command()\ndef command():\n    'Greets.'\n    click.echo('hello')\n"
    )
    (tmp_path / "_helper.py").write_text("raise RuntimeError('no command, so not imported')\n")
    assert "say-hello" not in run("--help").output
    monkeypatch.setattr(trionfq.cli, "__path__", [*trionfq.cli.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "trionfq.cli.say_hello", raising=False)
    assert re.search(r"say-hello +Greets\.", run("--help").output)
    assert run("say-hello").output == "hello\n"
    assert "Exit codes:" in run("say-hello", "--help").output
    sys.modules.pop("trionfq.cli.say_hello")


@pytest.mark.parametrize("name", ["", *commands.list_commands(click.Context(commands))])
def test_help_documents_the_exit_codes(name: str) -> None:
    result = run(*filter(None, [name]), "--help")
    assert result.exit_code == 0
    for code in ("0 ", "1 ", "2 ", "130 "):
        assert re.search(rf"^ +{code} *\S", result.output, re.MULTILINE), code


def test_every_command_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    found = set(re.findall(r"^## `trionfq ([\w-]+)`", page, re.MULTILINE))
    assert found == set(commands.list_commands(click.Context(commands)))
    for name in found:
        command = commands.get_command(click.Context(commands), name)
        assert command is not None
        section = page.split(f"## `trionfq {name}`")[1].split("\n## ")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert any(f"`{option}" in section for option in parameter.opts), parameter.opts


def test_an_unknown_command_is_wrong_use() -> None:
    result = run("jugde")
    assert result.exit_code == 2
    assert "jugde" in result.stderr


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_one_line_names_it(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As in a fresh process that cannot import it.
    for name in [*sys.modules]:
        if name.startswith(("trionfq.cli.", missing)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(trionfq.cli, "_console")
    monkeypatch.delattr(trionfq.cli, "_commands")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as ended:
        trionfq.cli.main()
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "pip install 'trionfq[cli]'" in errors
    assert missing in errors


# --- replay ---------------------------------------------------------------------------------------


def test_a_replay_tells_the_noted_sums(tmp_path: Path) -> None:
    output = tmp_path / "run.jsonl"
    found = told("replay", DEMO, EXAMPLE, "-o", str(output))
    assert found["packets"] == NOTED["packets"]
    assert found["verdicts"] == {name.lower(): count for name, count in NOTED["verdicts"].items()}
    assert found["rewritten"] == NOTED["rewritten"]
    assert found["complete"] is True
    assert len(read_transcript(output)) == NOTED["packets"]
    assert [each.name for each in tmp_path.iterdir()] == ["run.jsonl"], "nothing else is left"


def test_a_replay_writes_parquet_of_the_same_transcript(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    paths = [tmp_path / "run.jsonl", tmp_path / "run.parquet"]
    for path in paths:
        assert run("replay", DEMO, EXAMPLE, "-o", str(path)).exit_code == 0
    assert read_transcript(paths[0]) == read_transcript(paths[1])


def test_a_transcript_on_the_output_stands_there_alone(tmp_path: Path, policies: str) -> None:
    capture = packets(tmp_path / "a.pcapng", 3)
    result = run("replay", capture, f"{policies}:accept", "-o", "-")
    copy = tmp_path / "copy.jsonl"
    copy.write_text(result.stdout)
    assert [each.packet_id for each in read_transcript(copy)] == [1, 2, 3]
    assert "3 packets: 3 accept" in result.stderr


def test_a_file_that_is_there_is_kept_unless_it_may_go(tmp_path: Path, policies: str) -> None:
    output = tmp_path / "run.jsonl"
    output.write_text("mine")
    words = ("replay", DEMO, f"{policies}:raises", "-o", str(output))
    result = run(*words)
    assert result.exit_code == 2
    assert "--overwrite" in result.stderr
    assert "LookupError" not in result.stderr, "said before the work"
    assert output.read_text() == "mine"
    assert run("replay", DEMO, EXAMPLE, "-o", str(output), "--overwrite").exit_code == 0
    assert len(read_transcript(output)) == NOTED["packets"]


@pytest.mark.parametrize(
    ("output", "said"),
    [("run.txt", ".jsonl"), ("run.parquet", "trionfq[parquet]"), ("no/run.jsonl", "no folder")],
)
def test_an_output_that_cannot_be_is_told_before_the_work(
    tmp_path: Path, policies: str, output: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trionfq.cli.replay.find_spec", lambda _name: None)
    result = run("replay", DEMO, f"{policies}:raises", "-o", str(tmp_path / output))
    assert result.exit_code == 2
    assert said in result.stderr
    assert "LookupError" not in result.stderr


def test_an_async_policy_sleeps_hours_in_no_time(tmp_path: Path, policies: str) -> None:
    capture = packets(tmp_path / "a.pcapng", 3)
    words = ("replay", capture, f"{policies}:slowly", "--no-wait", "--pace", "lockstep")
    output = str(tmp_path / "run.jsonl")
    found = told(*words, "--times", "-o", output)
    assert found["verdicts"] == {"accept": 3}
    assert found["marked"] == 3
    took = [each.time_to_decide_ns for each in read_transcript(output)]
    assert took == [3600 * 10**9] * 3
    assert told(*words)["digest"] == found["digest"]


def test_a_deadline_and_the_verdict_of_what_is_left(tmp_path: Path, policies: str) -> None:
    capture = packets(tmp_path / "a.pcapng", 2)
    assert told("replay", capture, f"{policies}:leave")["verdicts"] == {"drop": 2}
    left = told("replay", capture, f"{policies}:leave", "--undecided", "accept")
    assert left["verdicts"] == {"accept": 2}
    words = ("replay", capture, f"{policies}:slowly", "--no-wait", "--deadline", "5")
    assert told(*words)["verdicts"] == {"drop": 2}


def test_a_policy_that_raises_fails_and_what_was_decided_is_kept(
    tmp_path: Path, policies: str
) -> None:
    output = tmp_path / "run.jsonl"
    result = run("replay", DEMO, f"{policies}:raises", "-o", str(output))
    assert result.exit_code == 1
    assert "LookupError: no such thing" in result.stderr
    assert "some_policies.py" in result.stderr, "where it stands"
    assert result.stderr.splitlines()[-1].startswith("trionfq: the policy raised")
    assert "it broke off there" in result.stdout
    assert read_transcript(output)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("accept", "expected module:function"),
        ("{file}:", "expected module:function"),
        ("{file}:no_such", "has no function 'no_such'"),
        ("{file}:NO_FUNCTION", "has no function"),
        ("no_such_module_here:f", "could not be imported: ModuleNotFoundError"),
        ("no_such_file.py:f", "there is no file"),
        ("{broken}:f", "could not be imported: ZeroDivisionError"),
    ],
)
def test_what_is_no_policy_is_wrong_use(
    tmp_path: Path, policies: str, policy: str, said: str
) -> None:
    broken = tmp_path / "broken_policy.py"
    broken.write_text("1 / 0\n")
    result = run("replay", DEMO, policy.format(file=policies, broken=broken))
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_policy_of_a_module_of_this_folder(
    tmp_path: Path, policies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "some_policies", raising=False)
    assert told("replay", DEMO, "some_policies:drop")["verdicts"] == {"drop": NOTED["packets"]}


def test_declared_faults_befall_a_replay(tmp_path: Path, policies: str) -> None:
    capture = packets(tmp_path / "a.pcapng", 6)
    words = ("replay", capture, f"{policies}:accept")
    faults = ("--fault", "overrun:at=1,at=4", "--fault", "cap-len:at=0,copy_range=20")
    found = told(*words, *faults)
    assert found["faults"] == {"Overrun": 2, "CapLen": 1}
    assert found["verdicts"] == {"accept": 4, "drop": 2}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("flood:at=1", "there are cap-len, die, duplicate"),
        ("overrun:when=1", "has no 'when'"),
        ("overrun", "give at or rate"),
        ("refuse:at=1,error=ENOSUCH", "ENOSUCH"),
    ],
)
def test_a_fault_that_there_is_not_is_wrong_use(fault: str, said: str) -> None:
    result = run("replay", DEMO, EXAMPLE, "--fault", fault)
    assert result.exit_code == 2
    assert said in result.stderr


def test_every_fault_of_the_library_can_be_asked_for() -> None:
    assert set(KINDS.values()) == set(Fault.__subclasses__())


def pcap(path: Path, contents: list[bytes]) -> str:
    """A classic pcap of raw IP packets (link type 101), compressed."""
    pieces = [bytes.fromhex("d4c3b2a1020004000000000000000000ffff000065000000")]
    for place, content in enumerate(contents):
        size = len(content).to_bytes(4, "little")
        pieces += [place.to_bytes(4, "little"), bytes(4), size, size, content]
    path.write_bytes(gzip.compress(b"".join(pieces)))
    return str(path)


def test_an_ordinary_capture_is_replayed_with_what_is_chosen(tmp_path: Path) -> None:
    policy = tmp_path / "looks.py"
    policy.write_text(
        "def decide(packet):\n"
        "    assert packet.mark == 9 and packet.hook.name == 'FORWARD'\n"
        "    packet.accept() if packet.ip.data == b'good' else packet.drop()\n"
    )
    capture = pcap(
        tmp_path / "a.pcap", [udp_packet(b"good"), udp_packet(b"bad"), b"\x00 no packet"]
    )
    words = ("replay", capture, f"{policy}:decide")
    found = told(*words, "--mark", "9", "--hook", "forward")
    assert found["verdicts"] == {"accept": 1, "drop": 1}
    assert sum(found["left_out"].values()) == 1  # type: ignore[attr-defined]
    refused = run("replay", DEMO, f"{policy}:decide", "--mark", "9")
    assert refused.exit_code == 2
    assert "--mark" in refused.stderr


def test_of_several_programs_one_is_named(policies: str) -> None:
    capture = str(FIXTURES / "others" / "two-programs.pcap")
    bindings = [each for each in trionfq.captures.survey(capture).bindings if each.packets]
    assert len({each.port_id for each in bindings}) > 1
    chosen = bindings[0]
    words = ("--queue", str(chosen.queue), "--port-id", str(chosen.port_id))
    found = told("replay", capture, f"{policies}:accept", *words)
    assert found["packets"] == chosen.packets


def test_a_cut_capture_fails_and_its_whole_packets_are_kept(tmp_path: Path, policies: str) -> None:
    capture = packets(tmp_path / "a.pcapng", 4)
    Path(capture).write_bytes(Path(capture).read_bytes()[:-10])
    output = tmp_path / "run.jsonl"
    result = run("replay", capture, f"{policies}:accept", "-o", str(output))
    assert result.exit_code == 1
    assert "the file ends after" in result.stderr
    assert [each.packet_id for each in read_transcript(output)] == [1, 2, 3]


def test_what_is_no_capture_fails_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    path.write_bytes(b"no capture at all, but text")
    for words in (("replay", str(path), EXAMPLE), ("judge", str(path)), ("decode", str(path))):
        result = run(*words)
        assert result.exit_code == 1, words
        assert result.stderr.startswith("trionfq: "), words
        assert result.stderr.count("\n") == 1, words


# --- compare --------------------------------------------------------------------------------------


def test_compare_is_fine_where_a_run_is_as_it_was_recorded(tmp_path: Path) -> None:
    output = str(tmp_path / "run.jsonl")
    run("replay", DEMO, EXAMPLE, "-o", output)
    result = run("compare", output, DEMO)
    assert result.exit_code == 0
    assert f"agree on all {NOTED['packets']} packets" in result.output
    assert told("compare", output, DEMO) == {
        "totals": {"same": True, "packets": NOTED["packets"], "differences": 0}
    }


def test_compare_shows_where_two_runs_part(tmp_path: Path, policies: str) -> None:
    output = str(tmp_path / "run.jsonl")
    run("replay", DEMO, f"{policies}:accept", "-o", output)
    result = run("compare", output, DEMO)
    assert result.exit_code == 1
    assert "drop" in result.output
    result = run("compare", output, DEMO, "--json")
    assert result.exit_code == 1
    *differences, totals = map(json.loads, result.stdout.splitlines())
    assert len(differences) == totals["totals"]["differences"] > 0
    first = differences[0]
    assert first["fields"]
    for name in first["fields"]:
        assert first["a"][name] != first["b"][name]
    assert bytes.fromhex(first["packet"])
    everything = [f"--ignore={name}" for name in ("verdict", "mark", "payload", "changes")]
    assert run("compare", output, DEMO, *everything).exit_code == 0


# --- judge ----------------------------------------------------------------------------------------


def test_judge_passes_a_good_capture_and_fails_a_bad_one(tmp_path: Path) -> None:
    good = run("judge", DEMO)
    assert good.exit_code == 0
    assert "passed" in good.output
    bad = write(
        tmp_path / "bad.pcapng",
        [
            Record(1, Direction.TO_KERNEL, make_bind()),
            Record(2, Direction.FROM_KERNEL, make_packet(1)),
            Record(3, Direction.TO_KERNEL, make_verdict(1)),
            Record(4, Direction.TO_KERNEL, make_verdict(1)),
        ],
    )
    result = run("judge", DEMO, bad, "--json")
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["totals"]["passed"] for each in lines if "totals" in each] == [True, False]
    found = [each for each in lines if "rule" in each and each["file"] == bad]
    assert any(each["packet_id"] == 1 and each["record"] == 3 for each in found), lines
    text = run("judge", bad)
    assert text.exit_code == 1
    assert "FAILED" in text.output
    assert found[0]["rule"] in text.output
    assert found[0]["rule"] not in run("judge", bad, "--least", "error").output or (
        found[0]["severity"] == "error"
    )


def test_judge_reads_standard_input() -> None:
    result = run("judge", "-", stdin=Path(DEMO).read_bytes())
    assert result.exit_code == 0
    assert f"{NOTED['packets']} packets" in result.output


def test_judge_lists_its_rules() -> None:
    result = run("judge", "--rules", "--json")
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == list(RULES)
    assert len(run("judge", "--rules").output.splitlines()) == len(RULES)
    assert run("judge").exit_code == 2


# --- decode ---------------------------------------------------------------------------------------


def test_decode_shows_every_record(tmp_path: Path) -> None:
    with open_capture(DEMO) as capture:
        records = list(capture)
    result = run("decode", DEMO, "--json")
    assert result.exit_code == 0
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["bytes"] for each in found] == [len(each.datagram) for each in records]
    assert [each["time_ns"] for each in found] == [each.time_ns for each in records]
    packet = next(each for each in found if each["messages"][:1] and "packet" in str(each))
    assert packet["problem"] is None
    text = run("decode", DEMO)
    assert text.output.count("\nrecord ") == len(records) - 1
    assert "NFQA_PACKET_HDR: packet_id 1, hw_protocol 2048, hook " in text.output
    assert "  verdict of queue 0" in text.output
    assert len(run("decode", DEMO, "--json", "--first", "2").stdout.splitlines()) == 2


def test_decode_takes_bytes_and_says_what_is_wrong_with_them() -> None:
    good = make_packet(77, udp_packet(b"x"), mark=5)
    result = run("decode", "--hex", good.hex(":"), "--json")
    assert result.exit_code == 0
    [message] = json.loads(result.stdout)["messages"]
    assert message["kind"] == "packet"
    values = {each["field"]: each["value"] for each in message["fields"]}
    assert values["NFQA_PACKET_HDR -> packet_id"] == 77
    assert values["NFQA_MARK"] == 5
    assert values["NFQA_PAYLOAD"] == udp_packet(b"x").hex()
    assert "UDP 192.0.2.1:40000 > 198.51.100.2:53" in run("decode", "--hex", good.hex()).output
    bad = run("decode", "--hex", good[:-1].hex())
    assert bad.exit_code == 1
    assert "CONTRADICTS THE SCHEMA" in bad.output
    assert run("decode", "--hex", "xy").exit_code == 2
    assert run("decode").exit_code == 2
    assert run("decode", DEMO, "--hex", "00").exit_code == 2


# --- record ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--match", "protocol=udp"], "belongs to --rule"),
        (["--rule", "OUTPUT", "--match", "colour=red"], "protocol, dports"),
        (["--rule", "OUTPUT", "--match", "dports=x"], "53,8000-8010"),
        (["--rule", "OUTPUT", "--match", "dports=53"], "give a protocol that has ports"),
        (["--keep", "3"], "--max-bytes"),
        (["--rule", "SIDEWAYS"], "prerouting"),
    ],
)
def test_wrong_use_of_record_leaves_no_file(tmp_path: Path, words: list[str], said: str) -> None:
    result = run("record", str(tmp_path / "a.pcapng"), *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


# --- Ctrl-C, pipes and terminals ------------------------------------------------------------------


def test_ctrl_c_comes_between_two_lines() -> None:
    lines = _console.Lines()

    def echo(text: str, err: bool) -> None:
        written.append(f"{text[:3]}")
        lines.interrupt(signal.SIGINT, None)
        written.append(f"{text[3:]}\n")

    written: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(click, "echo", echo)
        with pytest.raises(KeyboardInterrupt):
            lines.write("whole line")
    assert "".join(written) == "whole line\n"
    with pytest.raises(KeyboardInterrupt):
        lines.interrupt(signal.SIGINT, None)


def script(*words: str) -> subprocess.Popen[str]:
    """Start the command line as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "trionfq.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_ends_a_replay_with_a_whole_transcript(tmp_path: Path, policies: str) -> None:
    capture = packets(tmp_path / "a.pcapng", 5)
    output = tmp_path / "run.jsonl"
    words = ("replay", capture, f"{policies}:for_ever", "-o", str(output))
    with script(*words) as process:
        assert process.stdout is not None
        while "HERE 5" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "5 packets" in out
    verdicts = [each.verdict for each in read_transcript(output)]
    assert len(verdicts) == 5
    assert [each.name for each in tmp_path.glob("*run*")] == ["run.jsonl"]


def test_ctrl_c_ends_a_judgement_of_a_pipe_with_whole_lines() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "trionfq.cli", "decode", "-", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(Path(DEMO).read_bytes())  # and no end: it waits for more
        process.stdin.flush()
        found = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        found += process.stdout.read()  # not communicate(), which forgets what was read ahead
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    for line in found.splitlines():
        json.loads(line)


def test_a_reader_that_has_enough_is_no_traceback() -> None:
    with script("decode", *[DEMO] * 3) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        process.wait(30)
    assert "Traceback" not in errors
    assert process.returncode == 1


def test_progress_is_for_terminals(capfd: pytest.CaptureFixture[str]) -> None:
    with _console.progress("work") as tell:
        tell(1)
    assert capfd.readouterr() == ("", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")  # which makes rich take it for one
        for total in (None, 10):
            with _console.progress("work", total=total, every=1) as tell:
                tell(5)
            out, errors = capfd.readouterr()
            assert out == ""
            assert "work" in errors


def test_results_go_to_the_output_while_progress_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for terminal in (False, True):
        monkeypatch.setattr("trionfq.cli._console.is_terminal", lambda told=terminal: told)
        with _console.progress("work", every=1) as tell:
            tell(1)
            _console.Lines().write("a result")
            tell(2)
        out, errors = capsys.readouterr()
        assert out == "a result\n"
        assert "work" in errors
