"""What a guest runs on, as one disk: interpreter, packages, programs and this checkout.

The guest sees the machine's whole file tree, but through 9p, where each file that is opened costs
milliseconds. So what a test run reads goes onto a disk, which the guest mounts above that tree and
below a file system in its memory. What is not on the disk is still found, slowly; what is written
stays in the guest.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

PACKAGES = ("trio", "construct", "pytest", "pytest-trio", "pyroute2")
"""Distributions that tests need in the guest; those which these need come with them."""

PROGRAMS = (
    *("iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore"),
    *("ip6tables-restore", "nft", "ip", "tc", "bridge", "ping", "socat", "conntrack", "sysctl"),
    *("modprobe", "dmesg", "sh", "env", "cat", "unshare", "nsenter", "mount", "true", "sleep"),
)
"""Programs that tests start; those that are not installed are left out."""

FOLDERS = ("trionfq", "tests", "fixtures", "examples", "docs", "pyproject.toml", "Makefile")
"""What of this checkout goes along."""

NOT_NEEDED = re.compile(
    r"/(\.[a-z_]+_cache|\.hypothesis|_build|idlelib|unittest/test|distutils/tests|tkinter|turtledemo"
    r"|lib2to3|ensurepip|pydoc_data|dist-packages|config-[^/]*|site-packages)(/|$)"
    r"|/python3\.\d+/test(/|$)"
)


def _requirements(names: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """The named distributions and all that they require here, by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = list(names)
    while wanted:
        name = re.split(r"[\s;<>=!~\[(]", wanted.pop(), maxsplit=1)[0].lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform, or of an extra
        wanted += [line for line in found[name].requires or () if "extra ==" not in line]
    return found


def _walk(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if not NOT_NEEDED.search(f"{folder}/{n}")]
        for name in files:
            yield Path(folder, name)


def _python() -> Iterator[Path]:
    """The interpreter, its library, and the distributions."""
    yield from _links(Path(sys.executable))
    yield Path(sys.prefix, "pyvenv.cfg")
    for kind in ("stdlib", "platstdlib"):
        yield from _walk(Path(sysconfig.get_path(kind, vars={"installed_base": sys.base_prefix})))
    for distribution in _requirements(PACKAGES).values():
        for file in distribution.files or ():
            yield Path(os.path.normpath(str(distribution.locate_file(file))))
    yield from Path(sysconfig.get_path("purelib")).glob("*trionfq*")
    yield from Path(sysconfig.get_path("purelib")).glob("*trionfq*/*")


def _links(path: Path) -> Iterator[Path]:
    """A file, and before it every symbolic link on the way to it."""
    while True:
        yield path
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()


def _libraries(programs: Iterable[Path]) -> Iterator[Path]:
    """The shared libraries of programs and of other libraries, with the loader."""
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
        for found in re.findall(r"(/\S+) \(0x", listed.stdout):
            yield from _links(Path(found))


def _programs() -> Iterator[Path]:
    places = [Path(sys.executable).resolve()]
    for name in PROGRAMS:
        if found := shutil.which(name, path=SEARCH_PATH):
            yield from _links(Path(found))
            places.append(Path(found).resolve())
    extensions: list[Path] = []
    for folder in ("/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/xtables"):
        extensions += Path(folder).glob("*.so")
    yield from extensions
    dynamic = Path(sysconfig.get_path("platstdlib"), "lib-dynload").glob("*.so")
    yield from _libraries([*places, *extensions[:1], *dynamic])


def _checkout() -> Iterator[Path]:
    for name in FOLDERS:
        yield from _walk(REPOSITORY / name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)


def make_disk(folder: Path) -> Path:
    """Make the disk, a file system in a file, in a folder for this run."""
    tree = folder / "tree"
    done: set[str] = set()
    for path in (*_python(), *_programs(), *_checkout()):
        # The folder's own name: in the guest /lib is a link to usr/lib, too.
        name = os.path.join(os.path.realpath(path.parent), path.name)
        if name not in done and os.path.lexists(name) and not os.path.isdir(name):
            done.add(name)
            _copy(Path(name), tree / name[1:])
    size = sum(-(-file.lstat().st_size // 4096) * 4096 for file in tree.rglob("*"))
    disk = folder / "disk.ext4"
    mke2fs = shutil.which("mke2fs", path=SEARCH_PATH)
    if mke2fs is None:
        raise FileNotFoundError("mke2fs is not installed (Debian: e2fsprogs)")
    # A quarter more for the file system's own tables. No journal: it is only read.
    blocks = size * 5 // 4 // 4096 + 4096
    options = ["-q", "-t", "ext4", "-b", "4096", "-O", "^has_journal", "-m", "0"]
    subprocess.run(
        [mke2fs, *options, "-d", tree, disk, str(blocks)],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    shutil.rmtree(tree)
    return disk
