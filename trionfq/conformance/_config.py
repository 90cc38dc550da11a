"""Configuration messages: what is wrong with one in itself, and what it does to its queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionfq.conformance._queues import QueueState
from trionfq.conformance._walk import swapped
from trionfq.schema.netlink import MessageFlags
from trionfq.schema.nfnetlink import Family
from trionfq.schema.nfqueue import NFQA_CFG, ConfigCommand, CopyMode, QueueFlags

if TYPE_CHECKING:
    from trionfq.conformance._context import Context, Message
    from trionfq.conformance._requests import Request

_N = {each.name: each.number for each in NFQA_CFG.attributes}
_CMD, _PARAMS, _MAXLEN = _N["cmd"], _N["params"], _N["queue_maxlen"]
_MASK, _FLAGS = _N["mask"], _N["flags"]
_ALL_FLAGS = int(~QueueFlags(0))
_FAMILIES = frozenset(Family)
_PF_COMMANDS = (ConfigCommand.PF_BIND, ConfigCommand.PF_UNBIND)
_CMD_BYTES, _PARAMS_BYTES = 4, 5
_GREATEST_RANGE = 0xFFFF
# No machine holds so many packets; read the other way round it is a number below 65536.
_ABSURD_MAXLEN = 1 << 24


def command_of(message: Message) -> int | None:
    """The command of a CONFIG message, None where it has none."""
    return message.integer(_CMD, size=1) if message.has(_CMD, _CMD_BYTES) else None


def judge_config(
    context: Context, message: Message, queues: dict[int, QueueState], request: Request
) -> None:
    """Judge one CONFIG message and follow it."""
    command = command_of(message)
    if command is not None:
        family = message.integer(_CMD, 2, 2)
        if family not in _FAMILIES and swapped(family, 2) in _FAMILIES:
            _fault(context, message, "NFQ312", _CMD, f"pf {family:#06x}")
        if command in _PF_COMMANDS:
            _fault(context, message, "NFQ304", _CMD, ConfigCommand(command).name)
            return  # the kernel looks at nothing else
        if command not in (ConfigCommand.BIND, ConfigCommand.UNBIND):
            _fault(context, message, "NFQ311", _CMD, f"command {command}")
            return
    _values(context, message)
    if not _flags(context, message):
        return  # before anything is done
    state = queues.get(message.queue)
    if command == ConfigCommand.BIND:
        request.before = state
        state = queues[message.queue] = QueueState(message.queue, bound=True)
        _judge_bind(context, message)
    elif state is None:
        state = queues[message.queue] = QueueState(message.queue)
    elif state.bound is False and (command is not None or message.found):
        context.fault("NFQ302", message.header.at, "config", "the queue was unbound before")
    request.state = state
    request.settings_only = command != ConfigCommand.BIND
    if command == ConfigCommand.UNBIND:
        state.end(context, "undecided when the queue was unbound")
        state.bound = False
    else:
        _follow(context, message, state)


def _fault(context: Context, message: Message, rule: str, number: int, text: str) -> None:
    context.fault(rule, message.offset(number), NFQA_CFG.constant(number), text)


def _judge_bind(context: Context, message: Message) -> None:
    mode = message.integer(_PARAMS, 4, 1) if message.has(_PARAMS, _PARAMS_BYTES) else None
    if not mode:
        _fault(context, message, "NFQ305", _CMD, "no mode in the message, or NONE")
    if not message.header.flags & MessageFlags.ACK:
        context.fault("NFQ313", message.header.at, "nlmsghdr.flags", "NLM_F_ACK is not set")


def _flags(context: Context, message: Message) -> bool:
    """Judge flags and mask; whether the kernel takes the message as far as these go."""
    if not message.has(_FLAGS, 4):
        if message.has(_MASK, 4):
            _fault(context, message, "NFQ309", _MASK, "changes nothing")
        return True
    flags = message.integer(_FLAGS)
    if not message.has(_MASK, 4):
        _fault(context, message, "NFQ307", _FLAGS, f"flags {flags:#x}")
        return False
    mask = message.integer(_MASK)
    if unknown := flags & ~_ALL_FLAGS:
        if not swapped(flags, 4) & ~_ALL_FLAGS:
            _fault(context, message, "NFQ312", _FLAGS, f"flags {flags:#010x}")
        else:
            _fault(context, message, "NFQ308", _FLAGS, f"flags {unknown:#x}")
        return False
    if mask & ~_ALL_FLAGS and not swapped(mask, 4) & ~_ALL_FLAGS:
        _fault(context, message, "NFQ312", _MASK, f"mask {mask:#010x}")
    elif outside := flags & ~mask:
        _fault(context, message, "NFQ310", _FLAGS, f"flags {outside:#x}")
    return True


def _values(context: Context, message: Message) -> None:
    """Judge copy mode, copy range and queue length."""
    if message.has(_PARAMS, _PARAMS_BYTES):
        copy_range, mode = message.integer(_PARAMS), message.integer(_PARAMS, 4, 1)
        if mode > CopyMode.PACKET:
            _fault(context, message, "NFQ306", _PARAMS, f"mode {mode}")
        if copy_range > _GREATEST_RANGE:
            if swapped(copy_range, 4) <= _GREATEST_RANGE:
                _fault(context, message, "NFQ312", _PARAMS, f"copy range {copy_range:#010x}")
            else:
                _fault(context, message, "NFQ316", _PARAMS, f"copy range {copy_range}")
    if message.has(_MAXLEN, 4):
        length = message.integer(_MAXLEN)
        if length >= _ABSURD_MAXLEN and swapped(length, 4) <= _GREATEST_RANGE:
            _fault(context, message, "NFQ312", _MAXLEN, f"queue length {length:#010x}")


def _follow(context: Context, message: Message, state: QueueState) -> None:
    """Take over the settings of a message."""
    if message.has(_PARAMS, _PARAMS_BYTES):
        state.set_mode(message.integer(_PARAMS, 4, 1), message.integer(_PARAMS))
    if message.has(_FLAGS, 4) and message.has(_MASK, 4):
        state.set_flags(message.integer(_FLAGS), message.integer(_MASK))
    if (
        message.has(_MAXLEN, 4)
        and not message.integer(_MAXLEN)
        and not state.flags & QueueFlags.FAIL_OPEN
    ):
        _fault(context, message, "NFQ314", _MAXLEN, "queue length 0")
