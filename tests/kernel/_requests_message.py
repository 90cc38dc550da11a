"""Requests that test how messages and attribute lists are framed, and who may ask."""

from __future__ import annotations

from ._scenario import CAP_ACK, EXT_ACK, By, scenario

MESSAGES = (
    # --- Attribute lists that end badly
    scenario(
        "three bytes of junk behind",
        "23000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002 | 010203",
    ),
    scenario(
        "four bytes of junk behind",
        "24000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002 | "
        "03000300",
    ),
    scenario(
        "nla_len 0",
        "24000000 0103 0500 01000000 00000000 | 00 00 0000 | 00000300 | "
        "0c00 0200 00000001 00000002",
    ),
    scenario(
        "nla_len 3",
        "24000000 0103 0500 01000000 00000000 | 00 00 0000 | 03000300 | "
        "0c00 0200 00000001 00000002",
    ),
    scenario(
        "mark that runs past the end",
        "28000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002 | "
        "0900 0300 00000005",
    ),
    scenario(
        "warning and error in one answer",
        "21000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000009 | 01",
    ),
    # --- Messages
    scenario(
        "no NLM_F_REQUEST: skipped",
        "20000000 0103 0000 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002",
    ),
    scenario(
        "no NLM_F_REQUEST: false success",
        "20000000 0103 0400 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002",
    ),
    scenario(
        "no NLM_F_REQUEST: false success for junk",
        "14000000 0903 0400 01000000 00000000 | 00 00 0000",
    ),
    scenario(
        "dump and echo flags do nothing",
        "20000000 0103 0d03 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002",
    ),
    scenario(
        "family 99, version 9",
        "20000000 0103 0500 01000000 00000000 | 63 09 0000 | 0c00 0200 00000001 00000002",
    ),
    scenario(
        "sequence and port id of the request come back",
        "20000000 0103 0500 feffffff 04030201 | 00 00 0000 | 0c00 0200 00000001 00000009",
    ),
    scenario(
        "a packet sent to the kernel",
        "20000000 0003 0500 01000000 00000000 | 00 00 0000 | 0b00 0100 00000001 0800 03 00",
    ),
    scenario(
        "a packet sent to the kernel, short attributes",
        "20000000 0003 0500 01000000 00000000 | 00 00 0000 | 0500 0300 01 000000 | 0400 0200",
    ),
    scenario(
        "message type 4",
        "14000000 0403 0500 01000000 00000000 | 00 00 0000",
    ),
    scenario(
        "message type 255",
        "14000000 ff03 0500 01000000 00000000 | 00 00 0000",
    ),
    scenario(
        "a subsystem that cannot be",
        "1c000000 027f 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000",
        set_up=(),
        packets=0,
    ),
    scenario(
        "a transaction",
        "14000000 1000 0500 01000000 00000000 | 00 00 0003 | "
        "1c000000 0203 0500 02000000 00000000 | 00 00 0000 | 0800 0100 02 00 0000",
        packets=0,
    ),
    scenario(
        "a transaction for a subsystem that cannot be",
        "14000000 1000 0500 01000000 00000000 | 00 00 0063",
        packets=0,
    ),
    scenario(
        "a transaction's beginning as second message",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 0000ffff 01 000000 | "
        "14000000 1000 0500 02000000 00000000 | 00 00 0003",
        packets=0,
    ),
    scenario(
        "a transaction's end",
        "14000000 1100 0500 01000000 00000000 | 00 00 0003",
        packets=0,
    ),
    scenario(
        "NLMSG_NOOP",
        "10000000 0100 0500 01000000 00000000",
        packets=0,
    ),
    scenario(
        "NLMSG_ERROR",
        "10000000 0200 0100 01000000 00000000",
        packets=0,
    ),
    scenario(
        "NLMSG_DONE",
        "10000000 0300 0500 01000000 00000000",
        packets=0,
    ),
    scenario(
        "header alone",
        "10000000 0203 0500 01000000 00000000",
        packets=0,
    ),
    scenario(
        "header alone of an unknown type",
        "10000000 ff03 0500 01000000 00000000",
        packets=0,
    ),
    scenario(
        "18 bytes",
        "12000000 0203 0500 01000000 00000000 | 0000",
        packets=0,
    ),
    # --- Several messages in a datagram
    scenario(
        "two verdicts",
        "20000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000001 | "
        "20000000 0103 0500 02000000 00000000 | 00 00 0000 | 0c00 0200 00000000 00000002",
    ),
    scenario(
        "the first one fails, the second one works",
        "20000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000009 | "
        "20000000 0103 0500 02000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002",
    ),
    scenario(
        "the second one is cut off",
        "20000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000001 | "
        "1c000000 0103 0500 02000000 00000000 | 00 00 0000 | 0c00 0200 00000001",
    ),
    scenario(
        "the second one has 16 of 32 bytes",
        "20000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000001 | "
        "20000000 0103 0500 02000000 00000000",
    ),
    scenario(
        "the first one says more than there is",
        "40000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000001 | "
        "21000000 0103 0500 02000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002",
    ),
    scenario(
        "nlmsg_len 0",
        "00000000 0103 0500 01000000 00000000 | 20000000 0103 0500 01000000 00000000 | "
        "00 00 0000 | 0c00 0200 00000001 00000002",
    ),
    scenario(
        "nlmsg_len 15",
        "0f000000 0103 0500 01000000 00000000 | 20000000 0103 0500 01000000 00000000 | "
        "00 00 0000 | 0c00 0200 00000001 00000002",
    ),
    scenario(
        "nlmsg_len 16 in front of a verdict",
        "10000000 0103 0500 01000000 00000000 | 20000000 0103 0500 02000000 00000000 | "
        "00 00 0000 | 0c00 0200 00000001 00000002",
    ),
    scenario(
        "unaligned nlmsg_len, then another message",
        "21000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000001 | "
        "01 000000 | 20000000 0103 0500 02000000 00000000 | 00 00 0000 | "
        "0c00 0200 00000001 00000002",
    ),
    scenario(
        "8 bytes",
        "14000000 0103 0500",
        packets=0,
    ),
    scenario(
        "an empty datagram",
        "",
        packets=0,
    ),
    # --- Options and privilege
    scenario(
        "no extended acknowledgement",
        "28000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002 | "
        "0500 0300 00 000000",
        options=(),
    ),
    scenario(
        "no extended acknowledgement, success with junk",
        "21000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002 | 01",
        options=(),
    ),
    scenario(
        "capped acknowledgement",
        "28000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002 | "
        "0500 0300 00 000000",
        options=(
            CAP_ACK,
            EXT_ACK,
        ),
    ),
    scenario(
        "capped acknowledgement alone",
        "20000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000009",
        options=(CAP_ACK,),
    ),
    scenario(
        "without CAP_NET_ADMIN",
        "20000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002",
        by=By.UNPRIVILEGED,
    ),
    scenario(
        "without CAP_NET_ADMIN: one answer a datagram",
        "20000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000001 | "
        "20000000 0103 0500 02000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002",
        by=By.UNPRIVILEGED,
    ),
    scenario(
        "without CAP_NET_ADMIN, not even a request",
        "20000000 0103 0000 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000002",
        by=By.UNPRIVILEGED,
    ),
    scenario(
        "without CAP_NET_ADMIN, bind",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000",
        set_up=(),
        packets=0,
        by=By.UNPRIVILEGED,
    ),
)
