"""Read a file of weights and put them into a model, or say exactly what does not fit.

Only tensors are read: safetensors, or `torch.load` with `weights_only=True`, so that a file of weights cannot run code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from qatflow.errors import Mistake, RecipeError, near_match
from qatflow.users_code import blame_machine

WRAPPED_UNDER = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts put the state dict, among other things."""
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
SHOWN = 3
"""So many names are listed in an error; the others are counted."""

PATH = "model.weights"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file, on the CPU.

    Args:
        path: safetensors by its suffix, anything else as `torch.save` wrote it: a state dict, or a dict that has it
            under one of `WRAPPED_UNDER`.

    Raises:
        RecipeError: there is no such file, it cannot be read, or it holds no state dict.
    """
    if not path.is_file():
        raise RecipeError([Mistake(PATH, f"there is no file {str(path)!r}", f"relative paths start at {Path.cwd()}")])
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is damaged can make either reader fail in any way
        blame_machine(error)
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "save the weights alone, with torch.save(model.state_dict(), path) or as safetensors"
        raise RecipeError(
            [Mistake(PATH, f"{str(path)!r} cannot be read as a file of tensors ({said})", fix)]
        ) from error
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what `torch.load` returned."""
    wrapped = [content[key] for key in WRAPPED_UNDER if key in content] if isinstance(content, Mapping) else []
    for candidate in [*wrapped, content]:
        if isinstance(candidate, Mapping) and candidate and any(isinstance(v, Tensor) for v in candidate.values()):
            return dict(candidate)
    found = f"the keys {_listed(map(str, content))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
    fix = f"save model.state_dict(), alone or under one of {', '.join(WRAPPED_UNDER)}"
    raise RecipeError([Mistake(PATH, f"{str(path)!r} holds {found} and no state dict", fix)])


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy weights into `model`, all of them and nothing else.

    Args:
        model: it is changed.
        weights: by the names of `model.state_dict()`; one common prefix of a wrapper is taken off.
        path: the file they are from, for messages.

    Raises:
        RecipeError: names are missing or left over, or shapes differ.
    """
    own = model.state_dict()
    weights = _without_prefix(weights, own)
    problems = [
        *_unmatched("lacks", _missing(own, weights), weights),
        *_unmatched("has, and the model has not,", [name for name in weights if name not in own], own),
        *_other_forms(own, weights),
    ]
    if problems:
        fix = "check model.kwargs (the number of classes, the width), or make the file again from this model"
        raise RecipeError(
            [Mistake(PATH, f"{str(path)!r} does not fit {type(model).__name__}: {'; '.join(problems)}", fix)]
        )
    try:
        model.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)
    except RuntimeError as error:
        blame_machine(error)
        raise RecipeError([Mistake(PATH, f"{str(path)!r} does not fit {type(model).__name__}: {error}")]) from error


def check_values(model: nn.Module) -> None:
    """Check that every parameter, and every statistic of a batch norm, is there, in FP32, and a number.

    Raises:
        RecipeError: one is not; it is named.
    """
    statistics = [(n, b) for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    for name, value in [*model.named_parameters(), *statistics]:
        if is_lazy(value) or value.is_meta:
            problem = f"the model's tensor {name!r} has no values yet"
            raise RecipeError(
                [Mistake("model", problem, "run a lazy layer once in the factory, or load weights there")]
            )
        if value.dtype in (torch.float16, torch.bfloat16):
            problem = f"the model's tensor {name!r} is {str(value.dtype).removeprefix('torch.')}"
            raise RecipeError([Mistake("model", problem, "give the FP32 model: call model.float() in the factory")])
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            problem = f"the model's tensor {name!r} has {bad} of {value.numel()} values that are not finite"
            raise RecipeError([Mistake("model", problem, "take a checkpoint from before training diverged")])


def _without_prefix(weights: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take a wrapper's prefix off where all names have it and none of the model's own do."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights) and not any(name.startswith(prefix) for name in own):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return dict(weights)


def _missing(own: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names that the file must have and has not.

    It need not have counters of batches, nor a tensor that is tied to one that it has (safetensors keeps only one).
    """
    held = {value.data_ptr() for name, value in own.items() if name in weights and _has_values(value)}
    return [
        name
        for name, value in own.items()
        if name not in weights
        and not name.endswith("num_batches_tracked")
        and not (_has_values(value) and value.data_ptr() in held)
    ]


def _has_values(value: Any) -> bool:
    return isinstance(value, Tensor) and not is_lazy(value) and not value.is_meta and value.numel() > 0


def _unmatched(verb: str, names: list[str], others: Mapping[str, Any]) -> list[str]:
    """Tell of names on one side only, with near matches on the other."""
    hints = [f"{name!r}{f' ({hint})' if (hint := near_match(name, others)) else ''}" for name in names[:SHOWN]]
    return [f"the file {verb} {_listed(hints, len(names))}"] if names else []


def _other_forms(own: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """Tell of tensors of another shape, and of integers where the model has floats."""
    pairs = [(name, value, weights[name]) for name, value in own.items() if name in weights]
    differ = [
        f"{name!r} is {_form(read)} in the file and {_form(value)} in the model"
        for name, value, read in pairs
        if isinstance(value, Tensor) and isinstance(read, Tensor) and not is_lazy(value)
        if value.shape != read.shape or value.is_floating_point() != read.is_floating_point()
    ]
    return [_listed(differ, len(differ))] if differ else []


def _form(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _listed(names: Iterable[str], count: int | None = None) -> str:
    """Join the first few of `count` names, and count the others."""
    every = list(names)
    count = len(every) if count is None else count
    rest = count - min(SHOWN, count)
    return ", ".join(every[:SHOWN]) + (f" and {rest} more" if rest else "")
