"""AIMET: each technique that its guide recommends after training, one on top of the other.

Its simulation is given the grids of the others. As shipped, it quantizes between a depthwise convolution and its
activation, where deployed kernels have nothing to round, and it quantizes paddings once more; these quantizers are
switched off from `fold_batch_norms` on (`equal_grids`). Weights are symmetric, activations asymmetric and unsigned,
biases float.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from benchmarks.peers.case import Case, Measure, PeerError, inference

NAME = "AIMET"
INSTALL = "pip install aimet-torch==2.42.0"
SCHEMES = ("min_max", "tf_enhanced")
"""How AIMET chooses ranges: its default, and the one that its guide uses, which weighs clipping against rounding."""
MOST_BITS_FOR_SEQMSE = 4
"""AIMET skips weights of more bits without saying so."""

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
FUSED_BEFORE_ACTIVATIONS = (nn.Conv2d, nn.Linear)
PADDINGS = (nn.ZeroPad2d, nn.ConstantPad2d)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep AIMET from writing: its log, its progress bars, and warnings of the tracer that it uses."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _aimet() -> Any:
    with quiet():
        try:
            import aimet_torch
            import aimet_torch.adaround.adaround_weight
            import aimet_torch.batch_norm_fold
            import aimet_torch.cross_layer_equalization
            import aimet_torch.model_preparer
            import aimet_torch.seq_mse
        except ImportError as error:
            message = f"{INSTALL} ({error})"
            raise PeerError(message) from error
    return aimet_torch


class _Padded(nn.Sequential):
    """A convolution with TensorFlow's padding at the size of image that it was made for."""


def _plain(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy without timm's own layers, which AIMET does not know: they stay in float or are not folded.

    A convolution that pads by the size of its input becomes a padding and a convolution, and a batch norm that has an
    activation becomes both.
    """
    model = copy.deepcopy(model)
    sizes: dict[str, tuple[int, int]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: sizes.__setitem__(name, tuple(inputs[0].shape[-2:]))
        )
        for name, module in model.named_modules()
        if type(module).__name__ == "Conv2dSame"
    ]
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    for name, module in list(model.named_modules()):
        kind = type(module).__name__
        if kind == "Conv2dSame":
            model.set_submodule(name, _padded(module, sizes[name]))
        elif kind == "BatchNormAct2d":
            model.set_submodule(name, nn.Sequential(_norm(module), copy.deepcopy(module.act)))
    return model.eval()


def _padded(conv: Any, size: tuple[int, int]) -> nn.Module:
    left_right_top_bottom: list[int] = []
    for length, kernel, stride, dilation in reversed(
        list(zip(size, conv.kernel_size, conv.stride, conv.dilation, strict=True))
    ):
        total = max((-(-length // stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
        left_right_top_bottom += [total // 2, total - total // 2]
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        0,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
    )
    plain.load_state_dict(conv.state_dict())
    return _Padded(nn.ZeroPad2d(tuple(left_right_top_bottom)), plain)


def _norm(norm: Any) -> nn.BatchNorm2d:
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    plain.load_state_dict(norm.state_dict())
    return plain


def prepared(case: Case) -> fx.GraphModule:
    """Return a copy of the model as AIMET wants it: a graph in which every operation is a module of its own.

    Raises:
        PeerError: AIMET cannot trace it.
    """
    aimet, example = _aimet(), case.calibration[0][:2]
    try:
        with quiet():
            model: fx.GraphModule = aimet.model_preparer.prepare_model(_plain(case.model, example)).eval()
    except (RuntimeError, TypeError, ValueError, KeyError, fx.proxy.TraceError) as error:
        message = f"prepare_model: {error}"
        raise PeerError(message) from error
    with torch.no_grad():
        wanted, got = case.model(example), model(example)
    if not torch.allclose(wanted, got, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())):
        message = "prepare_model returned another function"
        raise PeerError(message)
    return model


def _config(case: Case) -> str:
    import aimet_torch.common.quantsim_config as configs

    name = "default_config_per_channel.json" if case.per_channel else "default_config.json"
    return str(Path(next(iter(configs.__path__))) / name)


def _scheme(name: str) -> Any:
    from aimet_torch.common.defs import QuantScheme

    return {"min_max": QuantScheme.min_max, "tf_enhanced": QuantScheme.post_training_tf_enhanced}[name]


def simulation(model: nn.Module, case: Case, scheme: str, *, equal_grids: bool) -> Any:
    """Return AIMET's simulation of a model, not calibrated."""
    sim = _aimet().QuantizationSimModel(
        model,
        case.calibration[0],
        quant_scheme=_scheme(scheme),
        default_output_bw=case.activations,
        default_param_bw=case.weights,
        config_file=_config(case),
    )
    if equal_grids:
        for quantized in _unrounded(model, sim.model):
            quantized.output_quantizers[0] = None
    return sim


def _unrounded(model: nn.Module, simulated: nn.Module) -> Iterator[Any]:
    """Yield the modules of a simulation whose outputs no deployed kernel rounds."""
    assert isinstance(model, fx.GraphModule)
    for node in model.graph.nodes:
        if node.op != "call_module":
            continue
        module = model.get_submodule(node.target)
        readers = [reader for user in node.users for reader in _past_identities(model, user)]
        before_activation = bool(readers) and all(
            reader.op == "call_module" and isinstance(model.get_submodule(reader.target), ACTIVATIONS)
            for reader in readers
        )
        if isinstance(module, PADDINGS) or (isinstance(module, FUSED_BEFORE_ACTIVATIONS) and before_activation):
            yield simulated.get_submodule(node.target)


def _past_identities(model: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Return the node, or where it is an identity, as a folded batch norm is, the nodes that read it."""
    if node.op == "call_module" and isinstance(model.get_submodule(node.target), nn.Identity):
        return [reader for user in node.users for reader in _past_identities(model, user)]
    return [node]


def quantizers(simulated: nn.Module) -> dict[str, int]:
    """Return how many quantizers of a simulation are on: of weights, of inputs and of outputs."""
    counts = {"weights": 0, "inputs": 0, "outputs": 0}
    for module in simulated.modules():
        if hasattr(module, "param_quantizers"):
            counts["weights"] += sum(one is not None for one in module.param_quantizers.values())
            counts["inputs"] += sum(one is not None for one in module.input_quantizers)
            counts["outputs"] += sum(one is not None for one in module.output_quantizers)
    return counts


def calibrate(sim: Any, batches: Sequence[Tensor]) -> None:
    """Let a simulation find its ranges from batches of inputs."""

    def forward(model: nn.Module) -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    sim.compute_encodings(forward)


def run(case: Case, measure: Measure, **options: Any) -> None:
    """Measure AIMET's steps; `options` are those of `simulations`.

    Raises:
        PeerError: AIMET is not installed, or cannot take the model.
    """
    for step, sim, seconds in simulations(case, **options):
        measure(step, inference(sim.model), seconds)


def simulations(
    case: Case,
    *,
    iterations: int | None = None,
    schemes: Sequence[str] = SCHEMES,
    steps: Sequence[str] = ("naive", "fold_batch_norms", "equalize", "adaround", "seqmse"),
    equal_grids: bool = True,
    adaround_scheme: str = "tf_enhanced",
    **_: Any,
) -> Iterator[tuple[str, Any, float]]:
    """Yield AIMET's steps, each on top of the ones before it; AdaRound and SeqMSE are alternatives.

    A step is its name, the calibrated simulation after it, and the seconds that it took. It comes once with each way of
    choosing ranges, named in brackets except for the first. Weights that AdaRound has found keep its ranges, whichever
    way activations are calibrated.

    Args:
        case: what to quantize.
        iterations: of AdaRound for each layer; AIMET's default is 10,000, and 15,000 below 8 bits.
        schemes: some of `SCHEMES`.
        steps: the ones to run; batch norms are always folded, and AdaRound and SeqMSE come after equalization if that
            is among them.
        equal_grids: switch quantizers off that the others do not have.
        adaround_scheme: how AdaRound chooses the ranges of weights; "tf_enhanced" is its default.

    Raises:
        PeerError: AIMET is not installed, or cannot take the model.
    """
    aimet, example = _aimet(), case.calibration[0]

    def simulate(
        step: str, model: nn.Module, seconds: float, freeze: Callable[[Any], None] | None = None, *, equal: bool = True
    ) -> Iterator[tuple[str, Any, float]]:
        for scheme in schemes:
            start = time.perf_counter()
            with quiet():
                sim = simulation(model, case, scheme, equal_grids=equal and equal_grids)
                if freeze is not None:
                    freeze(sim)
                calibrate(sim, case.calibration)
            took = seconds + time.perf_counter() - start
            yield (step if scheme == schemes[0] else f"{step} ({scheme})"), sim, took

    start = time.perf_counter()
    model = prepared(case)
    if "naive" in steps:
        yield from simulate("naive", model, time.perf_counter() - start, equal=False)

    start = time.perf_counter()
    with quiet():
        aimet.batch_norm_fold.fold_all_batch_norms(model, None, dummy_input=example)
    if "fold_batch_norms" in steps:
        yield from simulate("fold_batch_norms", model, time.perf_counter() - start)

    if "equalize" in steps:
        start = time.perf_counter()
        model = prepared(case)  # the biases that equalization moves are known from batch norms that it folds itself
        with quiet():
            aimet.cross_layer_equalization.equalize_model(model, dummy_input=example)
        yield from simulate("equalize", model, time.perf_counter() - start)

    if "adaround" in steps:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            rounded = _adarounded(case, model, iterations, folder, adaround_scheme)
            seconds = time.perf_counter() - start
            encodings = str(Path(folder) / "weights.encodings")
            yield from simulate("adaround", rounded, seconds, lambda sim: sim.set_and_freeze_param_encodings(encodings))

    if "seqmse" in steps and case.weights <= MOST_BITS_FOR_SEQMSE:
        for scheme in schemes:
            start = time.perf_counter()
            with quiet():
                sim = simulation(model, case, scheme, equal_grids=equal_grids)
                aimet.seq_mse.apply_seq_mse(sim, case.calibration)
                calibrate(sim, case.calibration)
            took = time.perf_counter() - start
            yield ("seqmse" if scheme == schemes[0] else f"seqmse ({scheme})"), sim, took


def _adarounded(
    case: Case, model: nn.Module, iterations: int | None, folder: str, scheme: str = "tf_enhanced"
) -> nn.Module:
    """Return a copy of the model with AdaRound's weights; writes their ranges to `folder`."""
    adaround = _aimet().adaround.adaround_weight
    with quiet():
        parameters = adaround.AdaroundParameters(
            case.calibration,
            len(case.calibration),
            default_num_iterations=iterations,
            forward_fn=lambda module, batch: module(batch),
        )
        rounded: nn.Module = adaround.Adaround.apply_adaround(
            model,
            case.calibration[0],
            parameters,
            path=folder,
            filename_prefix="weights",
            default_param_bw=case.weights,
            default_quant_scheme=_scheme(scheme),
            default_config_file=_config(case),
        )
    return rounded.eval()


def folded(case: Case) -> fx.GraphModule:
    """Return a copy of the model, prepared, with its batch norms folded."""
    model = prepared(case)
    with quiet():
        _aimet().batch_norm_fold.fold_all_batch_norms(model, None, dummy_input=case.calibration[0])
    return model


def calibration_batch(case: Case, scheme: str = "tf_enhanced") -> Callable[[], None]:
    """Return a function that calibrates a folded model with the first batch, to be timed."""
    with quiet():
        sim = simulation(folded(case), case, scheme, equal_grids=True)

    def call() -> None:
        with quiet():
            calibrate(sim, case.calibration[:1])

    return call


def simulated(case: Case, scheme: str = "min_max") -> Callable[[Tensor], Tensor]:
    """Return a folded and calibrated simulation, so that its forward pass can be timed."""
    with quiet():
        sim = simulation(folded(case), case, scheme, equal_grids=True)
        calibrate(sim, case.calibration)
    return inference(sim.model)
