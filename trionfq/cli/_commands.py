"""The group of commands: found in the package, and ended by codes that mean the same in each."""

from __future__ import annotations

import os
import sys
import traceback
from enum import IntEnum
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Final

import click
import trio

import trionfq.cli
from trionfq import LocalProtocolError, TrionfqError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Code(IntEnum):
    """What a command ends with."""

    FINE = 0
    FOUND = 1
    """Findings or differences; or the work failed, and a line on standard error says why."""
    USAGE = 2
    INTERRUPTED = 130


CODES: Final = """\b
Exit codes:
  0    all is well
  1    findings, differences, or it failed: standard error says why
  2    wrong use: unknown options, missing files, no such policy
  130  interrupted (Ctrl-C)
"""


class FoundError(click.ClickException):
    """The work failed; the text says why."""

    exit_code = Code.FOUND


class PolicyError(Exception):
    """A policy raised; the cause is what."""


class Commands(click.Group):
    """A group whose commands are the modules of a package."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names of the package's modules."""
        found = (each.name for each in iter_modules(trionfq.cli.__path__))
        return sorted(name.replace("_", "-") for name in found if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a module, None where there is no such module."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = import_module(f"trionfq.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        if command.epilog is None:
            command.epilog = CODES
        return command

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run; ends by `SystemExit` with a `Code`."""
        # Never click's own way of ending, where Ctrl-C is 1 as any failure is.
        del standalone_mode
        try:
            code = super().main(
                args,
                prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
            # Here, not at exit, where a reader that has gone would be told as a traceback.
            sys.stdout.flush()
        except BaseException as error:
            code = _code_of(error)
        sys.exit(code if isinstance(code, int) else Code.FINE)


def _code_of(error: BaseException) -> int:
    """Tell what went wrong in one line, or the whole of it where it is a fault of ours."""
    if isinstance(error, BaseExceptionGroup):
        if error.split(KeyboardInterrupt)[0] is not None:
            error = KeyboardInterrupt()
        elif len(error.exceptions) == 1:
            return _code_of(error.exceptions[0])
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        click.echo("trionfq: interrupted", err=True)
        return Code.INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has enough. What is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Code.FOUND
    if isinstance(error, PolicyError):
        traceback.print_exception(error.__cause__)
        click.echo(f"trionfq: the policy raised {error.__cause__!r}", err=True)
        return Code.FOUND
    if isinstance(error, FileExistsError):
        click.echo(f"trionfq: {error.filename} is there already: see --overwrite", err=True)
        return Code.USAGE
    if isinstance(error, trio.BrokenResourceError) and error.__cause__ is not None:
        error = error.__cause__  # the queue could not be used any more: why
    if isinstance(error, LocalProtocolError | ValueError | ImportError):
        click.echo(f"trionfq: {error}", err=True)
        return Code.USAGE
    if isinstance(error, TrionfqError | OSError):
        told = (error.strerror if isinstance(error, OSError) else None) or str(error)
        named = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        click.echo(f"trionfq: {named}{told}", err=True)
        return Code.FOUND
    raise error


@click.command(
    cls=Commands,
    epilog=CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="trionfq")
def commands() -> None:
    """Linux NFQUEUE: record and replay its traffic, compare runs, and judge the protocol."""
