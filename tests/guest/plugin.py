"""Each kernel test twice in a run: on this machine's kernel and, as ``[6.1]``, in the guest.

The guest's tests stand last, and the guest starts with the first of all tests: so it works beside
the others, and the run waits for it only at the end. A test that needs what one of the kernels has
not runs on the other alone.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import pytest

from .features import IN_GUEST, lacking, why_not_in_guest
from .image import SERIES, Kernel, ready
from .kernels import PROPERTY, STASH, WRITE, Seen, family, whole
from .machine import why_not
from .run import GuestRun

PERMISSION = "TRIONFQ_GUEST"
"""Environment variable: 1 lets tools/setup.sh install what the guest needs, 0 keeps from using
one."""

FOLDERS = tuple(Path(__file__).parents[1] / name for name in ("kernel", "guest"))
RUN = pytest.StashKey[GuestRun | str]()
"""Of a session: its guest, or why it has none."""

LEFT_OUT = pytest.StashKey[dict[str, list[str]]]()

LAST = "tests/guest/test_kernels.py"
"""What these tests look at is complete when all others are over."""


class GuestFailure(Exception):  # noqa: N818
    """A test failed in the guest; the text is what it said there."""


class GuestItem(pytest.Item):
    """One test in the guest.

    Args:
      test: its node id there.
    """

    def __init__(self, *, test: str, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.test = test
        self.obj = self.runtest  # pytest-trio looks for a function on every test
        self.add_marker("guest")

    def runtest(self) -> None:
        run = self.session.stash[RUN]
        if isinstance(run, str):
            pytest.skip(run)
        result = run.result(self.test)
        self.user_properties.append(("guest_seconds", result.seconds))
        if result.seen is not None:
            self.user_properties.append((PROPERTY, result.seen))
        if result.outcome == "failed":
            for title, text in result.sections.items():
                self.add_report_section("call", title.removeprefix("Captured "), text)
            raise GuestFailure(result.text)
        if result.outcome == "skipped":
            pytest.skip(result.text)
        if result.outcome == "xfailed":
            pytest.xfail(result.text)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None):  # type: ignore[no-untyped-def]
        if isinstance(excinfo.value, GuestFailure):
            return f"in the guest, on kernel {SERIES}:\n{excinfo.value}"
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"{self.name}"


def _in_guest(item: pytest.Item) -> GuestItem:
    """A test's other self."""
    name = f"{item.name[:-1]}-{SERIES}]" if item.name.endswith("]") else f"{item.name}[{SERIES}]"
    assert item.parent is not None
    made: GuestItem = GuestItem.from_parent(item.parent, name=name, test=item.nodeid)
    # For a selection by -m; what usefixtures and the like mean is done in the guest.
    for mark in item.iter_markers():
        if mark.name == "needs_kernel":
            made.own_markers.append(mark)
    return made


@functools.cache
def guest_kernel() -> Kernel | str:
    """The kernel to boot, or why there is none."""
    if os.environ.get(PERMISSION) == "0":
        return f"{PERMISSION}=0 says that there is to be no guest"
    found = ready()
    if (missing := why_not()) is None and found is not None:
        return found
    missing = missing or f"no kernel {SERIES} in the cache, or not its modules in /lib/modules"
    return f"no guest: {missing}; {PERMISSION}=1 make test, as root, installs what it needs"


class Plugin:
    """The hooks, for the run outside."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Add the guest's tests, before a selection by -k or -m is made."""
        ours = [item for item in items if any(f in item.path.parents for f in FOLDERS)]
        items += [
            _in_guest(item)
            for item in ours
            if isinstance(item, pytest.Function)
            and (FOLDERS[0] in item.path.parents or item.get_closest_marker("needs_kernel"))
            and not why_not_in_guest(item)
        ]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session):  # type: ignore[no-untyped-def]
        """Start the guest before the first test, end it after the last."""
        tests = [item.test for item in session.items if isinstance(item, GuestItem)]
        if not tests or session.config.option.collectonly:
            return (yield)
        kernel = guest_kernel()
        if isinstance(kernel, str):
            session.stash[RUN] = kernel
            return (yield)
        cache = session.config.cache
        assert cache is not None
        run = GuestRun(kernel, tests, cache.mkdir("guest") / "console.txt")
        session.stash[RUN] = run
        run.start()
        try:
            done = yield
            run.wait()
            return done
        finally:
            run.stop()


class Selection:
    """Leaves out, after a selection by -k or -m, what this machine's kernel cannot do."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        left_out: dict[str, list[str]] = {}
        kept = []
        for item in items:
            if isinstance(item, GuestItem) or not item.get_closest_marker("needs_kernel"):
                kept.append(item)
            elif missing := lacking(item):
                left_out.setdefault(", ".join(missing), []).append(item.nodeid)
            else:
                kept.append(item)
        config.stash[LEFT_OUT] = left_out
        last = [item for item in kept if item.nodeid.startswith(LAST)]
        kept = [item for item in kept if not item.nodeid.startswith(LAST)]
        if whole(config):
            kept += last
        elif config.getoption(WRITE):
            raise pytest.UsageError(f"{WRITE} needs every kernel test, without a selection")
        gone = set(items).difference(kept)
        config.hook.pytest_deselected(items=[item for item in items if item in gone])
        items[:] = kept

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        """Say which kernel did what."""
        session = terminalreporter._session
        run = session.stash.get(RUN, None) if session is not None else None
        left_out = config.stash.get(LEFT_OUT, {})
        if run is None and not left_out:
            return
        terminalreporter.section("two kernels")
        for feature, nodeids in left_out.items():
            terminalreporter.line(
                f"{os.uname().release} has no {feature}: {len(nodeids)} tests run on {SERIES} only"
            )
        if isinstance(run, str):
            terminalreporter.line(run)
        elif run is not None:
            terminalreporter.line(
                f"{run.kernel.release}: first test after {run.boot_s:.0f} s, "
                f"all over after {run.whole_s:.0f} s; the slowest:"
            )
            for seconds, test in run.slowest(config.option.durations or 5):
                terminalreporter.line(f"  {seconds:.1f} s {test}")


def kernel_of(item: pytest.Item) -> str | None:
    """The series of the kernel that a test talks to, None where it is no kernel test."""
    if FOLDERS[0] not in item.path.parents:
        return None
    return SERIES if isinstance(item, GuestItem) else family(platform.release())


def register(config: pytest.Config) -> None:
    """Declare the markers and, outside a guest, bring the hooks in."""
    for line in (
        "needs_kernel(feature, ...): runs on kernels that have it (tests/guest/features.py)",
        "not_in_guest(reason): does not run in the guest",
        "guest: a test in the guest; -m guest selects them all",
    ):
        config.addinivalue_line("markers", line)
    if not IN_GUEST:
        config.pluginmanager.register(Plugin(), "trionfq-guest")
        config.pluginmanager.register(Selection(), "trionfq-guest-selection")
        config.stash[STASH] = Seen(kernel_of)
        config.pluginmanager.register(config.stash[STASH], "trionfq-seen")
