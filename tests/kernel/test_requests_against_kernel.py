"""The kernel model answers every request as the kernel does, and brings about the same.

Same means: the same errno from send, the same messages in the same order and with the same
contents, the same rows in /proc after every step, and the same packets with the same marks and
priorities at the receiver.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from ._two_sides import InNamespace, ModelSide, RealSide, outer_ids
from .requests import SCENARIOS, Scenario

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the requests are written for a little-endian host"
)


@pytest.fixture(scope="module")
def namespace() -> Iterator[InNamespace]:
    try:
        inside = InNamespace()
    except PermissionError as error:
        pytest.skip(f"no privilege for a network namespace: {error}")
    yield inside
    inside.close()


@pytest.fixture(scope="module")
def real(namespace: InNamespace) -> Iterator[RealSide]:
    try:
        side = namespace.run(RealSide)
    except FileNotFoundError as error:
        pytest.skip(f"this machine lacks {error}")
    except PermissionError as error:
        pytest.skip(f"the kernel takes no NFQUEUE rule: {error}")
    yield side
    namespace.run(side.close)


@pytest.fixture(scope="module")
def model(namespace: InNamespace, real: RealSide) -> ModelSide:
    return ModelSide(namespace.run(real.traits), outer_ids())


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[s.name for s in SCENARIOS])
def test_the_model_does_what_the_kernel_does(
    namespace: InNamespace, real: RealSide, model: ModelSide, scenario: Scenario
) -> None:
    kernel_did, portids = namespace.run(lambda: real.play(scenario))
    model_did = model.play(scenario, portids, priorities=real.priorities)
    for kernel_step, model_step in zip(kernel_did.steps, model_did.steps, strict=True):
        assert model_step == kernel_step
    assert model_did.delivered == kernel_did.delivered


def test_there_are_no_two_scenarios_of_one_name() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS) >= 60
