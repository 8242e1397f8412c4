"""A candidate on disk: weights as safetensors, encodings and graph as JSON, and back again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import fx

from qatflow.errors import RunFolderError
from qatflow.graph.edits import describe, rebuild
from qatflow.graph.layers import laid_out_like, tensor
from qatflow.quant.grid import Encoding, Grid
from qatflow.quant.network import Network
from qatflow.results.record import Record
from qatflow.results.store import read_json, write_atomically, write_json

GOAL = "fp32."
"""Prefix of FP32's values of parameters that were fitted."""


class StoredEncoding(Record):
    """An encoding as `encoding_to_json` writes it."""

    bits: Annotated[int, Field(ge=2, le=32)]
    signed: bool
    symmetric: bool
    narrow: bool
    smallest_scale: float
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    axis: Annotated[int, Field(ge=0)] | None
    scale: float | list[float]
    zero_point: float | list[float]


class StoredEncodings(Record):
    """What `encodings.json` of a candidate's folder holds."""

    tensors: dict[str, StoredEncoding]
    fixed: dict[str, StoredEncoding]
    normals: dict[str, tuple[list[float], list[float]]]
    goal: list[str]
    design: dict[str, Any]


def save(folder: Path, base: fx.GraphModule, network: Network, encodings: Mapping[str, Encoding]) -> None:
    """Write `model.safetensors`, `encodings.json` and `graph.json` to `folder`.

    Args:
        folder: made if it is missing.
        base: the captured graph; only what differs from it is written of the network's graph.
        network: the float network.
        encodings: of every quantized tensor, by its name in the placement.
    """
    state = {name: value.detach().cpu().contiguous().clone() for name, value in _state(network.graph).items()}
    state |= {f"{GOAL}{name}": value.detach().cpu().contiguous().clone() for name, value in network.goal.items()}
    write_atomically(folder / "model.safetensors", lambda aside: save_file(state, aside))
    write_json(
        folder / "encodings.json",
        {
            "tensors": {name: encoding_to_json(encoding) for name, encoding in encodings.items()},
            "fixed": {name: encoding_to_json(encoding) for name, encoding in network.encodings.items()},
            "normals": {name: [one.tolist() for one in normal] for name, normal in network.normals.items()},
            "goal": sorted(network.goal),
            "design": network.design.to_record().model_dump(mode="json"),
        },
    )
    write_json(folder / "graph.json", describe(base, network.graph))


def load(folder: Path, base: Network) -> tuple[Network, dict[str, Encoding]]:
    """Return the network and the encodings that `save` wrote.

    Args:
        folder: of the candidate.
        base: the captured network; its target is that of the stored design.

    Raises:
        RunFolderError: a file is missing or damaged.
        CaptureError: the graph does not fit that of `base`.
    """
    device = next(iter(base.graph.parameters())).device
    description = read_json(folder / "graph.json")
    try:
        stored = StoredEncodings.taken(read_json(folder / "encodings.json"))
        state = load_file(folder / "model.safetensors", device=str(device))
        fixed = {name: encoding_from_json(value, device) for name, value in stored.fixed.items()}
        normals = {name: _normal(value, device) for name, value in stored.normals.items()}
        goal = {name: state.pop(f"{GOAL}{name}") for name in stored.goal}
        tensors = {name: encoding_from_json(value, device) for name, value in stored.tensors.items()}
        design = base.design.from_record(stored.design)
    except (OSError, SafetensorError, LookupError, ValueError, RuntimeError) as error:
        message = f"the candidate in {folder} is damaged ({error}); remove it and run again"
        raise RunFolderError(message) from error
    graph = rebuild(base.graph, description, state)
    goal = {name: laid_out_like(tensor(graph, name), value) for name, value in goal.items()}
    return Network(graph, design, fixed, normals, goal), tensors


def _normal(value: tuple[list[float], list[float]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, deviation = (torch.tensor(one, dtype=torch.float64, device=device) for one in value)
    return mean, deviation


def _state(graph: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Return every tensor that the graph reads; constants of the capture are in no state dict."""
    return {str(node.target): tensor(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"}


def encoding_to_json(encoding: Encoding) -> dict[str, Any]:
    """Return an encoding as plain values; floats keep every bit."""
    return {
        "bits": encoding.grid.bits,
        "signed": encoding.grid.signed,
        "symmetric": encoding.grid.symmetric,
        "narrow": encoding.grid.narrow,
        "smallest_scale": encoding.grid.smallest_scale,
        "dtype": str(encoding.scale.dtype).removeprefix("torch."),
        "axis": encoding.axis,
        "scale": encoding.scale.tolist(),
        "zero_point": encoding.zero_point.tolist(),
    }


def encoding_from_json(value: StoredEncoding, device: torch.device) -> Encoding:
    """Undo `encoding_to_json`.

    Raises:
        ValueError: scale and zero point do not go together.
    """
    grid = Grid(value.bits, value.signed, value.symmetric, value.narrow, value.smallest_scale)
    dtype = getattr(torch, value.dtype)
    scale, zero_point = (torch.tensor(one, dtype=dtype, device=device) for one in (value.scale, value.zero_point))
    if scale.shape != zero_point.shape or (scale.ndim > 0) != (value.axis is not None):
        raise ValueError("scale, zero point and axis of an encoding do not go together")
    return Encoding(grid, scale, zero_point, value.axis)


def finite(value: float) -> float | None:
    """Return a number, or None where it is not finite: JSON has no NaN."""
    return value if math.isfinite(value) else None
