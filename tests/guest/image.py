"""Debian's 6.1 kernel, as a file to boot: found, downloaded, checked, unpacked.

The newest build that the machine's package lists name is taken, downloaded once into the user's
cache folder, and compared with the SHA-256 of the lists, which apt has checked against Debian's
signature. Its modules are put under /lib/modules, where the guest looks for them, in one step and
only where nothing of that name stands: what is there is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .files import SEARCH_PATH

SERIES = "6.1"
"""Of the kernel, as names of tests have it."""

MODULES = Path("/lib/modules")
NEEDED_MODULE = "kernel/net/netfilter/nfnetlink_queue.ko"
_NAME = re.compile(r"^linux-image-(6\.1\.0-(\d+)-amd64)-unsigned\b", re.MULTILINE)


class GuestError(Exception):
    """The guest cannot be had here; the text says why, and what to do."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted.

    Attributes:
      release: as ``uname -r`` says it, such as ``"6.1.0-56-amd64"``.
      image: the file to boot.
    """

    release: str
    image: Path


def cache() -> Path:
    """The folder for what is downloaded, of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "trionfq", "guest")


def _apt(*command: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    if done.returncode:
        raise GuestError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def listed() -> str | None:
    """Release of the newest build that the package lists name, None where they name none."""
    try:
        found = _NAME.findall(
            _apt("apt-cache", "search", "--names-only", "^linux-image-6[.]1[.]0-")
        )
    except (GuestError, FileNotFoundError):
        return None
    return max(found, key=lambda name: int(name[1]))[0] if found else None


def _number(release: str) -> int:
    return int(release.split("-")[1])


def cached() -> str | None:
    """Release of the newest build in the cache, None where there is none."""
    found = [path.name.removeprefix("vmlinuz-") for path in cache().glob("vmlinuz-6.1.0-*")]
    return max(found, key=_number) if found else None


def ready() -> Kernel | None:
    """The kernel to boot, None where `prepare` has something to do first. Nothing is changed."""
    release = cached()
    if release is None or not (MODULES / release / NEEDED_MODULE).exists():
        return None
    return Kernel(release, cache() / f"vmlinuz-{release}")


def looked_today() -> bool:
    """Whether `prepare` has looked for a newer build within a day."""
    stamp = cache() / "looked"
    return stamp.exists() and time.time() - stamp.stat().st_mtime < 86400


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Lets one process at a time work in the cache."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(package: str) -> Path:
    """The package's file, whose SHA-256 is the one of the package lists."""
    record = _apt("apt-cache", "show", "--no-all-versions", package)
    wanted = re.search(r"^SHA256: ([0-9a-f]{64})$", record, re.MULTILINE)
    named = re.search(r"^Filename: (?:.*/)?(\S+)$", record, re.MULTILINE)
    if wanted is None or named is None:
        raise GuestError(f"the package lists give no SHA256 and Filename for {package}")
    folder = cache() / "download"
    folder.mkdir(exist_ok=True)
    _apt("apt-get", "-q", "download", package, cwd=folder)
    files = list(folder.glob(f"{package}_*.deb"))
    if len(files) != 1:
        raise GuestError(f"apt-get download {package} left {[file.name for file in files]}")
    with files[0].open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != wanted[1]:
        files[0].unlink()
        raise GuestError(f"{named[1]}: SHA-256 is {got}, and {wanted[1]} in the package lists")
    return files[0]


def _install_modules(release: str, source: Path) -> None:
    """Put modules under /lib/modules in one step; whatever is there by that name stays."""
    place = MODULES / release
    if place.exists():
        if not (place / NEEDED_MODULE).exists():
            raise GuestError(f"{place} is there, without {NEEDED_MODULE}: move it out of the way")
        return
    MODULES.mkdir(parents=True, exist_ok=True)
    half = MODULES / f".trionfq-{os.getpid()}"
    try:
        shutil.copytree(source, half / "lib" / "modules" / release, symlinks=True)
        _apt("depmod", "--basedir", str(half), release)
        (half / "lib" / "modules" / release).rename(place)
    except PermissionError as error:
        raise GuestError(f"{MODULES} is root's to write: {error}") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def prepare() -> Kernel:
    """Have the newest listed build ready; where it cannot be had, the one that is ready.

    Raises:
      GuestError: that did not work; what was there before is as it was.
    """
    with _alone():
        release, old = listed(), cached()
        newest = max(filter(None, (release, old)), key=_number, default=None)
        if newest is None:
            raise GuestError(
                f"no package linux-image-{SERIES}.0-N-amd64-unsigned is listed; apt-get update?"
            )
        try:
            kernel = _have(newest)
        except GuestError:
            if (kept := ready()) is None:
                raise
            return kept
        if release is not None:
            (cache() / "looked").touch()
    return kernel


def _have(release: str) -> Kernel:
    """The kernel of a release, after what is to be done for it."""
    kernel = Kernel(release, cache() / f"vmlinuz-{release}")
    if kernel == ready():
        return kernel
    package = _download(f"linux-image-{release}-unsigned")
    unpacked = cache() / f"unpacked-{os.getpid()}"
    try:
        _apt("dpkg", "-x", str(package), str(unpacked))
        _install_modules(release, unpacked / "lib" / "modules" / release)
        shutil.move(unpacked / "boot" / f"vmlinuz-{release}", kernel.image)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
        shutil.rmtree(package.parent, ignore_errors=True)
    return kernel
