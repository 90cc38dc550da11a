"""What the messages of a conversation must keep: the rules NFQ3xx to NFQ6xx."""

from __future__ import annotations

from ._rule import Rule, Severity

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE
_CONFIG = "nfqnl_recv_config (nfnetlink_queue.c)"
_MODE = "nfqnl_set_mode (nfnetlink_queue.c)"
_HEADER = "verdicthdr_get (nfnetlink_queue.c)"
_VERDICT = "nfqnl_recv_verdict (nfnetlink_queue.c)"
_BATCH = "nfqnl_recv_verdict_batch (nfnetlink_queue.c)"
_LOOKUP = "verdict_instance_lookup (nfnetlink_queue.c)"
_MANGLE = "nfqnl_mangle (nfnetlink_queue.c)"
_ENQUEUE = "__nfqnl_enqueue_packet (nfnetlink_queue.c)"
_ACK = "netlink_ack (af_netlink.c)"

CONFIG_RULES = (
    Rule(
        "NFQ301",
        _E,
        "configuration that the kernel refused",
        "the answer says why",
        _CONFIG,
        refused=True,
    ),
    Rule(
        "NFQ302",
        _E,
        "settings for a queue that is not bound",
        "ENODEV: BIND comes first, or in the same message",
        _CONFIG,
        refused=True,
    ),
    Rule("NFQ303", _E, "queue bound twice", "EBUSY", _CONFIG, refused=True),
    Rule(
        "NFQ304",
        _N,
        "obsolete command PF_BIND or PF_UNBIND",
        "does nothing since 3.8",
        _CONFIG,
    ),
    Rule(
        "NFQ305",
        _W,
        "BIND without a copy mode",
        "until NFQA_CFG_PARAMS comes the mode is NONE, which drops every packet uncounted; one "
        "message can hold both",
        "nfqnl_enqueue_packet (nfnetlink_queue.c)",
    ),
    Rule("NFQ306", _E, "unknown copy mode", "ignored, and success is reported", _MODE),
    Rule("NFQ307", _E, "NFQA_CFG_FLAGS without NFQA_CFG_MASK", "EINVAL", _CONFIG, refused=True),
    Rule(
        "NFQ308",
        _E,
        "unknown queue flag",
        "EOPNOTSUPP, in newest kernels EINVAL; nothing of the message is done",
        _CONFIG,
        refused=True,
    ),
    Rule("NFQ309", _W, "NFQA_CFG_MASK without NFQA_CFG_FLAGS", "ignored", _CONFIG),
    Rule("NFQ310", _W, "flag outside the mask", "it does not change", _CONFIG),
    Rule(
        "NFQ311",
        _E,
        "unknown command",
        "EOPNOTSUPP, for NFQNL_CFG_CMD_NONE, too",
        _CONFIG,
        refused=True,
    ),
    Rule(
        "NFQ312",
        _E,
        "setting in the host's byte order",
        "the value makes no sense, and read the other way round it does",
        "include/uapi/linux/netfilter/nfnetlink_queue.h",
        refused=True,
    ),
    Rule(
        "NFQ313",
        _N,
        "BIND that asks for no answer",
        "without NLM_F_ACK success cannot be told from a lost refusal",
        _ACK,
    ),
    Rule(
        "NFQ314",
        _W,
        "queue length 0 without fail-open",
        "every packet is dropped",
        _ENQUEUE,
    ),
    Rule(
        "NFQ315",
        _W,
        "packet with something that the queue was never set to send",
        "a payload in mode META or beyond the copy range; uid, secctx, ct or a GSO packet without "
        "the flag",
        "nfqnl_build_packet_message (nfnetlink_queue.c)",
    ),
    Rule("NFQ316", _N, "copy range beyond 65535", "65531 is the most; it is cut in silence", _MODE),
)

VERDICT_RULES = (
    Rule("NFQ401", _E, "verdict for an unknown id", "ENOENT", _VERDICT, refused=True),
    Rule(
        "NFQ402",
        _E,
        "verdict for a packet that was decided already",
        "ENOENT",
        _VERDICT,
        refused=True,
    ),
    Rule(
        "NFQ403",
        _E,
        "packet id in the host's byte order",
        "ENOENT, and the packet stays; a batch ends early or sweeps the queue",
        _VERDICT,
        refused=True,
    ),
    Rule(
        "NFQ404",
        _N,
        "verdict for a packet that the kernel had flushed",
        "ENOENT: a device went down, or a netfilter hook of the namespace was unregistered",
        "nfqnl_dev_drop, nfqnl_nf_hook_drop (nfnetlink_queue.c)",
        refused=True,
    ),
    Rule(
        "NFQ405",
        _E,
        "verdict that the kernel refused",
        "for another reason than those of other rules; after EINVAL or ERANGE the packet waits on",
        _VERDICT,
        refused=True,
    ),
    Rule(
        "NFQ406",
        _E,
        "verdict that user space cannot give",
        "EINVAL for STOLEN and everything above STOP",
        _HEADER,
        refused=True,
    ),
    Rule(
        "NFQ407",
        _W,
        "upper bits in a verdict that is not QUEUE",
        "ACCEPT then skips the remaining hooks, REPEAT drops",
        "nf_reinject (nf_queue.c)",
    ),
    Rule(
        "NFQ408",
        _E,
        "verdict in the host's byte order",
        "its low byte is 0, which is DROP",
        _HEADER,
    ),
    Rule("NFQ409", _E, "verdict for a queue that is not bound", "ENODEV", _LOOKUP, refused=True),
    Rule(
        "NFQ410",
        _E,
        "queue number in the host's byte order",
        "res_id is big-endian; ENODEV, or somebody else's queue",
        _LOOKUP,
        refused=True,
    ),
    Rule(
        "NFQ411",
        _W,
        "batch that sweeps packets nobody had read",
        "its id is beyond every packet so far; what arrives meanwhile is decided unseen. Not "
        "reported where the same datagram goes on to unbind the queue",
        _BATCH,
    ),
    Rule("NFQ412", _W, "batch that decides nothing", "ENOENT", _BATCH, refused=True),
    Rule(
        "NFQ413",
        _E,
        "payload of a truncated packet sent back",
        "what was not copied is cut from the packet",
        _MANGLE,
    ),
    Rule(
        "NFQ414",
        _N,
        "payload sent back unchanged",
        "costs a copy, and the kernel takes the checksum for unverified",
        _MANGLE,
    ),
    Rule(
        "NFQ415",
        _E,
        "payload that ends before the transport header",
        "the packet is dropped, and success is reported; of a tagged packet of the bridge family "
        "so is any payload that is shorter than before",
        _MANGLE,
    ),
    Rule(
        "NFQ416",
        _W,
        "new payload whose length field is wrong",
        "the kernel corrects nothing, and later hooks or the receiver drop it",
        _MANGLE,
    ),
    Rule(
        "NFQ417",
        _W,
        "new payload with a wrong IPv4 header checksum",
        "the kernel corrects nothing",
        _MANGLE,
    ),
    Rule(
        "NFQ418",
        _W,
        "mark wiped by a program that sets none",
        "a verdict writes 0 over a mark, and no verdict before wrote another value: an accident of "
        "a default",
        _VERDICT,
    ),
    Rule("NFQ419", _N, "mark written as it was", "without effect", _VERDICT),
    Rule(
        "NFQ420",
        _E,
        "mark in the host's byte order",
        "the packet's own mark, read the other way round",
        _VERDICT,
    ),
    Rule(
        "NFQ421",
        _N,
        "REPEAT that leaves the mark",
        "the same rule gives the packet to the queue again, for ever unless something else ends it",
        "nf_reinject (nf_queue.c)",
    ),
    Rule(
        "NFQ422",
        _W,
        "NFQA_EXP without NFQA_CT",
        "ignored",
        "nfqnl_ct_parse (nfnetlink_queue.c)",
    ),
    Rule(
        "NFQ423",
        _W,
        "connection attribute that a verdict cannot set",
        "only timeout, status, help, mark with its mask and labels with theirs are looked at",
        "ctnetlink_glue_parse_ct (nf_conntrack_netlink.c)",
    ),
    Rule(
        "NFQ424",
        _E,
        "NFQA_VLAN with one member only",
        "EINVAL, and the packet is dropped",
        "nfqa_parse_bridge (nfnetlink_queue.c)",
        refused=True,
    ),
    Rule(
        "NFQ425",
        _E,
        "NFQA_L2HDR of another length than the packet's",
        "EINVAL, and the packet is dropped",
        "nfqa_parse_bridge (nfnetlink_queue.c)",
        refused=True,
    ),
    Rule(
        "NFQ426",
        _E,
        "expectation without its tuple or its mask",
        "most kernels follow a null pointer, and the sending thread dies; newest ones ignore it",
        "ctnetlink_glue_attach_expect (nf_conntrack_netlink.c)",
    ),
)

PACKET_RULES = (
    Rule(
        "NFQ501",
        _W,
        "packet that was never answered",
        "a packet that came later was; it waits until the queue goes, and is dropped then",
        "nfqnl_flush (nfnetlink_queue.c)",
    ),
    Rule(
        "NFQ502",
        _N,
        "packet undecided at the end",
        "when the queue was unbound or bound anew, or the capture ended; the kernel drops it with "
        "the queue",
        "nfqnl_flush (nfnetlink_queue.c)",
    ),
    Rule(
        "NFQ503",
        _E,
        "packet id that does not come after the one before",
        "the kernel counts on by one, modulo 2^32",
        _ENQUEUE,
    ),
    Rule(
        "NFQ504",
        _N,
        "gap in the packet ids",
        "packets that did not fit the receive buffer; dropped, and counted in user_dropped",
        _ENQUEUE,
    ),
)

ANSWER_RULES = (
    Rule("NFQ601", _W, "answer to no request", "type and sequence number are the request's", _ACK),
    Rule(
        "NFQ602",
        _N,
        "request that was never answered",
        "NLM_F_ACK was set; the answer did not fit the receive buffer",
        _ACK,
    ),
    Rule(
        "NFQ603",
        _N,
        "verdicts that share a sequence number",
        "an answer has the number of its request, so a refusal does not tell the packet unless "
        "the kernel echoes the whole request (it does not with NETLINK_CAP_ACK). Told once a queue",
        _ACK,
    ),
)
