"""Which kernel is taken, and what of this machine is touched: with apt's programs replaced."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from . import image
from .files import SEARCH_PATH
from .image import GuestError, prepare, ready

APT_CACHE = """#!/bin/sh
case $1 in
search) cat {here}/listed ;;
show) cat {here}/record ;;
esac
"""
APT_GET = """#!/bin/sh
[ -e {here}/package ] || {{ echo 'no network' >&2; exit 100; }}
echo "$3" >>{here}/downloads
cp {here}/package "$3"_6.1_amd64.deb
"""
DEPMOD = """#!/bin/sh
touch "$2/lib/modules/$3/modules.dep"
"""


class Machine:
    """A registry, a cache folder and /lib/modules, all in one folder of the test's own."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.modules = here / "lib-modules"
        for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET), ("depmod", DEPMOD)):
            program = here / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(text.format(here=here))
            program.chmod(0o755)

    def registry(self, *releases: str) -> None:
        """List builds, and have the last of them, by number, to download."""
        lines = [f"linux-image-{name}-unsigned - Linux 6.1 for 64-bit PCs" for name in releases]
        lines += ["linux-image-6.1.0-99-cloud-amd64-unsigned - Linux 6.1 for x86-64 cloud"]
        (self.here / "listed").write_text("\n".join(lines) + "\n")
        release = max(releases, key=lambda name: int(name.split("-")[1]))
        tree = self.here / f"tree-{release}"
        for name in (f"lib/modules/{release}/{image.NEEDED_MODULE}", f"boot/vmlinuz-{release}"):
            (tree / name).parent.mkdir(parents=True)
            (tree / name).write_text(release)
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN" / "control").write_text(
            "Package: x\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@x>\nDescription: x\n"
        )
        command = ["dpkg-deb", "--build", "-Znone", str(tree), str(self.here / "package")]
        subprocess.run(command, check=True, capture_output=True)
        package = (self.here / "package").read_bytes()
        self.record(hashlib.sha256(package).hexdigest())

    def record(self, digest: str) -> None:
        """What the lists say of the package."""
        (self.here / "record").write_text(f"Package: x\nFilename: pool/x.deb\nSHA256: {digest}\n")

    def downloads(self) -> int:
        """How many there were."""
        log = self.here / "downloads"
        return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(image, "MODULES", made.modules)
    monkeypatch.setattr(image, "SEARCH_PATH", f"{tmp_path}/bin:{SEARCH_PATH}")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{SEARCH_PATH}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


def test_the_newest_build_by_number_is_taken(machine: Machine) -> None:
    assert ready() is None
    machine.registry("6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-47-amd64")
    kernel = prepare()
    assert kernel.release == "6.1.0-56-amd64"
    assert kernel.image.read_text() == "6.1.0-56-amd64"
    assert (machine.modules / kernel.release / image.NEEDED_MODULE).read_text() == kernel.release
    assert (machine.modules / kernel.release / "modules.dep").exists()
    assert ready() == kernel
    assert [path.name for path in machine.modules.iterdir()] == [kernel.release]


def test_a_package_is_downloaded_once_and_a_newer_one_taken(machine: Machine) -> None:
    machine.registry("6.1.0-9-amd64")
    assert prepare() == prepare()
    assert machine.downloads() == 1
    machine.registry("6.1.0-9-amd64", "6.1.0-10-amd64")
    assert prepare().release == "6.1.0-10-amd64"
    assert machine.downloads() == 2


def test_a_package_of_another_sum_is_refused_and_nothing_is_left(machine: Machine) -> None:
    machine.registry("6.1.0-9-amd64")
    machine.record("0" * 64)
    with pytest.raises(GuestError, match=r"SHA-256 is [0-9a-f]{64}, and 0000"):
        prepare()
    assert ready() is None
    assert not machine.modules.exists()
    assert sorted(path.name for path in image.cache().rglob("*.deb")) == []


def test_modules_that_are_there_are_not_touched(machine: Machine) -> None:
    machine.registry("6.1.0-9-amd64")
    there = machine.modules / "6.1.0-9-amd64" / image.NEEDED_MODULE
    there.parent.mkdir(parents=True)
    there.write_text("somebody's own")
    assert prepare() == ready()
    assert there.read_text() == "somebody's own"
    assert not (machine.modules / "6.1.0-9-amd64" / "modules.dep").exists()


def test_a_folder_without_the_module_stays_and_is_named(machine: Machine) -> None:
    machine.registry("6.1.0-9-amd64")
    there = machine.modules / "6.1.0-9-amd64"
    there.mkdir(parents=True)
    with pytest.raises(GuestError, match="move it out of the way"):
        prepare()
    assert list(there.iterdir()) == []


@pytest.mark.parametrize("what", ["lists", "package"])
def test_without_a_network_the_cached_build_is_taken(machine: Machine, what: str) -> None:
    machine.registry("6.1.0-9-amd64")
    kernel = prepare()
    if what == "lists":
        (machine.here / "listed").unlink()
    else:
        machine.registry("6.1.0-9-amd64", "6.1.0-10-amd64")
        (machine.here / "package").unlink()
    assert prepare() == kernel


def test_a_machine_that_lists_no_build_and_has_none_is_told(machine: Machine) -> None:
    (machine.here / "listed").write_text("")
    with pytest.raises(GuestError, match=r"linux-image-6\.1\.0-N-amd64-unsigned is listed"):
        prepare()
