"""Fuzz the reading of captures with atheris (pip install -e '.[fuzz]').

    nice -n 19 .venv/bin/python -m tests.fuzz.run build/fuzz -max_total_time=600

The first argument is a folder that keeps what reaches new code; it begins with a file of each
kind. What breaks a promise is left in the working directory as ``crash-*``, ``timeout-*`` or
``oom-*``: put it into tests/fuzz/found as ``*.bin``, where the tests run it for ever. Further
arguments are libFuzzer's.

What is in tests/fuzz/found was brought by two runs of ten minutes, which broke no promise: a file
for each different outcome.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["trionfq"]):
    from tests.fuzz.target import check

from tests.fuzz.seeds import seeds

LIMITS = ("-max_len=4096", "-timeout=10", "-rss_limit_mb=1024")


def main() -> None:
    """Fuzz until the limits that the arguments set."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (folder / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *LIMITS, *sys.argv[1:]], lambda data: check(bytes(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
