"""How the tests run: the same way every time."""

from __future__ import annotations

import os
import signal

import pytest

from tests.guest import plugin as guest
from tests.guest.kernels import add_options

if "TRIONFQ_IN_GUEST" not in os.environ:  # there is no time for it there
    from hypothesis import settings

    # Examples follow from the test's own text, and no deadline: a busy machine is not a failure.
    # HYPOTHESIS_PROFILE=search looks at others each time, ten times as many.
    settings.register_profile("same", derandomize=True, deadline=None)
    settings.register_profile("search", deadline=None, max_examples=1000)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# A shell that starts a run in the background has it ignore Ctrl-C, and so would every program that
# a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What can be asked of a run that has two kernels."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Bring the second kernel in."""
    guest.register(config)
