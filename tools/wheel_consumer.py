"""A stranger's program: run and type-checked by tools/try_wheel.sh against the installed wheel."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import importlib.util
import re
import sysconfig
from pathlib import Path

import trio

import trionfq
from trionfq.backends.replay import ReplayBackend
from trionfq.testing import make_packet

NF_DROP, NF_ACCEPT = 0, 1


def check_package() -> None:
    """It is the installed package that is used, and it is whole."""
    package = Path(trionfq.__file__).parent
    assert package.parent == Path(sysconfig.get_path("purelib")), package
    assert importlib.resources.files("trionfq").joinpath("py.typed").is_file()
    assert importlib.metadata.metadata("trionfq")["License-Expression"] == "MIT"
    needs = importlib.metadata.requires("trionfq") or []
    plain = sorted(re.split("[=>]", text)[0] for text in needs if "extra ==" not in text)
    assert plain == ["construct", "trio"], plain
    [plugin] = importlib.metadata.entry_points(group="pytest11", name="trionfq")
    assert importlib.util.find_spec(plugin.module) is not None, plugin
    [script] = importlib.metadata.entry_points(group="console_scripts", name="trionfq")
    assert callable(script.load()), script
    print(f"trionfq {importlib.metadata.version('trionfq')} from {package}")


async def replay() -> None:
    """A policy decides three packets with no privilege and no kernel."""
    backend = ReplayBackend([make_packet(1), make_packet(2), make_packet(5)], check="all")
    async with trionfq.open_queue(0, backend=backend) as queue:
        async for packet in queue:
            if packet.id == 2:
                packet.drop()
            else:
                packet.accept(mark=7)
    decided = [(done.packet_id, done.verdict, done.mark) for done in backend.transcript]
    assert decided == [(1, NF_ACCEPT, 7), (2, NF_DROP, None), (5, NF_ACCEPT, 7)], decided
    print(f"replayed {len(decided)} packets")


if __name__ == "__main__":
    check_package()
    trio.run(replay)
