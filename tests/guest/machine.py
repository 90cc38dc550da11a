"""A guest that boots, runs one command above the machine's file tree, and is gone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from .files import REPOSITORY, SEARCH_PATH, make_disk
from .image import GuestError, Kernel

RESULTS_FD = 3
"""Descriptor of the command in the guest: what is written there is read from `Guest.results`."""

PATIENCE = 4
"""How many times longer a test in the guest waits for what must come, by `patient`. Limits are
wide: where loops take 11 times as long, few tests come near a tenth of them."""

TEST_LIMIT_S = 100.0
"""A test in the guest that takes longer has failed, and the next one begins."""

# A busy machine's guest may see no timer interrupt for a while: to check that costs it its boot.
# There is nothing to protect it from.
_KERNEL_ARGUMENTS = "loglevel=4 no_timer_check mitigations=off"

# Exit 97: the guest came up without what it needs; the console says what.
_SCRIPT = """\
set -eu
start=$(cut -d' ' -f1 /proc/uptime)
mkdir -p /run/disk /run/upper /run/work /run/root
for module in virtio_blk ext4 overlay; do modprobe $module || exit 97; done
mount -t ext4 -o ro /dev/vda /run/disk || exit 97
mount -t overlay -o lowerdir=/run/disk:/,upperdir=/run/upper,workdir=/run/work overlay /run/root \\
    || exit 97
for folder in proc sys dev run; do mount --rbind /$folder /run/root/$folder; done
{empty_tmp}
echo "guest: $(uname -r) up after $start s" >&2
exec chroot /run/root sh {inner} {results}>&1 >&2 </dev/null
"""


def why_not() -> str | None:
    """What a guest needs and is not installed, None where nothing is missing."""
    programs = {
        "qemu-system-x86_64": "qemu-system-x86",
        "modprobe": "kmod",
        "busybox": "busybox-static",
        "udevadm": "udev",
        "mke2fs": "e2fsprogs",
    }
    missing = [p for name, p in programs.items() if not shutil.which(name, path=SEARCH_PATH)]
    if missing:
        return f"Debian packages are missing: {' '.join(missing)}"
    if not _vng().exists():
        return "virtme-ng is not installed in this environment (pip install -e '.[dev]')"
    return None


def _vng() -> Path:
    return Path(sys.prefix, "bin", "vng")


def pytest_command(arguments: Sequence[str]) -> list[str]:
    """What runs pytest in the guest, with `inside` as a plugin."""
    plugins = ["-p", "pytest_trio.plugin", "-p", "tests.guest.inside", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *plugins, *arguments]


def pytest_environment() -> dict[str, str]:
    """The environment of that command."""
    return {
        "TRIONFQ_IN_GUEST": "1",
        "TRIONFQ_PATIENCE": str(PATIENCE),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


# Ends the whole group when this process has gone, however it went: then standard input ends.
_WATCHED = """\
exec 4<&0
"$@" </dev/null 4<&- &
guest=$!
{ read -r _; kill -KILL 0; } <&4 &
watch=$!
wait $guest && code=0 || code=$?
kill $watch
exit $code
"""


def _empty_tmp() -> str:
    """What gives the guest a /tmp of its own, unless that would hide what it runs."""
    runs = (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))
    if any(path.is_relative_to("/tmp") for path in runs):
        return ": # what is written there stays in memory, too"
    return "mount -t tmpfs tmpfs /run/root/tmp"


class Guest:
    """A running guest; leaving the block ends it.

    Args:
      kernel: to boot.
      command: to run in it, in this checkout; `environment` is added to its environment.
      environment: likewise.
      console: a pipe that gets what kernel and command say, None for stderr. Not a file: qemu
        empties one that it is given.
      files: texts that stand in the guest's /run, by name.

    Attributes:
      results: what the command writes to `RESULTS_FD`, until it ends.
    """

    results: IO[str]

    def __init__(
        self,
        kernel: Kernel,
        command: Sequence[str],
        environment: dict[str, str],
        console: int | None = None,
        files: dict[str, str] | None = None,
    ) -> None:
        if (reason := why_not()) is not None:
            raise GuestError(reason)
        self.kernel = kernel
        self._command = command
        self._environment = environment
        self._console = console
        self._files = files or {}
        self._undo = contextlib.ExitStack()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="trionfq-guest-")))
            disk = make_disk(folder)
            run = folder / "run"
            run.mkdir()
            for name, text in {**self._files, "inner": self._inner()}.items():
                (run / name).write_text(text)
            outer = folder / "outer"
            outer.write_text(
                _SCRIPT.format(inner="/run/inner", results=RESULTS_FD, empty_tmp=_empty_tmp())
            )
            script = f"cp {run}/* /run/ && exec sh {outer}"
            process = subprocess.Popen(
                [
                    *("sh", "-c", _WATCHED, "guest"),
                    *(sys.executable, _vng(), "--run", self.kernel.image),
                    *("--disable-kvm", "--force-9p", "--disable-microvm"),
                    *("--cpus", "2", "--memory", "1G", "--cwd", folder, "--verbose"),
                    *("--append", _KERNEL_ARGUMENTS),
                    f"--qemu-opts=-drive file={disk},format=raw,if=virtio,readonly=on",
                    *("--exec", f"sh -c '{script}'"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._console,
                text=True,
                errors="replace",
                start_new_session=True,
                env={**os.environ, "PATH": f"{sys.prefix}/bin{os.pathsep}{SEARCH_PATH}"},
            )
            undo.callback(self._end, process)
            assert process.stdin is not None
            assert process.stdout is not None
            undo.callback(process.stdin.close)
            self.results = undo.enter_context(process.stdout)
            self._process = process
            self._undo = undo.pop_all()
        return self

    def _inner(self) -> str:
        from shlex import quote

        lines = [f"export {name}={quote(value)}" for name, value in self._environment.items()]
        command = " ".join(map(quote, self._command))
        return "\n".join([f"cd {quote(str(REPOSITORY))}", *lines, f"exec {command}", ""])

    def _end(self, process: subprocess.Popen[str]) -> None:
        # vng, its shell and qemu are one process group of their own, also when vng has ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill(self) -> None:
        """End the guest now; `wait` and the readers of `results` then return."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The command's exit code, when the guest has ended."""
        assert self._process is not None
        return self._process.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()
