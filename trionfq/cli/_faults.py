"""A fault as the command line has it: ``overrun:at=7``, ``refuse:rate=0.1,error=EPERM``."""

from __future__ import annotations

import dataclasses
import errno
import re
from typing import Any

import click

from trionfq import testing

KINDS = {
    re.sub("(?<=.)([A-Z])", r"-\1", kind.__name__).lower(): kind
    for kind in testing.Fault.__subclasses__()
}
"""The faults by their names here, such as ``send-error``."""


class FaultType(click.ParamType[testing.Fault]):
    """Gives a `trionfq.testing.Fault`."""

    name = "kind:key=value,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> testing.Fault:
        """Make the fault, or say what is wrong with it."""
        if isinstance(value, testing.Fault):
            return value
        name, _, rest = str(value).partition(":")
        kind = KINDS.get(name)
        if kind is None:
            self.fail(f"{name!r} is no fault; there are {', '.join(sorted(KINDS))}", param, ctx)
        types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
        given: dict[str, Any] = {}
        try:
            for pair in filter(None, rest.split(",")):
                key, _, text = pair.partition("=")
                if key not in types:
                    raise ValueError(f"{name} has no {key!r}; it has {', '.join(types)}")
                if key == "at":
                    given["at"] = (*given.get("at", ()), int(text))
                elif key == "error":
                    given[key] = getattr(errno, text, None) or int(text)
                else:
                    given[key] = float(text) if "float" in types[key] else int(text)
            return kind(**given)
        except ValueError as error:
            self.fail(f"{value}: {error}", param, ctx)
