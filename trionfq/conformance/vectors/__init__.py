"""Test vectors: nfqueue messages as bytes and as what they mean, for parsers of any language.

``nfqueue.json`` beside this module is the file, README.md says how to read it, and
``python -m trionfq.conformance.vectors run -- PROGRAM`` gives every vector to a parser or builder
of one's own.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from trionfq.conformance.vectors._json import message_from_json, message_to_json
from trionfq.conformance.vectors._run import Agreement, Disagreement, run

FILE = "nfqueue.json"


def load() -> list[dict[str, Any]]:
    """The vectors that come with this release."""
    content: dict[str, Any] = json.loads((files(__name__) / FILE).read_text())
    found: list[dict[str, Any]] = content["vectors"]
    return found


__all__ = [
    "Agreement",
    "Disagreement",
    "load",
    "message_from_json",
    "message_to_json",
    "run",
]
