"""Train one trial under torchrun, and leave what every process has at the end: `python -m tests.qat.ranks FOLDER`."""

import itertools
import sys
from pathlib import Path

import torch
import yaml

from qatflow.qat.devices import fabric_of
from qatflow.qat.losses import choose_objective
from qatflow.qat.optimizers import choose_optimizer
from qatflow.qat.schedule import Settings
from qatflow.qat.train import Training, train
from qatflow.quant.design import Design
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Recipe
from qatflow.results.gate import Measurement
from qatflow.tasks.task import load_task


def state(simulation: Simulation) -> dict[str, torch.Tensor]:
    found = {name: value.detach().clone() for name, value in simulation.model.state_dict().items()}
    for name, encoding in simulation.encodings().items():
        found |= {f"scale of {name}": encoding.scale.clone(), f"zero point of {name}": encoding.zero_point.clone()}
    return found


def main(folder: Path) -> None:
    recipe = Recipe(**yaml.safe_load((folder / "recipe.yaml").read_text()))
    recipe = recipe.model_copy(update={"qat": recipe.qat.model_copy(update={"optimizer": "sgd"})})
    task = load_task(recipe, ("tests",))
    design = Design(TARGETS[recipe.target], recipe.precision, recipe.calibration)
    base = captured_network(task.model, *task.example(), design)
    fabric = fabric_of(task.device, recipe.qat)
    simulation = Simulation(base)
    simulation.calibrate(task.calibration_inputs(64))
    torch.save(state(simulation), folder / "start.pt")
    epochs = itertools.count()  # every epoch is called better than the last, so that the last one is kept
    batches = task.train(0, (fabric.global_rank, fabric.world_size))
    training = Training(
        train=batches,
        validate=lambda model: Measurement(float(next(epochs)), None, higher_is_better=True),
        objective=choose_objective(recipe, next(iter(batches)).target),
        fp32=base.graph,
        qat=recipe.qat,
        optimizer=choose_optimizer(recipe.qat),
        fabric=fabric,
    )
    train(simulation, training, Settings(lr=0.02, epochs=2, decay_period=5, range_learning=True))
    torch.save(state(simulation), folder / f"{fabric.global_rank}-of-{fabric.world_size}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
