"""A stranger's program: run and type-checked by tools/try_wheel.sh against the installed wheel."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import re
import sysconfig
from pathlib import Path

import trionfq
from trionfq.backends import Backend, Received
from trionfq.schema import parse


def drain(backend: Backend) -> int:
    """Typed use of the seam: a wrong type here would fail the type check."""
    received: Received = backend.receive_nowait(64)
    return received.overruns + sum(len(datagram) for datagram in received.datagrams)


def main() -> None:
    """Check that it is the installed package that is used, and that it is whole."""
    package = Path(trionfq.__file__).parent
    assert package.parent == Path(sysconfig.get_path("purelib")), package
    assert importlib.resources.files("trionfq").joinpath("py.typed").is_file()
    assert importlib.metadata.metadata("trionfq")["License-Expression"] == "MIT"
    needs = importlib.metadata.requires("trionfq") or []
    plain = sorted(re.split("[=>]", text)[0] for text in needs if "extra ==" not in text)
    assert plain == ["construct", "trio"], plain
    assert parse(b"") == []
    print(f"trionfq {importlib.metadata.version('trionfq')} from {package}")


if __name__ == "__main__":
    main()
