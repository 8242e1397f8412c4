"""Statistics of batch norms that cannot be folded, from what quantized layers give them."""

import pytest
import torch
from torch import nn

from qatflow.graph.capture import capture
from qatflow.graph.layers import tensor
from qatflow.quant.network import Network
from qatflow.quant.simulation import Simulation
from qatflow.recipe.steps import ReestimateBatchNorms
from qatflow.steps.reestimate_batch_norms import reestimate_batch_norms


class BehindConcat(nn.Module):
    """A batch norm over two branches: none of their layers can take it up; and one over their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(9, 6, 1)
        self.norm, self.last = nn.BatchNorm2d(9), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.norm(torch.cat([self.a(x), self.b(x).relu()], 1))
        return self.last(both.relu().flatten(2).unsqueeze(3)[:, :6]).sum((2, 3)) + self.c(both).sum((2, 3))


def network() -> tuple[Network, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8)
    return Network(capture(BehindConcat().eval(), (x[:2],))), x


def test_the_statistics_are_those_of_the_quantized_inputs(make_context) -> None:
    before, x = network()
    context = make_context(*x.split(16))
    after, notes = reestimate_batch_norms(before, ReestimateBatchNorms(), context)
    assert notes == {"reestimated": 2}
    simulation = Simulation(after)
    simulation.calibrate([((x,), {})])
    seen = {}
    for node in simulation.model.graph.nodes:
        if node.op == "call_function" and "batch_norm" in str(node.target):
            seen[node.args[3].target] = node.args[0]  # the running mean
    interpreter = torch.fx.Interpreter(simulation.model, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(x)
    for name, source in seen.items():
        rows = interpreter.env[source].double().movedim(1, 0).flatten(1)
        torch.testing.assert_close(tensor(after.graph, name).double(), rows.mean(1), rtol=1e-3, atol=2e-3)
        variance = tensor(after.graph, name.replace("mean", "var")).double()
        torch.testing.assert_close(variance, rows.var(1, correction=0), rtol=2e-2, atol=1e-4)


def test_weights_and_the_network_that_went_in_stay(make_context) -> None:
    before, x = network()
    state = {name: value.clone() for name, value in before.graph.state_dict().items()}
    after, _ = reestimate_batch_norms(before, ReestimateBatchNorms(), make_context(x))
    for name, value in before.graph.state_dict().items():
        assert torch.equal(value, state[name])
        assert torch.equal(after.graph.state_dict()[name], value) != ("running" in name)


@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(3, 4, 3))])
def test_without_a_batch_norm_it_says_so(model: nn.Module, make_context) -> None:
    x = torch.randn(4, 3, 8, 8)
    plain = Network(capture(model.eval(), (x[:2],)))
    after, notes = reestimate_batch_norms(plain, ReestimateBatchNorms(), make_context(x))
    assert after is plain
    assert notes["reestimated"] == 0
    assert "folded" in str(notes["reason"])
