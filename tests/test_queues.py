"""Owners are found from what /proc says, also while processes come and go."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trionfq import _queues
from trionfq._queues import QueueOwner, queues
from trionfq.backends import _proc

# As a 6.18 kernel writes it, its first columns shortened.
SOCKETS = """\
sk       Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000001  0   0          00000000 0        0        0     2        0        1124104
0000002  12  0          00000000 0        0        0     2        0        1124111
0000003  12  2554791216 00000000 0        0        0     2        0        1124141
0000004  16  16038      00000000 0        0        0     2        0        1124105
0000005  12  16038      00000000 0        0        0     2        0        1124136
"""


def test_sockets_of_other_protocols_have_port_ids_of_their_own() -> None:
    assert _queues._inodes(SOCKETS) == {0: 1124111, 16038: 1124136, 2554791216: 1124141}


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc with a shell that has socket 5, a worker that has 5 and 6, and one that has ended."""
    monkeypatch.setattr(_queues, "_PROCESSES", str(tmp_path))
    for pid, targets in {9: ["/dev/null", "socket:[5]"], 10: ["socket:[6]", "socket:[5]"]}.items():
        (tmp_path / f"{pid}" / "fd").mkdir(parents=True)
        for number, target in enumerate(targets):
            (tmp_path / f"{pid}" / "fd" / f"{number}").symlink_to(target)
    (tmp_path / "9" / "cmdline").write_bytes(b"sh\0-c\0a b\0")
    (tmp_path / "10" / "cmdline").write_bytes(b"")
    (tmp_path / "10" / "comm").write_text("worker/0\n")
    (tmp_path / "11").mkdir()
    (tmp_path / "self").symlink_to("9")
    return tmp_path


@pytest.mark.usefixtures("processes")
def test_every_process_that_has_the_socket_is_an_owner() -> None:
    shell, worker = QueueOwner(9, "sh -c 'a b'"), QueueOwner(10, "[worker/0]")
    assert _queues._owners({5, 6, 7}) == ({5: [shell, worker], 6: [worker]}, ())
    assert _queues._owners({7}) == ({}, ())


def test_an_owner_that_has_just_ended_keeps_its_id(processes: Path) -> None:
    (processes / "9" / "cmdline").unlink()
    assert _queues._owners({5})[0][5][0] == QueueOwner(9, "")


def test_a_process_that_cannot_be_looked_into_is_named_and_hides_no_other(
    processes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.listdir

    def refuse(path: str) -> list[str]:
        if path == f"{processes}/9/fd":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert _queues._owners({5}) == ({5: [QueueOwner(10, "[worker/0]")]}, (9,))


def test_a_descriptor_that_is_closed_meanwhile_is_passed_over(
    processes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*real(path), "99"])
    (processes / "99").mkdir()
    assert list(_queues._owners({5})[0]) == [5]


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_there_are_no_queues_before_the_module_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_proc, "_FILE", "no_such_file")
    assert queues() == []
