"""What every step and every target must hold to, for the two of this package."""

from qatflow import testing
from small_npu.npu import TABLE
from small_npu.pruning import Prune, prune


def test_prune() -> None:
    """A fifth of the weights of a small network, quantized for the accelerator."""
    testing.check_step(prune, Prune(amount=0.2, least=50), target=TABLE)


def test_table() -> None:
    """Placement, simulation and files."""
    testing.check_target(TABLE)
