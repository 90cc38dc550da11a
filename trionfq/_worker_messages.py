"""What a supervisor and a worker process say to each other, in two pipes.

To the worker, on its standard input: one line with the module search path, which must be known
before this package can be imported; one frame with a `Start`; then a byte `ASK` for each snapshot
that is wanted. The end of the pipe means stop, whether it was closed on purpose or with its owner:
a supervisor that is killed leaves no worker, and there is no moment in which that could be missed.

To the supervisor: frames with the other classes below. A frame is a length and a pickle. Both
sides are one program of one user, so neither fears the other's pickles.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionfq._statistics import Statistics
    from trionfq.backends.netlink import Namespace

ASK = b"?"

WORKER_MAIN = "__mp_main__"
"""What the program's main module is called in a worker, as in multiprocessing's."""

importing_main = False
"""Whether this process is a worker that makes the main module: nothing shall run in it now."""

_LENGTH_BYTES = 4


@dataclass(frozen=True)
class MainModule:
    """Where the program's main module is found: by one of both."""

    name: str | None
    path: str | None


@dataclass(frozen=True)
class Start:
    """What a worker is to do.

    Attributes:
      queue_number: the queue to open.
      payload: pickle of a `Work`, apart, since it may need the main module.
      namespace: where to open it, by a descriptor that the worker has inherited.
      main: that module, None if the payload does not name it.
      arguments: sys.argv.
      cpu: the processor to run on, None for any.
      grace_s: seconds after which a worker that was told to stop ends itself.
    """

    queue_number: int
    payload: bytes
    namespace: Namespace | None
    main: MainModule | None
    arguments: list[str]
    cpu: int | None
    grace_s: float


@dataclass(frozen=True)
class Work:
    """The user's part: a function of the queue, and how to open that."""

    target: Any
    arguments: tuple[Any, ...]
    backend: Any
    options: dict[str, Any]


@dataclass(frozen=True)
class Ready:
    """The queue is bound."""


@dataclass(frozen=True)
class Snapshot:
    """The answer to `ASK`; None if the queue is closed already."""

    statistics: Statistics | None


@dataclass(frozen=True)
class Finished:
    """The user's function has returned, and the queue is closed."""


@dataclass(frozen=True)
class Failed:
    """An exception ends the worker.

    Attributes:
      text: its traceback.
      summary: its last line.
      pickled: the exception, None if it cannot be pickled.
    """

    text: str
    summary: str
    pickled: bytes | None

    @classmethod
    def by(cls, error: BaseException) -> Failed:
        """What to say of an exception."""
        text = "".join(traceback.format_exception(error))
        summary = "".join(traceback.format_exception_only(error)).strip()
        pickled = None
        try:
            pickled = pickle.dumps(error)
            pickle.loads(pickled)  # noqa: S301 - our own; many an exception can be pickled only
        except Exception:
            pickled = None
        return cls(text, summary, pickled)

    def exception(self) -> Exception | None:
        """The exception, where it can be had; for the supervisor."""
        if self.pickled is None:
            return None
        try:
            error = _Unpickler(io.BytesIO(self.pickled)).load()
        except Exception:
            return None  # of a class that only the worker can import
        return error if isinstance(error, Exception) else None


class _Unpickler(pickle.Unpickler):
    """Knows the main module by the name that it has in a worker."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        module = "__main__" if module_name == WORKER_MAIN else module_name
        return super().find_class(module, global_name)


Report = Ready | Snapshot | Finished | Failed


def frame(content: Start | Report) -> bytes:
    """A frame that carries `content`."""
    data = pickle.dumps(content)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


def take_frames(buffer: bytearray) -> Iterator[Any]:
    """Take the whole frames from the front of a buffer."""
    while len(buffer) >= _LENGTH_BYTES:
        end = _LENGTH_BYTES + int.from_bytes(buffer[:_LENGTH_BYTES], "big")
        if len(buffer) < end:
            return
        data = bytes(buffer[_LENGTH_BYTES:end])
        del buffer[:end]
        yield pickle.loads(data)  # noqa: S301 - see above


def read_start(fd: int) -> Start | None:
    """The first frame of a pipe, blocking; None if it ends before."""
    length = _read(fd, _LENGTH_BYTES)
    data = _read(fd, int.from_bytes(length, "big"))
    if len(length) < _LENGTH_BYTES or not data:
        return None
    start: Start = pickle.loads(data)  # noqa: S301 - see above
    return start


def _read(fd: int, count: int) -> bytes:
    """So many bytes, none if the pipe ends before."""
    data = b""
    while len(data) < count:
        piece = os.read(fd, count - len(data))
        if not piece:
            return b""
        data += piece
    return data


# With -P no folder of the caller's is searched before its own search path is known.
_PROGRAM = (
    "import json, sys; "
    "path = open(0, 'rb', buffering=0, closefd=False).readline() or sys.exit(); "
    "sys.path[:] = json.loads(path); "
    "from trionfq._worker_process import main; main()"
)


def search_path() -> bytes:
    """The line before the first frame."""
    return json.dumps(sys.path).encode("ascii") + b"\n"


def command(report_fd: int, queue_number: int) -> list[str]:
    """How a worker process is started: this interpreter, set as it is here."""
    flags = sys.flags
    options = ["-P"]
    options += ["-E"] * flags.ignore_environment + ["-s"] * flags.no_user_site
    options += ["-B"] * flags.dont_write_bytecode + ["-O"] * flags.optimize
    options += ["-X", "dev"] * flags.dev_mode
    options += [f"-W{option}" for option in sys.warnoptions]
    return [sys.executable, *options, "-c", _PROGRAM, str(report_fd), f"queue={queue_number}"]


def main_module() -> MainModule | None:
    """Where this program's main module is found, None where it has no file (a prompt, ``-c``)."""
    module = sys.modules["__main__"]
    spec = getattr(module, "__spec__", None)
    if spec is not None:
        return MainModule(spec.name, None)
    path = getattr(module, "__file__", None)
    return None if path is None else MainModule(None, os.path.abspath(path))
