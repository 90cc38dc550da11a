"""How long a test waits for what must come: longer where the machine is slow."""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("TRIONFQ_PATIENCE", "1"))
"""TRIONFQ_PATIENCE; a guest, whose processor is a program, is given more than 1."""


def patient(seconds: float) -> float:
    """A limit for what must come, on this machine.

    Not for what must not come, nor for what a test says of speed: these are the same everywhere.
    """
    return seconds * FACTOR
