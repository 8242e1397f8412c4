"""Devices, processes and precision of training, by Lightning Fabric."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from qatflow.recipe import Qat


def fabric_of(device: torch.device, qat: Qat) -> Fabric:
    """Return a Fabric for this process: alone, or one of those that `torchrun` started for one trial.

    Args:
        device: where the task is.
        qat: `precision` decides about autocast.
    """
    options: dict[str, Any] = {
        "accelerator": "cuda" if device.type == "cuda" else "cpu",
        "precision": "bf16-mixed" if qat.precision == "bf16" else "32-true",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Fabric's hints on hardware that is there and not asked for
        if processes() > 1:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", processes()))
            nodes = processes() // local
            # a module may have parameters that a batch does not reach
            strategy = DDPStrategy(find_unused_parameters=True)
            fabric = Fabric(devices=local, num_nodes=nodes, strategy=strategy, **options)
        else:
            devices = [device.index or 0] if device.type == "cuda" else 1
            fabric = Fabric(devices=devices, **options)
        fabric.launch()
    return fabric


def processes() -> int:
    """Return how many processes train one trial together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return which of this machine's processes this one is."""
    return int(os.environ.get("LOCAL_RANK", "0"))
