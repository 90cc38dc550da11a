"""What every single message must keep: the rules NFQ1xx (headers) and NFQ2xx (attributes)."""

from __future__ import annotations

from ._rule import Rule, Severity

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE
_SKB = "netlink_rcv_skb (af_netlink.c)"
_MSG = "nfnetlink_rcv_msg (nfnetlink.c)"
_NLA = "__nla_validate_parse (lib/nlattr.c)"
_POLICY = "validate_nla (lib/nlattr.c)"
_HEADER = "include/uapi/linux/netfilter/nfnetlink_queue.h"
_BUILD = "nfqnl_build_packet_message (nfnetlink_queue.c)"

HEADER_RULES = (
    Rule(
        "NFQ101",
        _E,
        "bytes without a whole netlink header",
        "fewer than 16 bytes are left; the kernel ends there and tells nobody",
        _SKB,
    ),
    Rule(
        "NFQ102",
        _E,
        "impossible nlmsg_len",
        "shorter than its header, or past the end of the datagram; the kernel ends there and tells "
        "nobody",
        _SKB,
    ),
    Rule(
        "NFQ103",
        _E,
        "netlink header in the other byte order",
        "nlmsghdr is in the host's order; read the other way round the length is impossible",
        "include/uapi/linux/netlink.h",
    ),
    Rule(
        "NFQ104",
        _E,
        "no room for struct nfgenmsg",
        "the kernel takes such a request for done and does nothing",
        _MSG,
    ),
    Rule(
        "NFQ105",
        _E,
        "request without NLM_F_REQUEST",
        "the kernel skips it; with NLM_F_ACK it even reports success",
        _SKB,
    ),
    Rule("NFQ106", _E, "unknown message type of the queue subsystem", "EINVAL", _MSG, refused=True),
    Rule(
        "NFQ107",
        _E,
        "message in the wrong direction",
        "packets come from the kernel (sent to it they get ENOTSUPP), all others go to it",
        "nfqnl_recv_unsupp (nfnetlink_queue.c)",
        refused=True,
    ),
    Rule(
        "NFQ108",
        _W,
        "request of odd length in front of another",
        "nlmsg_len is no multiple of 4; the kernel aligns, other readers look for the next message "
        "where nlmsg_len says",
        "NLMSG_ALIGN (include/uapi/linux/netlink.h)",
    ),
    Rule(
        "NFQ109",
        _W,
        "PACKET with flags, sequence number or port id",
        "the kernel sends 0 in all three",
        _BUILD,
    ),
    Rule(
        "NFQ110",
        _W,
        "nfgenmsg version other than NFNETLINK_V0",
        "the only version there is",
        "include/uapi/linux/netfilter/nfnetlink.h",
    ),
    Rule(
        "NFQ111",
        _W,
        "PACKET of an unknown protocol family",
        "nfgen_family is the NFPROTO of the hook",
        _BUILD,
    ),
    Rule(
        "NFQ112",
        _E,
        "answer that is cut",
        "NLMSG_ERROR holds an error number and the header of the request",
        "netlink_ack (af_netlink.c)",
    ),
    Rule(
        "NFQ113",
        _E,
        "answer with a positive error number",
        "0 is success, a negative number the error",
        "netlink_ack (af_netlink.c)",
    ),
    Rule(
        "NFQ114",
        _E,
        "answer sent to the kernel",
        "it skips reserved types; with NLM_F_ACK it even reports success",
        _SKB,
    ),
)

ATTRIBUTE_RULES = (
    Rule(
        "NFQ201",
        _E,
        "bytes left over behind the last attribute",
        "too few for an attribute; the kernel ignores them, with a warning in the acknowledgement",
        _NLA,
    ),
    Rule(
        "NFQ202",
        _E,
        "impossible nla_len",
        "less than 4, or past the end of the list; the kernel ignores the attribute and all behind "
        "it",
        _NLA,
    ),
    Rule(
        "NFQ203",
        _E,
        "attribute header in the other byte order",
        "nlattr is in the host's order, only contents are big-endian",
        _NLA,
    ),
    Rule(
        "NFQ204",
        _E,
        "contents shorter than declared",
        "ERANGE from the kernel where it has a policy; it passes over a nest that holds such a "
        "one, and misreads others",
        _POLICY,
        refused=True,
    ),
    Rule("NFQ205", _W, "contents longer than declared", "the kernel ignores the rest", _POLICY),
    Rule("NFQ206", _W, "unknown attribute in a request", "the kernel ignores it", _NLA),
    Rule(
        "NFQ207",
        _N,
        "unknown attribute from the kernel",
        "a kernel that is newer than the schema",
        _HEADER,
    ),
    Rule(
        "NFQ208",
        _W,
        "attribute that such a message does not carry",
        "in a request the kernel ignores it (a batch takes mark and priority only)",
        "nfqnl_recv_verdict, nfqnl_recv_verdict_batch (nfnetlink_queue.c)",
    ),
    Rule("NFQ209", _W, "attribute that stands twice", "the last one wins, in silence", _NLA),
    Rule(
        "NFQ210",
        _E,
        "padding counted in nla_len",
        "a rewritten packet grows by the padding; in other attributes the kernel ignores it",
        "nfqnl_recv_verdict (nfnetlink_queue.c)",
    ),
    Rule(
        "NFQ211",
        _W,
        "padding that is not zero",
        "no receiver looks at it; it may tell what was in memory before",
        "__nla_reserve (lib/nlattr.c)",
    ),
    Rule(
        "NFQ212",
        _W,
        "padding cut in half",
        "the padding of the last attribute is there or it is not",
        "NLA_ALIGN (include/uapi/linux/netlink.h)",
    ),
    Rule(
        "NFQ213",
        _N,
        "flag bits that do not fit the attribute",
        "NLA_F_NESTED is for nests; nothing here has NLA_F_NET_BYTEORDER",
        "include/uapi/linux/netlink.h",
    ),
    Rule("NFQ214", _E, "PACKET without NFQA_PACKET_HDR", "it cannot be answered", _BUILD),
    Rule(
        "NFQ215",
        _E,
        "verdict without NFQA_VERDICT_HDR",
        "EINVAL",
        "verdicthdr_get (nfnetlink_queue.c)",
        refused=True,
    ),
    Rule("NFQ216", _W, "NFQA_PACKET_HDR is not the first attribute", "it always is", _BUILD),
    Rule(
        "NFQ217",
        _N,
        "attributes in another order than the kernel's",
        "a reader must not depend on the order; a writer who copies the kernel keeps it",
        _BUILD,
    ),
    Rule(
        "NFQ218",
        _W,
        "hook that the family does not have",
        "NF_INET_*, NF_ARP_* or NF_NETDEV_*",
        "include/uapi/linux/netfilter.h",
    ),
    Rule(
        "NFQ219",
        _E,
        "hw_protocol that does not fit the family",
        "the kernel sets it to the EtherType of an IPv4 or IPv6 hook, big-endian",
        "nfqnl_enqueue_packet (nfnetlink_queue.c)",
    ),
    Rule(
        "NFQ220",
        _W,
        "zero that the kernel leaves out",
        "mark, priority, skb_info and cgroup_classid are sent where they are not 0",
        _BUILD,
    ),
    Rule(
        "NFQ221",
        _W,
        "NFQA_CAP_LEN of a packet that is not truncated",
        "sent only where the packet is longer than what was copied",
        _BUILD,
    ),
    Rule(
        "NFQ222",
        _W,
        "NFQA_VLAN or NFQA_L2HDR outside the bridge family",
        "neither sent nor looked at there",
        "nfqnl_put_bridge, nfqnl_recv_verdict (nfnetlink_queue.c)",
    ),
    Rule(
        "NFQ223",
        _W,
        "one attribute of a pair",
        "uid and gid, ct and ct_info come together, a bridge port with its bridge",
        _BUILD,
    ),
    Rule("NFQ224", _W, "timestamp with a million microseconds or more", "tv_nsec / 1000", _BUILD),
    Rule("NFQ225", _W, "hw_addrlen beyond the address", "the field has 8 bytes", _HEADER),
)
