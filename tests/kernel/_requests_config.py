"""Configuration requests: NFQNL_MSG_CONFIG."""

from __future__ import annotations

from ._scenario import By, scenario

CONFIGURATIONS = (
    # --- Configuration: commands
    scenario(
        "bind",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000",
        set_up=(),
        packets=0,
    ),
    scenario(
        "bind of queue 65535",
        "1c000000 0203 0500 01000000 00000000 | 00 00 ffff | 0800 0100 01 00 0000",
        set_up=(),
        packets=0,
    ),
    scenario(
        "bind twice",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000",
        packets=0,
    ),
    scenario(
        "bind what another has",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000",
        packets=0,
        by=By.STRANGER,
    ),
    scenario(
        "configure what another has",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 0000ffff 01 000000",
        packets=0,
        by=By.STRANGER,
    ),
    scenario(
        "unbind",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 02 00 0000",
    ),
    scenario(
        "unbind what another has",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 02 00 0000",
        by=By.STRANGER,
    ),
    scenario(
        "unbind what is unbound",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 02 00 0000",
        set_up=(),
        packets=0,
    ),
    scenario(
        "unbind does not look at parameters",
        "28000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 02 00 0000 | "
        "0900 0200 0000ffff 01 000000",
    ),
    scenario(
        "bind again: ids from 1, old packets gone",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 02 00 0000",
        "28000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
        "0900 0200 0000ffff 02 000000",
        "20000000 0103 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 00000001 00000001",
        late=2,
    ),
    scenario(
        "bind, unbind, bind in one datagram",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
        "1c000000 0203 0500 02000000 00000000 | 00 00 0000 | 0800 0100 02 00 0000 | "
        "28000000 0203 0500 03000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
        "0900 0200 0000ffff 02 000000",
        set_up=(),
        packets=0,
        late=2,
    ),
    scenario(
        "two commands, the last one wins",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
        "0800 0100 02 00 0000",
        set_up=(),
        packets=0,
    ),
    scenario(
        "PF_BIND does nothing",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 03 00 0002",
        set_up=(),
        packets=0,
    ),
    scenario(
        "PF_UNBIND does nothing, nor what stands beside it",
        "30000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 04 00 0002 | "
        "0900 0200 0000ffff 01 000000 | 0800 0500 00000100",
        set_up=(),
        packets=0,
    ),
    scenario(
        "PF_BIND by anybody",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 03 00 0002 | "
        "0800 0300 00000000",
        late=1,
        by=By.STRANGER,
    ),
    scenario(
        "command 0",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 00 00 0000",
        set_up=(),
        packets=0,
    ),
    scenario(
        "command 5 of a bound queue",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 05 00 0000",
    ),
    scenario(
        "command of another's queue: owner first",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 63 00 0000",
        by=By.STRANGER,
    ),
    scenario(
        "command of 3 bytes",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0700 0100 010000 00",
        set_up=(),
        packets=0,
    ),
    scenario(
        "command of 8 bytes",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0c00 0100 01000000ffffffff",
        set_up=(),
        packets=0,
    ),
    scenario(
        "command with junk in its pad",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01ff0063",
        set_up=(),
        packets=0,
    ),
    scenario(
        "no command, unbound",
        "14000000 0203 0500 01000000 00000000 | 00 00 0000",
        set_up=(),
        packets=0,
    ),
    scenario(
        "no command, bound",
        "14000000 0203 0500 01000000 00000000 | 00 00 0000",
    ),
    # --- Configuration: mode, range, length
    scenario(
        "mode META",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 00000064 01 000000",
        packets=1,
        late=1,
    ),
    scenario(
        "mode NONE drops, uncounted",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 00000064 00 000000",
        packets=1,
        late=1,
    ),
    scenario(
        "mode 3 is ignored",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 00000064 03 000000",
        packets=1,
        late=1,
    ),
    scenario(
        "mode 255 is ignored",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 00000064 ff 000000",
        packets=1,
        late=1,
    ),
    scenario(
        "range 0 is all",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 00000000 02 000000",
        packets=0,
    ),
    scenario(
        "range 65531",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 0000fffb 02 000000",
        packets=0,
    ),
    scenario(
        "range 65532 is cut",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 0000fffc 02 000000",
        packets=0,
    ),
    scenario(
        "range 2**32 - 1 is cut",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 ffffffff 02 000000",
        packets=0,
    ),
    scenario(
        "range 30 cuts packets",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 0000001e 02 000000",
        packets=0,
        late=1,
    ),
    scenario(
        "range 1 cuts packets",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 00000001 02 000000",
        packets=0,
        late=1,
    ),
    scenario(
        "range as long as the packet",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 00000024 02 000000",
        packets=0,
        late=1,
    ),
    scenario(
        "parameters of 4 bytes",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0200 0000001e",
        packets=0,
    ),
    scenario(
        "parameters of 8 bytes",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0c00 0200 0000001e 02 ffffff",
        packets=0,
    ),
    scenario(
        "parameters of an unbound queue",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 0000ffff 02 000000",
        set_up=(),
        packets=0,
    ),
    scenario(
        "two parameters, the last one wins",
        "2c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0900 0200 00000014 02 000000 | "
        "0900 0200 0000ffff 01 000000",
        packets=0,
    ),
    scenario(
        "length 1: the second packet is dropped and takes no id",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0300 00000001",
        packets=0,
        late=2,
    ),
    scenario(
        "length 0 drops all",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0300 00000000",
        packets=0,
        late=2,
    ),
    scenario(
        "length below what waits",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0300 00000001",
        late=1,
    ),
    scenario(
        "length 2**32 - 1",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0300 ffffffff",
        packets=0,
        late=2,
    ),
    scenario(
        "length of 2 bytes",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0600 0300 0001 0000",
        packets=0,
        late=2,
    ),
    scenario(
        "length of 8 bytes, four count",
        "20000000 0203 0500 01000000 00000000 | 00 00 0000 | 0c00 0300 00000001 00000009",
        packets=0,
        late=2,
    ),
    scenario(
        "length of an unbound queue",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0300 00000001",
        set_up=(),
        packets=0,
    ),
    # --- Configuration: flags
    scenario(
        "fail-open: what is too much passes",
        "2c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0300 00000001 | "
        "0800 0400 00000001 | 0800 0500 00000001",
        packets=0,
        late=3,
    ),
    scenario(
        "flags and mask in the other order",
        "2c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0500 00000001 | "
        "0800 0400 00000001 | 0800 0300 00000000",
        packets=0,
        late=1,
    ),
    scenario(
        "fail-open off again",
        "2c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0300 00000000 | "
        "0800 0400 00000001 | 0800 0500 00000001",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 00000001 | "
        "0800 0500 00000000",
        packets=0,
        late=1,
    ),
    scenario(
        "fail-open masked out",
        "2c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0300 00000000 | "
        "0800 0400 00000008 | 0800 0500 00000001",
        packets=0,
        late=1,
    ),
    scenario(
        "owner's ids",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 00000008 | "
        "0800 0500 00000008",
        packets=0,
        late=1,
    ),
    scenario(
        "all of uid-gid, gso, fail-open",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 0000000d | "
        "0800 0500 0000000d",
        packets=0,
        late=1,
    ),
    scenario(
        "flags without mask",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0500 00000001",
        packets=0,
    ),
    scenario(
        "flags without mask, unbound",
        "1c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0500 00000001",
        set_up=(),
        packets=0,
    ),
    scenario(
        "mask without flags",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0300 00000000 | "
        "0800 0400 00000001",
        packets=0,
        late=1,
    ),
    scenario(
        "mask with unknown bits",
        "2c000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 ffffffff | "
        "0800 0500 00000001 | 0800 0300 00000000",
        packets=0,
        late=1,
    ),
    scenario(
        "unknown flag",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 00000020 | "
        "0800 0500 00000020",
        packets=0,
    ),
    scenario(
        "unknown flag, masked out",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 00000000 | "
        "0800 0500 00000020",
        packets=0,
    ),
    scenario(
        "unknown flag, unbound",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 00000020 | "
        "0800 0500 00000020",
        set_up=(),
        packets=0,
    ),
    scenario(
        "conntrack",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 00000002 | "
        "0800 0500 00000002",
        packets=0,
    ),
    scenario(
        "conntrack, masked out",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 00000001 | "
        "0800 0500 00000002",
        packets=0,
    ),
    scenario(
        "security context",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 00000010 | "
        "0800 0500 00000010",
        packets=0,
        late=1,
    ),
    scenario(
        "flags of 3 bytes",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0400 00000001 | "
        "0700 0500 000001 00",
        packets=0,
    ),
    scenario(
        "mask of 3 bytes",
        "24000000 0203 0500 01000000 00000000 | 00 00 0000 | 0700 0400 000001 00 | "
        "0800 0500 00000001",
        packets=0,
    ),
    # --- Configuration: all at once
    scenario(
        "bind, mode, flags and length in one message",
        "40000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
        "0900 0200 0000ffff 02 000000 | 0800 0400 00000009 | 0800 0500 00000009 | "
        "0800 0300 00000002",
        set_up=(),
        packets=0,
        late=3,
    ),
    scenario(
        "bind with an unknown flag leaves no queue",
        "38000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
        "0900 0200 0000ffff 02 000000 | 0800 0400 00000040 | 0800 0500 00000040",
        set_up=(),
        packets=0,
    ),
    scenario(
        "bind with flags but no mask leaves no queue",
        "30000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
        "0900 0200 0000ffff 02 000000 | 0800 0500 00000001",
        set_up=(),
        packets=0,
    ),
    scenario(
        "bind with a short length leaves no queue",
        "30000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
        "0900 0200 0000ffff 02 000000 | 0500 0300 00 000000",
        set_up=(),
        packets=0,
    ),
    scenario(
        "bind with an unknown mode binds",
        "28000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
        "0900 0200 0000ffff 07 000000",
        set_up=(),
        packets=0,
    ),
    scenario(
        "bind with attribute 99",
        "30000000 0203 0500 01000000 00000000 | 00 00 0000 | 0800 0100 01 00 0000 | "
        "0500 6300 01 000000 | 0900 0200 0000ffff 02 000000",
        set_up=(),
        packets=0,
    ),
    scenario(
        "closing with accept: pass, batch, unbind",
        "2c000000 0203 0100 01000000 00000000 | 00 00 0000 | 0800 0300 00000000 | "
        "0800 0400 00000001 | 0800 0500 00000001 | 20000000 0303 0100 02000000 00000000 | "
        "00 00 0000 | 0c00 0200 00000001 80000000 | 1c000000 0203 0100 03000000 00000000 | "
        "00 00 0000 | 0800 0100 02 00 0000",
        late=1,
    ),
)
