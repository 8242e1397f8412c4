"""A user's package with steps and tables, some of them wrong."""

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from qatflow.graph.layers import tensor, weighted_layers
from qatflow.quant.network import Network
from qatflow.quant.targets import TARGETS
from qatflow.recipe.steps import FITTING, StepConfig
from qatflow.steps.context import StepContext

TABLE = replace(TARGETS["qnn"], name="mine", road=replace(TARGETS["qnn"].road, packed_int4=False))
SYMMETRIC = replace(TARGETS["tensorrt"], name="symmetric")


class Shrink(StepConfig):
    """Make every weight smaller. It is no good."""

    not_after = FITTING

    by: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of the weight that goes."""
    samples: Annotated[int, Field(ge=1)] = 16


def shrink(network: Network, config: Shrink, context: StepContext) -> tuple[Network, dict[str, Any]]:
    names = [layer.weight for layer in weighted_layers(network.graph)]
    values = {name: tensor(network.graph, name).detach() * (1 - config.by) for name in names}
    return network.fitted(values), {"layers": len(names)}


def without_options(network, config, context):
    return network, {"reason": "it finds nothing to do"}


class Typo(StepConfig):
    not_after = ("adaruond",)


def with_a_typo(network: Network, config: Typo, context: StepContext) -> None: ...


def with_a_dict(network: Network, config: dict[str, int], context: StepContext) -> None: ...


def of_unknown_options(network: Network, config: "Nowhere", context: StepContext) -> None: ...  # noqa: F821


def of_two(network: Network, config: Shrink) -> None: ...


def without_notes(network: Network, config: Shrink, context: StepContext) -> Network:
    return network.copy()


def with_nested_notes(network: Network, config: Shrink, context: StepContext) -> tuple[Network, dict[str, Any]]:
    return network.copy(), {"layers": ["conv"]}


def failing(network: Network, config: Shrink, context: StepContext) -> tuple[Network, dict[str, Any]]:
    raise ZeroDivisionError("nothing to shrink")
