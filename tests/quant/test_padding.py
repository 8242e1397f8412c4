"""Padding neither widens ranges nor counts for how close a simulation is."""

import pytest
import torch
from torch import Tensor, fx
from transformers import DebertaV2Config, DebertaV2Model

from qatflow.graph.observe import observe
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.histogram import Histogram
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration
from tests.graph.padded import batch, encoder

KINDS = ("embedding", "linear", "add", "relu")
"""Of tensors `[n, T, C]` in the encoder."""
Inputs = tuple[Tensor, Tensor]


def simulated(inputs: Inputs, mask: str = "attention_mask", design: Design | None = None) -> Simulation:
    return Simulation(captured_network(encoder(), tuple(one[:2] for one in inputs), design=design, mask=mask))


def extremes_by_hand(simulation: Simulation, inputs: Inputs) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest value at real positions of every tensor `[n, T, C]`; weights are in float."""
    real, found = inputs[1] != 0, {}

    def see(node: fx.Node, value: Tensor) -> None:
        found[node.name] = float(value[real].min()), float(value[real].max())

    names = {point.tensor for point in simulation.placement.points if point.parameter is None}
    nodes = [
        node for node in simulation.network.graph.graph.nodes if node.name in names and node.name.startswith(KINDS)
    ]
    observe(simulation.network.graph, nodes, [(inputs, {})], see)
    return found


def test_ranges_are_those_of_real_positions() -> None:
    inputs = batch(16)
    simulation = simulated(inputs)
    simulation.quantize_weights(False)
    histograms = simulation.observe([(inputs, {})])
    wanted = extremes_by_hand(simulation, inputs)
    assert len(wanted) >= 5
    for name, (low, high) in wanted.items():
        assert (histograms[name].low, histograms[name].high) == (pytest.approx(low), pytest.approx(high)), name
    blind = simulated(inputs, mask="")
    blind.quantize_weights(False)
    everything = blind.observe([(inputs, {})])
    wider = [name for name in wanted if everything[name].high > 2 * histograms[name].high]
    assert len(wider) >= 3


def test_of_attention_only_pairs_of_real_positions_count() -> None:
    inputs = batch(16)
    simulation = simulated(inputs, design=Design(TARGETS["qnn"]))
    simulation.quantize_weights(False)
    graph = simulation.network.graph
    scores = next(node for node in graph.graph.nodes if node.name.startswith("matmul"))
    real, wanted = inputs[1] != 0, []
    pairs = real[:, :, None] & real[:, None, :]
    observe(graph, [scores], [(inputs, {})], lambda node, value: wanted.append(value[pairs]))
    seen = simulation.observe([(inputs, {})])[scores.name]
    assert seen.high == pytest.approx(float(wanted[0].max()))
    assert float(seen.bins()[1].sum()) <= 1.01 * len(wanted[0])


def test_real_positions_gain_from_it_and_closeness_looks_at_them_alone() -> None:
    inputs, test = batch(32), batch(32, seed=1)
    real = test[1] != 0
    ratios = {}
    for mask in ("attention_mask", ""):
        simulation = simulated(inputs, mask, Design(calibration=Calibration(activations="minmax")))
        simulation.calibrate([(inputs, {})])
        with torch.no_grad():
            wanted, got = simulation.network.graph(*test), simulation.model(*test)
        tokens = sqnr_db(wanted["tokens"][real], got["tokens"][real])
        ratios[mask] = tokens
        rest = [sqnr_db(wanted["pooled"], got["pooled"]), sqnr_db(wanted["ends"][real], got["ends"][real])]
        turned = sqnr_db(wanted["turned"].mT[real], got["turned"].mT[real])
        if mask:
            assert simulation.closeness([(test, {})]) == pytest.approx(min(tokens, *rest, turned))
    assert ratios["attention_mask"] > ratios[""] + 10


def test_batches_without_padding_are_counted_as_ever() -> None:
    inputs = batch(8)
    full = inputs[0] + (inputs[1] == 0), torch.ones_like(inputs[1])
    with_mask, blind = (simulated(inputs, mask).observe([(full, {})]) for mask in ("attention_mask", ""))
    for name, one in with_mask.items():
        for got, wanted in zip(one.bins(), blind[name].bins(), strict=True):
            assert torch.equal(got, wanted)


def test_a_histogram_of_some_values_is_that_of_those() -> None:
    torch.manual_seed(0)
    values, counts = torch.randn(4, 50), torch.rand(4, 50) > 0.6
    some, picked = Histogram(), Histogram()
    some.update(values, counts)
    picked.update(values[counts])
    assert (some.low, some.high) == (picked.low, picked.high)
    for got, wanted in zip(some.bins(), picked.bins(), strict=True):
        assert torch.equal(got, wanted)


def test_deberta_whose_padding_is_mostly_noise() -> None:
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        norm_rel_ebd="layer_norm",
    )
    model = DebertaV2Model(config).eval()
    mask = (torch.arange(20) < torch.randint(8, 17, (16, 1))).long()
    inputs = {"input_ids": torch.randint(3, 50, (16, 20)) * mask, "attention_mask": mask}
    simulation = Simulation(captured_network(model, (), {name: one[:2] for name, one in inputs.items()}))
    simulation.calibrate([((), inputs)])
    with torch.no_grad():
        wanted, got = model(**inputs)[0], simulation.model(**inputs)[0]
    on_real = sqnr_db(wanted[mask != 0], got[mask != 0])
    assert simulation.closeness([((), inputs)]) == pytest.approx(on_real, abs=0.01)
    assert on_real > 25 > sqnr_db(wanted, got)
