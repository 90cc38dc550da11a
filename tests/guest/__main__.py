"""By hand: tools/guest run PYTEST-ARGUMENTS... | exec COMMAND... | prepare | check | where.

``check`` tells by its exit code whether all that a guest needs is there, and with ``--fresh``
whether the registry was asked for a newer kernel today; ``where`` prints the cache folder.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from .image import GuestError, cache, looked_today, prepare, ready
from .machine import Guest, pytest_command, pytest_environment, why_not


def _relay(pipe: int) -> None:
    """Show the console as it comes. qemu would cut a file that it were given."""
    with open(pipe, errors="replace") as lines:
        for line in lines:
            print(line, end="", file=sys.stderr, flush=True)


def main() -> int:
    """Do what the arguments say."""
    do, *rest = sys.argv[1:] or ["help"]
    if do == "where":
        print(cache())
        return 0
    if do == "check":
        return 0 if why_not() is None and ready() and (not rest or looked_today()) else 1
    if do == "prepare":
        print(f"guest: kernel {prepare().release} is ready")
        return 0
    if do not in ("run", "exec"):
        print(__doc__, file=sys.stderr)
        return 2
    start = time.monotonic()
    kernel = ready() or prepare()
    command = pytest_command(rest or ["tests/kernel"]) if do == "run" else rest
    read, write = os.pipe()
    with Guest(kernel, command, pytest_environment(), write) as guest:
        os.close(write)
        relay = threading.Thread(target=_relay, args=[read], daemon=True)
        relay.start()
        for line in guest.results:
            try:
                found = json.loads(line)
            except ValueError:
                print(line, end="", flush=True)
                continue
            if found["do"] == "end" and found["outcome"] != "passed":
                print(f"{found['outcome']}: {found['test']}\n{found['text']}", flush=True)
            elif found["do"] == "run":
                print(f"tainted: {found['tainted']}, release: {found['release']}")
        code = guest.wait()
        relay.join()
    print(f"guest: {kernel.release}, {time.monotonic() - start:.0f} s, exit code {code}")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GuestError as error:
        sys.exit(f"guest: {error}")
