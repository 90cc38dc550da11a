"""Who owns a rule, and whether that program still runs.

A rule carries its owner's key and a token. As long as the owner lives it keeps a Unix socket bound
to an abstract name made of both. Such names belong to a network namespace, as rules do (unix(7));
they go with the last process that has the socket, however it ends, and no process id is compared,
so it also holds between containers that share a network. A token whose name is free was left
behind, and whoever binds the name may remove or take over what carries it.
"""

from __future__ import annotations

import errno
import re
import secrets
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trionfq.rules._place import Place

_COMMENT = re.compile(r"trionfq:([A-Za-z0-9.-]+):([0-9a-f]{8})")
_TABLE = re.compile(r"trionfq_([A-Za-z0-9.-]+)_([0-9a-f]{8})")


class Claim:
    """A token that is ours until `release`.

    Attributes:
      key: names whose it is.
      token: eight hexadecimal digits.
    """

    def __init__(self, key: str, token: str, held: socket.socket) -> None:
        self.key = key
        self.token = token
        self._held = held

    @property
    def comment(self) -> str:
        """What rules carry."""
        return f"trionfq:{self.key}:{self.token}"

    @property
    def table(self) -> str:
        """Name of nft's table."""
        return f"trionfq_{self.key}_{self.token}"

    def release(self) -> None:
        """Let others have it; harmless when repeated."""
        self._held.close()


def try_claim(place: Place, key: str, token: str) -> Claim | None:
    """Make a token ours; None where its owner lives."""
    held = place.call(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    try:
        held.bind(f"\0trionfq:{key}:{token}".encode())
    except OSError as error:
        held.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return Claim(key, token, held)


def new_claim(place: Place, key: str) -> Claim:
    """A token that nobody else has."""
    while (claim := try_claim(place, key, secrets.token_hex(4))) is None:
        pass
    return claim


def is_alive(place: Place, key: str, token: str) -> bool:
    """Whether a token's owner still runs."""
    claim = try_claim(place, key, token)
    if claim is None:
        return True
    claim.release()
    return False


def of_comment(comment: str) -> tuple[str, str] | None:
    """Key and token of a rule's comment; None where it is not ours."""
    found = _COMMENT.fullmatch(comment)
    return None if found is None else (found[1], found[2])


def of_table(name: str) -> tuple[str, str] | None:
    """Key and token of an nft table's name, likewise."""
    found = _TABLE.fullmatch(name)
    return None if found is None else (found[1], found[2])
