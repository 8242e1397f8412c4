"""`Quantizer`: one opening, and a loop of one's own."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qatflow import STEPS, Design, Quantizer, Simulation, captured_network
from qatflow.errors import DataError, ExportError, RecipeError
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Precision
from qatflow.recipe.steps import AdaRound, FoldBatchNorms
from qatflow.steps.context import StepContext
from tests.networks import inverted_residuals

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LOADER = DataLoader(TensorDataset(X, torch.zeros(64, dtype=torch.long)), batch_size=16)


def test_it_is_the_same_as_by_hand() -> None:
    model, precision = inverted_residuals(), Precision(weights=4)
    q = Quantizer(model, X[:2], calibration=LOADER, precision="w4a8")
    assert q.apply("fold_batch_norms")["folded"] == 7
    q.apply("adaround", samples=32)
    network = captured_network(model, (X[:2],), design=Design(TARGETS["onnxruntime"], precision))

    def inputs(limit: int | None) -> list:
        return [((batch[:limit],), {}) for batch in (X[:32] if limit == 32 else X).split(16)]

    context = StepContext(inputs)
    for name, config in (("fold_batch_norms", FoldBatchNorms()), ("adaround", AdaRound(samples=32))):
        torch.manual_seed(0)
        network, _ = STEPS[name](network, config, context)
    simulation = Simulation(network)
    simulation.calibrate(inputs(None))
    assert torch.equal(q.model(X), simulation.model(X))
    assert q.sqnr_db(X) == simulation.closeness([((X,), {})])
    assert q.notes["adaround"]["layers"] == 8


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    q = Quantizer(inverted_residuals(), X[:2], calibration=LOADER, precision="w3a4")
    q.apply("fold_batch_norms")
    before = q.sqnr_db(X)
    with torch.no_grad():
        wanted = q.network.graph(X)
    weights, ranges = q.trainable(learn_ranges=True)
    optimizer = torch.optim.Adam([{"params": weights, "lr": 1e-3}, {"params": ranges, "lr": 1e-3}])
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.mse_loss(q.model(X), wanted).backward()
        optimizer.step()
    after = q.sqnr_db(X)
    assert after > before + 1
    path = q.export(tmp_path / "new" / "trained.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    with torch.no_grad():
        assert nn.functional.mse_loss(torch.from_numpy(got), q.model(X)) < 1e-3
    q.apply("correct_bias")  # goes on from the trained weights
    trained = weights[0].detach()
    assert any(torch.equal(trained, value) for value in q.network.graph.state_dict().values())


@pytest.mark.parametrize(
    "calibration",
    [
        [X[:16], X[16:32]],
        [(X[:16],), (X[16:32],)],
        [{"x": X[:16]}],
        [(X[:16], torch.zeros(16))],
        DataLoader(list(X[:32]), batch_size=16),
    ],
    ids=["tensors", "tuples", "dicts", "pairs", "loader"],
)
def test_forms_of_batches(calibration: object) -> None:
    example = {"x": X[:2]} if isinstance(calibration, list) and isinstance(calibration[0], dict) else X[:2]
    q = Quantizer(inverted_residuals(), example, calibration=calibration)
    assert q.sqnr_db(example) > 10


def test_one_sample_a_dataset_and_one_tensor_do(tmp_path: Path) -> None:
    model = inverted_residuals()
    wanted = Quantizer(model, X[:2], calibration=[X]).sqnr_db(X)
    for calibration in (X, LOADER.dataset, LOADER):
        q = Quantizer(model, X[:1], calibration=calibration)
        assert abs(q.sqnr_db(X) - wanted) < 1e-6
    session = onnxruntime.InferenceSession(str(q.export(tmp_path / "model.onnx")), providers=["CPUExecutionProvider"])
    assert session.run(None, {session.get_inputs()[0].name: X[:5].numpy()})[0].shape[0] == 5


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        Quantizer(inverted_residuals(), X[:2], calibration=LOADER, target="onxruntime", precision="w1a8")
    assert [one.path for one in raised.value.mistakes] == ["target", "precision"]
    q = Quantizer(inverted_residuals(), X[:2], calibration=LOADER)
    with pytest.raises(RecipeError, match="did you mean 'adaround'"):
        q.apply("adaruond")
    with pytest.raises(RecipeError, match=r"steps.adaround.smaples: unknown key; did you mean 'samples'"):
        q.apply("adaround", smaples=3)
    with pytest.raises(ExportError, match=r"model.onx: did you mean '.onnx'\?"):
        q.export(tmp_path / "model.onx")
    with pytest.raises(DataError, match="has not the form of the example"):
        Quantizer(inverted_residuals(), X[:2], calibration=[(X, X, X)]).sqnr_db(X)


def test_the_encodings_go_into_a_folder(tmp_path: Path) -> None:
    q = Quantizer(inverted_residuals(), X[:2], calibration=LOADER, target="qnn")
    folder = q.export(tmp_path / "pair")
    assert sorted(path.name for path in folder.iterdir()) == ["model.encodings", "model_float.onnx"]


def test_the_model_is_left_as_it_is() -> None:
    model = inverted_residuals().train()
    model.stem[1].eval()  # a frozen batch norm
    before = {name: value.clone() for name, value in model.state_dict().items()}
    q = Quantizer(model, X[:2], calibration=LOADER)
    q.apply("fold_batch_norms")
    assert q.sqnr_db(X) > 20
    assert [module.training for module in model.stem] == [True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
