"""The scripts behind make: where they run a command, and what they say when they cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNEL = {"TRIONFQ_REQUIRE_KERNEL": "1"}

# As root without the one capability that making namespaces needs: what is left to it is what an
# ordinary user has, a user namespace of its own.
NO_ADMIN = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def allows(*command: str) -> bool:
    return shutil.which(command[0]) is not None and run(*command, "true").returncode == 0


as_root = pytest.mark.skipif(not allows(*NO_ADMIN), reason="only root can give up a capability")
user_namespaces = pytest.mark.skipif(
    not allows(*NO_ADMIN, "unshare", "--user", "--map-root-user", "--net", "--mount"),
    reason="needs root and user namespaces",
)


@user_namespaces
def test_kernel_tests_run_in_a_user_namespace_for_who_is_not_root() -> None:
    done = run(
        *NO_ADMIN,
        "tools/with_namespaces.sh",
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"),
        *("tests/kernel/test_harness.py", "-k", "pair_carries or bound_queue or bridge_shows"),
        **KERNEL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernel tests: 3 ran, 0 skipped" in done.stdout


@user_namespaces
def test_command_knows_where_it_runs() -> None:
    script = ["tools/with_namespaces.sh", "sh", "-c", "echo $TRIONFQ_NAMESPACES $0; exit 5", "x y"]
    done = run(*NO_ADMIN, *script)
    assert (done.stdout, done.returncode) == ("user x y\n", 5)


@as_root
def test_kernel_tests_without_privilege_skip_aloud_or_fail() -> None:
    command = [
        *NO_ADMIN,
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"),
        *("tests/kernel/test_harness.py", "-k", "loopback or pair_carries"),
    ]
    done = run(*command, TRIONFQ_REQUIRE_KERNEL="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT ONE KERNEL TEST RAN: all 2 skipped: no privilege" in done.stdout
    done = run(*command, **KERNEL)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "a kernel test must not skip. Skipped: no privilege" in done.stdout


def test_machine_without_namespaces_is_told_apart(tmp_path: Path) -> None:
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n")
    refusing.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    show = ["sh", "-c", "echo $TRIONFQ_NAMESPACES"]
    done = run("tools/with_namespaces.sh", *show, PATH=path)
    assert (done.stdout, done.returncode) == ("", 77)
    assert "neither root nor an unprivileged user namespace" in done.stderr
    done = run("tools/with_namespaces.sh", "--anyway", *show, PATH=path)
    assert (done.stdout, done.returncode) == ("none\n", 0)
    assert "Operation not permitted" in done.stderr


@pytest.mark.parametrize(
    ("python", "said"),
    [("no-such-python", "is not on the PATH"), ("/bin/false", "Python 3.11 or newer is needed")],
)
def test_set_up_names_the_python_that_it_needs(python: str, said: str) -> None:
    done = run("tools/setup.sh", "demo", PYTHON=python)
    assert done.returncode == 3
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
