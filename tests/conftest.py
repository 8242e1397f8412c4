"""Fixtures and seeds of all tests."""

import pytest
import torch

from qatflow.steps.context import StepContext

torch.set_num_threads(1)  # the networks here are tiny: threads that wait for one another cost more than they gain


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests first: processes that take file by file of what is left then end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_context():
    """Return a maker of step contexts over given batches of inputs."""

    def make(*inputs: torch.Tensor) -> StepContext:
        return StepContext(lambda limit: [((x,), {}) for x in inputs])

    return make
