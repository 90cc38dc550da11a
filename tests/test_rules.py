"""What of rules needs no kernel: what programs are told, what they print, what follows from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from trionfq import Hook, ModuleMissingError, PrivilegeError
from trionfq.backends import QueueRow
from trionfq.rules import Cause, Diagnosis, FoundRule, Match, Owner, RuleAhead, RuleError, queueing
from trionfq.rules._claim import of_comment, of_table
from trionfq.rules._iptables import _quoted, of_family
from trionfq.rules._listing import flowtables_of_nft, made_by_iptables, of_nft, of_saved
from trionfq.rules._nft import parse_counters
from trionfq.rules._programs import Done, check
from trionfq.rules._saved import parse_saved
from trionfq.rules._spec import Spec, make_spec

OPTIONS: dict[str, Any] = {
    "balance": None,
    "match": None,
    "families": ("ip", "ip6"),
    "table": "mangle",
    "position": "top",
    "bypass": False,
    "fanout": False,
    "exclude_mark": None,
    "counter": True,
    "key": None,
}


def spec(number: int | None = 0, chain: Any = "OUTPUT", **options: Any) -> Spec:
    return make_spec(number, chain, **{**OPTIONS, **options})


def iptables(family: Any = "ip", **options: Any) -> list[str]:
    """The rules as iptables takes them, without what each has."""
    made = spec(**options)
    end = f" -m comment --comment c -j NFQUEUE --queue-num {made.first}"
    return [
        f"{chain} {' '.join(words)}".replace(end, "")
        for chain, words in made.iptables_rules(family, "c")
    ]


def nft(**options: Any) -> list[str]:
    """The rules as nft takes them."""
    lines = spec(**options).nft_script("t", "c").splitlines()
    return [line.removeprefix("add rule inet t ") for line in lines if line.startswith("add rule")]


# --- what programs are told -----------------------------------------------------------------------


def test_iptables_is_told_every_option() -> None:
    made = spec(
        None,
        Hook.POST_ROUTING,
        balance=(4, 7),
        match=Match(
            protocol="tcp",
            dports=443,
            sports=[(1024, 65535)],
            source="10.0.0.0/8",
            destination="10.1.0.0/16",
            out_interface="eth*",
            iptables="-m owner --uid-owner 'a b'",
        ),
        bypass=True,
        fanout=True,
        exclude_mark=(0x10, 0x30),
    )
    [(chain, words)] = made.iptables_rules("ip", "trionfq:k:00000000")
    assert chain == "POSTROUTING"
    assert words == [
        *("-p", "tcp", "-o", "eth+", "-s", "10.0.0.0/8", "-d", "10.1.0.0/16"),
        *("-m", "multiport", "--sports", "1024:65535", "-m", "multiport", "--dports", "443"),
        *("-m", "owner", "--uid-owner", "a b"),
        *("-m", "mark", "!", "--mark", "0x10/0x30"),
        *("-m", "comment", "--comment", "trionfq:k:00000000"),
        *("-j", "NFQUEUE", "--queue-balance", "4:7", "--queue-cpu-fanout", "--queue-bypass"),
    ]
    assert made.families == ("ip",), "its networks are of IPv4"
    assert made.programs() == ("iptables",)


def test_nft_is_told_every_option() -> None:
    made = spec(
        None,
        "forward",
        balance=(4, 7),
        match=Match(
            protocol="udp",
            dports=[53, (5000, 5001), 5002],
            source=["fd00::/16", "fd00:1::/32"],
            in_interface="eth+",
            nft="meta skuid 1000",
        ),
        bypass=True,
        fanout=True,
        exclude_mark=7,
    )
    assert made.nft_script("trionfq_k_00000000", "trionfq:k:00000000").splitlines() == [
        "add table inet trionfq_k_00000000",
        "flush table inet trionfq_k_00000000",
        "add chain inet trionfq_k_00000000 forward_m151 "
        "{ type filter hook forward priority -151; }",
        "add rule inet trionfq_k_00000000 forward_m151 meta nfproto ipv6 meta l4proto udp "
        'iifname "eth*" ip6 saddr { fd00::/16 } udp dport { 53, 5000-5002 } meta skuid 1000 '
        "meta mark != 0x7 counter queue num 4-7 bypass,fanout "
        'comment "trionfq:k:00000000"',
    ]
    assert made.programs() == ("nft",)


def test_without_options_a_rule_is_short() -> None:
    assert iptables() == ["OUTPUT"]
    assert nft(counter=False) == [
        'output_m151 meta nfproto ipv4 queue num 0 comment "c"',
        'output_m151 meta nfproto ipv6 queue num 0 comment "c"',
    ]
    assert spec(table="filter", position="bottom").nft_chain("INPUT") == "input_p1"
    assert spec(table="raw").priority == -301


def test_icmp_is_each_familys_own() -> None:
    for name in ("icmp", "icmpv6", "ipv6-icmp"):
        match = Match(protocol=name)
        assert iptables("ip", match=match) == ["OUTPUT -p icmp"]
        assert iptables("ip6", match=match) == ["OUTPUT -p ipv6-icmp"]
        assert ["ipv6-icmp" in line for line in nft(match=match)] == [False, True]


def test_more_ports_than_one_match_takes_are_several_rules() -> None:
    """xt_multiport takes 15, and a range counts twice."""
    match = Match(protocol="tcp", dports=[*range(0, 28, 2), (100, 200), 300])
    assert iptables(match=match) == [
        "OUTPUT -p tcp -m multiport --dports " + ",".join(map(str, range(0, 28, 2))),
        "OUTPUT -p tcp -m multiport --dports 100:200,300",
    ]
    assert len(nft(match=match)) == 2, "one for each family"


def test_each_chain_family_and_alternative_has_its_rule() -> None:
    options: dict[str, Any] = {
        "chain": ("INPUT", Hook.LOCAL_OUT, "input"),
        "match": [Match(source="10.0.0.0/8"), Match(destination=["fd00::/8", "10.0.0.0/8"])],
    }
    assert iptables("ip", **options) == [
        "INPUT -s 10.0.0.0/8",
        "INPUT -d 10.0.0.0/8",
        "OUTPUT -s 10.0.0.0/8",
        "OUTPUT -d 10.0.0.0/8",
    ]
    assert iptables("ip6", **options) == ["INPUT -d fd00::/8", "OUTPUT -d fd00::/8"]
    assert [line.split(" queue")[0] for line in nft(**options, counter=False)][:3] == [
        "input_m151 meta nfproto ipv4 ip saddr { 10.0.0.0/8 }",
        "input_m151 meta nfproto ipv4 ip daddr { 10.0.0.0/8 }",
        "input_m151 meta nfproto ipv6 ip6 daddr { fd00::/8 }",
    ]


def test_the_key_is_made_of_the_queue_number_or_given() -> None:
    assert spec(3).key == "queue-3"
    assert spec(None, balance=(3, 5)).key == "queue-3-5"
    assert spec(3, key="my.fire-wall").key == "my.fire-wall"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"number": None}, "give one of them"),
        ({"balance": (0, 1)}, "give one of them"),
        ({"number": 65536}, "expected 0 to 65535, got 65536"),
        ({"number": None, "balance": (4, 4)}, "first queue number before the last"),
        ({"fanout": True}, r"give balance=\(first, last\)"),
        ({"chain": ()}, "chain: none given"),
        ({"chain": "OUT"}, "chain: expected PREROUTING, INPUT"),
        ({"chain": Hook.INGRESS}, "chain: expected PREROUTING, INPUT"),
        ({"table": "nat"}, "only a flow's first packet; use mangle"),
        ({"table": "fliter"}, "table: expected raw, mangle"),
        ({"chain": "FORWARD", "table": "raw"}, "raw has no chain FORWARD"),
        ({"position": "middle"}, "'top' or 'bottom'"),
        ({"families": "ip"}, "families: expected some of"),
        ({"families": ()}, "families: expected some of"),
        ({"families": ("ip6",), "match": Match(source="10.0.0.0/8")}, "none of the families"),
        ({"exclude_mark": (0x11, 0x10)}, "bits outside of its mask"),
        ({"exclude_mark": 1 << 32}, "32-bit value and mask"),
        ({"key": "a b"}, "key: expected"),
        ({"key": "x" * 41}, "key: expected"),
        ({"match": []}, "no alternative given"),
        ({"match": Match(in_interface="lo")}, "in_interface: not known yet, or no more, in OUTPUT"),
        ({"match": [Match(nft="x"), Match(iptables="-x")]}, "nft only, another for iptables only"),
        ({"program": "pf"}, "program: expected one of nft, iptables"),
        ({"program": "nft", "match": Match(iptables="-m x")}, "has no text for nft"),
        ({"timeout_s": 0}, "timeout_s: expected more than 0"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_runs(
    options: dict[str, Any], says: str
) -> None:
    arguments = {"number": 0, "chain": "OUTPUT", **options}
    with pytest.raises(ValueError, match=says):
        queueing(**arguments)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"dports": 80}, "give a protocol that has ports"),
        ({"protocol": "icmp", "sports": 80}, "give a protocol that has ports"),
        ({"protocol": "tcp", "dports": 65536}, "ports 0 to 65535"),
        ({"protocol": "tcp", "dports": [(9, 8)]}, "first before last"),
        ({"protocol": "TCP; drop"}, "protocol: expected a name"),
        ({"protocol": 0}, "number 1 to 255"),
        ({"protocol": "all"}, "protocol: expected a name"),
        ({"in_interface": "a name that is too long"}, "in_interface: expected an interface's name"),
        ({"out_interface": 'x"'}, "out_interface: expected an interface's name"),
        ({"source": "10.0.0.1/8"}, "source: .*host bits set"),
        ({"source": "10.0.0.0/8", "destination": "fd00::/8"}, "no family has networks in both"),
        ({"iptables": "-j ACCEPT"}, "expected matches only, got '-j'"),
        ({"iptables": "--comment x"}, "expected matches only"),
        ({"iptables": "'"}, "No closing quotation"),
        ({"nft": "accept; drop"}, "expected matches of one rule"),
        ({"nft": "a\nadd table x"}, "expected matches of one rule"),
    ],
)
def test_a_match_that_cannot_be_is_refused(members: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Match(**members)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="expected an int, got '0'"):
        queueing("0", "OUTPUT")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a Match, got str"):
        queueing(0, "OUTPUT", match=["tcp"])  # type: ignore[list-item]


def test_arguments_are_quoted_for_iptables_restore() -> None:
    assert _quoted("0x10/0x10") == "0x10/0x10"
    assert _quoted('a "b" \\') == '"a \\"b\\" \\\\"'
    assert _quoted("") == '""'
    assert [of_family(name, "ip6") for name in ("iptables", "iptables-legacy")] == [
        "ip6tables",
        "ip6tables-legacy",
    ]


def test_owners_are_read_from_comments_and_tables() -> None:
    assert of_comment("trionfq:my.fire-wall:0123abcd") == ("my.fire-wall", "0123abcd")
    assert of_table("trionfq_queue-0_0123abcd") == ("queue-0", "0123abcd")
    for foreign in ("trionfq", "trionfq:a:b", "trionfq:x:0123abcd ", "other:queue-0:0123abcd"):
        assert of_comment(foreign) is None
    assert of_table("trionfq_mine") is None


# --- what programs say ----------------------------------------------------------------------------

FAILURES = [
    (
        "Could not fetch rule set generation id: Permission denied (you must be root)",
        PrivilegeError,
    ),
    ("Error: Could not process rule: Operation not permitted", PrivilegeError),
    ("Another app is currently holding the xtables lock.", RuleError),
    ("Fatal: can't open lock file /run/xtables.lock: Permission denied", RuleError),
    ("iptables: No chain/target/match by that name.", ModuleMissingError),
    ("Error: Could not process rule: No such file or directory", ModuleMissingError),
    ("Warning: Extension NFQUEUE is not supported, missing kernel module?", ModuleMissingError),
    ("iptables-restore: line 2 failed: Bad rule", RuleError),
    ("", RuleError),
]


@pytest.mark.parametrize(("said", "kind"), FAILURES)
def test_a_failure_is_told_by_its_kind(said: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        check(Done(("iptables",), 1, "", said + "\n"), "install a rule")
    assert type(caught.value) is kind
    assert said in str(caught.value) or not said
    assert "install a rule with iptables" in str(caught.value)


def test_success_gives_what_was_printed() -> None:
    assert check(Done(("nft",), 0, "text", "a warning"), "list rules") == "text"


SAVED = """\
# Generated by iptables-save v1.8.9 (nf_tables) on Wed Nov 25 04:09:35 2026
*mangle
:OUTPUT ACCEPT [0:0]
:mine - [0:0]
[1:60] -A OUTPUT -p tcp -j mine
[7:420] -A OUTPUT -m comment --comment "a -j b" -j NFQUEUE --queue-balance 5:7 --queue-bypass
[0:0] -A mine -j QUEUE
[0:0] -A lost -p udp -m comment --comment "trionfq:k:00000000" -j NFQUEUE --queue-num 9
COMMIT
*filter
[3:100] -A OUTPUT -p udp -j ACCEPT
[9:900] -A OUTPUT -m comment --comment all -j ACCEPT
[0:0] -A OUTPUT -j NFQUEUE --queue-num 5 --queue-bypass --queue-cpu-fanout
COMMIT
# Completed
"""


def test_rules_are_read_from_what_iptables_saves() -> None:
    found = of_saved("iptables-nft", "ip", parse_saved(SAVED))
    assert [
        (rule.table, rule.chain, rule.place, rule.hooks, rule.queues, rule.bypass, rule.packets)
        for rule in found
    ] == [
        ("mangle", "OUTPUT", 2, ("OUTPUT",), (5, 7), True, 7),
        ("mangle", "mine", 1, ("OUTPUT",), (0, 0), False, 0),
        ("mangle", "lost", 1, (), (9, 9), False, 0),
        ("filter", "OUTPUT", 3, ("OUTPUT",), (5, 5), True, 0),
    ]
    assert [rule.ahead for rule in found] == [
        None,
        None,
        None,
        RuleAhead("-m comment --comment all -j ACCEPT", 9),
    ]
    assert [rule.comment for rule in found][:3] == ["a -j b", "", "trionfq:k:00000000"]
    assert [rule.points_at(6) for rule in found] == [True, False, False, False]
    assert all(rule.program == "iptables-nft" and rule.families == ("ip",) for rule in found)


def _match(key: str, right: str) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": right}}


def nft_ruleset() -> dict[str, Any]:
    """In the form that nft 1.0.6 prints."""

    def chain(name: str, **hook: Any) -> dict[str, Any]:
        return {"chain": {"family": "inet", "table": "t", "name": name, "handle": 1, **hook}}

    def rule(chain: str, *expr: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "rule": {"family": "inet", "table": "t", "chain": chain, "handle": 2, **more}
            | {"expr": list(expr)}
        }

    return {
        "nftables": [
            {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
            {"table": {"family": "inet", "name": "t", "handle": 1}},
            chain("out", type="filter", hook="output", prio=-151, policy="accept"),
            chain("mine"),
            chain("lost"),
            rule("out", _match("nfproto", "ipv4"), {"counter": {"packets": 4, "bytes": 9}})
            | {"ignored": 1},
            rule(
                "out",
                {"match": {"op": "==", "left": {"payload": {"protocol": "ip6"}}, "right": "x"}},
                {"counter": {"packets": 3, "bytes": 100}},
                {"queue": {"num": {"range": [5, 7]}, "flags": ["bypass", "fanout"]}},
                comment="trionfq:k:00000000",
            ),
            rule(
                "out",
                {"vmap": {"key": {}, "data": {"set": [["lo", {"jump": {"target": "mine"}}]]}}},
            ),
            rule("mine", _match("l4proto", "icmp"), {"queue": {"num": 1, "flags": "bypass"}}),
            rule("mine", {"counter": {"packets": 8, "bytes": 80}}, {"accept": None}),
            rule("mine", {"queue": {"num": {"numgen": {"mode": "inc", "mod": 3}}}}),
            rule("lost", {"queue": None}),
            {
                "rule": {"family": "ip", "table": "filter", "chain": "OUTPUT", "handle": 3}
                | {"expr": [{"xt": {"type": "target", "name": "NFQUEUE"}}]}
            },
        ]
    }


def test_rules_are_read_from_what_nft_lists() -> None:
    found = of_nft(nft_ruleset())
    assert [
        (rule.chain, rule.place, rule.hooks, rule.families, rule.queues, rule.bypass, rule.packets)
        for rule in found
    ] == [
        ("out", 2, ("OUTPUT",), ("ip6",), (5, 7), True, 3),
        ("mine", 1, ("OUTPUT",), ("ip",), (1, 1), True, None),
        ("mine", 3, ("OUTPUT",), ("ip", "ip6"), None, False, None),
        ("lost", 1, (), ("ip", "ip6"), (0, 0), False, None),
    ]
    assert found[2].ahead == RuleAhead("accept", 8)
    assert found[2].points_at(60_000), "an expression chooses, so it may"
    assert made_by_iptables(nft_ruleset())
    assert not made_by_iptables({"nftables": []})
    assert of_nft({}) == []


def ahead_in(text: str, table: str = "filter", chain: str = "OUTPUT") -> RuleAhead | None:
    """What stands before the one rule of queue 5, in lines as iptables saves them."""
    lines = [line if line.startswith("[") else f"[0:0] {line}" for line in text.splitlines()]
    tables: dict[str, list[str]] = {}
    for line in lines:
        start, counted = line.rsplit(" @", 1) if " @" in line else (line, table)
        tables.setdefault(counted, []).append(start)
    own = tables.setdefault(table, [])
    own.append(f"[0:0] -A {chain} -j NFQUEUE --queue-num 5")
    saved = "".join(f"*{name}\n" + "\n".join(rules) + "\n" for name, rules in tables.items())
    [found] = [one for one in of_saved("x", "ip", parse_saved(saved)) if one.points_at(5)]
    return found.ahead


JUMP = "-A OUTPUT -j sub\n"


@pytest.mark.parametrize(
    ("text", "chain", "expected"),
    [
        ("", "OUTPUT", None),
        ("[1:1] -A OUTPUT -p udp -j ACCEPT", "OUTPUT", ("-p udp -j ACCEPT", 1, "")),
        ("[0:0] -A OUTPUT -p udp -j ACCEPT", "OUTPUT", None),
        ("[0:0] -A OUTPUT -j DROP", "OUTPUT", ("-j DROP", 0, "")),
        ("[3:9] -A OUTPUT -g sub\n-A sub -p udp -j LOG", "OUTPUT", ("-g sub", 3, "")),
        (JUMP + "-A sub -j ACCEPT", "OUTPUT", ("-j ACCEPT", 0, "filter sub")),
        (JUMP + "-A sub -j RETURN\n-A sub -j ACCEPT", "OUTPUT", None),
        (JUMP + "[7:7] -A sub -p udp -j RETURN", "OUTPUT", None),
        (
            JUMP + "-A sub -j deep\n-A deep -j sub\n[2:2] -A deep -p udp -j REJECT",
            "OUTPUT",
            ("-p udp -j REJECT", 2, "filter deep"),
        ),
        ("[9:9] -A OUTPUT -p udp -j sub\n-A sub -j DROP", "OUTPUT", None),
        (JUMP + "-A OUTPUT -j ACCEPT", "sub", None),
        ("-A OUTPUT -j ACCEPT\n" + JUMP, "sub", ("-j ACCEPT", 0, "filter OUTPUT")),
        (
            "[4:4] -A OUTPUT -p udp -j RETURN\n" + JUMP,
            "sub",
            ("-p udp -j RETURN", 4, "filter OUTPUT"),
        ),
        ("-A OUTPUT -j DROP @raw", "OUTPUT", ("-j DROP", 0, "raw OUTPUT")),
        ("-A OUTPUT -j DROP @security", "OUTPUT", None),
        ("-A OUTPUT -j ACCEPT @raw", "OUTPUT", None),
        (
            "[5:5] -A PREROUTING -p udp -j DROP @mangle",
            "INPUT",
            ("-p udp -j DROP", 5, "mangle PREROUTING"),
        ),
        ("-A FORWARD -j DROP @mangle", "INPUT", None),
        ("-A FORWARD -j DROP @mangle", "OUTPUT", None),
        ("-A INPUT -j both\n-A OUTPUT -j both\n-A OUTPUT -j DROP @raw", "both", None),
    ],
)
def test_what_takes_packets_first_is_found_along_their_way(
    text: str, chain: str, expected: tuple[str, int, str] | None
) -> None:
    assert ahead_in(text, chain=chain) == expected


def test_what_takes_packets_first_is_found_in_nfts_base_chains() -> None:
    def chain(family: str, name: str, hook: str, prio: int, policy: str) -> dict[str, Any]:
        where = {"family": family, "table": "t", "name": name}
        return {"chain": where | {"hook": hook, "prio": prio, "policy": policy}}

    def rule(family: str, chain: str, *expr: dict[str, Any]) -> dict[str, Any]:
        where = {"family": family, "table": "t", "chain": chain}
        return {"rule": where | {"expr": list(expr)}}

    queue = rule("ip", "in", {"counter": {"packets": 0, "bytes": 0}}, {"queue": {"num": 5}})

    def ahead(*objects: dict[str, Any]) -> RuleAhead | None:
        own = chain("ip", "in", "input", 0, "accept")
        return of_nft({"nftables": [*objects, own, queue]})[0].ahead

    drop, some = {"drop": None}, _match("l4proto", "udp")
    counted = {"counter": {"packets": 3, "bytes": 9}}
    assert ahead() is None
    for family, hook, prio, expected in [
        ("inet", "input", -1, True),
        ("ip", "prerouting", 99, True),
        ("ip6", "input", -1, False),
        ("ip", "input", 1, False),
        ("ip", "output", -1, False),
    ]:
        found = ahead(chain(family, "c", hook, prio, "accept"), rule(family, "c", counted, drop))
        assert found == (("drop", 3, f"{family} t c") if expected else None)
    early = chain("inet", "c", "input", -1, "drop")
    assert ahead(early) == ("policy drop", None, "inet t c")
    assert ahead(early, rule("inet", "c", some, counted, drop)) == ("drop", 3, "inet t c")
    assert ahead(early, rule("inet", "c", {"accept": None})) == ("policy drop", None, "inet t c")
    jump = rule("ip", "in", {"jump": {"target": "sub"}})
    assert ahead(jump, rule("ip", "sub", {"accept": None})) == ("accept", None, "ip t sub")


def test_flowtables_are_read_from_what_nft_lists() -> None:
    table = {"family": "inet", "table": "t", "name": "f", "handle": 9, "hook": "ingress"}
    assert flowtables_of_nft({"nftables": [{"flowtable": table}]}) == ["inet t f"]


def test_counters_are_read_from_what_nft_lists() -> None:
    text = """\
table inet trionfq_queue-0_00000000 {
	chain output_m151 {
		type filter hook output priority -151; policy accept;
		ip saddr 10.0.0.0/8 counter packets 3 bytes 252 queue flags bypass to 0 comment "c"
		meta nfproto ipv6 counter packets 4 bytes 416 queue to 0 comment "c"
		meta l4proto ipv6-icmp counter packets 5 bytes 6 queue to 0 comment "c"
		meta nfproto ipv4 queue to 0 comment "c"
	}
}
"""
    assert parse_counters(text) == [
        ("ip", "OUTPUT", 3, 252),
        ("ip6", "OUTPUT", 4, 416),
        ("ip6", "OUTPUT", 5, 6),
    ]


# --- what follows ---------------------------------------------------------------------------------

ROW = QueueRow(5, 4242, 0, 2, 65531, 0, 0, 3)
RULE = FoundRule(
    program="iptables-nft",
    families=("ip", "ip6"),
    table="mangle",
    chain="OUTPUT",
    place=1,
    hooks=("OUTPUT",),
    queues=(5, 5),
    bypass=False,
    packets=3,
    comment="",
    text="-j NFQUEUE --queue-num 5",
    ahead=None,
)


def changed(**members: Any) -> FoundRule:
    return dataclasses.replace(RULE, **members)


def diagnosis(**members: Any) -> Diagnosis:
    given: dict[str, Any] = {
        "number": 5,
        "namespace": "here",
        "queue": ROW,
        "rules": (RULE,),
        "bound": (5,),
    }
    return Diagnosis(**(given | members))


def test_where_all_is_well_nothing_is_found() -> None:
    seen = diagnosis(owners=(Owner(4242, "python"),))
    assert seen.findings == ()
    assert seen.is_bound
    assert seen.packets == 3
    assert str(seen).splitlines() == [
        "queue 5 in here",
        "  bound: yes, by port id 4242 (python, process 4242); 3 packets so far, "
        "0 waiting for a verdict",
        "  rules that point at it: 1",
        "    iptables-nft, IPv4 and IPv6, mangle OUTPUT, rule 1: 3 packets: "
        "-j NFQUEUE --queue-num 5",
        "  nothing was found that keeps packets away",
    ]


@pytest.mark.parametrize(
    ("members", "causes", "says"),
    [
        (
            {"queue": None},
            {Cause.NOT_BOUND},
            "no program has bound queue 5; what matches is dropped meanwhile",
        ),
        ({"queue": None, "rules": (changed(bypass=True),)}, {Cause.NOT_BOUND}, "is let through"),
        (
            {"queue": None, "elsewhere": ("network namespace 'x'",)},
            {Cause.NOT_BOUND, Cause.BOUND_ELSEWHERE},
            "queue 5 is bound in network namespace 'x'",
        ),
        ({"rules": ()}, {Cause.NO_RULE}, "no rule of here points at queue 5: install one"),
        (
            {"rules": (), "unread": ("rules of nft were not read",)},
            {Cause.NO_RULE, Cause.NOT_READ},
            "as far as rules could be read",
        ),
        (
            {"rules": (), "other_rules": (changed(queues=(1, 3)), changed(queues=(7, 7)))},
            {Cause.OTHER_NUMBER},
            "the rules here point at 1-3 (not bound), 7 (not bound)",
        ),
        ({"rules": (changed(families=("ip",)),)}, {Cause.ONE_FAMILY}, "points at queue 5 for IPv6"),
        ({"rules": (changed(families=("ip",)),), "families": ("ip",)}, set(), "nothing was found"),
        (
            {"rules": (changed(packets=0),)},
            {Cause.NOT_MATCHED},
            "nothing has matched the rule in mangle OUTPUT (iptables-nft) yet; "
            "OUTPUT sees packets that this machine sends itself",
        ),
        (
            {"rules": (changed(packets=0, ahead=RuleAhead("-j ACCEPT", 1)),)},
            {Cause.NOT_MATCHED, Cause.TAKEN_BEFORE},
            "behind one that takes packets first: -j ACCEPT (1 packet); insert it at the top",
        ),
        ({"rules": (changed(ahead=RuleAhead("-j ACCEPT", 1)),)}, set(), "nothing was found"),
        (
            {"rules": (changed(hooks=()),)},
            {Cause.CHAIN_NOT_REACHED},
            "no rule jumps to chain OUTPUT",
        ),
        (
            {"rules": (changed(hooks=("FORWARD",), packets=0),), "forwarding": ("ip",)},
            {Cause.NOT_MATCHED, Cause.NO_FORWARDING},
            "forwards no IPv6 (net.ipv6.conf.all.forwarding)",
        ),
        (
            {"rules": (changed(packets=0),), "bridges": ("br0",), "bridged_families": ("ip",)},
            {Cause.NOT_MATCHED, Cause.BRIDGED},
            "only cross the bridge br0 do not come to rules for IPv6",
        ),
        (
            {"rules": (changed(packets=None, hooks=("INPUT",)),), "reverse_path_drops": 2},
            {Cause.REVERSE_PATH},
            "2 packets came in by an interface that does not lead back",
        ),
        (
            {"rules": (changed(packets=0, ahead=RuleAhead("drop", None, "inet t c")),)},
            {Cause.NOT_MATCHED, Cause.TAKEN_BEFORE},
            "takes packets first: drop in inet t c; let that one spare them",
        ),
        (
            {"rules": (changed(hooks=("FORWARD",)),), "flowtables": ("inet t f",)},
            {Cause.OFFLOADED},
            "connections in the flowtable inet t f come to no rule but ingress",
        ),
        ({"flowtables": ("inet t f",)}, set(), "nothing was found"),
        (
            {"rules": (changed(packets=None),), "queue": ROW._replace(id_sequence=0)},
            {Cause.NOT_MATCHED},
            "no packet has come to queue 5 yet, and its rules do not count",
        ),
        (
            {"rules": (changed(packets=None, ahead=RuleAhead("accept", 3)),)},
            set(),
            "nothing was found",
        ),
        (
            {"rules": (changed(packets=None, ahead=RuleAhead("accept", 3)), RULE)},
            {Cause.TAKEN_BEFORE},
            "takes packets first: accept (3 packets); insert it at the top",
        ),
        ({"queue": ROW._replace(copy_mode=0)}, {Cause.MODE_NONE}, "NONE, which drops every packet"),
        ({"queue": ROW._replace(queue_total=9)}, {Cause.WAITING}, "9 packets in queue 5 without"),
        ({"queue": ROW._replace(queue_dropped=1)}, {Cause.QUEUE_FULL}, "raise max_len"),
        ({"queue": ROW._replace(user_dropped=1)}, {Cause.OVERRUN}, "raise receive_buffer_bytes"),
        ({"left_behind": ("trionfq:k:00000000",)}, {Cause.LEFT_BEHIND}, "the same key replaces it"),
    ],
)
def test_each_cause_is_found_and_told(
    members: dict[str, Any], causes: set[Cause], says: str
) -> None:
    seen = diagnosis(**members)
    assert seen.causes == causes
    assert says in str(seen)
