"""What a runtime wants: a table of rules that the placement engine applies.

A target is data, and `qatflow.quant.targets` holds one readable table a runtime; a user's own is another value of this
class. Kinds of ops are those of `qatflow.graph.ops`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Literal

from qatflow.graph.ops import ALL_KINDS
from qatflow.quant.grid import TINY_SCALE, Grid
from qatflow.recipe.targets import Road, TargetEntry
from qatflow.results.store import key_of

Kinds = frozenset[str]
NO_KINDS: Kinds = frozenset()


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter that is quantized: which operand of its op, and how."""

    operand: int
    """Position among the op's arguments."""
    axis: int | None = None
    """Channel axis, where precision asks for one scale per channel; None is always one scale."""
    symmetric: bool = True


@dataclass(frozen=True, kw_only=True)
class Target:
    """The rules of one runtime.

    Raises:
        ValueError: the table names a kind that does not exist, or contradicts itself.
    """

    name: str
    activations_signed: bool
    activations_symmetric: bool
    smallest_scale: float = TINY_SCALE
    """No activation gets a finer one."""
    smallest_range: float = 0.0
    """No activation gets a narrower one, whatever its bits."""
    weights_narrow: bool = False
    """Leave out the most negative integer of weights."""
    parameters: dict[str, Parameter | tuple[Parameter, ...]]
    """Parameters to quantize, by the kind of op that reads them."""
    bias: Literal["int32", "int32_at_export", "float"]
    """What a layer's bias becomes; the simulation leaves it in float, since 32 bits round finer than float does."""

    integer_activations: frozenset[int] = frozenset({8})
    """Bits of activations that the runtime has integer kernels for; layers with others run in float."""
    integer_weights: frozenset[int] = frozenset(range(2, 9))
    """Likewise of weights; those of fewer than 8 bits are stored in 8."""

    at: Literal["producer", "reader"]
    """Whether a quantizer stands behind the op that gives a tensor, for all its readers, or before those that want
    it."""
    inputs: Kinds
    """Kinds whose float inputs are quantized."""
    outputs: Kinds = NO_KINDS
    """Kinds whose result is quantized, behind the last op of their chain. `input` is an input of the model."""
    chains: tuple[str, ...] = ()
    """Ops that run as one, with no quantizer between them where nothing else reads what is between: kinds in order,
    `a|b` either of both, `a?` one that may be missing."""
    clips_from_zero: bool = False
    """Whether a clip goes with a chain only where its lower bound is 0, as that of ReLU6."""
    residual: Literal["all_inputs", "skip_input"] = "all_inputs"
    """Which inputs of an `add` are quantized: all (but for the end of a chain that goes on with it), or only the one
    beside a single such chain; with none or two chains, neither."""
    preserving: Kinds = NO_KINDS
    """Kinds that move values: the result is on the grid of the input and has no quantizer of its own."""
    sharing: Kinds = NO_KINDS
    """Kinds that compute values and round them to the grid of their input."""
    tied: Kinds = NO_KINDS
    """Kinds whose inputs and result all share one grid."""
    never_tied: Kinds = NO_KINDS
    """Kinds whose result has a range of its own while calibrating, though the runtime wants one grid for input and
    result: a clipped result would inherit the range from before the clip. Export gives the input the result's grid."""
    fixed_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Results whose range is known and need not be calibrated."""
    fixed_steps: Literal["2^bits - 1", "2^bits"] = "2^bits - 1"
    """How many steps a fixed range is cut into; with `2^bits` its upper end is just off the grid."""
    attention: Literal["opened", "closed"]
    """Whether attention runs as products and a softmax, or as one op of kind `attention`."""
    symmetric_inputs: Kinds = NO_KINDS
    """Kinds whose inputs have a signed symmetric grid, whatever the others have."""
    road: Road = field(default_factory=Road)
    """Which files are written, what runs them, and how they hold weights."""

    def __post_init__(self) -> None:
        named = self.inputs | self.outputs | self.preserving | self.sharing | self.tied | self.never_tied
        named |= set(self.parameters) | set(self.fixed_ranges) | self.symmetric_inputs
        named |= {one for chain in self.expanded_chains for one in chain}
        unknown = named - ALL_KINDS - {"input", "other"}
        if unknown:
            message = f"target {self.name} names kinds that do not exist: {', '.join(sorted(unknown))}"
            raise ValueError(message)
        one_grid = self.preserving | self.sharing | self.tied
        if one_grid & self.never_tied or self.preserving & self.sharing or self.preserving & self.tied:
            message = f"target {self.name} has a kind in two of preserving, sharing, tied and never_tied"
            raise ValueError(message)

    @property
    def entry(self) -> TargetEntry:
        """What a recipe that names this target is checked against."""
        return TargetEntry(symmetric_only=self.activations_symmetric, road=self.road)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all rules, the same in every process: another version of a table is another target."""
        return key_of([(one.name, _plain(getattr(self, one.name))) for one in fields(self)])

    @cached_property
    def expanded_chains(self) -> frozenset[tuple[str, ...]]:
        """Every chain as a sequence of kinds, alternatives and missing ops written out."""
        return frozenset(kinds for chain in self.chains for kinds in _sequences(chain))

    @property
    def integer_kinds(self) -> Kinds:
        """Kinds that some rule lets run on integers."""
        return self.inputs | self.outputs | self.preserving | self.sharing | self.tied

    @property
    def integer_bits(self) -> dict[str, frozenset[int]]:
        """Bits that the runtime has integer kernels for, by the key of `precision`."""
        return {"activations": self.integer_activations, "weights": self.integer_weights}

    def parameters_of(self, kind: str) -> tuple[Parameter, ...]:
        """Return the parameters of a kind that are quantized."""
        found = self.parameters.get(kind, ())
        return found if isinstance(found, tuple) else (found,)

    def activation_grid(self, bits: int, symmetric: bool | None = None) -> Grid:
        """Return the integers of an activation; `symmetric` None is the target's own way."""
        smallest = max(self.smallest_scale, self.smallest_range / (2**bits - 1))
        if symmetric is None or symmetric == self.activations_symmetric:
            return Grid(bits, self.activations_signed, self.activations_symmetric, smallest_scale=smallest)
        return Grid(bits, symmetric or self.activations_signed, symmetric, smallest_scale=smallest)

    def weight_grid(self, bits: int, symmetric: bool = True) -> Grid:
        """Return the integers of a weight."""
        return Grid(bits, signed=True, symmetric=symmetric, narrow=self.weights_narrow and symmetric)

    def fixed_range(self, kind: str, bits: int) -> tuple[float, float] | None:
        """Return the range that a kind's results have on a grid of `bits`; None where it is calibrated."""
        if kind not in self.fixed_ranges:
            return None
        low, high = self.fixed_ranges[kind]
        return (low, high - (high - low) / 2**bits) if self.fixed_steps == "2^bits" else (low, high)


def _plain(value: Any) -> Any:
    """Return a rule as JSON-able values in a fixed order."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(_plain, value))
    if isinstance(value, Mapping):
        return sorted([str(key), _plain(one)] for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return [(one.name, _plain(getattr(value, one.name))) for one in fields(value)] if is_dataclass(value) else value


def _sequences(chain: str) -> list[tuple[str, ...]]:
    """Write out a chain: `conv batch_norm? relu|clip` has four sequences of kinds."""
    places = []
    for word in chain.split():
        choices: list[tuple[str, ...]] = [(one,) for one in word.removesuffix("?").split("|")]
        places.append([*choices, ()] if word.endswith("?") else choices)
    return [tuple(itertools.chain.from_iterable(one)) for one in itertools.product(*places)]
