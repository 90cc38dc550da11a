"""A policy that is named on the command line: ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from trionfq import Packet


class Policy(click.ParamType[Any]):
    """Gives the function, which decides one packet; plain or async."""

    name = "module:function"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Callable[[Packet], Any]:
        """Import the module, or the file, and look the function up."""
        if callable(value):
            return value  # type: ignore[no-any-return]
        where, _, name = str(value).rpartition(":")
        if not where or not name:
            self.fail(f"expected module:function or file.py:function, got {value!r}", param, ctx)
        try:
            module = _from_file(Path(where)) if where.endswith(".py") else _imported(where)
        except Exception as error:
            kind = type(error).__name__
            self.fail(f"{where} could not be imported: {kind}: {error}", param, ctx)
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            self.fail(f"{where} has no function {name!r}", param, ctx)
        return found  # type: ignore[no-any-return]


def _imported(name: str) -> ModuleType:
    """A module, also of the present folder, which is not on a script's path."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return import_module(name)


def _from_file(path: Path) -> ModuleType:
    """A file as a module, which may import what stands beside it."""
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    beside = str(path.parent)
    if beside not in sys.path:
        sys.path.insert(0, beside)
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Under its own name, for pickle and dataclasses look there; but not in the way of another.
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
