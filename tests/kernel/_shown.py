"""For every row of docs/kernels.md: the test that shows its value, or why no kernel sends it.

A test that stands here looks at the value itself and compares it with what it has made; a run
checks that it has seen the row (tests/guest/kernels.py). Files are those of tests/kernel.
"""

from __future__ import annotations

_PADDING = (
    "only where 64-bit integers must be aligned (nla_need_padding_for_64bit), which x86-64 and "
    "arm64 do not ask for"
)
_GLUE_DUMP = "`__ctnetlink_glue_build` has no call for it"
_GLUE_PARSE = "a verdict's NFQA_CT is not asked for it (`ctnetlink_glue_parse_ct`)"
_TUPLE_ZONE = (
    "the connection's zone stands for it: a tuple that brings one is refused, EINVAL, and the "
    "expectation with it (`ctnetlink_parse_tuple`, which `ctnetlink_glue_exp_parse` gives no zone)"
)

_SHOWN: dict[str, tuple[str, ...]] = {
    # --- packets ---
    "test_attributes.py::test_ids_count_from_one": ("packet NFQA_PACKET_HDR",),
    "test_attributes.py::test_mark_is_the_sockets": ("packet NFQA_MARK",),
    "test_attributes.py::test_timestamp_is_when_the_device_received_it": ("packet NFQA_TIMESTAMP",),
    "test_attributes.py::test_device_indices_are_the_namespaces": (
        "packet NFQA_IFINDEX_INDEV",
        "packet NFQA_IFINDEX_OUTDEV",
    ),
    "test_attributes.py::test_a_bridged_packet_tells_bridge_and_ports": (
        "packet NFQA_IFINDEX_PHYSINDEV",
        "packet NFQA_IFINDEX_PHYSOUTDEV",
    ),
    "test_attributes.py::test_each_hook_tells_itself_its_devices_and_who_sent": (
        "packet NFQA_HWADDR",
    ),
    "test_attributes.py::test_payload_is_the_packet_byte_for_byte": ("packet NFQA_PAYLOAD",),
    "test_attributes.py::test_a_small_range_cuts_and_says_how_long_it_was": (
        "packet NFQA_CAP_LEN",
    ),
    "test_attributes.py::test_a_checksum_that_nobody_verified_is_flagged": (
        "packet NFQA_SKB_INFO",
        "packet NFQA_SKB_CSUM_NOTVERIFIED",
    ),
    "test_attributes.py::test_a_checksum_left_to_the_card_is_flagged_and_a_copy_completes_it": (
        "packet NFQA_SKB_CSUMNOTREADY",
    ),
    "test_attributes.py::test_segmentation_is_left_to_the_card_with_the_gso_flag_only": (
        "packet NFQA_SKB_GSO",
        "config NFQA_CFG_F_GSO",
    ),
    "test_attributes.py::test_uid_and_gid_are_the_initial_user_namespaces": (
        "packet NFQA_UID",
        "packet NFQA_GID",
        "config NFQA_CFG_F_UID_GID",
    ),
    "test_attributes.py::test_priority_is_the_sockets": ("packet NFQA_PRIORITY",),
    "test_attributes.py::test_cgroup_classid_is_the_senders": ("packet NFQA_CGROUP_CLASSID",),
    "test_bridge.py::test_each_hook_tells_itself_and_is_answered": ("packet NFQA_L2HDR",),
    "test_bridge.py::test_a_tag_is_told_and_replaced": (
        "packet NFQA_VLAN",
        "packet NFQA_VLAN_PROTO",
        "packet NFQA_VLAN_TCI",
        "verdict NFQA_VLAN",
        "verdict NFQA_VLAN_PROTO",
        "verdict NFQA_VLAN_TCI",
    ),
    # --- their connections ---
    "test_conntrack.py::test_a_new_connection_and_its_answer": (
        "packet NFQA_CT",
        "packet NFQA_CT_INFO",
        "packet CTA_TUPLE_ORIG",
        "packet CTA_TUPLE_REPLY",
        "packet CTA_TUPLE_IP",
        "packet CTA_TUPLE_PROTO",
        "packet CTA_IP_V4_SRC",
        "packet CTA_IP_V4_DST",
        "packet CTA_PROTO_NUM",
        "packet CTA_PROTO_SRC_PORT",
        "packet CTA_PROTO_DST_PORT",
        "packet CTA_STATUS",
        "packet CTA_TIMEOUT",
        "packet CTA_ID",
        "config NFQA_CFG_F_CONNTRACK",
    ),
    "test_conntrack.py::test_ipv6_addresses": ("packet CTA_IP_V6_SRC", "packet CTA_IP_V6_DST"),
    "test_conntrack.py::test_a_ping_tells_type_code_and_identifier": (
        "packet CTA_PROTO_ICMP_ID",
        "packet CTA_PROTO_ICMP_TYPE",
        "packet CTA_PROTO_ICMP_CODE",
        "packet CTA_PROTO_ICMPV6_ID",
        "packet CTA_PROTO_ICMPV6_TYPE",
        "packet CTA_PROTO_ICMPV6_CODE",
    ),
    "test_conntrack.py::test_zones": ("packet CTA_TUPLE_ZONE", "packet CTA_ZONE"),
    "test_conntrack.py::test_counters_and_the_time_of_its_beginning": (
        "packet CTA_COUNTERS_ORIG",
        "packet CTA_COUNTERS_REPLY",
        "packet CTA_COUNTERS_PACKETS",
        "packet CTA_COUNTERS_BYTES",
        "packet CTA_TIMESTAMP",
        "packet CTA_TIMESTAMP_START",
    ),
    "test_conntrack_rare.py::test_a_connection_that_ended_while_its_packet_waited_tells_when": (
        "packet CTA_TIMESTAMP_STOP",
    ),
    "test_conntrack.py::test_tcp_tells_its_state": (
        "packet CTA_PROTOINFO",
        "packet CTA_PROTOINFO_TCP",
        "packet CTA_PROTOINFO_TCP_STATE",
        "packet CTA_PROTOINFO_TCP_WSCALE_ORIGINAL",
        "packet CTA_PROTOINFO_TCP_WSCALE_REPLY",
        "packet CTA_PROTOINFO_TCP_FLAGS_ORIGINAL",
        "packet CTA_PROTOINFO_TCP_FLAGS_REPLY",
    ),
    "test_conntrack.py::test_dccp_tells_its_state": (
        "packet CTA_PROTOINFO_DCCP",
        "packet CTA_PROTOINFO_DCCP_STATE",
        "packet CTA_PROTOINFO_DCCP_ROLE",
        "packet CTA_PROTOINFO_DCCP_HANDSHAKE_SEQ",
    ),
    "test_conntrack.py::test_sctp_tells_its_state_and_tags": (
        "packet CTA_PROTOINFO_SCTP",
        "packet CTA_PROTOINFO_SCTP_STATE",
        "packet CTA_PROTOINFO_SCTP_VTAG_ORIGINAL",
        "packet CTA_PROTOINFO_SCTP_VTAG_REPLY",
    ),
    "test_conntrack.py::test_a_helper_is_told_and_taken_away": (
        "packet CTA_HELP",
        "packet CTA_HELP_NAME",
        "verdict CTA_HELP",
        "verdict CTA_HELP_NAME",
    ),
    "test_conntrack_rare.py::test_a_helper_in_user_space_keeps_its_own_data": (
        "packet CTA_HELP_INFO",
        "verdict CTA_HELP_INFO",
    ),
    "test_conntrack.py::test_connmark_and_its_mask": (
        "packet CTA_MARK",
        "verdict NFQA_CT",
        "verdict CTA_MARK",
        "verdict CTA_MARK_MASK",
    ),
    "test_conntrack.py::test_labels_and_their_mask": (
        "packet CTA_LABELS",
        "verdict CTA_LABELS",
        "verdict CTA_LABELS_MASK",
    ),
    "test_conntrack.py::test_timeout_for_good": ("verdict CTA_TIMEOUT",),
    "test_conntrack.py::test_status": ("verdict CTA_STATUS",),
    "test_conntrack.py::test_an_expected_connection_is_related_to_its_master": (
        "packet CTA_TUPLE_MASTER",
        "verdict NFQA_EXP",
        "verdict CTA_EXPECT_TUPLE",
        "verdict CTA_EXPECT_MASK",
        "verdict CTA_TUPLE_IP",
        "verdict CTA_TUPLE_PROTO",
        "verdict CTA_IP_V4_SRC",
        "verdict CTA_IP_V4_DST",
        "verdict CTA_PROTO_NUM",
        "verdict CTA_PROTO_SRC_PORT",
        "verdict CTA_PROTO_DST_PORT",
    ),
    "test_conntrack_rare.py::test_an_expected_connection_over_ipv6": (
        "verdict CTA_IP_V6_SRC",
        "verdict CTA_IP_V6_DST",
    ),
    "test_conntrack.py::test_an_expectation_names_whence_and_how_often": (
        "verdict CTA_EXPECT_FLAGS",
    ),
    "test_conntrack_expect.py::test_an_expectation_is_of_a_class_of_its_helper": (
        "verdict CTA_EXPECT_CLASS",
    ),
    "test_conntrack_expect.py::test_an_expected_connection_has_the_helper_that_was_named": (
        "verdict CTA_EXPECT_HELP_NAME",
    ),
    "test_conntrack_expect.py::test_an_expected_connection_is_translated_as_its_master": (
        "verdict CTA_EXPECT_NAT",
        "verdict CTA_EXPECT_NAT_DIR",
        "verdict CTA_EXPECT_NAT_TUPLE",
        "verdict CTA_EXPECT_FN",
    ),
    "test_conntrack.py::test_sequence_numbers_follow_a_payload_that_grew": (
        "packet CTA_SEQ_ADJ_ORIG",
        "packet CTA_SEQ_ADJ_REPLY",
        "packet CTA_SEQADJ_CORRECTION_POS",
        "packet CTA_SEQADJ_OFFSET_BEFORE",
        "packet CTA_SEQADJ_OFFSET_AFTER",
    ),
    "test_conntrack.py::test_a_proxied_connection_tells_its_numbers": (
        "packet CTA_SYNPROXY",
        "packet CTA_SYNPROXY_ISN",
    ),
    "test_conntrack_rare.py::test_a_proxied_connection_tells_its_timestamps": (
        "packet CTA_SYNPROXY_ITS",
        "packet CTA_SYNPROXY_TSOFF",
    ),
    "test_conntrack.py::test_secctx_is_the_packets_and_the_connections": (
        "packet NFQA_SECCTX",
        "packet CTA_SECCTX",
        "packet CTA_SECCTX_NAME",
        "config NFQA_CFG_F_SECCTX",
    ),
    # --- verdicts ---
    "test_verdicts.py::test_accepted_packets_arrive_and_dropped_ones_do_not": (
        "verdict NFQA_VERDICT_HDR",
        "verdict NF_ACCEPT",
        "verdict NF_DROP",
    ),
    "test_verdicts.py::test_a_requeued_packet_comes_to_the_other_queue": ("verdict NF_QUEUE",),
    "test_verdicts.py::test_a_repeated_packet_comes_once_more_with_its_mark": (
        "verdict NF_REPEAT",
    ),
    "test_verdicts.py::test_stop_skips_the_hooks_other_chains_but_not_the_next_hook": (
        "verdict NF_STOP",
    ),
    "test_verdicts.py::test_a_mark_is_matched_by_a_rule_of_a_later_hook": ("verdict NFQA_MARK",),
    "test_verdicts.py::test_a_priority_is_seen_by_the_queue_of_a_later_hook": (
        "verdict NFQA_PRIORITY",
    ),
    "test_verdicts.py::test_a_rewritten_datagram_arrives_exactly": ("verdict NFQA_PAYLOAD",),
    "test_bridge.py::test_the_header_is_replaced": ("verdict NFQA_L2HDR",),
    "test_rare_requests.py::test_each_verdict_of_a_batch": (
        "batch NFQA_VERDICT_HDR",
        "batch NF_DROP",
        "batch NF_ACCEPT",
        "batch NF_QUEUE",
        "batch NF_REPEAT",
        "batch NF_STOP",
    ),
    "test_rare_requests.py::test_mark_and_priority_of_a_batch_are_all_its_packets": (
        "batch NFQA_MARK",
        "batch NFQA_PRIORITY",
    ),
    # --- configuration ---
    "test_settings.py::test_what_the_kernel_shows_is_what_was_asked_for": (
        "config NFQA_CFG_PARAMS",
        "config NFQNL_COPY_NONE",
        "config NFQNL_COPY_META",
        "config NFQNL_COPY_PACKET",
    ),
    "test_queues.py::test_the_queues_of_a_process_are_listed_with_what_the_kernel_says": (
        "config NFQA_CFG_CMD",
        "config NFQNL_CFG_CMD_BIND",
        "config NFQNL_CFG_CMD_UNBIND",
    ),
    "test_settings.py::test_flags_are_switched_one_by_one": (
        "config NFQA_CFG_MASK",
        "config NFQA_CFG_FLAGS",
    ),
    "test_cases.py::test_a_full_queue_drops_what_it_counts_or_fails_open": (
        "config NFQA_CFG_QUEUE_MAXLEN",
        "config NFQA_CFG_F_FAIL_OPEN",
    ),
    "test_rare_requests.py::test_the_commands_of_old_do_nothing": (
        "config NFQNL_CFG_CMD_PF_BIND",
        "config NFQNL_CFG_CMD_PF_UNBIND",
    ),
}

_NOT_SEEN: dict[str, tuple[str, ...]] = {
    _PADDING: (
        "packet CTA_PROTOINFO_DCCP_PAD",
        "packet CTA_COUNTERS_PAD",
        "packet CTA_TIMESTAMP_PAD",
    ),
    _GLUE_DUMP: ("packet CTA_USE",),
    _GLUE_DUMP + "; the time of an event is for conntrack's own listeners": (
        "packet CTA_TIMESTAMP_EVENT",
    ),
    "obsolete: CTA_SECCTX has taken its place (nfnetlink_conntrack.h)": ("packet CTA_SECMARK",),
    "old 32-bit counters, unused (nfnetlink_conntrack.h)": (
        "packet CTA_COUNTERS_PACKETS32",
        "packet CTA_COUNTERS_BYTES32",
    ),
    _GLUE_PARSE: (
        "verdict CTA_NAT_SRC",
        "verdict CTA_NAT_DST",
        "verdict CTA_NAT_V4_MINIP",
        "verdict CTA_NAT_V4_MAXIP",
        "verdict CTA_NAT_PROTO",
        "verdict CTA_PROTONAT_PORT_MIN",
        "verdict CTA_PROTONAT_PORT_MAX",
        "verdict CTA_NAT_V6_MINIP",
        "verdict CTA_NAT_V6_MAXIP",
    ),
    "it is for requests of conntrack's own subsystem, which list connections": (
        "verdict CTA_FILTER",
        "verdict CTA_FILTER_ORIG_FLAGS",
        "verdict CTA_FILTER_REPLY_FLAGS",
        "verdict CTA_STATUS_MASK",
    ),
    _TUPLE_ZONE: ("verdict CTA_TUPLE_ZONE",),
    "the packet's own connection and its helper's policy stand for it "
    "(`ctnetlink_glue_attach_expect`)": (
        "verdict CTA_EXPECT_MASTER",
        "verdict CTA_EXPECT_TIMEOUT",
        "verdict CTA_EXPECT_ID",
        "verdict CTA_EXPECT_ZONE",
    ),
    "an `Expectation` is of a protocol with ports": (
        "verdict CTA_PROTO_ICMP_ID",
        "verdict CTA_PROTO_ICMP_TYPE",
        "verdict CTA_PROTO_ICMP_CODE",
        "verdict CTA_PROTO_ICMPV6_ID",
        "verdict CTA_PROTO_ICMPV6_TYPE",
        "verdict CTA_PROTO_ICMPV6_CODE",
    ),
    "the kernel refuses it, EINVAL (`verdicthdr_get`)": ("verdict NF_STOLEN", "batch NF_STOLEN"),
    "the kernel refuses it, EOPNOTSUPP (`nfqnl_recv_config`)": ("config NFQNL_CFG_CMD_NONE",),
}


def _by_row(table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value, rows in table.items():
        for row in rows:
            if row in found:
                raise ValueError(f"{row} stands twice: {found[row]}, {value}")
            found[row] = value
    return found


SHOWN = _by_row(_SHOWN)
"""By row: the test that shows its value."""

NOT_SEEN = _by_row(_NOT_SEEN)
"""By row: why neither kernel sends it, or is sent it."""
