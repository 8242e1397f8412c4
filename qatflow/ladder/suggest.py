"""What to try next: at most four commands, each a change of the recipe that its check accepts.

They go on in the same folder, so that nothing that was measured is measured again.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qatflow.quant.relief import FULL
from qatflow.quant.target import Target
from qatflow.recipe import Recipe
from qatflow.recipe.check import check
from qatflow.recipe.steps import MixedPrecision
from qatflow.results.gate import allowed_drop
from qatflow.results.result import CandidateRecord, Suggestion, Verdict

MOST = 4
FEWER_BITS = 4


@dataclass(frozen=True)
class _Change:
    """A change of a recipe.

    Attributes:
        why: what it does.
        measured: what that came to in this run; empty where it is untried.
        values: by dotted key.
        steps: all steps, where others are added.
    """

    why: str
    values: dict[str, Any]
    steps: tuple[str, ...] = ()
    measured: str = ""

    @property
    def settings(self) -> list[str]:
        """As on a command line."""
        steps = [f"steps=[{','.join(self.steps)}]"] if self.steps else []
        return [*steps, *(f"{key}={_written(value)}" for key, value in self.values.items())]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def suggestions(
    recipe: Recipe,
    winner: CandidateRecord,
    target: Target,
    again: str,
    *,
    passed: bool,
    trains: bool,
    slower: bool = False,
    trust: Sequence[str] = (),
) -> tuple[Suggestion, ...]:
    """Return what to try next.

    Args:
        recipe: that was run.
        winner: what is shipped, as it was judged.
        target: of the run.
        again: the command that goes on in the run's folder.
        passed: whether the gate is met; where it is by chance perhaps, what may settle it is returned all the same.
        trains: whether the data has a part to train on, and the recipe leaves it at that.
        slower: whether the exported file was measured to be slower than FP32's.
        trust: packages that the recipe may import from.
    """
    doubtful = winner.verdict is Verdict.WITHIN_NOISE and (winner.drop or 0.0) > 0
    of_metric = _savings(recipe, winner, target) if passed and not doubtful else _remedies(recipe, target, trains)
    accepting = () if passed else _accepting(recipe, winner)
    changes = [*(_faster(recipe) if slower else ()), *of_metric, *accepting]
    legal = [one for one in changes if _accepted(recipe, one, trust)]
    return tuple(
        Suggestion(command=f"{again} {shlex.join(one.settings)}", why=one.why, measured=one.measured)
        for one in legal[:MOST]
    )


def _faster(recipe: Recipe) -> Iterator[_Change]:
    if recipe.gate.min_speedup is None:
        yield _Change("let what is slower on integers than in float run in float", {"gate.min_speedup": 1.0})


def _accepting(recipe: Recipe, winner: CandidateRecord) -> Iterator[_Change]:
    """Yield the gate that what is shipped meets by its point estimate, where that is a gate on the drop alone."""
    gate, drop = recipe.gate, winner.drop or 0.0
    if gate.drop_limit is None or gate.worst_value is not None or gate.strict or winner.fp32 is None:
        return
    if drop > allowed_drop(gate, winner.fp32):
        unit = 10.0 ** (math.floor(math.log10(drop)) - 1)
        limit = float(f"{math.ceil(drop / unit) * unit:.2g}")
        yield _Change(
            "a gate that what is shipped meets by its value",
            {"gate.max_drop": limit},
            measured=f"it drops {drop:.3g} on the {winner.part} part",
        )


def _remedies(recipe: Recipe, target: Target, trains: bool) -> Iterator[_Change]:
    """Yield what may meet a gate that is missed."""
    steps, precision = [*recipe.steps], recipe.precision
    mixed = recipe.steps.get("mixed_precision")
    if "adaround" not in steps:
        after = [name for name in steps if name not in ("reestimate_batch_norms", "mixed_precision")]
        rest = [name for name in steps if name not in after]
        yield _Change("round weights for the layers' outputs", {}, (*after, "adaround", *rest))
    if mixed is None:
        yield _Change("more bits, or float, for the tensors that hurt most", {}, (*steps, "mixed_precision"))
    elif isinstance(mixed, MixedPrecision) and mixed.budget is not None:
        why = f"the cheapest precision that meets the gate, beyond the budget of {mixed.budget:g}"
        yield _Change(why, {"steps.mixed_precision.budget": None})
    if not precision.per_channel:
        yield _Change("one scale for each output channel of a weight", {"precision.per_channel": True})
    if precision.weights < FULL and FULL in target.integer_weights:
        yield _Change("weights of 8 bits", {"precision.weights": FULL})
    if recipe.qat.when not in ("missed", "always") and trains:
        yield _Change("train with simulated quantization where the ladder misses", {"qat.when": "missed"})


def _savings(recipe: Recipe, winner: CandidateRecord, target: Target) -> Iterator[_Change]:
    """Yield what a gate that is met with room may leave to save."""
    limit = recipe.gate.drop_limit
    room = limit is not None and winner.drop_high is not None and winner.drop is not None and winner.drop <= 0
    smaller = FEWER_BITS in target.integer_weights and target.road.packed_int4
    if room and smaller and recipe.precision.weights == FULL:
        yield _Change("weights of 4 bits, two to a byte", {"precision.weights": FEWER_BITS})


def _accepted(recipe: Recipe, change: _Change, trust: Sequence[str]) -> bool:
    mapping = recipe.model_dump(mode="json")
    if change.steps:
        mapping["steps"] = {name: mapping["steps"].get(name, {}) for name in change.steps}
    for key, value in change.values.items():
        *path, last = key.split(".")
        section = mapping
        for name in path:
            section = section[name]
        section[last] = value
    found, _ = check(mapping, trust)
    return found is not None
