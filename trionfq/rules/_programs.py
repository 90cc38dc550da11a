"""Running nft and iptables, and telling why they failed."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trionfq._errors import ModuleMissingError, PrivilegeError, TrionfqError

if TYPE_CHECKING:
    from collections.abc import Sequence

SEARCH_PATH = os.pathsep.join(
    # Debian keeps these programs off an ordinary user's PATH.
    [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
)
LOCK_WAIT_S = 5
"""How long iptables waits for its lock (-w), in seconds."""


class RuleError(TrionfqError):
    """nft or iptables did not do what was asked.

    Attributes:
      command: the program and its arguments.
      output: what it wrote to standard error.
    """

    def __init__(self, message: str, *, command: Sequence[str] = (), output: str = ""):
        super().__init__(message)
        self.command = tuple(command)
        self.output = output


class ProgramMissingError(RuleError):
    """Neither nft nor iptables, or not the one that was asked for, is installed."""


@dataclass(frozen=True)
class Done:
    """A program that has ended.

    Attributes:
      command: the program and its arguments.
      code: its exit code.
      output: what it wrote to standard output.
      errors: what it wrote to standard error.
    """

    command: tuple[str, ...]
    code: int
    output: str
    errors: str


def find(program: str) -> str | None:
    """Path of a program, None where it is not installed."""
    return shutil.which(program, path=SEARCH_PATH)


def package(program: str) -> str:
    """The Debian package that brings it."""
    return "nftables" if program == "nft" else "iptables"


def run(command: Sequence[str], *, stdin: str = "", timeout_s: float) -> Done:
    """Run a program to its end, in the calling thread's network namespace.

    Raises:
      ProgramMissingError: it is not installed.
      RuleError: it was killed, since it had not ended after `timeout_s`.
    """
    program, *arguments = command
    path = find(program)
    if path is None:
        raise ProgramMissingError(
            f"{program} is not installed (Debian package {package(program)})", command=command
        )
    try:
        done = subprocess.run(  # noqa: S603 - no shell; what goes in was checked
            [path, *arguments],
            input=stdin.encode(),
            capture_output=True,
            timeout=timeout_s,
            # Messages are recognised by their English text.
            env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuleError(
            f"{shlex.join(command)}: not done within {timeout_s:g} s, killed", command=command
        ) from None
    return Done(
        tuple(command),
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )


def check(done: Done, what: str) -> str:
    """What a program printed, if it ended well.

    Args:
      done: the program.
      what: was asked, such as ``"install a queueing rule"``.

    Raises:
      PrivilegeError: CAP_NET_ADMIN is missing.
      ModuleMissingError: the kernel lacks a part that the rule needs.
      RuleError: anything else.
    """
    if done.code == 0:
        return done.output
    said = " ".join(done.errors.split()) or f"exit code {done.code}"
    operation = f"{what} with {done.command[0]}"
    if is_privilege(said):
        raise PrivilegeError(
            errno.EPERM,
            operation,
            advice=f"it said: {said}; CAP_NET_ADMIN is missing in the user namespace that owns the "
            "network namespace: run as root, or with setpriv/setcap cap_net_admin (inherited by "
            "programs only as an ambient capability)",
        )
    if re.search(r"xtables lock|lock file", said):
        raise RuleError(
            f"{operation}: {said}; another program holds iptables' lock, or it cannot be written",
            command=done.command,
            output=done.errors,
        )
    if is_missing(said):
        raise ModuleMissingError(
            errno.ENOENT,
            operation,
            advice=f"it said: {said}; the kernel lacks a part that the rule needs: as root, "
            "modprobe nft_queue for nft, or modprobe xt_NFQUEUE xt_comment (and xt_mark, "
            "xt_multiport where the rule uses them) for iptables",
        )
    raise RuleError(f"{operation}: {said}", command=done.command, output=done.errors)


def is_privilege(said: str) -> bool:
    """Whether a message tells of a missing privilege."""
    return (
        re.search(r"Permission denied \(you must be root\)|Operation not permitted", said)
        is not None
    )


def is_missing(said: str) -> bool:
    """Whether a message tells of something that the kernel does not have."""
    return (
        re.search(
            r"No chain/target/match by that name|missing kernel module|No such file or directory"
            r"|not supported|Protocol not available|[Cc]an't initialize|unable to initialize table",
            said,
        )
        is not None
    )
