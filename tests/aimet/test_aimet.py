"""AIMET's own packages take what is exported: `pip install -c constraints.txt -e ".[aimet]"`, then `pytest -m aimet`.

AIMET places other quantizers than any target of ours, so a strict load is always refused; tensors without an entry are
then quantized by nobody, as in the simulation.
"""

from typing import Any

import onnx
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchvision.models import resnet18

from qatflow.encodings import read
from qatflow.quant.grid import sqnr_db
from tests.export.pairs import Pair, pair

pytestmark = [pytest.mark.aimet, pytest.mark.filterwarnings("default")]
VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
CPU = ["CPUExecutionProvider"]
shipped = pytest.mark.parametrize(
    ("model", "target"),
    [
        ("resnet18", "onnxruntime"),
        ("mobilenet_v3_small", "qnn"),
        ("vit", "qnn"),
        ("vit", "onnxruntime"),
        ("bert", "qnn"),
        ("bert", "tensorrt"),
    ],
)


def wanted(one: Pair) -> list[Tensor]:
    args, kwargs = one.example
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(one.simulation.model(*args, **kwargs)) if leaf is not None]


def repeated(one: Pair) -> set[str]:
    """Names of tensors that have the same values as another that is quantized, or share its grid."""
    placement = one.simulation.placement
    shared = [point.tensor for point in placement.points if point.shares is not None]
    return {one.files.tensors.names[name] for name in (*placement.tied, *shared) if name in one.files.tensors.names}


def enabled(sim: Any, entries: set[str]) -> set[str]:
    """Names of tensors that AIMET quantizes to integers.

    Some it puts into 16-bit floats by itself, and some, around a ReLU, share one quantizer: of these the name in the
    file counts.
    """
    quantizers = {name: one for name, one in sim.qc_quantize_op_dict.items() if one.enabled}
    known = {id(one) for name, one in quantizers.items() if name in entries}
    return {
        name
        for name, one in quantizers.items()
        if one.data_type.name == "int" and (name in entries or id(one) not in known)
    }


def outputs(sim: Any, one: Pair) -> list[Tensor]:
    feed = {name: value.numpy() for name, value in one.files.signature.feed(*one.example).items()}
    return [torch.from_numpy(value) for value in sim.session.run(None, feed)]


def closeness(wanted: list[Tensor], got: list[Tensor]) -> float:
    return min(sqnr_db(a, b) for a, b in zip(wanted, got, strict=True))


@shipped
def test_aimet_onnx_loads_the_pair_and_computes_what_the_simulation_does(model: str, target: str) -> None:
    from aimet_onnx import QuantizationSimModel
    from aimet_onnx.quantsim import load_encodings_to_sim

    one = pair(model, target)
    for version in VERSIONS:
        sim = QuantizationSimModel(onnx.load(one.folder / "model_float.onnx"), config_file="htp_v73", providers=CPU)
        load_encodings_to_sim(sim, str(one.folder / f"{version}.encodings"), strict=False)
        entries = {entry.name for entry in read(one.folder / f"{version}.encodings").tensors if entry.bits < 32}
        loaded = enabled(sim, entries)
        assert loaded <= entries
        # By 2.0.0 AIMET leaves out what repeats another's entry, or lies inside a group of its own (SE's last layer).
        assert len(entries - loaded - repeated(one)) <= (0.05 * len(entries) if version == "2.0.0" else 0)
        assert closeness(wanted(one), outputs(sim, one)) > 35


@pytest.mark.parametrize("version", VERSIONS)
def test_aimet_onnx_is_never_strict_with_us(version: str) -> None:
    from aimet_onnx import QuantizationSimModel
    from aimet_onnx.quantsim import load_encodings_to_sim

    folder = pair("vit", "qnn").folder
    sim = QuantizationSimModel(onnx.load(folder / "model_float.onnx"), config_file="htp_v73", providers=CPU)
    with pytest.raises(AssertionError, match="settings not matching"):
        load_encodings_to_sim(sim, str(folder / f"{version}.encodings"), strict=True)


@shipped
def test_aimet_onnx_takes_the_file_with_qdq(model: str, target: str) -> None:
    from aimet_onnx import QuantizationSimModel

    one = pair(model, target)
    sim = QuantizationSimModel.from_onnx_qdq(onnx.load(one.folder / "model.onnx"), providers=CPU)
    entries = {entry.name for entry in read(one.folder / "1.0.0.encodings").tensors}
    for name, quantizer in sim.qc_quantize_op_dict.items():
        if quantizer.enabled and not quantizer.is_initialized():
            assert name not in entries
            quantizer.enabled = False  # AIMET would calibrate it
    loaded = enabled(sim, entries)
    assert loaded <= entries
    assert len(entries - loaded - repeated(one)) <= 0.05 * len(entries)
    assert closeness(wanted(one), outputs(sim, one)) > 25


def test_aimet_torch_takes_the_weights_of_0_6_1() -> None:
    from aimet_torch import QuantizationSimModel

    one = pair("resnet18", "onnxruntime")
    sim = QuantizationSimModel(resnet18(num_classes=10).eval(), dummy_input=one.example[0][0][:1], default_param_bw=8)
    sim.set_and_freeze_param_encodings(str(one.folder / "0.6.1.encodings"))
    entries = {entry.name: entry for entry in read(one.folder / "0.6.1.encodings").tensors}
    seen = 0
    for layer, module in sim.model.named_modules():
        quantizers = getattr(module, "param_quantizers", {})
        if "weight" in quantizers and quantizers["weight"] is not None and f"{layer}.weight" in entries:
            scales = quantizers["weight"].get_scale().flatten()
            torch.testing.assert_close(scales, torch.tensor(entries[f"{layer}.weight"].scales), rtol=1e-5, atol=0)
            seen += 1
    assert seen == len(one.simulation.placement.layers)


@pytest.mark.parametrize(("version", "error"), [("1.0.0", AttributeError), ("2.0.0", RuntimeError)])
def test_aimet_torch_takes_no_newer_version(version: str, error: type[Exception]) -> None:
    from aimet_torch import QuantizationSimModel

    one = pair("resnet18", "onnxruntime")
    sim = QuantizationSimModel(resnet18(num_classes=10).eval(), dummy_input=one.example[0][0][:1])
    with pytest.raises(error):
        sim.set_and_freeze_param_encodings(str(one.folder / f"{version}.encodings"))
