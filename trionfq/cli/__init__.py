"""The commands: ``trionfq record``, ``replay``, ``judge``, ``compare``, ``decode``.

Each is one module of this package, which has a click command called ``command``; its name is the
command's. Nothing lists them: a new file is a new command. Names that begin with ``_`` are none.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

_NEEDED = ("click", "rich")


def main() -> None:
    """Run the command line; what the script ``trionfq`` calls."""
    try:
        from trionfq.cli import _console  # noqa: F401 - what commands need is missing at once
        from trionfq.cli._commands import commands
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        sys.stderr.write(
            f"trionfq: the commands need {error.name}, which is not installed: "
            "pip install 'trionfq[cli]'\n"
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    commands.main(prog_name="trionfq")
