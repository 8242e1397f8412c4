"""Why a model cannot be captured, told with the line of the user's code and the usual mend."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qatflow.graph.free import FreeDimensions
from qatflow.graph.tree import tree_leaves, tree_map_only

SYMBOLS = "torch.fx.experimental.symbolic_shapes"
"""The logger that tells of every decision that export takes about a size."""

CAUSES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("data-dependent", "data_dependent", "aten._local_scalar_dense", "GuardOnDataDependent"),
        "a decision or a Python number depends on the values of a tensor",
        "use torch.where, torch.clamp and the like instead of if, while, item() or float(), or move the part out of "
        "forward",
    ),
    (
        ("tensor subclasses", "numpy", "__array__"),
        "a tensor leaves PyTorch there",
        "compute with torch functions instead of NumPy's",
    ),
    (
        ("known type", "register a pytree", "not a valid output"),
        "forward returns something that is neither a tensor nor a tuple, list or dict of them",
        "return a dict, or register the class with torch.export.register_dataclass",
    ),
    (
        ("ScriptModule", "ScriptMethod", "RecursiveScript", "TorchScript", "ScriptFunction"),
        "a part of it is TorchScript",
        "build the model from its Python classes and load the weights into it",
    ),
    (
        ("quantized", "PackedParams"),
        "a part of it is quantized already",
        "give the FP32 model",
    ),
)
"""What the error says, what is the matter, and what to do about it."""

LONGEST = 160

FIXED_BATCH = (
    "the batch size is taken for a fixed number",
    "write -1 or x.shape[0] for it in reshape and view, do not loop over samples, and do not mix samples of a batch",
)
FIXED_SIZE = (
    "take sizes from the input's shape there, as in x.shape[2], and no constant of that length, or leave it out of "
    "data.free"
)
IS_A_NUMBER = re.compile(r"set_replacement s\d+ = \d+ ")


def explain(
    model: nn.Module,
    error: BaseException,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    free: FreeDimensions | None = None,
) -> str:
    """Return a sentence on an error of `torch.export`: where, what cannot be captured, and what to write instead."""
    name = type(model).__name__
    said = first_sentence(error)
    chain = " ".join(f"{type(one).__name__} {one}" for one in _causes(error))
    if "Constraints violated" in chain and free is not None:
        return _sentence(name, *_fixed(model, args, kwargs, free))
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        chain += " ScriptModule"
    for signs, matter, mend in CAUSES:
        if any(sign in chain for sign in signs):
            return _sentence(name, users_line(error), f"{matter} ({said})", mend)
    mend = "give the part that is to be quantized as the model, or write that line with other PyTorch functions"
    return _sentence(name, users_line(error), said, mend)


def _sentence(name: str, where: str, matter: str, mend: str) -> str:
    return f"{name} cannot be captured{where}: {matter}; {mend}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_sentence(error: BaseException) -> str:
    """Return how an error's message begins, or the error's type where it has none."""
    lines = str(error).strip().splitlines()
    sentence = lines[0].split(". ")[0].rstrip(".") if lines else type(error).__name__
    return sentence if len(sentence) <= LONGEST else f"{sentence[: LONGEST - 3]}..."


def users_line(error: BaseException) -> str:
    """Return ` at file:line (code)` of the deepest frame that is neither PyTorch's nor Python's; empty without one."""
    return _line(traceback.extract_tb(error.__traceback__))


def _line(frames: Sequence[traceback.FrameSummary]) -> str:
    standard = sysconfig.get_paths()["stdlib"]

    def is_users(frame: traceback.FrameSummary) -> bool:
        path = Path(frame.filename)
        plumbing = {"torch", "qatflow"} & set(path.parts) or (
            frame.filename.startswith(standard) and "site-packages" not in path.parts
        )
        return path.is_file() and not plumbing

    own = [frame for frame in frames if is_users(frame)]
    return f" at {own[-1].filename}:{own[-1].lineno} (`{own[-1].line}`)" if own else ""


def _fixed(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], free: FreeDimensions
) -> tuple[str, str, str]:
    """Return where which dimension becomes a number, and what to do: the batch, else the first that does so alone."""
    for name in ("", *free.sizes):
        failed, line = _export_alone(model, args, kwargs, free.shapes([name]))
        if failed and not name:
            return line, *FIXED_BATCH
        if failed:
            places = [
                f"dimension {dim} of {one}" for one, dims in free.free.items() for dim in dims if dims[dim] == name
            ]
            return line, f"{' and '.join(places)} ({name}) is taken for a fixed number", FIXED_SIZE
    _, line = _export_alone(model, args, kwargs, free.shapes())
    return line, f"{' and '.join(free.sizes)} depend on one another", FIXED_SIZE


def _export_alone(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], shapes: Any) -> tuple[bool, str]:
    """Export once more, and return whether a dynamic size becomes a number, and the user's line where it does."""
    failed, decided = True, list[str]()
    fixed: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = record.getMessage()
            if said.startswith("eval"):
                decided.append(_line(traceback.extract_stack()))
            elif IS_A_NUMBER.match(said):
                fixed.append(_line(traceback.extract_stack()))

    logger, listener = logging.getLogger(SYMBOLS), Listener()
    level, propagates, before = logger.level, logger.propagate, list(logger.handlers)
    logger.handlers[:] = [listener]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        with torch.no_grad(), contextlib.suppress(Exception):
            torch.export.export(copy.deepcopy(model), tuple(args), dict(kwargs), dynamic_shapes=shapes)
            failed = False
    finally:
        logger.handlers[:] = before
        logger.propagate = propagates
        logger.setLevel(level)
    return failed, next(filter(None, [*fixed, *decided]), "")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what export logs, warns of and prints from the terminal: a failure is told in one sentence afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.ExitStack() as streams:
            warnings.simplefilter("ignore")
            streams.enter_context(contextlib.redirect_stdout(io.StringIO()))
            streams.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield
    finally:
        logging.disable(before)


def why_different(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Say what may make a graph differ from its model: inputs or buffers that it changes, or randomness."""
    probe = copy.deepcopy(model)
    args, kwargs = tree_map_only(Tensor, torch.clone, (tuple(args), dict(kwargs)))
    inputs = [one.clone() for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    state = {name: value.clone() for name, value in probe.state_dict().items()}
    with torch.no_grad():
        first = tree_leaves(probe(*args, **kwargs))
    after = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    if any(not torch.equal(a, b) for a, b in zip(inputs, after, strict=True)):
        return "forward changes its input in place: let it work on a copy (x = x.clone())"
    changed = [name for name, value in probe.state_dict().items() if not torch.equal(value, state[name])]
    if changed:
        return f"forward changes {', '.join(changed)} in evaluation mode: a graph has no state, leave it out"
    with torch.no_grad():
        again = tree_leaves(copy.deepcopy(model)(*args, **kwargs))
    pairs = zip(first, again, strict=True)
    if any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in pairs):
        return "two calls with the same input differ: take what is random out of evaluation mode"
    return "a Python value that it computes in forward was taken for a constant"
