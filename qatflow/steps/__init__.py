"""The ladder's steps: one technique a file, one literal table of them.

A step takes a network, its config and a context, leaves the network as it is, and returns a new one with notes: a
flat dict of what it counted and measured. The configs and the order rules are in `qatflow.recipe.steps`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qatflow.quant.network import Network
from qatflow.results.result import Note
from qatflow.steps.absorb_bias import absorb_bias
from qatflow.steps.adaround import adaround
from qatflow.steps.calibrate import calibrate
from qatflow.steps.context import StepContext
from qatflow.steps.correct_bias import correct_bias
from qatflow.steps.equalize import equalize
from qatflow.steps.fold_batch_norms import fold_batch_norms
from qatflow.steps.reestimate_batch_norms import reestimate_batch_norms
from qatflow.steps.search_scales import search_scales
from qatflow.steps.set_precision import set_precision
from qatflow.steps.smooth import smooth

Step = Callable[[Network, Any, StepContext], tuple[Network, dict[str, Note]]]

STEPS: dict[str, Step] = {
    "fold_batch_norms": fold_batch_norms,
    "equalize": equalize,
    "absorb_bias": absorb_bias,
    "smooth": smooth,
    "calibrate": calibrate,
    "set_precision": set_precision,
    "search_scales": search_scales,
    "correct_bias": correct_bias,
    "adaround": adaround,
    "reestimate_batch_norms": reestimate_batch_norms,
}
