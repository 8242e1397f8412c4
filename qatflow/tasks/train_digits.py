"""Train the networks that ship with qatflow, so that where their weights come from is known and repeatable.

    python -m qatflow.tasks.train_digits

The epoch that is kept has the lowest validation loss of those at the last learning rate, which is written to the file
as `final_lr`: a search for QAT's learning rate starts from it. Test samples are measured once, at the end.
"""

from __future__ import annotations

import argparse
import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from qatflow.tasks.digits import MEAN, STD, digits
from qatflow.tasks.digits_mobilenet import DigitsMobileNet, skewed
from qatflow.tasks.models import MODELS, shipped_weights
from qatflow.tasks.splits import Samples

COMMAND = "python -m qatflow.tasks.train_digits"
log = logging.getLogger(__name__)

Part = tuple[Tensor, Tensor]
"""Images `[count, 1, 8, 8]` and labels `[count]`."""


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how fast: the learning rate falls to a tenth at each milestone.

    Attributes:
        epochs: passes over the training samples.
        lr: Adam's learning rate in the first epoch.
        milestones: shares of all epochs at which it falls.
    """

    epochs: int = 60
    lr: float = 1e-2
    milestones: tuple[float, ...] = (0.5, 0.8)
    batch_size: int = 64
    weight_decay: float = 1e-4

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        passed = sum(epoch >= milestone * self.epochs for milestone in self.milestones)
        return float(self.lr / 10**passed)

    @property
    def final_lr(self) -> float:
        """Return the learning rate of the last epoch."""
        return self.rate(self.epochs - 1)


def train(model: DigitsMobileNet, part: Part, validation: Part, schedule: Schedule, seed: int) -> DigitsMobileNet:
    """Return `model`, trained, as it was after the best of the epochs at the last learning rate.

    Args:
        model: it is changed.
        part: training samples.
        validation: samples to choose the epoch by.
        schedule: epochs and learning rates.
        seed: of the order of samples and of their shifts.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    best, best_loss = model, float("inf")
    for epoch in range(schedule.epochs):
        rate = schedule.rate(epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        _train_epoch(model, part, optimizer, schedule.batch_size, generator)
        loss, accuracy = measure(model, validation)
        if rate == schedule.final_lr and loss < best_loss:
            best, best_loss = copy.deepcopy(model), loss
        if epoch % 10 == 9 or epoch == schedule.epochs - 1:
            log.info("epoch %d: lr %g, validation loss %.4f, accuracy %.4f", epoch + 1, rate, loss, accuracy)
    return best.eval()


def _train_epoch(
    model: nn.Module, part: Part, optimizer: torch.optim.Optimizer, batch_size: int, generator: torch.Generator
) -> None:
    images, labels = part
    model.train()
    order = torch.randperm(len(labels), generator=generator)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        loss = F.cross_entropy(model(shifted(images[indices], generator)), labels[indices], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images `[count, 1, 8, 8]`, each moved by up to one pixel each way, with background moving in."""
    count, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1), value=-MEAN / STD)
    down, right = torch.randint(0, 3, (2, count, 1), generator=generator)
    rows, columns = torch.arange(height) + down, torch.arange(width) + right
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


@torch.no_grad()
def measure(model: nn.Module, part: Part) -> tuple[float, float]:
    """Return mean cross entropy, in nats, and accuracy, 0 to 1, in evaluation mode."""
    images, labels = part
    logits = model.eval()(images)
    accuracy = (logits.argmax(1) == labels).double().mean()
    return float(F.cross_entropy(logits, labels)), float(accuracy)


def whole(samples: Samples | None) -> Part:
    """Return all samples of a part as one batch."""
    assert samples is not None
    images, labels = zip(*(samples[index] for index in range(len(samples))), strict=True)
    return torch.stack(images), torch.stack(labels)


def write(name: str, model: DigitsMobileNet, folder: Path, facts: dict[str, str]) -> None:
    """Write a model's weights, with facts about them in the file's header."""
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    (folder / shipped_weights(name).name).write_bytes(save(weights, metadata=facts))


def train_and_write(name: str, schedule: Schedule, seed: int, folder: Path) -> None:
    """Train one of the networks, measure it, and write its weights into `folder`."""
    splits = digits()
    part, validation, test = whole(splits.train), whole(splits.validation), whole(splits.test)
    torch.manual_seed(seed)
    untrained = MODELS[name]()
    assert isinstance(untrained, DigitsMobileNet)
    model = train(untrained, part, validation, schedule, seed)
    if name == "digits_mobilenet_skewed":
        model = skewed(model, seed=seed)
    facts = {
        "command": f"{COMMAND} --seed {seed} --epochs {schedule.epochs}",
        "seed": str(seed),
        "final_lr": f"{schedule.final_lr:g}",
        "validation_accuracy": f"{measure(model, validation)[1]:.4f}",
        "test_accuracy": f"{measure(model, test)[1]:.4f}",
        "torch": torch.__version__,
    }
    write(name, model, folder, facts)
    log.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in facts.items()))


def main(arguments: list[str] | None = None) -> None:
    """Train the networks as the command line says."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Train the networks that ship with qatflow, on one thread."
    )
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, order and stretching (%(default)s)")
    parser.add_argument("--networks", nargs="+", choices=MODELS, default=list(MODELS), help="which (all)")
    parser.add_argument("--epochs", type=int, default=Schedule.epochs, help="passes over the samples (%(default)s)")
    parser.add_argument("--folder", type=Path, default=shipped_weights("").parent, help="where to write (%(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # sums in another order round otherwise, and the figures would not repeat
    for name in options.networks:
        train_and_write(name, Schedule(epochs=options.epochs), options.seed, options.folder)


if __name__ == "__main__":
    main()
