"""The ladder's steps: one technique a file, under its name in `qatflow.recipe.steps`.

A step takes a network, its config and a context, leaves the network as it is, and returns a new one with notes: a
flat dict of what it counted and measured. `qatflow.testing.check_step` holds it to that. The configs and the order
rules are in `qatflow.recipe.steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qatflow.quant.network import Network
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.recipe.table import Table
from qatflow.results.result import Note
from qatflow.steps.context import StepContext

Step = Callable[[Network, Any, StepContext], tuple[Network, dict[str, Note]]]

STEPS: Mapping[str, Step] = Table("step", STEP_CONFIGS, lambda name: (f"{__name__}.{name}", name))
