"""One trial of training: its schedule, its floor, its way back, and what it may change."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from qatflow.errors import QatflowError
from qatflow.qat.devices import fabric_of
from qatflow.qat.features import Watched, feature_loss, feature_nodes
from qatflow.qat.losses import FROM_TEACHER, ON_LABELS, Objective
from qatflow.qat.optimizers import choose_optimizer
from qatflow.qat.schedule import Settings
from qatflow.qat.train import Outcome, Training, train
from qatflow.quant.design import Design
from qatflow.quant.grid import Encoding
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Precision, Qat
from qatflow.results.gate import Measurement
from qatflow.results.result import EpochRecord
from qatflow.tasks.data import Batch
from tests import captured

CPU = torch.device("cpu")


def samples(count: int, seed: int) -> Tensor:
    return torch.randn(count, *captured.SHAPE, generator=torch.Generator().manual_seed(seed))


def uncalibrated() -> Simulation:
    return Simulation(captured.folded().designed(Design(precision=Precision(weights=4, activations=6))))


@pytest.fixture
def simulation() -> Simulation:
    result = uncalibrated()
    result.calibrate([((samples(32, 0),), {})])
    return result


class Data:
    """Training batches with the classes that FP32 gives; may spoil the loss of some epochs."""

    def __init__(self, spoiled: tuple[int, ...] = (), factor: float = math.nan) -> None:
        self.factor = factor
        self.graph = captured.folded().graph
        self.spoiled = spoiled
        self.epoch = 0

    def __len__(self) -> int:
        return 2

    def reshuffle(self, seed: int) -> None:
        self.epoch = seed

    def __iter__(self) -> Iterator[Batch]:
        for seed in (1, 2):
            x = samples(16, seed)
            with torch.no_grad():
                target = self.graph(x).argmax(1)
            if self.epoch in self.spoiled and seed == 2:
                x = x * self.factor
            yield Batch((x,), {}, target, len(x))


def closeness(model: Callable[..., Tensor]) -> Measurement:
    """How close outputs are to FP32's; higher is better and it moves with every weight."""
    x = samples(32, 5)
    with torch.no_grad():
        return Measurement(-float((model(x) - captured.folded().graph(x)).square().mean()), None, True)


def training(data: Data | None = None, loss: str = "distillation", **options: object) -> Training:
    qat = Qat(**options)
    return Training(
        train=data or Data(),
        validate=closeness,
        objective=Objective(loss, ON_LABELS.get(loss), FROM_TEACHER["distillation"]),
        fp32=captured.folded().graph,
        qat=qat,
        optimizer=choose_optimizer(qat),
        fabric=fabric_of(CPU, qat),
    )


SETTINGS = Settings(lr=1e-3, epochs=4, decay_period=2, range_learning=False)


def test_the_rate_is_divided_by_ten_every_so_many_epochs() -> None:
    settings = Settings(lr=2e-3, epochs=7, decay_period=3, range_learning=False)
    rates = [settings.rate(done) for done in range(7)]
    assert rates == pytest.approx([2e-3, 2e-3, 2e-3, 2e-4, 2e-4, 2e-4, 2e-5])
    assert settings.rate(2.99) == settings.rate(2)


def test_other_schedules_and_warm_up() -> None:
    cosine = replace(SETTINGS, lr=2.0, epochs=4, schedule="cosine")
    assert [cosine.rate(done) for done in (0, 1, 2, 4)] == pytest.approx([2, 1 + math.sqrt(0.5), 1, 0])
    constant = replace(SETTINGS, lr=2.0, schedule="constant", warmup=0.5)
    assert [constant.rate(done) for done in (0, 0.25, 0.5, 3.9)] == pytest.approx([0, 1, 2, 2])


def test_which_trials_begin_alike() -> None:
    longer = replace(SETTINGS, epochs=6)
    assert SETTINGS.begins_like(longer)
    assert not longer.begins_like(SETTINGS)
    assert replace(SETTINGS, epochs=2).begins_like(replace(longer, decay_period=3))
    assert not SETTINGS.begins_like(replace(longer, decay_period=3))
    assert not SETTINGS.begins_like(replace(longer, lr=2e-3))
    assert not SETTINGS.begins_like(replace(longer, range_learning=True))
    assert not SETTINGS.begins_like(replace(longer, distillation=0.5))
    cosine = replace(SETTINGS, schedule="cosine")
    assert cosine.begins_like(cosine)
    assert not cosine.begins_like(replace(cosine, epochs=6))


def test_training_brings_the_outputs_closer_and_records_every_epoch(simulation: Simulation) -> None:
    start = closeness(simulation.model).value
    outcome = train(simulation, training(), SETTINGS)
    assert outcome.best > start
    assert closeness(simulation.model).value == outcome.best
    assert [record.epoch for record in outcome.history] == [0, 1, 2, 3, 4]
    assert [record.lr for record in outcome.history] == pytest.approx([0, 1e-3, 1e-3, 1e-4, 1e-4])
    assert outcome.history[0].value == start
    assert outcome.history[0].train_loss is None
    assert outcome.history[1].train_loss > outcome.history[4].train_loss
    assert outcome.best == max(record.value for record in outcome.history)
    assert outcome.history[outcome.best_epoch].value == outcome.best
    assert not (outcome.failed or outcome.stopped or outcome.reason)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_every_optimizer_moves_the_weights(simulation: Simulation, optimizer: str) -> None:
    before = simulation.model.head.weight.detach().clone()
    outcome = train(simulation, training(optimizer=optimizer), SETTINGS)
    assert outcome.best_epoch > 0
    assert not torch.equal(simulation.model.head.weight, before)


def test_epoch_zero_is_the_floor_however_bad_the_training(simulation: Simulation) -> None:
    state = {name: value.clone() for name, value in simulation.model.state_dict().items()}
    start = closeness(simulation.model).value
    outcome = train(simulation, training(), replace(SETTINGS, lr=3.0))
    assert (outcome.best_epoch, outcome.best) == (0, start)
    assert all(record.value is None or record.value < start for record in outcome.history[1:])
    assert closeness(simulation.model).value == start
    assert all(torch.equal(simulation.model.state_dict()[name], value) for name, value in state.items())


def scripted(values: list[float], higher: bool) -> Callable[[fx.GraphModule], Measurement]:
    """A validation that returns given values, one a call."""
    remaining = iter(values)
    return lambda model: Measurement(next(remaining), None, higher)


@pytest.mark.parametrize(
    ("values", "higher", "best_epoch"),
    [
        ([0.5, 0.6, 0.9, 0.7, 0.9], True, 2),
        ([0.5, 0.6, 0.2, 0.3, 0.2], False, 2),
        ([0.5, 0.5, 0.5, 0.5, 0.5], True, 0),
        ([math.nan, 0.1, 0.2, 0.0, 0.1], True, 2),
    ],
)
def test_the_best_epoch_is_kept_and_ties_stay_with_the_earlier(
    simulation: Simulation, values: list[float], higher: bool, best_epoch: int
) -> None:
    weights = []

    def report(record: EpochRecord) -> str:
        weights.append(simulation.model.head.weight.detach().clone())
        return ""

    weights.append(simulation.model.head.weight.detach().clone())
    own = replace(training(), validate=scripted(values, higher), report=report)
    outcome = train(simulation, own, SETTINGS)
    assert (outcome.best_epoch, outcome.best) == (best_epoch, values[best_epoch])
    assert torch.equal(simulation.model.head.weight, weights[best_epoch])
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 5


def test_a_loss_that_is_not_finite_goes_back_and_halves_the_rate(simulation: Simulation) -> None:
    outcome = train(simulation, training(Data(spoiled=(2,))), SETTINGS)
    assert not outcome.failed
    assert "not finite in epoch 2 at learning rate 0.001: back to epoch" in outcome.reason
    assert "rate halved" in outcome.reason
    assert [record.lr for record in outcome.history] == pytest.approx([0, 1e-3, 1e-3, 0.5e-4, 0.5e-4])
    assert outcome.history[2].value is None
    assert outcome.history[2].train_loss is None
    assert all(bool(torch.isfinite(value).all()) for value in simulation.model.state_dict().values())


def test_training_goes_on_from_the_best_epoch(simulation: Simulation) -> None:
    seen = []
    state = copy.deepcopy(simulation.model.state_dict())

    class Noting(Data):
        def __iter__(self) -> Iterator[Batch]:
            seen.append({name: value.clone() for name, value in simulation.model.state_dict().items()})
            return super().__iter__()

    own = replace(training(Noting(spoiled=(1,))), validate=scripted([0.5, 0.6, 0.7, 0.8], True))
    train(simulation, own, SETTINGS)
    assert all(torch.equal(seen[1][name], value) for name, value in state.items())


def test_the_second_loss_that_is_not_finite_fails_the_trial(simulation: Simulation) -> None:
    outcome = train(simulation, training(Data(spoiled=(2, 4))), SETTINGS)
    assert outcome.failed
    assert outcome.reason.count("not finite") == 2
    assert outcome.reason.endswith("given up")
    assert len(outcome.history) == 5
    assert closeness(simulation.model).value == outcome.best


def test_a_report_that_says_so_stops_the_trial(simulation: Simulation) -> None:
    told = []

    def report(record: EpochRecord) -> str:
        told.append((record.epoch, record.value))
        return "enough" if record.epoch == 2 else ""

    outcome = train(simulation, replace(training(), report=report), SETTINGS)
    assert outcome.stopped == "enough"
    assert [record.epoch for record in outcome.history] == [0, 1, 2]
    assert told == [(record.epoch, record.value) for record in outcome.history[1:]]


def activations(simulation: Simulation) -> dict[str, Encoding]:
    names = [point.tensor for point in simulation.placement.points if point.parameter is None]
    return {name: encoding for name, encoding in simulation.encodings().items() if name in names}


def trained(simulation: Simulation, range_learning: bool, **options: object) -> Outcome:
    return train(simulation, training(**options), replace(SETTINGS, range_learning=range_learning, lr=3e-3))


def test_range_learning_moves_the_ranges_of_activations(simulation: Simulation) -> None:
    before = activations(simulation)
    assert trained(simulation, True).best_epoch > 0
    after = activations(simulation)
    moved = [name for name in before if not torch.equal(before[name].scale, after[name].scale)]
    assert len(moved) == len(before)
    assert all(float(encoding.zero_point) == round(float(encoding.zero_point)) for encoding in after.values())


def test_without_it_they_stay_to_the_last_bit_while_weight_scales_follow(simulation: Simulation) -> None:
    before, all_before = activations(simulation), simulation.encodings()
    assert trained(simulation, False).best_epoch > 0
    after = activations(simulation)
    for name, encoding in before.items():
        assert torch.equal(after[name].scale, encoding.scale)
        assert torch.equal(after[name].zero_point, encoding.zero_point)
    for point in simulation.placement.points:
        if point.parameter is not None:
            old, new = all_before[point.tensor].scale, simulation.encodings()[point.tensor].scale
            assert not torch.equal(old, new)


def test_ranges_have_a_learning_rate_of_their_own(simulation: Simulation) -> None:
    twin = Simulation(simulation.to_network())
    twin.load_encodings(simulation.encodings())
    one = replace(SETTINGS, epochs=1, range_learning=True)
    for each, factor in ((simulation, 1.0), (twin, 1e-4)):
        own = replace(training(range_lr_scale=factor), validate=scripted([0.0, 1.0], True))
        train(each, own, one)
    slow, fast = (float(each.quantizer("x").log_ratio.detach().abs()) for each in (twin, simulation))
    assert 0 < slow < 0.01 * fast


def test_the_same_data_and_settings_give_the_same_model(simulation: Simulation) -> None:
    twin = uncalibrated()
    twin.load_encodings(simulation.encodings())
    one, other = (train(each, training(), SETTINGS) for each in (simulation, twin))
    assert [record.value for record in one.history] == [record.value for record in other.history]
    assert torch.equal(simulation.model.head.weight, twin.model.head.weight)


def test_training_on_labels_lowers_their_loss(simulation: Simulation) -> None:
    outcome = train(simulation, training(loss="cross_entropy"), replace(SETTINGS, lr=1e-3))
    losses = [record.train_loss for record in outcome.history[1:]]
    assert losses[-1] < losses[0]


def test_warm_up_raises_the_rate_batch_by_batch(simulation: Simulation) -> None:
    outcome = train(simulation, training(), replace(SETTINGS, epochs=3, warmup=2.0))
    assert [record.lr for record in outcome.history[1:]] == pytest.approx(
        [3 / 8 * 1e-3, 7 / 8 * 1e-3, 1e-4]
    )  # of the last batch


def test_gradients_are_scaled_down_to_the_norm(simulation: Simulation) -> None:
    options = {"optimizer": "sgd", "optimizer_kwargs": {"momentum": 0}}
    start = [one.detach().clone() for one in simulation.model.parameters()]
    own = replace(training(**options, max_gradient_norm=1e-3), validate=scripted([0.0, 1.0], True))
    train(simulation, own, replace(SETTINGS, lr=1.0, epochs=1))
    moved = [(one - before).detach() for one, before in zip(simulation.model.parameters(), start, strict=True)]
    distance = float(torch.stack([one.square().sum() for one in moved]).sum().sqrt())
    assert 1e-3 < distance <= len(Data()) * 1e-3 * 1.001


def test_bf16_trains_weights_that_stay_in_float(simulation: Simulation) -> None:
    twin = uncalibrated()
    twin.load_encodings(simulation.encodings())
    start = closeness(simulation.model).value
    half, full = train(simulation, training(precision="bf16"), SETTINGS), train(twin, training(), SETTINGS)
    assert half.best > start
    assert {one.dtype for one in simulation.model.parameters()} == {torch.float32}
    losses = [[record.train_loss for record in one.history[1:]] for one in (half, full)]
    assert losses[0] != losses[1]  # it does run in half precision
    assert losses[0] == pytest.approx(losses[1], rel=0.6)


def test_a_loss_that_explodes_below_the_start_goes_back(simulation: Simulation) -> None:
    data = Data()

    def exploding(outputs: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, target) * (1e3 if data.epoch == 2 else 1)

    own = replace(training(data), objective=Objective("exploding", exploding, FROM_TEACHER["distillation"]))
    worse = train(simulation, replace(own, validate=scripted([0.5, 0.6, 0.4, 0.55, 0.7], True)), SETTINGS)
    assert worse.reason == "diverged in epoch 2 at learning rate 0.001: back to epoch 1, rate halved"
    assert [record.lr for record in worse.history] == pytest.approx([0, 1e-3, 1e-3, 0.5e-4, 0.5e-4])
    assert (worse.best_epoch, worse.failed) == (4, False)
    better = train(simulation, replace(own, validate=scripted([0.5, 0.6, 0.55, 0.55, 0.7], True)), SETTINGS)
    assert not better.reason  # a large loss alone is the data's matter


def test_features_are_matched_on_top_of_the_loss(simulation: Simulation) -> None:
    names = tuple(feature_nodes(simulation.network.graph, ("stem",)))
    own = replace(training(feature_weight=1e3), features=names)

    @torch.no_grad()
    def mismatch(model: Callable[..., Tensor]) -> Measurement:
        got, wanted = (Watched(one, list(names))(samples(32, 9))[1] for one in (model, own.fp32))
        return Measurement(float(feature_loss(got, wanted)), None, False)

    with torch.no_grad():
        for path, weight in simulation.model.named_parameters():
            if path.startswith("stem") and path.endswith("weight"):
                weight.mul_(1.3)
    outcome = train(simulation, replace(own, validate=mismatch), replace(SETTINGS, epochs=10, decay_period=10))
    assert outcome.best < 0.5 * outcome.history[0].value
    assert outcome.history[1].train_loss > 1e2 * outcome.best  # the weight counts


def test_a_trial_that_is_taken_up_ends_as_if_it_had_not_stopped(simulation: Simulation, tmp_path: Path) -> None:
    options = {"oscillations": "freeze", "warmup": 1.0}
    settings = replace(SETTINGS, range_learning=True)
    whole = uncalibrated()
    whole.load_encodings(simulation.encodings())
    undisturbed = train(whole, training(**options), settings, tmp_path / "whole.pt")

    def stop(record: EpochRecord) -> str:
        if record.epoch == 3:
            raise KeyboardInterrupt
        return ""

    first = copy.deepcopy(simulation)
    with pytest.raises(KeyboardInterrupt):
        train(first, replace(training(**options), report=stop), settings, tmp_path / "part.pt")
    resumed = train(simulation, training(**options), settings, tmp_path / "part.pt")
    for one, other in zip(resumed.history, undisturbed.history, strict=True):
        assert replace_seconds(one) == replace_seconds(other)
    assert (resumed.best_epoch, resumed.best) == (undisturbed.best_epoch, undisturbed.best)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(simulation.model.state_dict()[name], value), name


def replace_seconds(record: EpochRecord) -> EpochRecord:
    return record.model_copy(update={"seconds": 0.0})


def test_an_optimizer_of_the_users(simulation: Simulation) -> None:
    own = Qat(optimizer="tests.qat.tiny_task:optimizer", optimizer_kwargs={"alpha": 0.9})
    made = choose_optimizer(own, ("tests",))
    assert isinstance(made([{"params": [torch.nn.Parameter(torch.ones(1))]}]), torch.optim.RMSprop)
    start = closeness(simulation.model).value
    assert train(simulation, replace(training(), optimizer=made), SETTINGS).best > start
    assert choose_optimizer(Qat(optimizer="torch.optim:Adagrad"))


@pytest.mark.parametrize(
    ("optimizer", "kwargs", "said"),
    [
        ("tests.qat.tiny_task:optimizer", {"alpah": 0.9}, "alpah"),
        ("tests.qat.tiny_task:model", {}, "model"),
        ("tests.qat.tiny_task:no_optimizer", {}, "returned a list"),
    ],
)
def test_optimizers_that_cannot_be_used(optimizer: str, kwargs: dict[str, object], said: str) -> None:
    with pytest.raises(QatflowError, match=said):
        choose_optimizer(Qat(optimizer=optimizer, optimizer_kwargs=kwargs), ("tests",))
