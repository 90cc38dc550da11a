"""What a capture that is named on the command line is replayed as."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trionfq._capture_reader import is_of_packets
from trionfq.captures import PacketSource, QueueSource
from trionfq.schema.nfqueue import Hook

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def ordinary_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make a queue's packets of an ordinary capture's."""
    hooks = [hook.name.lower() for hook in Hook]
    number = click.IntRange(0, 0xFFFFFFFF)
    for option in (
        click.option("--mark", type=number, help="Likewise: their mark."),
        click.option("--outdev", help="Likewise: output device."),
        click.option("--indev", help="Likewise: input device."),
        click.option("--bridge", is_flag=True, help="Likewise: they are at a bridge's hook."),
        click.option(
            "--hook",
            type=click.Choice(hooks),
            help="Of an ordinary capture: where its packets are.",
        ),
    ):
        function = option(function)
    return function


def source_of(
    path: str, *, queue: int | None, port_id: int | None, chosen: Mapping[str, Any]
) -> str | QueueSource | PacketSource:
    """What `ReplayBackend` takes for a capture file.

    Args:
      path: the file.
      queue: the recorded queue that is wanted, if one is named.
      port_id: the program that is wanted, if one is named.
      chosen: what was given for an ordinary capture, by the names of `ordinary_options`.
    """
    given = {name: value for name, value in chosen.items() if value not in (None, False)}
    if is_of_packets(path):
        if port_id is not None:
            raise click.UsageError(f"--port-id: {path} is an ordinary capture, of no program")
        if "hook" in given:
            given["hook"] = Hook[given["hook"].upper()]
        return PacketSource(path, queue=queue or 0, **given)
    if given:
        names = ", ".join(f"--{name}" for name in given)
        raise click.UsageError(f"{names}: for ordinary captures; {path} is of nfqueue traffic")
    return path if port_id is None else QueueSource(path, queue=queue, port_id=port_id)
